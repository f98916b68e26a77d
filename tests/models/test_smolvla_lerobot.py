"""SmolVLA against LeRobot's own networks, from pictures on; `make test-lerobot` makes them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from models.families import CONFIGS
from models.init import image_of
from models.smolvla.family import prompt
from models.smolvla.model import actions
from tests import lerobot_networks
from tests.oracles import END_TO_END, TOKENIZER, random_policy, relative_error

ROOT = Path(__file__).parents[2]
UNUSED = {
    "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "post_attention_layernorm",
}  # fmt: skip


@torch.no_grad()
def compare(networks, name):
    """Relative errors of a few observations, and what of LeRobot's was given no weights."""
    config, tokenizer = CONFIGS[name](), Tokenizer.from_file(str(TOKENIZER))
    theirs = lerobot_networks.build(networks, config)
    ours = random_policy(config)
    left = lerobot_networks.give(theirs, ours)
    parts, errors = prompt(config, tokenizer), []
    for seed, said in enumerate(("reach", "push the puck and then go home")):
        random = np.random.default_rng(seed)
        seen = {view: random.integers(0, 256, (120, 160, 3), np.uint8) for view in config.views}
        noises = config.head.action_horizon, config.head.max_action_dim
        seen["state"] = random.standard_normal(config.state_dim, np.float32)
        seen["noise"] = random.standard_normal(noises, np.float32)
        ids = parts.tail_ids(tokenizer, said)
        padding = config.prompt.max_length - len(ids)
        shown = [torch.from_numpy(seen[view]).permute(2, 0, 1)[None] / 255 for view in config.views]
        side = config.vision.image_size
        shown = [networks.resize_with_pad(x, side, side, pad_value=0) * 2 - 1 for x in shown]
        state = torch.from_numpy(seen["state"])[None]
        want = theirs.sample_actions(
            shown, [torch.ones(1, dtype=torch.bool)] * len(shown),
            torch.tensor([[*ids, *[0] * padding]]),
            torch.tensor([[True] * len(ids) + [False] * padding]),
            networks.pad_vector(state, config.head.max_state_dim),
            noise=torch.from_numpy(seen["noise"])[None],
        )  # fmt: skip
        got = actions(ours.eval(), parts, image_of(config), ids, seen)
        errors.append(relative_error(got, want[0, :, : config.head.action_dim].numpy()))
    return errors, left


@pytest.mark.skipif(lerobot_networks.package() is None, reason="make test-lerobot makes LeRobot")
def test_actions_are_those_of_lerobot_s_own_networks():
    """In a process of its own, since modules of the package are replaced."""
    run = [
        sys.executable,
        "-m",
        "tests.models.test_smolvla_lerobot",
        str(lerobot_networks.package()),
    ]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("relative error") == 4


def main(root):
    networks = lerobot_networks.load(Path(root))
    for name in ("smolvla-tiny", "smolvla-thin"):
        errors, left = compare(networks, name)
        last = CONFIGS[name]().language.num_hidden_layers - 1
        text = "vlm_with_expert.vlm.model.text_model."
        want = {f"{text}layers.{last}.{layer}.weight" for layer in UNUSED}
        assert left == want | {f"{text}norm.weight", "vlm_with_expert.vlm.lm_head.weight"}, left
        for error in errors:
            print(f"{name}: relative error {error:.2g}")
            assert error <= END_TO_END


if __name__ == "__main__":
    main(sys.argv[1])
