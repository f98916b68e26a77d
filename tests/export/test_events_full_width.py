"""EventVLA at the published widths: pictures to actions in robot units, against transformers."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

import runtime
from export.build import build
from models.checkpoint import (
    load_checkpoint,
    normalizations,
    reference,
    write_random_checkpoint,
)
from models.demo import CHECKPOINT
from models.eventvla.presets import robotwin, thin
from models.families import family_of
from models.init import image_of
from models.networks.config import MLPResNetConfig
from models.stored import plain
from runtime.functions.keyframes import EventSettings
from tests.export.conftest import cut_config
from tests.oracles import END_TO_END, relative_error

INSTRUCTION, SIDE, PERIOD, STEPS = "push the puck to the marker", 128, 5, 120
"""A question every so many control steps; the policy sees all of them."""


def config_of(horizon, num_views):
    """Two layers of each trunk, with deep-stack features; an event in every chunk or two."""
    base = thin()
    return dataclasses.replace(
        base,
        language=dataclasses.replace(base.language, num_hidden_layers=2, vocab_size=512),
        head=MLPResNetConfig(action_dim=14, action_horizon=horizon),
        views=robotwin().views[:num_views],
        events=EventSettings(threshold=0.01, nms_window=horizon, cooldown=horizon),
    )


def statistics_of(width):
    """No two dimensions alike, and none about zero."""
    low = 0.5 + np.arange(width) / 10
    ranges = {"min": low, "max": low + 1 + np.arange(width) / 7, "mean": low, "std": low / 4}
    action = {name: values.tolist() for name, values in ranges.items()}
    action |= {"q01": action["min"], "q99": action["max"]}
    return {"arms": {"action": action, "state": {name: [] for name in action}}}


@pytest.fixture
def policy_of(tmp_path):
    def of(config):
        write_random_checkpoint(
            tmp_path / "checkpoint", config, tokenizer=CHECKPOINT / "tokenizer.json",
            image=image_of(config), statistics=statistics_of(config.chunk[1]), seed=0,
        )  # fmt: skip
        out = tmp_path / "bundle"
        options = {"calibration": None, "held_out": None, "tokens": None}
        size = {"image_size": (SIDE, SIDE)}
        build(cut_config(tmp_path / "checkpoint", out, "float32", **options, **size))
        return load_checkpoint(tmp_path / "checkpoint"), runtime.load(out)

    yield of
    shutil.rmtree(tmp_path)  # gigabytes, which pytest would keep


@pytest.mark.full
@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("horizon", [8, 16])
def test_actions_in_robot_units_are_those_of_the_libraries(policy_of, horizon, num_views):
    """Of the runtime and of the torch reference, with 0 to 4 keyframes of the policy's own choice,
    and of the actions themselves: their distance from the ranges' middle is what is compared too.
    """
    checkpoint, policy = policy_of(config_of(horizon, num_views))
    checkpoint = dataclasses.replace(checkpoint, model=plain(checkpoint.model))
    library = family_of(checkpoint.config).reference(
        checkpoint.model, checkpoint.tokenizer, checkpoint.image
    )
    _, to_robot = normalizations(checkpoint.config, checkpoint.statistics["arms"], "arms")
    middle = to_robot.to_robot(np.zeros(policy.chunk_shape, np.float32))
    random, compared = np.random.default_rng(0), {}
    episode = policy.start(instruction=INSTRUCTION)
    for step in range(STEPS):
        pictures = random.integers(0, 256, (num_views, SIDE, SIDE, 3), np.uint8)
        seen = dict(zip(checkpoint.config.views, pictures, strict=True))
        if step % PERIOD:
            episode.see(seen)
            continue
        answer = episode.act(seen)
        values = policy.interpreter.values
        shown = {name: values[name] for name in policy.inputs if name != "instruction"}
        count = int(shown["keyframes"][0])
        if count in compared:
            continue
        with torch.no_grad():
            made = library.predicted(*library.prepare(instruction=INSTRUCTION, **shown))
        want = to_robot.to_robot(made.actions_TA.numpy())
        torch_ours = reference(checkpoint, instruction=INSTRUCTION, **shown)
        compared[count] = [relative_error(got, want) for got in (answer.actions, torch_ours)]
        compared[count] += [relative_error(answer.actions - middle, want - middle)]
        compared[count] += [
            relative_error(answer.leaves["event_probabilities"], made.probabilities_T)
        ]
        assert answer.actions.shape == (horizon, 14) and (want - middle).std() > 1e-3
    policy.close()
    for count, errors in sorted(compared.items()):
        runtime_s, torch_s, moved, probabilities = (f"{error:.1e}" for error in errors)
        print(
            f"T={horizon}, {num_views} views, {count} keyframes: runtime {runtime_s}, reference "
            f"{torch_s}, from the middle {moved}, probabilities {probabilities}"
        )
    assert sorted(compared) == [0, 1, 2, 3, 4]
    assert np.max(list(compared.values())) <= END_TO_END
