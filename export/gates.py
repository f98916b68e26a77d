"""The verdicts of an export. One that fails stops it, or marks the bundle if that is forced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_tests.success.motion import FIGURES
from export.errors import ExportError
from runtime.bundle import Verdict

MOTION_BOUND = 1.07
"""Times float32's that each of `MOTION_FIGURES` may reach, upper end of the interval. Between what
recipes do, 1.04 at most, and what input scales 4 times too large do, which success lets pass: 1.08
at least, where each token has a scale besides (`export.evidence.planted`)."""
MOTION_FIGURES = ("mean_jerk", "p99_jerk", "high_share", "seam_step")


class GateFailed(ExportError):
    """What was measured is not what is allowed."""

    def __init__(self, gate: str, message: str) -> None:
        super().__init__(f"gate {gate}: {message}")
        self.gate = gate


class Gates:
    """Collects verdicts; `force` keeps going where one failed."""

    def __init__(self, *, force: bool) -> None:
        self.force = force
        self.verdicts: dict[str, Verdict] = {}

    def judge(
        self, name: str, passed: bool, figures: str, message: str, *, unproven: str = ""
    ) -> None:
        """Record a verdict.

        Args:
            figures: what was measured and what is allowed, in a few words.
            message: what a user is told where it failed.
            unproven: why the figures cannot show that it passes; they can show that it fails.

        Raises:
            GateFailed: it failed, and nothing is forced.
        """
        if not passed:
            self.verdicts[name] = Verdict(kind="fail", figures=figures)
            if not self.force:
                raise GateFailed(name, message)
        elif name not in self.verdicts or self.verdicts[name].kind != "fail":
            self.verdicts[name] = (
                Verdict(kind="not measured", figures=f"{unproven}; {figures}")
                if unproven
                else Verdict(kind="pass", figures=figures)
            )


def closed_loop_verdict(path: Path, content_sha256: str) -> Mapping[str, Any] | None:
    """What `make gate` found for the bundle with this hash; None if it was never asked.

    Raises:
        ExportError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        verdict: Mapping[str, Any] | None = json.loads(path.read_text())["verdicts"].get(
            content_sha256
        )
        if verdict is not None:
            words_of(verdict)  # a verdict has figures
            if "motion" in verdict:
                motion_words(verdict["motion"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{path}: not a file of verdicts ({error!r}); make gate writes one"
        ) from None
    return verdict


def words_of(verdict: Mapping[str, Any]) -> str:
    """A success verdict in a few words."""
    return (
        f"{100 * verdict['difference']:+.1f} points "
        f"[{100 * verdict['low']:+.1f}, {100 * verdict['high']:+.1f}] of success in "
        f"{verdict['episodes']} paired episodes"
    )


def moves_well(motion: Mapping[str, Any]) -> bool:
    """Whether no figure of a motion verdict exceeds the bound."""
    return all(motion["figures"][name]["high"] <= MOTION_BOUND for name in MOTION_FIGURES)


def motion_words(motion: Mapping[str, Any]) -> str:
    """A motion verdict in a few words."""
    ratios = (
        "{} {ratio:.2f} [{low:.2f}, {high:.2f}]".format(FIGURES[name], **motion["figures"][name])
        for name in MOTION_FIGURES
    )
    return (
        f"{', '.join(ratios)} times float32's in {motion['pairs']} paired episodes, at most "
        f"{MOTION_BOUND:g} each"
    )
