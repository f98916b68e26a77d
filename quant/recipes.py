"""Precision recipes: which number format each layer with weights is exported in.

A recipe is a function that returns a complete configuration; `RECIPES` names them all.

| format | weight | input |
|---|---|---|
| float32 | as it is | as it is |
| float | the recipe's base | the recipe's base |
| w8 | int8 per channel | the recipe's base |
| w8a8 | int8 per channel | int8, one scale |
| w4 | int4 in blocks of 128 along K | the recipe's base |
| fp8 | float8 | float8 |

TensorRT documents int8 with int8 inputs (w8a8) and int4 weights in blocks (w4), and no int8 weights
with float inputs (w8): its guide, Working with Quantized Types. What a device does with
w8 is unproved, and a recipe that asks a device for it says so in its name.

The base is what everything else flows in. Whatever it is, these stay float32: norms, softmax
(unless the recipe says otherwise), activation functions, the arithmetic between networks, the
sampler, and layers of format float32.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Format = Literal["float32", "float", "w8", "w8a8", "w4", "fp8"]
Method = Literal["plain", "smooth", "tokens", "outliers", "awq", "gptq"]
Base = Literal["float32", "bfloat16", "float16"]
Softmax = Literal["float32", "base"]
Target = Literal["cpu", "orin", "thor"]
Purpose = Literal["accuracy", "time", "memory"]
"""What a recipe is for: to err as little as floats do, to answer sooner, or to take less memory."""

METHODS: dict[str, tuple[Method, ...]] = {
    "w8a8": ("plain", "smooth", "tokens", "outliers"),
    "w4": ("plain", "awq", "gptq"),
}
"""How codes and scales of a format can be found; the others are plain rounding.

