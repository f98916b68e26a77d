"""`python -m quant` ends with the exit codes of its help; what a user can mend is one line."""

import pytest

from models.checkpoint import CheckpointError
from models.demo import CHECKPOINT
from quant.__main__ import VERBS, main
from quant.config import SensitivityConfig


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--budget-bytes", "0.01"], 2, "0.01 cannot be met: from 0.5 "),
        (["--budget-bytes", "0.3", "--episodes", "no-such-folder"], 2, "no such folder"),
        (["--budget-bytes", "0.3", "--checkpoint", "no-such-folder"], 1, "no such folder"),
    ],
)
def test_sensitivity_ends_with_its_exit_code(arguments, code, message, monkeypatch, capsys):
    given = ["--checkpoint", str(CHECKPOINT), "--board", "agx-orin-64gb", "--out", "unused"]
    monkeypatch.setattr("sys.argv", ["quant", "sensitivity", *given, *arguments])
    assert main() == code
    assert message in capsys.readouterr().err


def end_sensitivity(monkeypatch, run):
    """Exit code of `sensitivity` if it does `run`."""
    monkeypatch.setitem(VERBS, "sensitivity", (SensitivityConfig, run))
    given = ["--checkpoint", "C", "--board", "agx-orin-64gb", "--out", "O", "--budget-ms", "9"]
    monkeypatch.setattr("sys.argv", ["quant", "sensitivity", *given])
    return main()


@pytest.mark.parametrize("code", [0, 1])
def test_a_verb_ends_with_its_own_code(monkeypatch, code):
    given = []
    assert end_sensitivity(monkeypatch, lambda config: given.append(config) or code) == code
    assert [config.budget_ms for config in given] == [9]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            CheckpointError("shards: damaged; copy it again"),
            1,
            "error: shards: damaged; copy it again",
        ),
        (ValueError("build is there: remove it"), 2, "error: build is there: remove it"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, code, line):
    def fail(config):
        raise error

    assert end_sensitivity(monkeypatch, fail) == code
    assert capsys.readouterr() == ("", line + "\n")
