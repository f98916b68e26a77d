"""The work of engines by configuration: against arithmetic by hand, and against torch's modules."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.anchorvla4d.engines import engines_of
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import CONFIGS, demo, full
from models.anchorvla4d.work import engines_work, folded_layers, trunk_work
from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT
from models.family import layer_names
from models.networks.work import Tokens, all_layers

GRID = (18, 18)
SLOTS = 112
PARTS = {"vision": 2, "language": 3, "spatial": 4}

# The published decoder, by hand: width 2048, MLP of 11008, 16 heads of 128 that share 2 keys and
# values; 112 new tokens, each of which attends to 112 cached ones and 112 new ones.
PRODUCTS = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008
"""Weights of q and o, k and v, gate, up and down."""
DECODER_LAYER = 2 * 112 * PRODUCTS + 2 * 2 * 16 * 112 * 224 * 128


def meta(config):
    with torch.device("meta"):
        return AnchorVLA4D(config)


def work_of(config, layers=None, slots=SLOTS, grid=GRID):
    return engines_work(config, grid, Tokens.padded(slots), layers or {})


def test_a_decoder_layer_multiplies_what_the_paper_s_dimensions_say():
    work = trunk_work(full(), "language", range(1), GRID, Tokens.padded(112))
    assert work.flops == DECODER_LAYER
    # q, k and v have biases; two norms of 2048.
    assert work.parameters == PRODUCTS + 2048 + 2 * 256 + 2 * 2048


def test_padding_is_left_out_if_it_is_left_out_of_the_tokens():
    """102 of 112 tokens, behind 102 of 112."""
    used = trunk_work(full(), "language", range(1), GRID, Tokens(new=102, seen=204))
    assert used.flops == 2 * 102 * PRODUCTS + 2 * 2 * 16 * 102 * 204 * 128


def test_a_vision_block_attends_inside_its_windows():
    """18 x 18 patches are 81 tokens in windows of 4 x 4: 4 whole ones, 2 + 2 of 4 x 1, and one."""
    c = full()
    inside = trunk_work(c, "vision", range(1, 2), GRID, Tokens.padded(1)).attention_flops
    whole = trunk_work(c, "vision", range(7, 8), GRID, Tokens.padded(1)).attention_flops
    pairs = 4 * 64**2 + 4 * 16**2 + 4**2
    assert inside == 2 * 2 * 16 * 80 * pairs
    assert whole == 2 * 2 * 16 * 80 * 324**2


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_those_of_the_modules_with_all_their_weights(name):
    config = CONFIGS[name]()
    model = meta(config)
    found = all_layers(work_of(config).values()) | {x.name: x for x in folded_layers(config)}
    shapes = {
        n: (m.in_features, m.out_features, m.bias is not None)
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear)
    }
    patch = model.vlm.visual.patch_embed.proj
    shapes["vlm.visual.patch_embed.proj"] = (patch.weight[0].numel(), patch.out_channels, False)
    assert {n: (x.num_inputs, x.num_outputs, x.has_bias) for n, x in found.items()} == shapes
    assert set(layer_names(config)) == shapes.keys()
    # Every parameter once, but for the patch projection, which two engines hold; the table of
    # embeddings is looked up, and the embedded steps and the mark of a view are buffers.
    twice = found["info_sharing.info_sharing.proj_embed"].num_weights
    table = config.language.vocab_size * config.language.hidden_size
    folded = sum(x.num_weights for x in folded_layers(config))
    buffers = config.head.num_inference_timesteps * config.head.n_emb + config.spatial.dim
    want = sum(p.numel() for p in model.parameters()) - table - folded + twice + buffers
    assert sum(work.parameters for work in work_of(config).values()) == want


def rows_of(spec, names):
    """Of every linear layer of a module that a hook sees: vectors that it multiplied."""
    rows = Counter()

    def watch(name):
        return lambda _, x: rows.update({name: x[0].numel() // x[0].shape[-1]})

    handles = [
        module.register_forward_pre_hook(watch(names[id(module)]))
        for module in spec.module.modules()
        if isinstance(module, nn.Linear) and id(module) in names
    ]
    with torch.no_grad():
        spec.module(*(torch.zeros(port.shape) for port in spec.inputs.values()))
    for handle in handles:
        handle.remove()
    return dict(rows)


def test_engines_multiply_as_many_vectors_as_their_modules_do():
    checkpoint = load_checkpoint(CHECKPOINT)
    works = work_of(checkpoint.config, slots=64, grid=(8, 8), layers=PARTS)
    specs = engines_of(checkpoint.model, (8, 8), 64, PARTS)
    assert list(works) == list(specs)
    names = {id(m): n for n, m in checkpoint.model.named_modules()}
    # Two layers are multiplied by their weights alone, so no hook sees them.
    unseen = {"vlm.visual.patch_embed.proj", "info_sharing.final_projection"}
    for engine, spec in specs.items():
        counted = {layer.name: layer.rows for layer in works[engine].layers}
        seen = {name: rows for name, rows in counted.items() if name not in unseen}
        assert seen == rows_of(spec, names), engine


@pytest.mark.parametrize(
    ("engine", "change"),
    [
        ("vision", lambda c, n: replace(c, vision=replace(c.vision, depth=2 * n))),
        ("language", lambda c, n: replace(c, language=replace(c.language, num_hidden_layers=n))),
        ("spatial", lambda c, n: replace(c, spatial=replace(c.spatial, depth=2 * n, indices=(0,)))),
        ("denoise", lambda c, n: replace(c, head=replace(c.head, depth=n))),
        ("condition", lambda c, n: replace(c, head=replace(c.head, depth=n))),
    ],
)
def test_a_network_s_work_grows_by_the_same_with_every_layer(engine, change):
    """So what is counted of two layers in a file is proof of thirty-six."""
    base = replace(full(), vision=replace(full().vision, fullatt_block_indexes=(0,)))
    works = [work_of(change(base, n))[engine] for n in (2, 3, 4, 12)]
    flops, held = [w.flops for w in works], [w.parameters for w in works]
    for two, three, four, twelve in (flops, held):
        assert three - two == four - three > 0
        assert twelve == two + 10 * (three - two)


def test_parts_of_a_network_do_together_what_it_does_whole():
    config = demo()
    whole, parts = work_of(config), work_of(config, PARTS)
    for trunk in ("vision", "language", "spatial"):
        cut = [work for name, work in parts.items() if name.startswith(trunk)]
        assert len(cut) > 1
        assert sum(work.flops for work in cut) == whole[trunk].flops
