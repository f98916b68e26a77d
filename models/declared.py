"""What the graph of a policy is given, and what it answers: declarations that families share."""

from __future__ import annotations

from collections.abc import Mapping

from models.policy_config import NormalizationConfig, PolicyConfig
from models.prompt_parts import PromptParts
from runtime.declarations import Input, Output, Prompt

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
