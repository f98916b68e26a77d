"""The policy's own observations, to calibrate a quantized recipe on.

Goes in: a folder of recordings (`runtime.recordings.recording`), or a LeRobot dataset
(`runtime.recordings.lerobot`). Comes out: frames of every episode, each with the episode's first.
The trade-off: a limit shares out frames among all episodes, so a small one opens many files for few
frames each.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

from quant.data.episode import Episode, Observation, Streams
from runtime.declarations import Input, from_source
from runtime.recordings.lerobot import INFO, LeRobotEpisode, LeRobotFrame, is_lerobot, read_lerobot
from runtime.recordings.recording import FRAME, STATE, Recording, load_recording
from runtime.recordings.tables import check_file


def read_observations(
    path: Path, *, stride: int, limit: int | None = None, camera: str | None = None
) -> Iterator[Observation]:
    """`draw` from all episodes of `path`: see there, and `read_episodes`."""
    return draw(read_episodes(path, camera=camera), stride=stride, limit=limit)


def read_episodes(path: Path, *, camera: str | None = None) -> list[Episode]:
    """What there is to draw from; no frame is read yet.

    Args:
        path: folder of .npz episodes, or of a LeRobot dataset (where there is a meta/info.json), or
            one .npz episode.
        camera: key of the camera in a LeRobot dataset that has several; or of every view that the
            policy looks at, `VIEW=KEY,VIEW=KEY`.

    Raises:
        ValueError: for an argument or a table of contents.
    """
    if path.is_file():
        files = [path]
    elif not path.is_dir():
        raise ValueError(f"{path}: no such folder; expected .npz episodes or a LeRobot dataset")
    elif is_lerobot(path):
        return _with_frames(path, _lerobot_episodes(path, camera))
    else:
        files = sorted(path.glob("*.npz"))
    if not files:
        raise ValueError(
            f"{path}: neither episodes (*.npz) nor a LeRobot dataset ({INFO}); check the path"
        )
    if camera is not None:
        raise ValueError(f"{path}: .npz episodes name their own cameras; leave out {camera!r}")
    return _with_frames(path, [_recorded_episode(file) for file in files])


def draw(
    episodes: Sequence[Episode], *, stride: int, limit: int | None = None
) -> Iterator[Observation]:
    """Every `stride`-th frame of each episode, the first one included, episode after episode.

    Args:
        stride: in frames.
        limit: on all observations. Of more, each episode gives the same share, drawn with a fixed
            seed, so the first frame need not be among them.

    Returns:
        Observations, read as they are drawn: an .npz episode at a time, a video frame at a time.

    Raises:
        ValueError: here for an argument or a missing file; while drawing for what is damaged inside
            a file.
    """
    for name, number in (("stride", stride), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    chosen = _choose([range(0, episode.num_frames, stride) for episode in episodes], limit)
    used = [(e, frames) for e, frames in zip(episodes, chosen, strict=True) if frames]
    for episode, _ in used:
        for file in episode.files:
            check_file(file)
    return chain.from_iterable(episode.read(frames) for episode, frames in used)


def _with_frames(path: Path, episodes: list[Episode]) -> list[Episode]:
    if not any(episode.num_frames for episode in episodes):
        raise ValueError(f"{path}: {len(episodes)} episodes without a frame; choose another folder")
    return episodes


def _choose(strided: Sequence[Sequence[int]], limit: int | None) -> list[list[int]]:
    """At most `limit` of the frames of all episodes, taken in turns, in order again."""
    # Shuffled: with one frame of each episode it would otherwise always be the first, where the
    # robot has not moved. Python promises the same random() for a seed in every version.
    draw = random.Random(0)
    turns = [
        (turn, draw.random(), episode, frame)
        for episode, frames in enumerate(strided)
        for turn, frame in enumerate(sorted(frames, key=lambda _: draw.random()))
    ]
    chosen: list[list[int]] = [[] for _ in strided]
    for _, _, episode, frame in sorted(turns)[:limit]:
        chosen[episode].append(frame)
    return [sorted(frames) for frames in chosen]


def _recorded_episode(file: Path) -> Episode:
    recording = load_recording(file)
    return Episode(
        file.stem,
        recording.num_frames,
        (recording.instruction,),
        (file,),
        partial(_read_recorded, file),
    )


def _read_recorded(path: Path, frames: Sequence[int]) -> Iterator[Observation]:
    def episode() -> Recording:
        return _load(path, path.stat().st_mtime_ns)

    def at(frame: int) -> Streams:
        # Copied: a view would keep the whole episode as long as an observation of it.
        return {name: s.values[frame].copy() for name, s in episode().streams.items()}

    first, instruction = at(0), episode().instruction
    for frame in frames:
        where = f"{path.stem}, frame {frame}"
        yield Observation(first, at(frame), instruction, where, frame, at)


@lru_cache(maxsize=1)
def _load(path: Path, changed: int) -> Recording:
    """One episode at a time, however many of its frames observations ask for."""
    return load_recording(path)


def _lerobot_episodes(path: Path, camera: str | None) -> list[Episode]:
    """Of one camera, whose pictures are the stream `frame`; or of several, by the policy's names.

    Raises:
        ValueError: views that are not told apart, or a camera that is not there.
    """
    keys = {FRAME: camera}
    if camera is not None and "=" in camera:
        named = [part.partition("=")[::2] for part in camera.split(",")]
        keys = {name.strip(): key.strip() for name, key in named}
        if len(keys) < len(named) or not all(name and key for name, key in keys.items()):
            raise ValueError(
                f"the cameras {camera!r} must be VIEW=KEY, each view once, with commas between"
            )
    found = {name: read_lerobot(path, key) for name, key in keys.items()}
    return [
        _lerobot_episode(dict(zip(found, views, strict=True)))
        for views in zip(*found.values(), strict=True)
    ]


def _lerobot_episode(views: Mapping[str, LeRobotEpisode]) -> Episode:
    one = next(iter(views.values()))
    return Episode(
        one.name,
        one.num_frames,
        one.instructions,
        [*dict.fromkeys(file for view in views.values() for file in view.files)],
        partial(_read_lerobot, views),
    )


def _read_lerobot(
    views: Mapping[str, LeRobotEpisode], frames: Sequence[int]
) -> Iterator[Observation]:
    drawn = zip(*(view.read([0, *frames]) for view in views.values()), strict=True)
    first = _streams(views, next(drawn))
    name = next(iter(views.values())).name

    def at(frame: int) -> Streams:
        (steps,) = zip(*(view.read([frame]) for view in views.values()), strict=True)
        return _streams(views, steps)

    for frame, steps in zip(frames, drawn, strict=True):
        where, instruction = f"{name}, frame {frame}", steps[0].instruction
        yield Observation(first, _streams(views, steps), instruction, where, frame, at)


def _streams(views: Iterable[str], steps: Sequence[LeRobotFrame]) -> Streams:
    pictures = {name: step.image for name, step in zip(views, steps, strict=True)}
    return {**pictures, STATE: steps[0].state}


def misfit(inputs: Mapping[str, Input], seen: Observation) -> str | None:
    """Why a policy cannot take an observation, if it cannot.

    Args:
        inputs: the policy's, declared for its camera's images.
    """
    for name, declared in from_source(inputs, "robot").items():
        if name not in seen.now:
            return (
                f"has streams {', '.join(seen.now)} and no {name!r}, which the policy reads; "
                "record it under that name"
            )
        got, wanted = seen.now[name].shape, declared.shape
        if got == wanted:
            continue
        if declared.kind == "image":
            return (
                f"its {name}s are {got[1]} by {got[0]} pixels, --image-size says {wanted[1]} "
                f"{wanted[0]}: give the size of the robot's camera"
            )
        return (
            f"its {name}s are {list(got)}, this policy takes {list(wanted)}: give episodes of its "
            "own robot"
        )
    return None
