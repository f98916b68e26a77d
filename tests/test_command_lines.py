"""What holds for every command of every package: quick help, no traceback, nobody's files lost."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import device_tests.__main__
import device_tests.serving.__main__
import device_tests.success.__main__
import device_tests.success.delays
import export.__main__
import export.evidence.bench
import models.__main__
import models.demo.__main__
import quant.__main__
import runtime.__main__
from models.anchorvla4d.presets import demo
from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT, EPISODES
from models.families import CONFIGS, FAMILIES, to_json
from runtime.board.arithmetic import make_twin
from runtime.pages.report import processor_name
from runtime.plans.folder import how_to_build
from runtime.recordings.lerobot import how_to_convert

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "mujoco",
    "metaworld",
    "tensorrt",
    "av",
    "websockets",
    "cryptography",
)
COMMANDS = {
    "runtime": (
        runtime.__main__.main,
        ["run", "replay", "check", "bench", "show", "serve", "build", "trust", "doctor"],
    ),
    "models": (models.__main__.main, list(models.__main__.VERBS)),
    "models.demo": (models.demo.__main__.main, list(models.demo.__main__.VERBS)),
    "quant": (quant.__main__.main, list(quant.__main__.VERBS)),
    "export": (export.__main__.main, list(export.__main__.VERBS)),
    "device_tests": (device_tests.__main__.main, []),
    "device_tests.serving": (device_tests.serving.__main__.main, []),
    "device_tests.success": (device_tests.success.__main__.main, []),
    "device_tests.success.delays": (device_tests.success.delays.main, []),
}
"""`python -m` name -> its main and its verbs."""
LINES = {
    " ".join([package, *words]): (package, words)
    for package, (_, verbs) in COMMANDS.items()
    for verb in ([], *([verb] for verb in verbs))
    for words in ([*verb, "--help"], [*verb, "--no-such-flag"])
}
SEEN = """
import contextlib, importlib, io, sys
main = importlib.import_module(sys.argv[1]).main
heavy = sys.argv[2].split(",")
for line in sys.argv[3:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(line.split())
        except SystemExit as end:
            code = end.code
    found = [name for name in heavy if name in sys.modules]
    print(f"{line}: {code or 0} {','.join(found)}")
"""


@pytest.mark.parametrize("package", COMMANDS)
def test_help_and_wrong_arguments_load_nothing_heavy(package):
    lines = [" ".join(words) for name, words in LINES.values() if name == package]
    done = subprocess.run(
        [sys.executable, "-c", SEEN, COMMANDS[package][0].__module__, ",".join(HEAVY), *lines],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"{line}: {0 if line.endswith('--help') else 2} " for line in lines
    ]


def call(package: str, words: list[str]) -> int:
    """The exit code of a command line."""
    try:
        return COMMANDS[package][0](words)
    except SystemExit as end:  # of argparse and tyro
        return int(end.code or 0)


SLUG = export.evidence.bench.slug(processor_name())
MINE = "somebody's own"
IN_THE_WAY = {
    "runtime run": ("run BUNDLE --episodes E.npz --report OUT/a.html", "a.html"),
    "runtime run, its journals": ("run BUNDLE --episodes E.npz --record OUT/a", "a/notes.txt"),
    "runtime replay": ("replay E.zip BUNDLE --report OUT/a.html", "a.html"),
    "runtime replay, its rerun": ("replay E.zip BUNDLE --rerun OUT/a.rrd", "a.rrd"),
    "runtime show": ("show BUNDLE --svg OUT/a.svg", "a.svg"),
    "models init": ("init demo --out OUT/a", "a/notes.txt"),
    "models init over a file": ("init demo --out OUT/a", "a"),
    "models import": (f"import {CHECKPOINT} --out OUT/a", "a/notes.txt"),
    "models synthesize": ("synthesize --config demo --layout hf --out OUT/a", "a/notes.txt"),
    "models config": ("config demo --out OUT/config.json", "config.json"),
    "models.demo blinks": ("blinks --episodes 1 --out OUT", "touch-what-blinked-0.npz"),
    "models.demo collect": ("collect --tasks touch-red --out OUT", "touch-red.npz"),
    "models.demo readout": ("readout --out OUT", "readout.json"),
    "models.demo record": ("record --out OUT", "touch-green-2.npz"),
    "models.demo remember": ("remember --out OUT", "model.safetensors"),
    "models.demo train": ("train --out OUT", "model.safetensors"),
    "models.demo tokenizer": ("tokenizer --out OUT/tokenizer.json", "tokenizer.json"),
    "quant sensitivity": (
        "sensitivity --checkpoint C --board agx-orin-64gb --budget-ms 9 --out OUT", "recipe.json",
    ),
    "quant sensitivity, a picture": (
        "sensitivity --checkpoint C --board agx-orin-64gb --budget-ms 9 --out OUT", "layers.svg",
    ),
    "quant convert": ("convert DATASET --out OUT/d", "d/episode_000000.npz"),
    "quant convert, to a dataset": ("convert E.npz --to lerobot --out OUT/d", "d/notes.txt"),
    "export build": ("build float32 --checkpoint C --out OUT/b", "b/notes.txt"),
    "export build, its page": ("build float32 --checkpoint C --out OUT/b", "b-report.html"),
    "export build, another's work": (
        "build float32 --checkpoint C --out OUT/b", "b.work/notes.txt",
    ),
    "export build, another's workshop": (
        "build float32 --checkpoint C --out OUT/b", ".b.writing/notes.txt",
    ),
    "export keys": ("keys --out OUT", "release.pub"),
    "export wheelhouse": ("wheelhouse --jetpack 6 --out OUT/w --cache OUT/c", "w/notes.txt"),
    "export wheelhouse, its cache": (
        "wheelhouse --jetpack 6 --out OUT/w --cache OUT/c", "c/notes.txt",
    ),
    "export twin": ("twin --bundle BUNDLE --out OUT/b", "b/notes.txt"),
    "export demo": ("demo --out OUT", "bundle/notes.txt"),
    "export demo, its page": ("demo --out OUT", "report.html"),
    "export bench": ("bench --results OUT --work OUT/w", f"bench-{SLUG}.json"),
    "export bench-changes": (
        "bench-changes vlaadapter-tiny --results OUT --work OUT/w", f"changes-{SLUG}.json",
    ),
    "export bench-pictures": (
        "bench-pictures eventvla-tiny --results OUT --work OUT/w", f"pictures-{SLUG}.json",
    ),
    "export forecast": ("forecast --out OUT", "full-orin-w8a8-agx-orin-64gb.html"),
    "export gate": ("gate --verdicts OUT/v.json --work OUT/w", "v.json"),
    "export planted": ("planted --results OUT --work OUT/w", "planted-demo.json"),
    "export recall": ("recall --results OUT --work OUT/w --film OUT/f.gif", "recall-demo.json"),
    "export recall, its film": ("recall --results OUT --work OUT/w --film OUT/f.gif", "f.gif"),
    "export success": ("success --results OUT --work OUT/w --film OUT/f.gif", "success-demo.json"),
    "export success, its film": ("success --results OUT --work OUT/w --film OUT/f.gif", "f.gif"),
    "export w8a8": ("w8a8 --results OUT --work OUT/w", "w8a8.json"),
    "export depth": ("depth --results OUT", "depth.json"),
    "export full-size": ("full-size --work OUT/w --results OUT", "full-size.json"),
    "export full-size, its work": (
        "full-size --cases demo/float32 --work OUT --results OUT/r", "demo-float32/notes.txt",
    ),
    "export results": ("results --readme OUT/README.md", "README.md"),
    "device_tests": ("BUNDLE --results OUT", "device.html"),
    "device_tests.success": ("BUNDLE --json OUT/a.json", "a.json"),
    "device_tests.success.delays": ("BUNDLE --json OUT/a.json", "a.json"),
    "device_tests.success, its sheet": ("BUNDLE --sheet OUT/a.png", "a.png"),
    "device_tests.success, its film": ("BUNDLE --film OUT/a.gif", "a.gif"),
}  # fmt: skip
"""A line of every command that writes, and the file of somebody's that is in its way."""
WRITES_NOTHING = {
    "runtime check", "runtime bench", "runtime serve", "runtime doctor", "export crosscheck",
    "export parts", "export status", "device_tests.serving",
}  # fmt: skip
TESTED_APART = {
    "runtime build", "runtime trust", "export sign", "export flash", "export flash-os",
    "export fleet", "export rollback",
}  # fmt: skip
"""In tests/runtime/test_build.py and test_trust.py, and in tests/flash: they write into folders of
their own, or on a board."""


def test_every_command_that_writes_is_in_the_table():
    named = {words.split(",")[0].split(" over")[0] for words in IN_THE_WAY}
    every = {f"{p} {v}" for p, (_, verbs) in COMMANDS.items() for v in verbs}
    every |= {package for package, (_, verbs) in COMMANDS.items() if not verbs}
    assert every == named | WRITES_NOTHING | TESTED_APART


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_somebodys_file_in_the_way_is_refused_and_stays(what, tmp_path, capsys):
    line, name = IN_THE_WAY[what]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(MINE)
    (tmp_path / "beside.txt").write_text(MINE)
    words = [word.replace("OUT", str(tmp_path)) for word in line.split()]
    code = call(what.split(",")[0].split()[0], words)
    err = capsys.readouterr().err
    assert code == (2 if what == "export results" else 8), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    assert tree(tmp_path) == {name: MINE.encode(), "beside.txt": MINE.encode()}


@pytest.mark.parametrize("package", COMMANDS)
def test_a_standard_output_that_is_full_is_one_line(package, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        code = call(package, ["--help"])
    assert code == 8
    assert capsys.readouterr().err == (
        "error: standard output: cannot be written: the disk is full; free some space or choose "
        "another place\n"
    )


def test_a_standard_output_that_is_full_from_the_start_is_one_line(
    demo_bundle, monkeypatch, capsys
):
    with open("/dev/full", "w") as full:  # more than its buffer holds, so it fails at once
        monkeypatch.setattr("sys.stdout", full)
        code = call("runtime", ["show", str(demo_bundle)])
    assert code == 8
    err = capsys.readouterr().err
    assert err.startswith("error: standard output: cannot be written: the disk is full")


@contextlib.contextmanager
def as_nobody() -> Iterator[Path]:
    """Permissions count inside, for a folder that another user, be it nobody, may look into."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


def drop_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_bundle_that_may_not_be_read_is_a_bundle_error(demo_bundle, capsys):
    with as_nobody() as folder:
        shutil.copytree(demo_bundle, folder / "bundle")
        (folder / "bundle" / "manifest.json").chmod(0)
        (folder / "closed").mkdir(mode=0)
        drop_rights()
        for name in ("bundle", "closed/bundle"):
            for verb in ("show", "check", "bench"):
                assert call("runtime", [verb, str(folder / name)]) == 3
                err = capsys.readouterr().err
                assert err.startswith(f"error: {folder}/{name}") and err.count("\n") == 1
                assert "cannot be read (Permission denied); give this user the right" in err


def test_a_recording_that_may_not_be_read_says_so(demo_bundle, capsys):
    with as_nobody() as folder:
        shutil.copytree(demo_bundle, folder / "bundle")
        shutil.copyfile(EPISODES / "touch-red-1.npz", folder / "mine.npz")
        (folder / "mine.npz").chmod(0)
        runtime.load(folder / "bundle").close()  # what it imports, it can import
        drop_rights()
        line = ["run", str(folder / "bundle"), "--episodes", str(folder / "mine.npz")]
        assert call("runtime", line) == 6
    assert "mine.npz: cannot be read (Permission denied)" in capsys.readouterr().err


def test_a_checkpoint_that_may_not_be_read_is_one_line(capsys):
    from export import build  # noqa: F401  while it may be read

    with as_nobody() as folder:
        shutil.copytree(CHECKPOINT, folder / "checkpoint")
        (folder / "checkpoint" / "config.json").chmod(0)
        (folder / "out").mkdir(mode=0o777)
        (folder / "out").chmod(0o777)
        drop_rights()
        line = ["build", "float32", "--checkpoint", str(folder / "checkpoint")]
        code = call("export", [*line, "--out", str(folder / "out" / "bundle")])
        assert not list((folder / "out").iterdir())
    err = capsys.readouterr().err
    assert code in (1, 2) and err.count("\n") == 1
    assert "config.json" in err and "ermission" in err


OUTPUTS = {what: line for what, (line, _) in IN_THE_WAY.items() if what != "export results"}
"""That one reads what it writes."""


@pytest.mark.parametrize("what", OUTPUTS)
def test_a_place_that_may_not_be_written_is_one_line(what, capsys):
    with as_nobody() as folder:
        package = what.split(",")[0].split()[0]
        words = [w.replace("OUT", str(folder)) for w in OUTPUTS[what].split()]
        drop_rights()
        code = call(package, words)
        assert not list(folder.iterdir())
    err = capsys.readouterr().err
    assert code == 8, err
    assert "cannot be written: permission denied" in err and err.count("\n") == 1


@pytest.mark.parametrize("package", COMMANDS)
def test_debug_shows_the_traceback(package, tmp_path):
    lines = {
        "runtime": ["show", str(tmp_path)],
        "models": ["config", "--check", str(tmp_path / "gone")],
        "models.demo": ["tokenizer", "--out", str(tmp_path)],
        "quant": ["convert", str(tmp_path), "--out", "/dev/null"],
        "export": ["twin", "--bundle", str(tmp_path), "--out", "/dev/null"],
        "device_tests": [str(tmp_path), "--results", str(tmp_path)],
        "device_tests.serving": ["no/address"],
        "device_tests.success": [str(tmp_path)],
        "device_tests.success.delays": [str(tmp_path)],
    }
    assert call(package, lines[package]) in (2, 3, 8)
    with pytest.raises(Exception, match=r"/"):
        call(package, [*lines[package], "--debug"])


INTERRUPTED = """
import os, runpy, signal, sys
wanted, sys.argv = sys.argv[1], sys.argv[2:]

def interrupt(event, arguments):
    if event == "open" and wanted in str(arguments[0]).replace("__pycache__/", ""):
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(interrupt)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "wanted", ["models/command_line.", "numpy/__init__.", "export/config.", "torch/__init__."]
)
def test_ctrl_c_while_modules_load_is_no_traceback(wanted, tmp_path):
    line = ["export", "twin", "--bundle", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, wanted, *line],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (130 if wanted.startswith(("models", "numpy")) else -signal.SIGINT)
    assert "Traceback" not in done.stderr


def test_flags_that_a_verb_would_ignore_are_refused(tmp_path, capsys):
    bundle = str(tmp_path)
    for words, message in (
        (["show", bundle, "--embodiment", "x"], "unrecognized arguments: --embodiment x"),
        (["show", bundle, "--backend", "onnxruntime"], "unrecognized arguments: --backend"),
        (["show", bundle, "--accept-failed-gates"], "unrecognized arguments: --accept-failed"),
        (["run", bundle, "--title", "x"], "--title is the heading of a page: give --report too"),
        (["run", bundle, "--num-episodes", "2"], "--num-episodes counts episodes of simulator"),
        (["bench", bundle, "--ticks", "0"], "--ticks must be at least 1, got 0"),
    ):
        assert call("runtime", words) == 2
        assert message in capsys.readouterr().err


def test_a_configuration_is_written_alone_and_checked(tmp_path, capsys):
    file = tmp_path / "new" / "config.json"
    assert call("models", ["config", "xlerobot", "--out", str(file)]) == 0
    assert os.listdir(file.parent) == ["config.json"]
    for path in (file, file.parent):
        capsys.readouterr()
        assert call("models", ["config", "--check", str(path)]) == 0
        assert "chunks of 50 x 12: rad q99" in capsys.readouterr().out
    raw = json.loads(file.read_text())
    raw["head"]["action_dim"] = 7
    file.write_text(json.dumps(raw))
    assert call("models", ["config", "--check", str(file)]) == 2
    assert (
        "normalization.action has 12 modes for head.action_dim=7; give one mode"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a configuration to write"),
        (["demo", "--check", "x"], "name a configuration to write"),
        (["demo"], "say which file to write: --out config.json"),
        (["--check", "x", "--out", "y"], "--out belongs to writing a configuration"),
        (["mine", "--out", "y"], "unknown configuration 'mine'; there are"),
    ],
)
def test_config_takes_a_name_and_a_file_or_a_check(words, message, capsys):
    assert call("models", ["config", *words]) == 2
    assert message in " ".join("".join(capsys.readouterr()).replace("\u2502", " ").split())


