"""A run of starVLA whose framework is QwenOFT, as a configuration of ours.

In: what `models.layouts.starvla` found out. Out: a `QwenOFTConfig`. Tensors say of which sizes the
head is; settings are compared where both say something.

Source: starVLA at snapshot 0ed0aad, model/framework/VLM4A/QwenOFT.py and
modules/action_model/MLP_ActionHeader.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from models.chat import own_chat
from models.layouts.starvla import Facts, normalization
from models.layouts.starvla_config import whole
from models.layouts.tensors import count, sizes
from models.networks.config import MLPResNetConfig
from models.qwenoft.config import QwenOFTConfig

WHERE = "framework.action_model."
HEAD = "action_head.model."

UNUSED: Mapping[str, str] = {}


def policy(facts: Facts) -> QwenOFTConfig:
    """
    Raises:
        ValueError: tensors or settings that do not fit together, or are not honoured.
    """
    stated = facts.run.action_model
    kind = stated.get("action_model_type", "MLP")
    if kind != "MLP":
        raise ValueError(f"{WHERE}action_model_type must be MLP, got {kind!r}")
    width, context = sizes(facts.shapes, f"{HEAD}fc1.weight", 2)
    action_dim = sizes(facts.shapes, f"{HEAD}fc2.weight", 2)[0]
    said = whole(stated, "action_dim", WHERE)
    if said not in (None, action_dim):
        raise ValueError(f"{WHERE}action_dim={said}, and the weights say {action_dim}")
    if context != facts.language.hidden_size or width % context:
        raise ValueError(
            f"{HEAD}fc1 makes {width} numbers of {context}; a multiple of the language model's "
            f"{facts.language.hidden_size} is wanted, made of as many"
        )
    if facts.run.include_state or facts.own.takes_state:
        raise ValueError(
            "include_state: a state is written into the prompt as words then, which changes in "
            "every tick, and is not served; train without one"
        )
    normalized, views, _ = normalization(facts, action_dim, None)
    return QwenOFTConfig(
        vision=facts.vision,
        language=facts.language,
        head=MLPResNetConfig(
            action_dim=action_dim,
            action_horizon=stated["action_horizon"],
            num_blocks=count(facts.shapes, f"{HEAD}mlp_resnet_blocks."),
            widening=width // context,
        ),
        normalization=normalized,
        views=views,
        prompt=own_chat(facts.language, facts.run.text),
        license=facts.license,
        description=facts.description,
    )
