"""`anchorvla`: what it prints, and one line with its own exit code when something is wrong."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import models.demo
import runtime
from runtime.__main__ import main
from runtime.recordings.read import read_recordings
from tests.lerobot_datasets import png, write_table

EPISODES = Path(models.demo.__file__).parent / "episodes"
FAST = ["--rate-hz", "1000", "--max-steps", "12"]


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def test_run_replays_episodes_and_ends_with_one_json_line(
    demo_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("runtime.__main__.PERIOD_S", 0.0)
    monkeypatch.setattr("runtime.__main__.LARGE_BYTES", 1e6)
    report = tmp_path / "new" / "report.html"
    code = main(
        ["run", str(demo_bundle), "--episodes", str(EPISODES / "touch-red-1.npz"), *FAST]
        + ["--report", str(report)]
    )
    out, err = capsys.readouterr()
    assert code == 0
    assert "touch-red-1: 12 steps" in out
    assert re.match(
        r".*: 0.0 GB to verify and load\n.*touch-red-1: step 1\n.*step 12\n"
        r".* 50 ticks of each kind, for the page\n(.*: \d+ of 50\n)*$",
        err,
        re.S,
    )
    numbers = last_json(out)
    assert numbers["steps"] == numbers["age"]["n"] == 12
    assert numbers["interventions"] == {}
    assert (numbers["dropped_actions"], numbers["stale_answers"]) == (0, 0)
    assert numbers["misses"] == numbers["dropped"] > 0, "at 1000 Hz every thought is late"
    said = (
        r"age of actions when sent: [\d.]+ ms median, [\d.]+ ms p99 of 12; 0 actions dropped for "
    )
    assert re.search(said + rf"their age, {numbers['misses']} misses\n", out)
    assert "a thought takes" not in out, "nothing is measured where the loop waits"
    page = report.read_text()
    assert "seeded random weights" in page
    assert page.count("<svg") >= 4
    assert page.count('class="anchor"><img') == 1
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_chunks_that_the_measured_delay_does_not_allow_are_refused(demo_bundle, capsys):
    """At 1000 Hz a chunk of 10 would need thoughts of 5 ms; the demo's take more."""
    episode = str(EPISODES / "touch-red-1.npz")
    code = main(["run", str(demo_bundle), "--episodes", episode, *FAST, "--chunks", "async"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert re.search(
        r"chunks=async cannot be: a thought takes \d+ ms here \(largest of 10 after warm-up\), \d+ "
        r"control steps at 1000 Hz, so with execute=5 a chunk has to last \d+ steps, and this "
        r"policy's lasts 10: set rate_hz to [\d.]+ or less",
        err,
    )


def test_chunks_are_thought_out_meanwhile_and_the_delay_is_measured_once(demo_bundle, capsys):
    episodes = [str(EPISODES / name) for name in ("touch-red-1.npz", "touch-blue-3.npz")]
    pace = ["--rate-hz", "5", "--max-steps", "3", "--chunks", "async"]
    assert main(["run", str(demo_bundle), "--episodes", *episodes, *pace]) == 0
    out = capsys.readouterr().out
    words = r"a thought takes \d+ ms here .*, \d control steps at 5 Hz: chunks are used async\n"
    assert len(re.findall(words, out)) == 1
    assert last_json(out)["age"]["p50"] >= 200.0, "the first action waits for the tick after"


def test_leaves_are_read_between_thoughts_and_shown(demo_bundle, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = ["run", str(demo_bundle), "--episodes", str(EPISODES / "touch-red-1.npz")]
    words += ["--rate-hz", "5", "--max-steps", "8", "--report", str(page)]
    assert main([*words, "--leaf", "anchor_similarity=2.5,0.3"]) == 0
    out = capsys.readouterr().out
    said = re.search(r"  leaf anchor_similarity: read (\d+) times.*, (\d+) skipped", out)
    assert said and sum(map(int, said.groups())) >= 1, "how many is a matter of the machine"
    html = page.read_text()
    assert "<h4>Leaves</h4>" in html and ">anchor_similarity<" in html
    assert int(said.group(1)) == 0 or "anchor_similarity, over the episode" in html
    assert main([*words, "--leaf", "anchor_similarity"]) == 2
    assert "say NAME=HERTZ or NAME=HERTZ,SECONDS" in capsys.readouterr().err
    assert main([*words, "--leaf", "nose=1"]) == 2
    assert "leaf 'nose' is no output of this policy" in capsys.readouterr().err


def test_run_keeps_the_limits_of_a_file_and_counts_what_that_changed(demo_bundle, tmp_path, capsys):
    turn = {"control": "delta", "unit": "rad", "scale": 0.001, "velocity": 25, "acceleration": 1e5}
    slow = {**turn, "velocity": 0.05}  # a twentieth of 1 in each action, at 1000 Hz
    axes = [{"name": name, **(slow if name == "x" else turn)} for name in "xyzg"]
    raw = {"robot": "r", "stamps": "simulated", "arming": {"actions": 0}, "axes": axes}
    limits = tmp_path / "robot.json"
    limits.write_text(json.dumps(raw))
    words = ["run", str(demo_bundle), "--episodes", str(EPISODES / "touch-red-1.npz"), *FAST]
    assert main([*words, "--limits", str(limits)]) == 0
    out = capsys.readouterr().out
    said = last_json(out)["interventions"]
    assert 1 <= said["velocity"] <= 12 and "not finite" not in said
    assert f"  guard: velocity, {said['velocity']} times" in out
    limits.write_text(json.dumps({**raw, "axes": axes[:3]}))
    assert main([*words, "--limits", str(limits)]) == 6
    assert "has 3 axes (x, y, z), the robot takes 4 action" in capsys.readouterr().err
    assert main([*words, "--limits", str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err


def test_run_replays_a_lerobot_dataset_on_the_camera_that_is_named(demo_bundle, tmp_path, capsys):
    _, recording = next(read_recordings([EPISODES / "touch-red-1.npz"]))
    images, states = (recording.streams[name].values for name in ("frame", "state"))
    rows = [
        {
            "episode_index": 0,
            "frame_index": i,
            "timestamp": i / 10,
            "task_index": 0,
            "observation.state": states[i].tolist(),
            "action": recording.actions[i].tolist(),
            **{f"images.{side}": {"bytes": png(images[i])} for side in ("left", "right")},
        }
        for i in range(4)
    ]
    write_table(tmp_path / "data.parquet", rows)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "touch red"}')
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4}')
    info = {"codebase_version": "v2.1", "fps": 10, "chunks_size": 1, "data_path": "data.parquet"}
    info["features"] = {"images.left": {"dtype": "image"}, "images.right": {"dtype": "image"}}
    info["features"]["observation.state"] = {"dtype": "float32"}
    info["features"]["action"] = {"dtype": "float32", "names": ["x", "y", "z", "grip"]}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    command = ["run", str(demo_bundle), "--episodes", str(tmp_path), *FAST]
    assert main(command) == 6
    assert (
        "(CAMERA= in make) must be one of images.left, images.right; none is named"
        in capsys.readouterr().err
    )
    page = tmp_path / "page.html"
    assert main([*command, "--camera", "images.right", "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert "episode 0: 4 steps" in out and last_json(out)["steps"] == 4
    assert "grip, fraction: predicted and recorded" in page.read_text()


def test_check_passes_on_a_whole_bundle(demo_bundle, capsys):
    assert main(["check", str(demo_bundle)]) == 0
    out = capsys.readouterr().out
    assert "ok   actions" in out
    assert "FAIL" not in out


def test_check_fails_when_an_engine_computes_something_else(demo_bundle, capsys, monkeypatch):
    real = runtime.interpreter.Interpreter.run

    def run(self, leaf):
        real(self, leaf)
        arrays["spatial_tokens"] *= 1.001

    policy = runtime.load(demo_bundle)
    arrays = {"spatial_tokens": policy.memory.host("spatial_tokens")}
    monkeypatch.setattr("runtime.__main__.load", lambda *a, **k: policy)
    monkeypatch.setattr(runtime.interpreter.Interpreter, "run", run)
    assert main(["check", str(demo_bundle)]) == 1
    streams = capsys.readouterr()
    assert "FAIL spatial_tokens" in streams.out
    assert "do not drive a robot with it" in streams.err


def test_bench_prints_both_kinds_of_tick(demo_bundle, capsys):
    assert main(["bench", str(demo_bundle), "--ticks", "3"]) == 0
    streams = capsys.readouterr()
    assert "3 ticks of each kind: 3 of 3" in streams.err
    figures = last_json(streams.out)
    assert figures["cold"]["tick"]["n"] == figures["warm"]["tick"]["n"] == 3
    for kind in ("warm", "cold"):
        assert 0 < figures[kind]["interpreter"]["p50"] < figures[kind]["overhead"]["p50"]
    assert figures["way_to_wait"] == "not applicable", "the host computes itself"
    files = runtime.read_bundle(demo_bundle).manifest.files
    engines = sum(entry.bytes for name, entry in files.items() if name.startswith("engines/"))
    everything = sum(entry.bytes for entry in files.values())
    assert figures["start_up"]["bytes_read"] == everything + engines, "verified, then loaded"
    assert figures["start_up"]["seconds"] > 0
    assert f" s, {(everything + engines) / 1e6:.1f} MB of files read" in streams.out


def named(word):
    """The tensors that a row of `show` begins with: `x_1..3` are three."""
    found = re.fullmatch(r"(.*_)(\d+)\.\.(\d+)", word)
    return [f"{found[1]}{n}" for n in range(int(found[2]), int(found[3]) + 1)] if found else [word]


def test_show_says_for_every_tensor_when_it_is_recomputed(demo_bundle, tmp_path, capsys):
    picture = tmp_path / "graph.svg"
    assert main(["show", str(demo_bundle), "--svg", str(picture)]) == 0
    out = capsys.readouterr().out
    graph = runtime.read_bundle(demo_bundle).manifest.graph
    lines = {
        name: line for line in out.splitlines() if line.strip() for name in named(line.split()[0])
    }
    assert all(name in lines for name in graph.tensors)
    assert lines["x_1"] is lines["x_10"] and lines["x_0"] is not lines["x_1"]
    assert lines["modulation_3"].split()[:4] == ["modulation_0..9", "26x128", "133,120", "part"]
    (steps,) = (line for line in out.splitlines() if line.startswith("denoise "))
    assert steps.split("  ")[0] == "denoise x 10"
    assert " x_0 modulation_0..9 coefficients_0..9 leftover_actions " in steps
    assert re.search(r" anchor {9,}on a new anchor$", lines["prefix_kv"])
    assert re.search(r" nothing {9,}once, at load$", lines["coefficients"])
    assert "every tick" in lines["frame_tokens"]
    assert lines["anchor_similarity"].endswith("if asked for")
    svg = picture.read_text()
    assert svg.startswith("<svg") and "denoise x 10" in svg
    assert all(f">{name}<" in svg for name in graph.inputs)
    needed = {graph.stages[i].name for i in graph.needed_for(graph.target)}
    asked = {graph.rows[s.name] for s in graph.stages if s.name not in needed}
    drawn = {name for name in asked if f">{name}<" in svg}
    assert drawn and svg.count("stroke-dasharray") == len(drawn) + 1, "and one in the key"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "{none}", "--episodes", "x.npz"], 3, "no such folder"),
        (["check", "{none}"], 3, "no such folder"),
        (["run", "{bundle}", "--episodes", "{empty}"], 6, "nothing to run"),
        (["run", "{bundle}", "--episodes", "{empty}/gone.npz"], 6, "gone.npz"),
        (["run", "{bundle}", "--episodes", "{episode}", "--rate-hz", "0"], 2, "rate_hz must be"),
        (["run", "{bundle}", "--episodes", "{episode}", "--anchor", "last"], 2, "unknown anchor"),
        (
            ["check", "{bundle}", "--embodiment", "bridge"],
            3,
            "no statistics for embodiment 'b",
        ),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    demo_bundle, tmp_path, capsys, arguments, code, message
):
    words = {
        "none": tmp_path / "none",
        "bundle": demo_bundle,
        "empty": tmp_path,
        "episode": EPISODES / "touch-red-1.npz",
    }
    assert main([a.format(**words) for a in arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(runtime.BundleError):
        main(["check", str(tmp_path), "--debug"])


def test_a_camera_of_another_size_is_an_observation_error(demo_bundle, tmp_path, capsys):
    from runtime.recordings.recording import evenly, load_recording, save_recording

    small = load_recording(EPISODES / "touch-red-1.npz")
    images = small.streams["frame"].values.repeat(4, axis=1).repeat(4, axis=2)
    big = replace(small, streams={**small.streams, "frame": evenly(images, 10.0)})
    save_recording(big, tmp_path / "big.npz")
    code = main(["run", str(demo_bundle), "--episodes", str(tmp_path / "big.npz"), *FAST])
    assert code == 4
    assert "exported for 8x8" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(demo_bundle):
    command = f"{sys.executable} -m runtime show {demo_bundle} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


def test_every_verb_has_its_own_help(capsys):
    for verb in ("run", "check", "bench", "show"):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "BUNDLE" in capsys.readouterr().out


def test_a_bundle_can_be_moved(demo_bundle, tmp_path, capsys):
    shutil.copytree(demo_bundle, tmp_path / "elsewhere")
    assert main(["check", str(tmp_path / "elsewhere")]) == 0


def test_what_nobody_measured_is_said_at_every_load(demo_bundle, tmp_path, capsys):
    copy = shutil.copytree(demo_bundle, tmp_path / "bundle")
    raw = json.loads((copy / "manifest.json").read_text())
    raw["gates"]["end_to_end"] = {"kind": "not measured", "figures": "no episode is held out"}
    (copy / "manifest.json").write_text(json.dumps(raw))
    words = "bundle: not measured when it was exported: end_to_end; anchorvla show says why"
    with pytest.warns(runtime.UnmeasuredWarning, match=words):
        runtime.load(copy).close()
    for _ in range(2):
        assert main(["check", str(copy)]) == 0
        told = capsys.readouterr().err
        assert told.startswith("warning: ") and told.endswith(f"{words}\n")
    assert main(["show", str(copy), "--brief"]) == 0
    assert "not measured (no episode is held out" in capsys.readouterr().out
    assert main(["check", str(demo_bundle)]) == 0
    assert capsys.readouterr().err == ""