def test_random_weights_come_in_sizes_of_ones_own(tmp_path, capsys):
    base = demo()
    head = dataclasses.replace(base.head, prediction_horizon=16)
    vision = dataclasses.replace(base.vision, patch_size=16, window_size=128)
    own = dataclasses.replace(base, vision=vision, head=head, license="mine")
    (tmp_path / "config.json").write_text(to_json(own))
    for number, what in enumerate((tmp_path / "config.json", tmp_path)):
        out = tmp_path / f"checkpoint-{number}"
        assert call("models", ["init", str(what), "--out", str(out)]) == 0
    assert tree(tmp_path / "checkpoint-0") == tree(tmp_path / "checkpoint-1")
    made = load_checkpoint(out)
    assert made.image.patch_size == 16
    assert dataclasses.replace(made.config, description="") == own
    capsys.readouterr()
    own = dataclasses.replace(base, language=dataclasses.replace(base.language, vocab_size=300))
    (tmp_path / "config.json").write_text(to_json(own))
    assert call("models", ["init", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    assert "tokenizer.json: ids below 430 and 511 of the prompt do not" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


OTHERS = tuple(f"{family}-" for family in FAMILIES)
"""How names of configurations begin but for those of the first family."""


@pytest.mark.parametrize("verb", ["init", "config"])
def test_help_names_every_configuration(verb, capsys):
    assert call("models", [verb, "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    own = ", ".join(sorted(name for name in CONFIGS if not name.startswith(OTHERS)))
    listed = f"{own}, or FAMILY-NAME of another family"
    assert f"named configuration: {listed}" in words or (
        f"Named configuration to write: {listed}" in words
    )


def test_a_configuration_that_is_neither_named_nor_there_says_what_there_is(tmp_path, capsys):
    assert call("models", ["init", "mine", "--out", str(tmp_path / "a")]) == 2
    words = " ".join("".join(capsys.readouterr()).replace("\u2502", " ").split())
    assert f"unknown configuration 'mine'; there are {', '.join(sorted(CONFIGS))}, or name" in words


def test_what_to_type_after_an_edit_can_be_copied(tmp_path, capsys):
    file = tmp_path / "two words" / "config.json"
    assert call("models", ["config", "demo", "--out", str(file)]) == 0
    typed = shlex.split(capsys.readouterr().out.split("after an edit: ")[1])
    assert typed[:3] == ["python", "-m", "models"]
    assert call("models", typed[3:]) == 0


def test_a_hugging_face_configuration_is_told_apart(tmp_path, capsys):
    file = tmp_path / "config.json"
    raw = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    file.write_text(json.dumps(raw))
    assert call("models", ["config", "--check", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "a configuration of Hugging Face transformers (model_type 'qwen2_5_vl')" in err
    assert "python -m models config full --out policy.json" in err


def test_random_weights_are_said_and_replaced_whole(tmp_path, capsys):
    out = tmp_path / "checkpoint"
    assert call("models", ["init", "demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "demo, 0.02 GB of random weights" in said
    assert "model-00000.safetensors: 0.02 GB" in said
    before = tree(out)
    assert call("models", ["init", "demo", "--out", str(out), "--seed", "1"]) == 0
    assert tree(out).keys() == before.keys() and tree(out) != before
    assert os.listdir(tmp_path) == ["checkpoint"]
    shutil.copytree(CHECKPOINT, tmp_path / "trained")
    assert call("models", ["init", "demo", "--out", str(tmp_path / "trained")]) == 8
    assert tree(tmp_path / "trained") == tree(CHECKPOINT)


@pytest.mark.parametrize("advice", [how_to_build, make_twin, how_to_convert])
def test_a_command_that_an_error_names_can_be_copied_into_a_shell(advice):
    """Its verb is there, and a path with a space and a quote stays one word."""
    path = Path("/data/it's mine")
    words = shlex.split(advice(path))
    assert str(path) in words
    package, verb = ("runtime", words[1]) if words[0] == "anchorvla" else (words[2], words[3])
    assert verb in COMMANDS[package][1]


EXAMPLE = re.compile(r"^ *example: (.+(?:\n *--.+)*)$", re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in LINES if line.endswith("--help")])
def test_the_help_of_every_verb_ends_with_a_line_that_would_be_understood(
    line, tmp_path, monkeypatch, capsys
):
    """Understood: whatever keeps it from its work here, it is not its words."""
    package, words = LINES[line]
    if COMMANDS[package][1] and len(words) == 1:
        return  # of the package: its verbs have one each
    call(package, words)
    (example,) = EXAMPLE.findall(capsys.readouterr().out)
    program, *given = shlex.split(example)
    given = given if program == "anchorvla" else given[2:]
    assert program == "anchorvla" or example.startswith(f"python -m {package} ")
    if COMMANDS[package][1]:
        assert given[0] == words[0]
    verbs = getattr(sys.modules[COMMANDS[package][0].__module__], "VERBS", {})
    for verb, (config, _) in verbs.items():
        monkeypatch.setitem(verbs, verb, (config, lambda chosen: 0))
    monkeypatch.chdir(tmp_path)
    code = call(package, given)
    assert code == 0 if verbs else "usage: " not in capsys.readouterr().err