smooth: part of the input's range is moved into the weights (SmoothQuant). tokens: the same, and
each token is divided by its own largest number before the one step that all share. outliers: the
channels in which LLM.int8 finds outliers stay in the base format. awq, gptq: see `quant.methods`.
"""
UNDOCUMENTED: dict[Target, frozenset[Format]] = {
    "cpu": frozenset(),
    "orin": frozenset({"w8"}),
    "thor": frozenset({"w8"}),
}
"""Formats that the target's compiler takes, and that its makers promise nothing about: int8 weights
may be written out in the base format first, and then a product reads 2.5 times as much."""
UNPROVED = "-unproved"
"""What the name of a recipe with such a format ends in."""
MIXED = Path(__file__).with_name("orin-mixed.json")
"""What the sensitivity search chose (`make sensitivity`)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Layers by name, and their format."""

    pattern: str
    """Of `fnmatch`, for the layer's name in the policy: `vlm.model.layers.*.mlp.*`."""
    format: Format
    method: Method = "plain"
    where_there: bool = False
    """Whether a policy may lack such layers: then the rule decides nothing."""

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ValueError(
                f"{self.pattern}: unknown format {self.format!r}, there are {get_args(Format)}"
            )
        known = METHODS.get(self.format, ("plain",))
        if self.method not in known:
            raise ValueError(
                f"{self.pattern}: format {self.format} knows the methods {known}, got "
                f"{self.method!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a policy's engines are written."""

    name: str
    rules: tuple[Rule, ...]
    """The first that matches a layer decides."""
    target: Target
    purpose: Purpose
    base: Base = "float32"
    softmax: Softmax = "float32"
    """What attention's softmax is computed in. In the base no cast stands between the two products
    of attention, and a compiler that fuses only such a pattern may fuse it; probabilities lose
    digits. Which is sooner on a board has not been measured."""
    tolerance: float = 1e-4
    """Largest relative error of an engine against its module, norm of difference over norm, before
    it is lowered to the base format."""
    chain_tolerance: float
    """The same of any tensor when the engines feed each other."""
    stage_error: float = 0.0
    """How far quantization may move a stage's output, in multiples of what bfloat16 does to it,
    which is measured."""
    success_margin: float = 0.05
    """Share of episodes that the recipe may cost in closed loop: the lower end of the interval."""

    def __post_init__(self) -> None:
        if self.purpose not in get_args(Purpose):
            raise ValueError(
                f"recipe {self.name}: unknown purpose {self.purpose!r}, there are "
                f"{get_args(Purpose)}"
            )
        formats = {rule.format for rule in self.rules}
        if formats & UNDOCUMENTED[self.target] and not self.name.endswith(UNPROVED):
            raise ValueError(
                f"recipe {self.name}: it has layers in w8, int8 weights with float inputs, which "
                f"TensorRT documents no scheme for ({self.target}): make them w8a8 or w4, or end "
                f"the recipe's name in {UNPROVED!r}"
            )
        if "fp8" in formats and self.target != "thor":
            raise ValueError(
                f"recipe {self.name}: FP8 needs tensor cores of SM 8.9 or newer, and {self.target} "
                "has none (an Orin is SM 8.7): use w8a8 (orin-w8a8), or target a Thor"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether anything leaves float32."""
        return self.base != "float32" or any(rule.format != "float32" for rule in self.rules)

    def decide(self, layers: Iterable[str]) -> Mapping[str, Rule]:
        """The rule of every layer.

        Raises:
            ValueError: a layer that no rule names, or a rule that decides about none.
        """
        chosen: dict[str, Rule] = {}
        unmatched = []
        for layer in layers:
            rule = next((r for r in self.rules if fnmatch.fnmatchcase(layer, r.pattern)), None)
            if rule is None:
                unmatched.append(layer)
            else:
                chosen[layer] = rule
        if unmatched:
            raise ValueError(
                f"recipe {self.name}: no rule for {len(unmatched)} layers, {unmatched[:3]} first; "
                'add one, or ("*", "float32") as the last'
            )
        used = set(chosen.values())
        if unused := [r.pattern for r in self.rules if not (r in used or r.where_there)]:
            raise ValueError(
                f"recipe {self.name}: {unused} decide about no layer: a misspelt name, or an "
                "earlier rule takes everything"
            )
        return chosen

    def fitted(self, layers: Iterable[str]) -> Recipe:
        """The same with those rules alone that decide about one of these layers."""
        used = set(self.decide(layers).values())
        return dataclasses.replace(self, rules=tuple(rule for rule in self.rules if rule in used))


def where_there(patterns: Iterable[str], format: Format, method: Method = "plain") -> list[Rule]:
    """Rules about layers that not every policy has."""
    return [Rule(pattern, format, method, where_there=True) for pattern in patterns]


ENDS = (
    "info_sharing.final_projection",
    "action_head.state_linear",
    "action_head.t_embedder.*",
    "action_head.x_embedder",
    "action_head.final_layer.linear",
    # Of a flow-matching head; its tables of steps are computed from the last three.
    "action_head.state_encoder.*",
    "action_head.action_encoder.*",
    "action_head.action_decoder.layer2",
    "action_head.model.timestep_encoder.*",
    "action_head.model.transformer_blocks.*.norm1.linear",
    "action_head.model.proj_out_1",
    # Of an expert beside a language model.
    "state_proj",
    "action_head.action_in_proj",
    "action_head.action_time_mlp_*",
    "action_head.action_out_proj",
    # Of a regression head.
    "action_head.model.fc2",
    "proprio_projector.*",
    # Of a head that pools. And what chooses codes: a small error is none, or is another code.
    "to_logits.0",
    "showo.lm_head",
    "vq_model.encoder.*",
    # Of auxiliary heads and readouts: what they say is read as it is.
    "*_head.fc2",
    "joint_head.out",
    "segmentation_head.doublings.*",
    "readouts.*",
)
CONVOLUTIONS = (
    "vlm.visual.patch_embed.proj",
    "vlm.visual.embeddings.patch_embedding",
    "vision_backbone.*.patch_embed.proj",
    "segmentation_head.halving",
    "vq_model.decoder.*",
)
KEPT = (*where_there(ENDS, "float32"), *where_there(CONVOLUTIONS, "float"))
"""What no recipe quantizes. float32: small layers whose errors reach the actions undiminished, at
both ends of the networks; the first denoise step multiplies an error of the last one by 204. In the
base: convolutions, of which the patch embedding is 0.2 % of the vision tower's arithmetic; what
draws."""

SMALL = (
    "info_sharing.info_sharing.proj_embed",
    "action_head.combine.*",
    "action_head.cond_obs_emb",
    "action_head.model.proj_out_2",
    "action_head.action_decoder.layer1",
)
"""A thousandth of the arithmetic, whose errors reach the actions undiminished: no recipe for a
device rounds their inputs to int8."""

MODULATION = "action_head.*.adaLN_modulation.*"
"""A fiftieth of the time, in every block and step: rounding its input moved the actions of random
weights more than any other part of the head did."""
LOOP = (
    "action_head.blocks.*.attn.*",
    "action_head.blocks.*.mlp.*",
    "action_head.model.transformer_blocks.*",
    "action_head.layers.*",
)
"""What a sampler passes in every step, its modulations left out."""
GATED = ("vlm.model.layers.*", "language_model.model.layers.*")
DECODERS = (*GATED, "showo.model.layers.*")
"""Layers of language models; before, those whose MLP has a gate."""
HEADS = ("action_head.*", "token_learner.*")
"""What makes actions."""
ATTENTION = (
    "vlm.visual.blocks.*.attn.*",
    "vlm.visual.encoder.layers.*.self_attn.*",
    "vision_backbone.*.blocks.*.attn.*",
    "info_sharing.info_sharing.self_attention_blocks.*.attn.*",
)
"""Of what sees."""
UNEVEN = (
    *(f"{layers}.{name}" for name in ("self_attn.o_proj", "mlp.down_proj") for layers in GATED),
    "showo.model.layers.*.self_attn.dense",
    "showo.model.layers.*.mlp.fc2",
    "vlm.visual.blocks.*.mlp.down_proj",
    "vlm.visual.blocks.*.mlp.linear_fc2",
)
"""Their inputs have tokens a hundred times smaller than others, or larger than any that calibration
saw: with one step for all, a stage moved by 0.4 of its norm, and held-out tokens reached 3.2 times
the range. So there each token has a scale of its own in every recipe."""

TIES = 5e-3
"""Engine and module round the same numbers to the same codes, but for those within float32 rounding
of a tie. One code more or less among a row's thousands is 1/127 of the row's largest number, some
1e-2 of its norm, and one row of a hundred is 1e-3 of a stage; 5e-3 is a handful of them. How many
lie there is measured beside (`export.measure.rounding`)."""
INT8_ERROR, INT4_ERROR = 25.0, 80.0
"""An int8 code is 2^-8 of its channel's range, an int4 code 2^-4 of its block's, and bfloat16 is
2^-9 of every number: 2 and 32 times that, where the range is typical of the numbers. 12 and 33 were
measured at worst on the demo, where outliers widen the range; twice that is allowed."""
FLOAT32_PART = ("action_head", "token_learner", "vq_model.encoder")
"""Of a head, only products with weights leave float32: its tokens are a handful, so that it costs
nothing, and its rounding errors are those that the denoise loop carries on. Of what chooses codes
nothing does."""


def float32() -> Recipe:
    """The reference precision.

    Two float32 implementations of a sum of n terms differ by about sqrt(n) * 6e-8 of its size;
    for n = 11008 that is 6e-6 per product, and 1e-4 leaves room for some tens of them in a row.
    """
    return Recipe(
        name="float32",
        rules=(Rule("*", "float32"),),
        target="cpu",
        purpose="accuracy",
        chain_tolerance=1e-4,
    )


def cpu_int8() -> Recipe:
    """Weights and inputs in int8, for a CPU with int8 dot products; what is small stays float32.

    The condition and the sampler's ends are a thousandth of the arithmetic, and their errors reach
    the actions undiminished. An engine and its module, given the same numbers, round them to the
    same codes. In a chain a number that lies within float32 rounding of a tie may fall to the other
    side: a step of 1/127 of the largest in one of some thousand numbers, which the later layers
    carry on. 2e-2 is what four such steps amount to; 5e-3 was seen.
    """
    kept = (*SMALL, MODULATION)
    return Recipe(
        name="cpu-int8",
        rules=(
            *KEPT,
            *where_there(kept, "float32"),
            *where_there(UNEVEN, "w8a8", "tokens"),
            Rule("*", "w8a8", "smooth"),
        ),
        target="cpu",
        purpose="time",
        tolerance=TIES,
        chain_tolerance=2e-2,
        stage_error=INT8_ERROR,
    )


def orin_bf16() -> Recipe:
    """Nothing quantized: bfloat16 has float32's range, so nothing overflows."""
    return Recipe(
        name="orin-bf16",
        rules=(*KEPT, Rule("*", "float")),
        target="orin",
        purpose="accuracy",
        base="bfloat16",
        chain_tolerance=5e-2,
    )


def orin_fp16_safe() -> Recipe:
    """float16, three bits finer than bfloat16; what calibration sees leave its range is float32."""
    return Recipe(
        name="orin-fp16-safe",
        rules=(*KEPT, Rule("*", "float")),
        target="orin",
        purpose="accuracy",
        base="float16",
        chain_tolerance=2e-2,
    )


def orin_w8a8() -> Recipe:
    """int8 weights and inputs, a scale for each token, but where it saves little and moves much.

    That is the condition, the patch projection and the modulations.
    """
    return Recipe(
        name="orin-w8a8",
        rules=(
            *KEPT,
            *where_there((*SMALL, MODULATION), "float"),
            Rule("*", "w8a8", "tokens"),
        ),
        target="orin",
        purpose="time",
        base="bfloat16",
        tolerance=TIES,
        chain_tolerance=5e-2,
        stage_error=INT8_ERROR,
    )


def orin_w8a8_static() -> Recipe:
    """`orin_w8a8` with one step for all tokens of a layer, but where they differ too much.

    A scale for each token is two more operators in front of a product. What they cost on a board
    nobody knows yet; this is what to time them against.
    """
    return dataclasses.replace(
        orin_w8a8(),
        name="orin-w8a8-static",
        rules=(
            *orin_w8a8().rules[:-1],
            *where_there(UNEVEN, "w8a8", "tokens"),
            Rule("*", "w8a8", "smooth"),
        ),
    )


def orin_w8_weight_only_unproved() -> Recipe:
    """int8 weights with float inputs in attention and head: nobody says what a device makes of it.

    Kept to be measured beside `orin_w8a8` on a board: the other layers are as they are there.
    Static steps for them, as this form once had, do not cover what held-out observations reach.
    """
    return dataclasses.replace(
        orin_w8a8(),
        name="orin-w8-weight-only-unproved",
        purpose="memory",
        rules=(
            *KEPT,
            *where_there((f"{layers}.self_attn.*" for layers in DECODERS), "w8"),
            *where_there(ATTENTION, "w8"),
            *where_there(("info_sharing.info_sharing.proj_embed",), "w8"),
            *where_there(HEADS, "w8"),
            orin_w8a8().rules[-1],
        ),
    )


def orin_w4a16() -> Recipe:
    """int4 weights where most weights are, language model and denoise loop; int8 elsewhere.

    int4 in vision and spatial encoder, a fifth of the weights, doubled the actions' error (0.034 to
    0.057 on the demo). GPTQ, because AWQ's was 0.057. It saves memory and no time:
    `quant.boards.INT4_TIME`.
    """
    return Recipe(
        name="orin-w4a16",
        rules=(
            *KEPT,
            *where_there(SMALL, "float"),
            *where_there(DECODERS, "w4", "gptq"),
            *where_there(LOOP, "w4", "gptq"),
            Rule("*", "w8a8", "tokens"),
        ),
        target="orin",
        purpose="memory",
        base="bfloat16",
        tolerance=TIES,
        chain_tolerance=5e-2,
        stage_error=INT4_ERROR,
    )


def orin_mixed() -> Recipe:
    """Formats that the sensitivity search chose, from the file that it wrote."""
    return read_recipe(MIXED)


def thor_fp8() -> Recipe:
    """FP8 weights and inputs for a Thor (SM 11.0); an Orin has no such arithmetic."""
    return Recipe(
        name="thor-fp8",
        rules=(*KEPT, *where_there(HEADS, "float"), Rule("*", "fp8")),
        target="thor",
        purpose="time",
        base="bfloat16",
        chain_tolerance=5e-2,
        stage_error=INT8_ERROR,
    )


RECIPES = {
    "float32": float32,
    "cpu-int8": cpu_int8,
    "orin-bf16": orin_bf16,
    "orin-fp16-safe": orin_fp16_safe,
    "orin-w8a8": orin_w8a8,
    "orin-w8a8-static": orin_w8a8_static,
    "orin-w8-weight-only-unproved": orin_w8_weight_only_unproved,
    "orin-w4a16": orin_w4a16,
    "orin-mixed": orin_mixed,
    "thor-fp8": thor_fp8,
}


def read_recipe(path: Path) -> Recipe:
    """A recipe from its JSON file.

    Raises:
        ValueError: not a recipe, or one that cannot be.
    """
    try:
        raw = json.loads(path.read_text())["recipe"]
        rules = tuple(Rule(*rule) for rule in raw.pop("rules"))
        return Recipe(rules=rules, **raw)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a recipe ({error}); make sensitivity writes one") from None
