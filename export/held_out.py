"""What an export is shown: to calibrate on, to be judged by, and the golden observation.

In: folders of episodes. Out: observations, and why a verdict on them would prove nothing, if so.
Whole episodes are held out for every judgement, because frames of one episode are alike: what was
calibrated on them looks better the less it has seen. The trade-off: a fifth of the episodes teaches
the recipe nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.config import BuildConfig
from export.errors import ExportError
from quant.data.episode import Episode, Observation
from quant.data.observations import draw, read_episodes
from quant.recipes import Recipe
from runtime.bundle import Observations
from runtime.recordings.lerobot import is_lerobot

HELD_OUT_EVERY = 5
"""Of the calibration folder's episodes, in its order, every so many is held out if no others are
named; fewer episodes than that are all calibrated on."""
LEAST_JUDGED = 8
"""Held-out observations without which nothing is called measured, and as many as are drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Made by `gather`."""

    calibration: tuple[Observation, ...] = ()
    """For a recipe that learns from them."""
    judged: tuple[Observation, ...] = ()
    """What the verdicts are about; the golden one if empty."""
    golden: Observation | None = None
    """None where there is no episode at all: it is made up then."""
    unproven: str = ""
    """Why what passes on `judged` says nothing about other episodes; empty where it does."""
    held_out_by: str = ""
    """The rule that held out `judged`; empty where none is held out."""
    instructions: tuple[str, ...] = ()
    """Of all episodes, whether drawn from or not."""

    def describe(self) -> Observations:
        """For the manifest."""
        return Observations(
            calibrated_on=len(self.calibration),
            golden="made up" if self.golden is None else self.golden.where,
            judged_by=tuple(seen.where for seen in self.judged),
            least=LEAST_JUDGED,
            held_out=self.held_out_by,
            unproven=self.unproven,
        )


def learns(recipe: Recipe) -> bool:
    """Whether what is exported depends on the observations: scales, codes, float32 islands."""
    formats = {rule.format for rule in recipe.rules}
    return recipe.base == "float16" or bool(formats - {"float32", "float"})


def gather(
    config: BuildConfig, recipe: Recipe, check: Callable[[Observation], str | None]
) -> Evidence:
    """Choose episodes and draw from them.

    Args:
        check: says what is wrong with an observation.

    Raises:
        ExportError: there are none to calibrate on; they cannot be read, or are of another robot;
            one is to be both calibrated on and held out.
    """
    source = _Source(config, recipe, check)
    own, apart = source.episodes("calibration"), source.episodes("held_out")
    named = source.episodes("golden")
    if learns(recipe) and not own:
        raise ExportError(
            f"recipe {recipe.name} is calibrated on recorded episodes of the robot, and none were "
            "given: name their folder (--calibration)"
        )
    instructions = tuple(i for e in (*own, *apart, *named) for i in e.instructions)
    if not recipe.is_quantized:
        golden = source.middle((*named, *apart, *own))
        return Evidence(golden=golden, instructions=instructions)
    rule = "named by --held-out" if apart else ""
    if not learns(recipe):
        rule = "the recipe learns from no episode"
        apart = apart or own
    elif apart:
        source.refuse_shared(own, apart)
    elif len(own) >= HELD_OUT_EVERY:
        rule = f"every {HELD_OUT_EVERY}th of {len(own)} episodes"
        apart = own[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        own = [episode for n, episode in enumerate(own, 1) if n % HELD_OUT_EVERY]
    calibration: tuple[Observation, ...] = ()
    if learns(recipe):
        calibration = source.draw(own, config.stride, config.max_observations)
    judged = source.draw(apart, 1, LEAST_JUDGED)
    unproven = ""
    if not judged:
        rule, judged = "", calibration[:: -(-len(calibration) // LEAST_JUDGED) or 1]
        unproven = (
            f"no episode is held out; name some with --held-out, or {HELD_OUT_EVERY} or more with "
            "--calibration"
        )
    elif len(judged) < LEAST_JUDGED:
        unproven = (
            f"{len(judged)} held-out observations, at least {LEAST_JUDGED} are needed; record more"
        )
    return Evidence(
        calibration=calibration,
        judged=judged,
        golden=source.middle(named) or (judged[0] if judged else None),
        unproven=unproven,
        held_out_by=rule,
        instructions=instructions,
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """Reads the folders of a configuration; what is wrong with one names the folder."""

    config: BuildConfig
    recipe: Recipe
    check: Callable[[Observation], str | None]

    def episodes(self, option: str) -> list[Episode]:
        path: Path | None = getattr(self.config, option)
        if path is None:
            return []
        # Only the calibration's own kind is known to have the camera that was named.
        camera = self.config.camera
        if option != "calibration" and not is_lerobot(path):
            camera = None
        try:
            return read_episodes(path, camera=camera)
        except ValueError as error:
            raise ExportError(f"{_flag(option)} of {self.recipe.name}: {error}") from None

    def draw(
        self, episodes: Sequence[Episode], stride: int, limit: int | None
    ) -> tuple[Observation, ...]:
        return self._checked(lambda: tuple(draw(episodes, stride=stride, limit=limit)))

    def middle(self, episodes: Sequence[Episode]) -> Observation | None:
        """The frame in the middle of the first."""
        first = next((episode for episode in episodes if episode.num_frames), None)
        if first is None:
            return None
        return self._checked(lambda: tuple(first.read([first.num_frames // 2])))[0]

    def refuse_shared(self, own: Sequence[Episode], apart: Sequence[Episode]) -> None:
        """An episode is itself under any name and in any folder."""
        lengths = {episode.num_frames for episode in apart} - {0}
        known = {self._ends(episode): episode for episode in own if episode.num_frames in lengths}
        for episode in apart:
            if episode.num_frames and (twin := known.get(self._ends(episode))):
                raise ExportError(
                    f"--held-out of {self.recipe.name}: {episode.name} in {self.config.held_out} "
                    f"is {twin.name} in {self.config.calibration}, which is calibrated on; hold "
                    "out other episodes"
                )

    def _ends(self, episode: Episode) -> str:
        """Tells episodes apart by their length, first and last observation."""
        digest = hashlib.sha256(str(episode.num_frames).encode())
        for seen in self._checked(lambda: tuple(episode.read([0, episode.num_frames - 1]))):
            for value in seen.now.values():
                digest.update(value.tobytes())
            digest.update(seen.instruction.encode())
        return digest.hexdigest()

    def _checked(self, read: Callable[[], tuple[Observation, ...]]) -> tuple[Observation, ...]:
        try:
            found = read()
        except ValueError as error:
            raise ExportError(f"episodes for {self.recipe.name}: {error}") from None
        for seen in found:
            if words := self.check(seen):
                raise ExportError(f"episodes for {self.recipe.name}: {seen.where}: {words}")
        return found


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
