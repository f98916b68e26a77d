"""What starVLA's data mixes say of a policy: its cameras, and how each dimension is normalized.

A run folder names its mix (`datasets.vla_data.data_mix`) and holds the numbers. The modes are in
starVLA's code: examples/*/*/train_files/data_registry/data_config.py and
dataloader/gr00t_lerobot/mixtures.py, at snapshot 0ed0aad; those of RoboTwin-Mem in
InternRobotics' fork of it, at 4b5b260. This is a table of them. Units are those
of the data sets that the mixes name: Open X-Embodiment's Bridge and RT-1 act in metres and radians
a step, the simulators' arms in fractions of what their controllers take. The trade-off: what a mix
of one's own says is not known here, and is said in a file beside (`OWN`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from models.fields import parse
from models.json_file import read_object
from models.policy_config import NormalizationConfig, Unit

OWN = "policy.json"
"""May lie in a run folder, and goes before the table."""
Q99, MIN_MAX = "q99_clipped", "min_max_or_zero"
Rows = tuple[tuple[int, str, Unit], ...]
"""How many dimensions, their mode and their unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Robot:
    """One of starVLA's robot types."""

    views: tuple[str, ...]
    action: Rows
    state: Rows | str
    """Or why no state can be given."""


SIN_COS = "it is trained on sine and cosine of each state, which nothing here makes"
_STEPS: Rows = ((3, Q99, "m/step"), (3, Q99, "rad/step"), (1, "binary", "fraction"))
_CONTROLLER: Rows = ((6, MIN_MAX, "fraction"), (1, "identity", "fraction"))
_TWO_ARMS = "cam_high", "cam_left_wrist", "cam_right_wrist"
_ARX: Rows = (
    (6, Q99, "rad"), (1, Q99, "fraction"), (6, Q99, "rad"), (1, Q99, "fraction"),
)  # fmt: skip
ROBOTS: Mapping[str, Robot] = {
    "oxe_bridge": Robot(
        views=("image_0",),
        action=_STEPS,
        state=((3, Q99, "m"), (3, Q99, "rad"), (1, Q99, "fraction"), (1, "threshold", "fraction")),
    ),
    "oxe_rt1": Robot(
        views=("image",),
        action=_STEPS,
        state=((3, Q99, "m"), (4, Q99, "fraction"), (1, "threshold", "fraction")),
    ),
    "libero_franka": Robot(
        views=("primary_image", "wrist_image"),
        action=_CONTROLLER,
        state=((3, "identity", "m"), (3, "identity", "rad"), (2, "identity", "m")),
    ),
    "openpi_libero_franka": Robot(
        views=("primary_image", "wrist_image"),
        action=((7, Q99, "fraction"),),
        state=((3, Q99, "m"), (3, Q99, "rad"), (2, Q99, "m")),
    ),
    "vla_arena_franka": Robot(
        views=("primary_image", "wrist_image"),
        action=_CONTROLLER,
        state=((3, "identity", "m"), (3, "identity", "rad"), (1, "identity", "m")),
    ),
    "metaworld_robot": Robot(
        views=("primary_image",),
        action=((4, MIN_MAX, "fraction"),),
        state=((3, "identity", "m"), (1, "identity", "fraction")),
    ),
    "robotwin": Robot(
        views=_TWO_ARMS,
        action=((12, MIN_MAX, "rad"), (2, "binary", "fraction")),
        state=((12, MIN_MAX, "rad"), (2, "threshold", "fraction")),
    ),
    "robotwin_mem": Robot(
        views=_TWO_ARMS,
        # Trained on 0 and 1; the authors' client passes on what is answered.
        action=((12, MIN_MAX, "rad"), (2, "identity", "fraction")),
        state=((12, MIN_MAX, "rad"), (2, "threshold", "fraction")),
    ),
    "robodojo_arx_x5_h50_q99": Robot(views=_TWO_ARMS, action=_ARX, state=_ARX),
    "demo_sim_franka_delta_joints": Robot(
        views=("base_view", "ego_view"),
        action=((7, MIN_MAX, "rad/step"), (1, "binary", "fraction")),
        state=((7, MIN_MAX, "rad"),),
    ),
    "fourier_gr1_arms_waist": Robot(
        views=("ego_view",), action=((29, MIN_MAX, "rad"),), state=SIN_COS
    ),
    "panda_omron_robocasa365": Robot(
        views=("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand"),
        action=((12, MIN_MAX, "fraction"),),
        state=SIN_COS,
    ),
}
MIXES: Mapping[str, tuple[str, ...]] = {
    "bridge": ("oxe_bridge",),
    "bridge_rt_1": ("oxe_bridge", "oxe_rt1"),
    **dict.fromkeys(
        (
            "libero_all", "libero_goal", "multi_robot",
            "calvin_task_D_D", "calvin_task_D_D_v3.0",
        ),
        ("libero_franka",),
    ),
    "openpi_libero_all": ("openpi_libero_franka",),
    **dict.fromkeys(("vla_arena_L0_S", "vla_arena_L0_M", "vla_arena_L0_L"), ("vla_arena_franka",)),
    "metaworld_mt50": ("metaworld_robot",),
    **dict.fromkeys(
        (
            "robotwin", "robotwin_all", "robotwin_task1", "robotwin_task2",
            "domino", "domino_clean", "domino_random", "domino_cotrain",
        ),
        ("robotwin",),
    ),
    **dict.fromkeys(("robotwin_mem", "robotwin_mem8", "robotwin_mem9"), ("robotwin_mem",)),
    "robodojo_v21_all_h50_q99": ("robodojo_arx_x5_h50_q99",),
    "demo_sim_pick_place": ("demo_sim_franka_delta_joints",),
    "fourier_gr1_unified_1000": ("fourier_gr1_arms_waist",),
    **dict.fromkeys(
        (
            "robocasa365_open_drawer_target_human", "robocasa365_atomic_target_human_all",
            "robocasa365_composite_target_human_all", "robocasa365_target_human_all",
        ),
        ("panda_omron_robocasa365",),
    ),
}  # fmt: skip
"""Robot types of each mix."""
REFUSED: Mapping[str, str] = {
    "robotwin_all_50": "its grippers are opened above 0.49, and modes here know 0.5",
    "arx_x5": "its data configuration does not say how many joints an arm has",
    "BEHAVIOR_challenge": "its data configuration is not in starVLA's repository",
}
"""Mixes that are known and cannot be told, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """What a `policy.json` in a run folder may say."""

    normalization: NormalizationConfig | None = None
    views: tuple[str, ...] | None = None
    takes_state: bool | None = None


def read_own(folder: Path) -> Own:
    """
    Raises:
        ValueError: a file that says something else.
    """
    path = folder / OWN
    if not path.is_file():
        return Own()
    raw = read_object(path)
    try:
        if unknown := sorted(raw.keys() - Own.__dataclass_fields__.keys()):
            raise ValueError(
                f"unknown fields {unknown}; beside a run of starVLA it may hold normalization, "
                "views and takes_state, and all else is in config.yaml"
            )
        typed: dict[str, Any] = {"normalization": NormalizationConfig}
        given = {n: parse(typed[n], v, n) if n in typed else v for n, v in raw.items()}
        views, takes_state = given.get("views"), given.get("takes_state", False)
        if views is not None:
            if not isinstance(views, list) or not all(isinstance(view, str) for view in views):
                raise ValueError(f"views must be a list of names, got {views!r}")
            given["views"] = tuple(views)
        if not isinstance(takes_state, bool):
            raise ValueError(f"takes_state must be true or false, got {takes_state!r}")
        return Own(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def robot_of(mix: str) -> Robot:
    """What is so for every robot type of a mix; views are called as those of its first one.

    Raises:
        ValueError: a mix that is not known, or whose robots differ in what a policy has one of.
    """
    if mix in REFUSED:
        raise ValueError(f"data_mix {mix!r}: {REFUSED[mix]}; {HOW}")
    if mix not in MIXES:
        raise ValueError(
            f"data_mix {mix!r} is none of those whose modes are known here, "
            f"{', '.join(sorted(MIXES))}; {HOW}"
        )
    first, *others = (ROBOTS[name] for name in MIXES[mix])
    for other in others:
        if other.action != first.action or len(other.views) != len(first.views):
            raise ValueError(f"data_mix {mix!r} holds robots that act in different ways; {HOW}")
    if all(other.state == first.state for other in others):
        return first
    why = f"the robots of data_mix {mix!r} have states of different units"
    return Robot(views=first.views, action=first.action, state=why)


HOW = (
    f'say it in {OWN} beside config.yaml: {{"normalization": {{"action": [a mode per dimension], '
    '"action_units": [...], "state": [...], "state_units": [...]}, "views": [camera names in the '
    f'order of the prompt], "takes_state": false}}. Modes of starVLA: q99 is "{Q99}" here, min_max '
    f'"{MIN_MAX}", a key without one "identity", binary "binary" of an action and "threshold" of '
    "a state"
)


def modes(rows: Rows) -> tuple[str, ...]:
    return tuple(chain.from_iterable(repeat(mode, count) for count, mode, _ in rows))


def units(rows: Rows) -> tuple[Unit, ...]:
    return tuple(chain.from_iterable(repeat(unit, count) for count, _, unit in rows))
