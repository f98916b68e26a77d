"""The robot's code uses only names that cuda.bindings has on both JetPacks.

`cuda_api.json` holds the names that the pinned releases have in common, read from their wheels. The
code is walked, not run: the names stand in it as attributes or as strings.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from runtime.backends.cuda_context import FLAGS, MASK
from runtime.board.supported import CUDA_ERRORS

ROOT = Path(__file__).parents[2]
API = json.loads(Path(__file__).with_name("cuda_api.json").read_text())
KNOWN = {*API["runtime"].split(), *API["driver"].split()}
NAME = re.compile(r"cu(da)?[A-Z]\w+")
FILES = ("backends/cuda.py", "backends/cuda_context.py", "board/imports.py")


def names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        word = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
        if isinstance(word, str) and NAME.fullmatch(word):
            yield word


def test_the_files_that_name_cuda_are_known():
    used = {p for p in (ROOT / "runtime").rglob("*.py") if list(names(p.read_text()))}
    assert used == {ROOT / "runtime" / file for file in FILES}


@pytest.mark.parametrize("file", FILES)
def test_every_name_is_in_both_releases(file):
    used = set(names((ROOT / "runtime" / file).read_text()))
    assert used, "the walk sees nothing"
    assert used <= KNOWN


def test_names_of_one_release_alone_are_found():
    """cudaGraphAddNode_v2 went with CUDA 13, cudaGraphGetId came with it."""
    for name in ("cudaEventCreat", "cudaGraphGetId", "cudaGraphAddNode_v2"):
        assert not KNOWN.issuperset(names(f"self._call('{name}')"))


def test_numbers_are_those_of_both_releases():
    numbers = dict(API["numbers"])
    assert numbers.pop("CU_CTX_SCHED_MASK") == MASK
    assert {*CUDA_ERRORS} == {numbers.pop("cudaErrorInsufficientDriver")}
    assert sorted(FLAGS.values()) == sorted(numbers.values())
    assert FLAGS["spin"] == numbers["CU_CTX_SCHED_SPIN"]
    assert FLAGS["block"] == numbers["CU_CTX_SCHED_BLOCKING_SYNC"]
    assert FLAGS["yield"] == numbers["CU_CTX_SCHED_YIELD"]


def test_the_releases_are_those_that_are_pinned():
    lines = (ROOT / "requirements" / "robot-tensorrt.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.startswith(("cuda-python", "cuda-bind"))]
    assert [f"{pin.name} {str(pin.specifier)[2:]}" for pin in pins] == API["versions"]
