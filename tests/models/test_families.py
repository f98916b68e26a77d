"""The table of families: by what a configuration is known, and what each has to answer."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.families import CONFIGS, FAMILIES, family_of, read_config, to_json
from models.family import Family, layer_names
from models.networks.work import Tokens

ROOT = Path(__file__).parents[2]


def test_the_table_loads_without_torch():
    code = (
        "import sys, models.families, models.verbs\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_no_two_families_have_a_configuration_of_the_same_name():
    assert sum(len(entry.presets) for entry in FAMILIES.values()) == len(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_names_its_family_and_comes_back_from_json(name, tmp_path):
    config, path = CONFIGS[name](), tmp_path / "config.json"
    assert isinstance(config, FAMILIES[config.model_type].config)
    path.write_text(to_json(config))
    assert read_config(path) == config


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_answers_all_that_is_asked(model_type):
    """mypy holds the types of each against the Protocol; here, that the names are there."""
    family = family_of(next(iter(FAMILIES[model_type].presets.values()))())
    source = ast.parse(inspect.getsource(Family))
    asked = {node.name for node in ast.walk(source) if isinstance(node, ast.FunctionDef)}
    assert asked and asked <= set(dir(family))


@pytest.mark.parametrize("name", CONFIGS)
def test_trunks_and_layers_are_those_of_the_module(name):
    config = CONFIGS[name]()
    family = family_of(config)
    with torch.device("meta"):
        model = family.model(config)
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    assert set(layer_names(config)) == {n for n, m in model.named_modules() if isinstance(m, kinds)}
    works = family.engines_work(config, (4, 4), Tokens.padded(8))
    assert family.depths(config).keys() <= works.keys()
    assert "language" in family.depths(config)
    # What a policy is cut by is what its engines are called by.
    cut = family.engines_work(
        config, (4, 4), Tokens.padded(8), dict.fromkeys(family.depths(config), 1)
    )
    for trunk, depth in family.depths(config).items():
        assert sum(name.startswith(f"{trunk}_") for name in cut) == (depth if depth > 1 else 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model_type": "openvla"},
            r"must be one of \['anchorvla4d', .*\], got 'openvla'",
        ),
        ({"model_type": None}, r"must be one of \['anchorvla4d', .*\], got None"),
        ({"model_type": ["anchorvla4d"]}, r"got \['anchorvla4d'\]"),
        ({"text_config": {}}, "a configuration of Hugging Face transformers"),
    ],
)
def test_what_is_of_no_family_is_refused_with_its_path(change, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(to_json(CONFIGS["demo"]())) | change))
    with pytest.raises(ValueError, match=words) as refused:
        read_config(path)
    assert str(path) in str(refused.value)


def test_a_file_that_does_not_say_is_refused(tmp_path):
    path = tmp_path / "config.json"
    raw = json.loads(to_json(CONFIGS["demo"]()))
    del raw["model_type"]
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="model_type must be one of .*, got None"):
        read_config(path)
