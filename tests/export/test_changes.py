"""A tick in which one input changed, measured and set beside all of them."""

import json

import numpy as np
import pytest

from export.engines.counts import count
from export.evidence import bench
from export.evidence.changes import INSTRUCTIONS, Changing, bench_changes, leaves_of, ticks_of
from export.evidence.changes_table import changes_table, render_changes
from export.evidence.config import ChangesConfig
from export.evidence.limits import Tick, engine_flops, leaf_flops
from export.evidence.subject import Subject
from tests.oracles import END_TO_END

NAME = "sgvla-tiny"
CAMERAS = ["head", "hand", "head_depth", "hand_depth"]
KINDS = ["all", "tick", *CAMERAS, "instruction", "noise"]
LEAVES = ["position", "grasp", "object_pose", "joints", "segmentation"]
SIDE, ROUNDS = 112, 3


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The command, without torch.compile, which takes minutes; and what it measured."""
    folder = tmp_path_factory.mktemp("changes")
    subjects = []

    def keep(make):
        def made(*given, **named):
            subjects.append(make(*given, **named))
            return subjects[-1]

        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_has_compiler", lambda: False)
        patch.setattr(Subject, "make", keep(Subject.make))
        found = bench_changes(
            ChangesConfig(
                configs=(NAME,), image=SIDE, rounds=ROUNDS, work=folder / "work",
                results=folder / "results",
            )
        )  # fmt: skip
    (subject,) = subjects
    yield folder, found, subject
    subject.policy.close()


def ran(policy):
    """What the files of the engines say that the last tick multiplied, and calls of engines."""
    manifest, stages = policy.bundle.manifest, {s.name: s for s in policy.graph.stages}
    engines = [e for name in policy.interpreter.last_run if (e := stages[name].engine)]
    files = [manifest.engines[engine].file for engine in engines]
    return sum(count(policy.bundle.path / file).flops for file in files), len(engines)


def test_every_kind_is_timed_and_its_actions_are_the_libraries(measured):
    folder, found, _ = measured
    (path,) = (folder / "results").iterdir()
    assert path.name.startswith("changes-") and json.loads(path.read_text()) == found
    rows, config = found["changes"], found["configs"][NAME]
    assert [row["kind"] for row in rows] == KINDS
    for row in rows:
        assert row["error"] <= END_TO_END, row["name"]
        assert 0 < row["ms"] <= row["p99_ms"]
        assert row["speedup"]["all"] == pytest.approx(rows[0]["ms"] / row["ms"], rel=0.01)
        assert row["speedup"]["eager"] == pytest.approx(config["eager_ms"] / row["ms"], rel=0.01)
        assert "compiled" not in row["speedup"]
    flops = [sum(row["gflops"].values()) for row in rows]
    assert max(flops) == flops[0] and min(flops) > 0


def test_a_tick_is_what_it_is_called_and_runs_what_its_files_say(measured):
    _, found, subject = measured
    for tick in ticks_of(Changing(subject)):
        tick.prepare()
        tick.run()
        before = dict(subject.policy.interpreter.values)
        tick.episode.change(tick.changed)
        tick.run()
        flops, calls = ran(subject.policy)
        expected = Tick(changed=tick.changed, unseen=tick.changed, is_cold=tick.is_cold)
        assert flops == sum(engine_flops(subject.sized, expected).values()), tick.kind
        (row,) = (r for r in found["changes"] if r["name"] == tick.name)
        assert calls == row["stages"]
        values = subject.policy.interpreter.values
        differ = {n for n in tick.episode.inputs if not np.array_equal(before[n], values[n])}
        wanted = {"all": set(tick.episode.inputs), "tick": {*tick.changed}}
        assert differ == wanted.get(tick.kind, {tick.kind})


def test_every_leaf_is_timed_and_runs_what_its_file_says(measured):
    _, found, subject = measured
    assert [row["leaf"] for row in found["leaves"]] == LEAVES
    (tick,) = (row for row in found["changes"] if row["kind"] == "tick")
    for asking, row in zip(leaves_of(Changing(subject)), found["leaves"], strict=True):
        asking.prepare()
        before = asking.run().copy()
        flops, calls = ran(subject.policy)
        assert calls == 1 and flops == sum(leaf_flops(subject.sized, asking.leaf).values()) > 0
        assert 0 < row["ms"] <= row["p99_ms"]
        assert row["of_a_tick"] == pytest.approx(row["ms"] / tick["ms"], rel=0.02, abs=1e-3)
        asking.prepare()
        assert not np.array_equal(asking.run(), before), "it is of the tick before"


def test_the_actions_of_another_tick_are_not_taken_for_these(measured):
    subject = measured[2]
    episode = Changing(subject)
    episode.change(frozenset({"hand"}))
    actions = episode.act()
    assert subject.error(actions, episode.told) <= END_TO_END
    assert subject.error(actions * np.float32(1.001), episode.told) > END_TO_END
    episode.change(frozenset({"instruction"}))
    assert subject.error(actions, episode.told) > END_TO_END
    assert sorted(INSTRUCTIONS[0].split()) == sorted(INSTRUCTIONS[1].split())
    assert INSTRUCTIONS[0] != INSTRUCTIONS[1]


def test_the_table_shows_what_was_measured(measured):
    folder, found, _ = measured
    table = render_changes(folder / "results")
    assert table == f"\n{changes_table(found)}\n" and render_changes(folder) == ""
    for row in found["changes"]:
        words = {"all": "everything, nothing kept", "tick": "what changes in every tick"}
        line = (
            f"| {words.get(row['kind'], '`' + row['kind'] + '`')} "
            f"| {row['ms']:.1f} ({row['p99_ms']:.1f}) | {row['stages']} "
            f"| {sum(row['gflops'].values()):.3g} | {row['speedup']['all']:.2f} x "
            f"| {row['error']:.1e} |"
        )
        assert line in table
    for row in found["leaves"]:
        share = f"{100 * row['of_a_tick']:.1f} %"
        line = f"| `{row['leaf']}` | {row['ms']:.2f} ({row['p99_ms']:.2f}) | {share} |"
        assert line in table
    assert "torch.compile" not in table and f"{ROUNDS} ticks" in table
    compiled = {**found, "changes": [dict(r) for r in found["changes"]]}
    for row in compiled["changes"]:
        row["speedup"] = {**row["speedup"], "compiled": 2.0}
    assert "against torch.compile |" in changes_table(compiled)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"configs": (NAME,), "rounds": 2}, "rounds at least 3, got 224, 2"),
        ({"configs": (NAME,), "image": 0}, "image must be positive"),
        ({"configs": ("no-such",)}, "unknown configuration 'no-such'"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused_before_the_work(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        bench_changes(ChangesConfig(work=tmp_path, **options))
    assert not list(tmp_path.iterdir())
