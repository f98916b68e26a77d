"""The tool that judges the tests, judged on a project of two files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mutants.child import TIMED_OUT, fork
from tests.mutants.choice import sample
from tests.mutants.equivalent import Equivalent, read_equivalents, sorted_out
from tests.mutants.score import report
from tests.mutants.source import Mutant, mutants_of
from tests.mutants.trial import Verdict


def mutants(folder: Path, source: str) -> list[Mutant]:
    path = folder / "code_.py"
    path.write_text(source)
    return mutants_of("code", path)


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        ("x = a < b", ["x = (a <= b)"]),
        ("x = a == b", ["x = (a != b)"]),
        ("x = a < b <= c", ["x = (a <= b <= c)", "x = (a < b < c)"]),
        ("x = a and b", ["x = (a or b)", "x = (b)", "x = (a)"]),
        ("x = a * (b + c)", ["x = (a / (b + c))", "x = a * ((b - c))"]),
        ("x = not a", ["x = (a)"]),
        ("x = a if b else c", ["x = (c if b else a)"]),
        ("x = -a", ["x = (a)"]),
        ("x = 7", ["x = 8"]),
        ("x = 0.5", ["x = 1.0"]),
        ("x = True", ["x = False"]),
        ("x = 'w8'", ["x = 'w8_'"]),
        ("x = max(a, b)", ["x = (min(a, b))"]),
        ("x = f(a, b)", ["x = (f(b, a))"]),
        ("x = a.copy()", ["x = (a)"]),
        ("x = np.float32(a).sum(axis=i)", ["x = (np.float32(a).sum())"]),
        ("f(a)", ["pass"]),
        ("a.b = c", ["pass"]),
        ("a += b", ["pass"]),
        ("if a:\n    b", ["if (not (a)):"]),
        ("def f():\n    return a", ["return None"]),
        ("def f():\n    raise E('a', 1)", ["pass"]),
        ("x = [a for a in b if a]", ["x = [a for a in b if (not (a))]"]),
    ],
)
def test_every_operator_makes_its_faults_and_no_others(tmp_path, source, faults):
    assert [mutant.after for mutant in mutants(tmp_path, source)] == faults


@pytest.mark.parametrize(
    "source",
    [
        '"""Docstring."""',
        "import a",
        "def f(x: int) -> 'str': ...",
        "x: Literal['a', 'b']",
        "@dataclass(frozen=True)\nclass A: ...",
        "assert 1 < 2",
        "x = f'{1 + 2}'",
        "x = {'key': a}",
        "x = a['key']",
        "x = zip(a, b, strict=True)",
        "x = 'prose that a person reads'",
    ],
)
def test_what_the_rules_exclude_is_left_alone(tmp_path, source):
    assert mutants(tmp_path, source) == []


def test_a_mutant_keeps_its_name_when_the_function_moves(tmp_path):
    function = "def f(a):\n    return a + 1\n"
    here = mutants(tmp_path, function)
    there = mutants(tmp_path, "x = y\n\n\n" + function)
    assert [m.id.split(":")[2] for m in here] == [m.id.split(":")[2] for m in there]
    assert [m.lines for m in there] == [range(5, 6)] * 3
    known = [Equivalent("code", "f", "return a + 1", "return (a - 1)", "why")]
    to_try, left_out = sorted_out(there, known)
    assert [m.after for m in left_out] == ["return (a - 1)"] and len(to_try) == 2


def test_a_sample_has_some_of_each_module_and_is_the_same_for_a_seed(tmp_path):
    many = mutants(tmp_path, "\n".join(f"x = {n}" for n in range(1000)))
    few = mutants_of("few", many[0].path)[:3]
    chosen = sample([*many, *few], 20, seed=1)
    assert chosen == sample([*many, *few], 20, seed=1) != sample([*many, *few], 20, seed=2)
    assert [m.module for m in chosen].count("few") == 3 and len(chosen) == 23


def test_whoever_calls_a_mutant_equivalent_says_why_and_it_exists():
    entries = read_equivalents()
    assert all(len(entry.why) > 20 for entry in entries)
    for module in {entry.module for entry in entries}:
        found = mutants_of(module, Path(module.replace(".", "/") + ".py"))
        _, left_out = sorted_out(found, entries)
        listed = {(e.function, e.before, e.after) for e in entries if e.module == module}
        assert listed == {(m.place.name, m.before, m.after) for m in left_out}


PROJECT = {
    "code_.py": """
