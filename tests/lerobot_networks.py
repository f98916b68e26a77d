"""LeRobot's own files of SmolVLA, each loaded alone: its package takes other libraries than ours.

The files are those that the environment of `make test-lerobot` holds. What they import of the
package is empty, but for what their networks compute with; their language model comes from no hub.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig
from transformers.models.smolvlm import SmolVLMConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from models.smolvla.config import SmolVLAConfig
from tests.lerobot_reader import ENVIRONMENT

PACKAGES = (
    "lerobot", "lerobot.utils", "lerobot.policies", "lerobot.policies.smolvla",
    "lerobot.policies.common", "lerobot.policies.rtc",
)  # fmt: skip
MODULES: dict[str, dict[str, Any]] = {
    "lerobot.utils.import_utils": {
        "_transformers_available": True, "require_package": lambda *_, **__: None,
    },
    "lerobot.utils.utils": {"get_safe_dtype": lambda dtype, _: dtype},
    "lerobot.utils.device_utils": {"get_safe_dtype": lambda dtype, _: dtype},
    "lerobot.utils.constants": dict.fromkeys(
        ("ACTION", "OBS_LANGUAGE_ATTENTION_MASK", "OBS_LANGUAGE_TOKENS", "OBS_STATE",
         "OPENPI_ATTENTION_MASK_VALUE"), ""
    ),
    "lerobot.policies.pretrained": {"PreTrainedPolicy": torch.nn.Module},
    "lerobot.policies.rtc.modeling_rtc": {"RTCProcessor": object},
    "lerobot.policies.utils": {"populate_queues": None},
    "lerobot.policies.smolvla.configuration_smolvla": {"SmolVLAConfig": object},
}  # fmt: skip
FILES = (
    "lerobot.policies.common.vla_utils", "lerobot.policies.common.flow_matching",
    "lerobot.policies.smolvla.smolvlm_with_expert", "lerobot.policies.smolvla.modeling_smolvla",
)  # fmt: skip
"""In the order in which one takes the others; older versions lack the first two."""
NAMES = {
    "vlm.visual.": "vlm_with_expert.vlm.model.vision_model.",
    "vlm.connector.": "vlm_with_expert.vlm.model.connector.",
    "vlm.model.": "vlm_with_expert.vlm.model.text_model.",
    "action_head.layers.": "vlm_with_expert.lm_expert.layers.",
    "action_head.norm.": "vlm_with_expert.lm_expert.norm.",
    "action_head.": "",
}
"""How our names begin, and how theirs do: the first that fits."""


def package() -> Path | None:
    """Where LeRobot lies, if it is there."""
    found = sorted(ENVIRONMENT.glob("lib/python*/site-packages/lerobot"))
    return found[0] if found else None


def load(root: Path) -> Any:
    """The module with their networks and how they prepare what these are given.

    Args:
        root: LeRobot's package.
    """
    for name in PACKAGES:
        _add(name).__path__ = []
    for name, holds in MODULES.items():
        _add(name).__dict__.update(holds)
    for name in FILES:
        path = root.parent / (name.replace(".", "/") + ".py")
        if path.is_file():
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    networks: Any = sys.modules[FILES[-1]]
    if hasattr(sys.modules[FILES[-2]], "DynamicCache"):
        _mend_cache(sys.modules[FILES[-2]])
    return networks


def build(networks: Any, c: SmolVLAConfig) -> torch.nn.Module:
    """Theirs, of our sizes, with random weights. The rotary base that its language model states is
    another than the one that they compute with."""
    text = LlamaConfig(
        vocab_size=c.language.vocab_size,
        hidden_size=c.language.hidden_size,
        intermediate_size=c.language.intermediate_size,
        num_hidden_layers=c.language.num_hidden_layers + 1,
        num_attention_heads=c.language.num_attention_heads,
        num_key_value_heads=c.language.num_key_value_heads,
        head_dim=c.language.head_dim,
        rms_norm_eps=c.language.rms_norm_eps,
        pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    )
    vision = SmolVLMVisionConfig(
        hidden_size=c.vision.hidden_size,
        intermediate_size=c.vision.intermediate_size,
        num_hidden_layers=c.vision.depth,
        num_attention_heads=c.vision.num_heads,
        image_size=c.vision.image_size,
        patch_size=c.vision.patch_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    whole = SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=c.vision.scale_factor,
        pad_token_id=None,
    )  # fmt: skip
    tokens = types.SimpleNamespace(fake_image_token_id=1, global_image_token_id=2)
    hub = {"AutoConfig": whole, "AutoProcessor": types.SimpleNamespace(tokenizer=tokens)}
    for name, gives in hub.items():
        made = types.SimpleNamespace(from_pretrained=lambda _, gives=gives: gives)
        setattr(sys.modules[FILES[-2]], name, made)
    settings = types.SimpleNamespace(
        vlm_model_name="", freeze_vision_encoder=True, train_expert_only=True,
        load_vlm_weights=False, attention_mode="cross_attn", num_expert_layers=-1,
        num_vlm_layers=c.language.num_hidden_layers,
        self_attn_every_n_layers=c.head.self_attn_every_n_layers, expert_width_multiplier=0.75,
        device="cpu", max_state_dim=c.head.max_state_dim, max_action_dim=c.head.max_action_dim,
        train_state_proj=True, add_image_special_tokens=False, prefix_length=-1,
        compile_model=False, rtc_config=None, chunk_size=c.head.action_horizon,
        num_steps=c.head.num_inference_timesteps, min_period=c.head.min_period,
        max_period=c.head.max_period, use_cache=True,
    )  # fmt: skip
    made: torch.nn.Module = networks.VLAFlowMatching(settings).float()
    for module in made.modules():  # their own `train` answers nothing, so `eval` cannot be called
        module.training = False
    return made


def give(theirs: torch.nn.Module, ours: torch.nn.Module) -> set[str]:
    """Our weights to them; what they have beside is told."""
    given = {}
    for name, tensor in ours.state_dict().items():
        begin = next((begin for begin in NAMES if name.startswith(begin)), "")
        given[NAMES.get(begin, "") + name.removeprefix(begin)] = tensor
    missing, unexpected = theirs.load_state_dict(given, strict=False)
    assert not unexpected
    return set(missing)


def _add(name: str) -> types.ModuleType:
    return sys.modules.setdefault(name, types.ModuleType(name))


def _mend_cache(module: Any) -> None:
    """Transformers 5.23 crops by how many are to go, and LeRobot's pin by how many stay."""

    class Cache(module.DynamicCache):  # type: ignore[misc]
        def crop(self, keep: int) -> None:
            for layer in self.layers:
                layer.keys, layer.values = layer.keys[..., :keep, :], layer.values[..., :keep, :]

    module.DynamicCache = Cache
