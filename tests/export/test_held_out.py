"""Whole episodes are held out, by a rule that anybody can follow, and never calibrated on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export import held_out
from export.config import BuildConfig
from export.errors import ExportError
from export.held_out import LEAST_JUDGED, gather
from quant.recipes import RECIPES
from runtime.recordings.recording import load_recording, save_recording
from tests.drawn_frames import NUM_EPISODES, NUM_FRAMES, identify, write_episode
from tests.lerobot_datasets import CAMERA, write_v30

W8A8 = "orin-w8a8"
UNPROVEN = "no episode is held out; name some with --held-out, or 5 or more with --calibration"


def write(folder: Path, numbers, length=NUM_FRAMES) -> Path:
    folder.mkdir(exist_ok=True)
    for e in numbers:
        write_episode(folder, e, length)
    return folder


def gathered(recipe=W8A8, check=lambda seen: None, **fields):
    config = BuildConfig(recipe=recipe, checkpoint=Path("c"), out=Path("o"), stride=3, **fields)
    return gather(config, RECIPES[recipe](), check)


def episodes_of(observations):
    return sorted({identify(seen.now["frame"])[0] for seen in observations})


@pytest.mark.parametrize(
    ("count", "held_out"), [(5, [4]), (9, [4]), (10, [4, 9]), (16, [4, 9, 14])]
)
def test_every_fifth_episode_is_held_out_and_the_others_are_calibrated_on(
    tmp_path, count, held_out
):
    found = gathered(calibration=write(tmp_path / "own", range(count)))
    assert episodes_of(found.judged) == held_out
    assert episodes_of(found.calibration) == [e for e in range(count) if e not in held_out]
    assert found.held_out_by == f"every 5th of {count} episodes"


@pytest.mark.parametrize("count", [1, 4])
def test_of_fewer_than_five_episodes_none_is_held_out_and_nothing_can_be_proven(tmp_path, count):
    found = gathered(calibration=write(tmp_path / "own", range(count)))
    assert episodes_of(found.calibration) == list(range(count))
    assert found.unproven == UNPROVEN
    assert found.held_out_by == ""
    assert 1 <= len(found.judged) <= LEAST_JUDGED, "what fails on these fails all the same"


def test_the_episodes_that_are_named_are_held_out_and_no_others(tmp_path):
    own, apart = write(tmp_path / "own", range(10)), write(tmp_path / "apart", [20, 21, 22])
    found = gathered(calibration=own, held_out=apart)
    assert episodes_of(found.calibration) == list(range(10))
    assert episodes_of(found.judged) == [20, 21, 22]
    assert (found.held_out_by, found.unproven) == ("named by --held-out", "")


@pytest.mark.parametrize(("length", "enough"), [(LEAST_JUDGED - 1, False), (LEAST_JUDGED, True)])
def test_a_least_number_of_held_out_observations_is_demanded(tmp_path, length, enough):
    own = write(tmp_path / "own", range(2))
    found = gathered(calibration=own, held_out=write(tmp_path / "apart", [9], length))
    assert len(found.judged) == length
    words = f"{length} held-out observations, at least {LEAST_JUDGED} are needed; record more"
    assert found.unproven == ("" if enough else words)


def test_an_episode_is_itself_under_another_name(tmp_path):
    own, apart = write(tmp_path / "own", range(3)), write(tmp_path / "apart", [7])
    shutil.copy(own / "01.npz", apart / "new.npz")
    message = r"--held-out of orin-w8a8: new in \S+apart is 01 in \S+own, which is calibrated on; "
    with pytest.raises(ExportError, match=message):
        gathered(calibration=own, held_out=apart)
    with pytest.raises(ExportError, match="00 in .*own is 00 in .*own"):
        gathered(calibration=own, held_out=own)


def test_an_episode_without_frames_is_nobodys_twin_and_is_not_read(tmp_path, monkeypatch):
    own, apart = write(tmp_path / "own", range(3)), write(tmp_path / "apart", [7])

    def unreadable(indices):
        raise AssertionError("there is nothing to read")

    def read_episodes(path, **options):
        found = list(real(path, **options))
        return [*found, replace(found[0], name="empty", num_frames=0, read=unreadable)]

    real = held_out.read_episodes
    monkeypatch.setattr(held_out, "read_episodes", read_episodes)
    assert gathered(calibration=own, held_out=apart).held_out_by == "named by --held-out"


def test_another_episode_with_the_same_first_frame_may_be_held_out(tmp_path):
    own, apart = write(tmp_path / "own", [1]), write(tmp_path / "apart", [1], length=9)
    assert gathered(calibration=own, held_out=apart).held_out_by == "named by --held-out"
    later = load_recording(own / "01.npz")
    moved = replace(later.streams["state"], values=later.streams["state"].values + np.float32(1))
    save_recording(replace(later, streams={**later.streams, "state": moved}), apart / "01.npz")
    assert gathered(calibration=own, held_out=apart).held_out_by == "named by --held-out"


def test_the_golden_observation_is_held_out_or_the_middle_of_the_episode_that_is_named(tmp_path):
    own, apart = write(tmp_path / "own", range(2)), write(tmp_path / "apart", [5, 6])
    found = gathered(calibration=own, held_out=apart)
    assert found.golden is found.judged[0]
    for golden in (own, own / "00.npz"):
        found = gathered(calibration=own, held_out=apart, golden=golden)
        assert identify(found.golden.now["frame"]) == (0, NUM_FRAMES // 2)
        assert found.golden.where == f"00, frame {NUM_FRAMES // 2}"
        assert all(found.golden is not seen for seen in found.judged)


def test_lerobot_datasets_are_calibrated_on_held_out_and_golden(tmp_path):
    write_v30(tmp_path / "dataset")
    own = write(tmp_path / "own", [5])
    found = gathered(calibration=tmp_path / "dataset", held_out=own)
    assert episodes_of(found.calibration) == list(range(NUM_EPISODES))
    found = gathered(calibration=own, held_out=tmp_path / "dataset", golden=tmp_path / "dataset")
    assert episodes_of(found.judged) == list(range(NUM_EPISODES))
    assert identify(found.golden.now["frame"]) == (0, NUM_FRAMES // 2)


def test_the_camera_that_is_named_is_the_datasets_wherever_it_is(tmp_path):
    write_v30(tmp_path / "dataset")
    own = write(tmp_path / "own", [5])
    found = gathered(calibration=tmp_path / "dataset", held_out=own, camera=CAMERA)
    assert found.held_out_by == "named by --held-out"
    with pytest.raises(ExportError, match="--calibration of .* name their own cameras; leave out"):
        gathered(calibration=own, camera=CAMERA)


def test_golden_data_never_comes_from_nowhere_where_there_are_episodes(tmp_path):
    own, apart = write(tmp_path / "own", range(2)), write(tmp_path / "apart", [5])
    middle = NUM_FRAMES // 2
    assert identify(gathered("float32", calibration=own).golden.now["frame"]) == (0, middle)
    found = gathered("float32", calibration=own, held_out=apart)
    assert identify(found.golden.now["frame"]) == (5, middle)
    assert found.calibration == found.judged == ()
    assert gathered("float32").golden is None
    assert gathered("float32").describe().golden == "made up"


def test_what_learns_nothing_is_judged_by_every_episode(tmp_path):
    own = write(tmp_path / "own", range(3))
    found = gathered("orin-bf16", calibration=own)
    assert found.calibration == ()
    assert (found.unproven, len(found.judged)) == ("", LEAST_JUDGED)
    assert episodes_of(found.judged) == [0, 1, 2]
    assert gathered("orin-fp16-safe", calibration=own).unproven == UNPROVEN, "it learns ranges"
    assert gathered("orin-bf16").unproven == UNPROVEN


def test_the_manifest_names_what_was_held_out_and_how_much_is_demanded(tmp_path):
    own, apart = write(tmp_path / "own", range(2)), write(tmp_path / "apart", [5, 6])
    told = gathered(calibration=own, held_out=apart).describe()
    assert told.calibrated_on == 6
    assert len(told.judged_by) == told.least == LEAST_JUDGED
    assert {where.split(",")[0] for where in told.judged_by} == {"05", "06"}
    assert told.golden in told.judged_by
    assert told.held_out == "named by --held-out"


def test_instructions_of_all_episodes_are_known(tmp_path):
    own, apart = write(tmp_path / "own", [0]), write(tmp_path / "apart", [1])
    assert set(gathered(calibration=own, held_out=apart).instructions) == {"task 0", "task 1"}


def test_a_recipe_that_learns_is_refused_without_episodes():
    message = "recipe orin-w8a8 is calibrated on recorded episodes of the robot, and none were "
    with pytest.raises(ExportError, match=message):
        gathered()


def test_an_observation_that_the_policy_cannot_take_is_named(tmp_path):
    own = write(tmp_path / "own", range(5))
    message = "episodes for orin-w8a8: 04, frame .*: too blue"
    with pytest.raises(ExportError, match=message):
        gathered(calibration=own, check=lambda seen: "too blue" if seen.where[:2] == "04" else None)


@pytest.mark.parametrize("option", ["calibration", "held_out", "golden"])
def test_a_folder_that_cannot_be_read_is_named_with_its_option(tmp_path, option):
    given = {"calibration": write(tmp_path / "own", range(2)), option: tmp_path / "gone"}
    with pytest.raises(ExportError, match=rf"--{option.replace('_', '-')} of orin-w8a8: .*gone"):
        gathered(**given)