def clip(x):
    if x > 2:
        return 2
    return [x]

def forgotten(x):
    print(x)

def name():
    return ["1"][0]
""",
    "checks/conftest.py": """
import pytest
from pathlib import Path
from tests.once import once
import code_ as code

@pytest.fixture(scope="session")
def made(tmp_path_factory):
    shared = tmp_path_factory.getbasetemp() / "shared"
    return once(shared / "thing", lambda path: path.mkdir() or (path / code.name()).touch())
""",
    "checks/test_code.py": """
import code_ as code

def test_a_number_below_the_limit_is_kept():
    assert code.clip(1) == [1]

def test_a_number_above_the_limit_is_not():
    assert code.clip(3) == 2

def test_a_test_that_fails_anyway_judges_nothing():
    assert code.forgotten(1)
""",
    "checks/test_made.py": """
def test_what_is_made_once_is_named_after_a_number(made):
    assert [path.name for path in made.iterdir()] == ["1"]
""",
    "judge.py": """
import hypothesis.extra.numpy
from pathlib import Path
from tests.mutants.run import Run
from tests.mutants.source import mutants_of

sources = {"code_": Path("code_.py")}
run = Run(sources, Path("build"), ["checks"], budget_s=5, jobs=2)
run.measure(again=False)
for verdict in run.judge(mutants_of("code_", sources["code_"])):
    print(verdict.mutant.place.name + ":", verdict.mutant.after, "|", verdict.killer)
""",
}


def test_what_a_test_sees_is_killed_and_what_none_sees_survives(tmp_path):
    (tmp_path / "checks").mkdir()
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "judge.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    assert {fault: killer.split("::")[0] for fault, killer in lines} == {
        "clip: if (not (x > 2)):": "checks/test_code.py",
        "clip: if (x >= 2):": "",
        "clip: if x > 3:": "checks/test_code.py",
        "clip: return None": "checks/test_code.py",
        "clip: return 3": "checks/test_code.py",
        "forgotten: pass": "",
        "name: return None": "checks/test_made.py",
        "name: return ['1_'][0]": "checks/test_made.py",
        'name: return ["1"][1]': "checks/test_made.py",
    }
    assert "a_test_that_fails_anyway_judges_nothing fails here" in done.stdout


def test_what_runs_for_ever_is_ended_with_all_that_it_started(tmp_path):
    def spin() -> int:
        (tmp_path / "pid").write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
        while True:
            pass

    child = fork(spin, tmp_path / "child", cpu_s=0)
    assert child.result() == TIMED_OUT
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline_s = time.monotonic() + 10  # a kill takes its time
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline_s


def test_the_exit_code_tells_whether_the_score_is_reached(tmp_path, capsys):
    found = mutants(tmp_path, "\n".join(f"x = {n}" for n in range(10)))
    verdicts = [Verdict(mutant, "a test", 1) for mutant in found]
    results = tmp_path / "result.json"
    assert report(verdicts[:1] * 9 + [Verdict(found[9], "", 3)], found, results) == 0
    printed = capsys.readouterr().out
    assert "(constant; 3 tests passed)" in printed and "-x = 9\n+x = 10" in printed
    assert re.search(r"code +9/ +10 +90% +\[60, 98\] +10", printed)  # Wilson's, for 9 of 10
    assert report(verdicts[:8] + [Verdict(m, "", 0) for m in found[8:]], found, results) == 1
