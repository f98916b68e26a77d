"""What the graph of a policy is given, and what it answers: declarations that families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.policy_config import NormalizationConfig, PolicyConfig
from models.prompt_parts import PromptParts
from runtime.declarations import Input, Output, Prompt
from runtime.meanings import FutureImage, Grasp, JointPositions

ACTIONS = "actions"
"""The graph's target: a chunk in robot units."""
DENOISED = "denoised_actions"
"""What the head makes, in robot units: a chunk, or several of which one is chosen."""
SPREAD = "spread"
"""Of several chunks: how far the chosen one is from the others."""
TOKENIZER = "tokenizer.json"
"""The file that makes ids of a text."""


def camera(shape: tuple[int, int, int]) -> Input:
    """A picture of every tick, [H, W, 3]."""
    return Input(kind="image", source="robot", shape=shape, dtype="uint8", pace="tick")


def depth(shape: tuple[int, int]) -> Input:
    """A depth map of every tick, [H, W] in metres, 0 where nothing was measured."""
    return Input(kind="depth", source="robot", shape=shape, dtype="float32", pace="tick", unit="m")


def instruction(parts: PromptParts, max_tail: int) -> Input:
    """What the operator says, behind the pictures."""
    return Input(
        kind="text",
        source="operator",
        shape=(max_tail,),
        dtype="int64",
        pace="event",
        prompt=Prompt(
            tokenizer=TOKENIZER,
            template=parts.tail,
            end_ids=parts.end_ids,
            lowercase=parts.lowercase,
        ),
    )


def state(config: PolicyConfig) -> Input:
    """[S] in robot units."""
    units = set(config.normalization.state_units)
    return Input(
        kind="vector",
        source="robot",
        shape=(config.state_dim,),
        dtype="float32",
        pace="tick",
        unit=units.pop() if len(units) == 1 else "",
    )


def sampled(
    config: PolicyConfig, samples: int = 1, noise_width: int | None = None
) -> dict[str, Input]:
    """What a sampler starts from, and what is left of the last chunk.

    Args:
        noise_width: of a policy that samples more numbers than a robot's action has.
    """
    noises = noise_shape(config, samples)
    noises = (*noises[:-1], noise_width or noises[-1])
    num_actions, width = config.chunk
    return {
        "noise": Input(kind="noise", source="drawn", shape=noises, dtype="float32", pace="tick"),
        "leftover": Input(
            kind="leftover",
            source="loop",
            shape=(num_actions, 1 + width),
            dtype="float32",
            pace="tick",
        ),
    }


def noise_shape(config: PolicyConfig, samples: int) -> tuple[int, ...]:
    """[T, A], or [K, T, A] of K samples."""
    return config.chunk if samples == 1 else (samples, *config.chunk)


def one_chunk(samples: int) -> None:
    """
    Raises:
        ValueError: several chunks of one observation, which all would be the same.
    """
    if samples > 1:
        raise ValueError(
            f"--samples {samples}: this policy draws nothing, all its chunks of a tick would be "
            "the same; leave it out"
        )


def chunks(
    n: NormalizationConfig, samples: int, leaves: Mapping[str, Output] | None = None
) -> dict[str, Output]:
    """The chunk; of several samples also all of them, and how far apart they are.

    Args:
        leaves: whatever else the policy can be asked for.
    """
    units = tuple(n.action_units)
    spread = SPREAD if samples > 1 else ""
    outputs = {
        ACTIONS: Output(axes=("step", "action"), units=units, statistics="action", spread=spread)
    }
    outputs |= leaves or {}
    if samples > 1:
        outputs[SPREAD] = Output()
        outputs[DENOISED] = Output(
            axes=("sample", "step", "action"), units=units, statistics="action"
        )
    return outputs


def grasp(gripper: str = "") -> Output:
    """A leaf [1]: how likely the gripper holds something, and no logit.

    Args:
        gripper: which axis of a robot description, where several are grippers.
    """
    means = Grasp(gripper=gripper)
    return Output(axes=("probability",), units=("fraction",), means=means)


def joint_positions(names: Sequence[str]) -> Output:
    """A leaf [J] in rad: where joints are in the picture that is seen.

    Args:
        names: as a robot description calls them; an empty text for one that nobody can compare,
            and nothing but these where nobody knows the names.
    """
    means = JointPositions(names=tuple(names)) if any(names) else None
    return Output(axes=("joint",), units=("rad",) * len(names), means=means)


def future_image(camera: str, steps: int, *, is_middle: bool = False) -> Output:
    """A leaf [H, W, 3] from 0 to 255: what a camera will show.

    Args:
        camera: the input.
        steps: control steps from the picture that is seen.
        is_middle: whether pictures of that camera are cut from the middle, and not squeezed.
    """
    means = FutureImage(camera=camera, steps=steps, is_middle=is_middle)
    return Output(axes=("row", "column", "channel"), means=means)
