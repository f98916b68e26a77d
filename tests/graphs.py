"""Declarations for graphs that a test makes up."""

from __future__ import annotations

from msgspec.structs import replace

from runtime.declarations import Input, Output, Pace, Prompt


def vectors(*names: str, pace: Pace = "tick", width: int = 1) -> dict[str, Input]:
    """Inputs that the robot gives, or for a slower pace the operator."""
    source = "robot" if pace in ("tick", "control") else "operator"
    declared = Input(
        kind="vector",
        source=source,  # type: ignore[arg-type]
        shape=(width,),
        dtype="float32",
        pace=pace,
    )
    return dict.fromkeys(names, declared)


def leaves(*names: str) -> dict[str, Output]:
    """Outputs of which nothing is known."""
    return dict.fromkeys(names, Output())


def anchored(latch: str, text: str, *, side: int, state_dim: int) -> dict[str, Input]:
    """Inputs of a policy with a latch of its camera, a text and a state."""
    camera = Input(kind="image", source="robot", shape=(side, side, 3), dtype="uint8", pace="tick")
    prompt = Prompt(tokenizer="tokenizer.json", template="{instruction}", end_ids=())
    return {
        latch: replace(camera, source="latch", of="frame", pace="episode"),
        text: Input(
            kind="text", source="operator", shape=(9,), dtype="int64", pace="event", prompt=prompt
        ),
        "frame": camera,
        **vectors("state", width=state_dim),
    }
