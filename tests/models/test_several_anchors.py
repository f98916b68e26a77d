"""AnchorVLA4D with several anchors in its prompt, against the libraries."""

import dataclasses

import numpy as np
import pytest
import torch
from uniception.models.info_sharing.base import MultiViewTransformerInput

from models.anchorvla4d.prompt import published_prompt
from models.anchorvla4d.reference import Composition
from models.checkpoint import Checkpoint, load_checkpoint, write_random_checkpoint
from models.families import CONFIGS, family_of, read_config, to_json
from models.init import image_of, statistics_of
from runtime.prompt import encode_tail
from tests.oracles import (
    END_TO_END,
    IMAGE,
    MODULE,
    TOKENIZER,
    normal,
    random_policy,
    relative_error,
)

WORDS = "push the puck"


def config_of(anchors):
    return dataclasses.replace(CONFIGS["demo"](), anchors=anchors)


@pytest.fixture(scope="module", params=[2, 3])
def pair(request, tokenizer):
    model = random_policy(config_of(request.param))
    return model, Composition(model, tokenizer, IMAGE)


def observed(views, size=(112, 112), seed=0):
    random = np.random.default_rng(seed)
    pictures = {name: random.integers(0, 256, (*size, 3), np.uint8) for name in views}
    noise = random.standard_normal((10, 4), np.float32)
    return pictures | {"state": random.standard_normal(4, np.float32), "noise": noise}


def act(model, tokenizer, seen):
    family = family_of(model.config)
    parts = family.prompt(model.config, tokenizer)
    tail = encode_tail(tokenizer, parts.tail, parts.end_ids, WORDS)
    return family.actions(model, parts, IMAGE, tail, seen)


@pytest.mark.parametrize("size", [(112, 112), (100, 168)])
def test_actions_equal_those_of_the_composition(pair, tokenizer, size):
    model, library = pair
    seen = observed(model.config.views, size)
    want = library.act(instruction=WORDS, **seen)
    assert (np.abs(want) < 0.99).mean() > 0.5
    assert relative_error(act(model, tokenizer, seen), want) <= END_TO_END


def test_every_picture_and_their_order_change_the_actions(pair, tokenizer):
    model, library = pair
    views = model.config.views
    seen, other = observed(views), observed(views, seed=1)
    want = library.act(instruction=WORDS, **seen)
    changed = [seen | {name: other[name]} for name in views]
    changed += [
        seen | {one: seen[two], two: seen[one]} for one, two in zip(views, views[1:], strict=False)
    ]
    for given in changed:
        assert relative_error(library.act(instruction=WORDS, **given), want) > 10 * END_TO_END
        assert relative_error(act(model, tokenizer, given), want) > 10 * END_TO_END


def test_the_prompt_shows_all_anchors_where_one_would_stand(pair, tokenizer):
    _, library = pair
    start, end = (tokenizer.token_to_id(f"<|vision_{word}|>") for word in ("start", "end"))
    pads = [library.image_pad_id] * 4
    ids, one = library.input_ids(4, WORDS), [start, *pads, end]
    alone = Composition(random_policy(config_of(1)), tokenizer, IMAGE).input_ids(4, WORDS)
    at, count = alone.index(start), library.config.anchors
    assert ids == [*alone[:at], *one * count, *alone[at + len(one) :]]


@torch.no_grad()
@pytest.mark.parametrize("num_views", [2, 3, 4])
def test_the_spatial_trunk_relates_any_number_of_views(pair, num_views):
    model, library = pair
    ours, grid = model.info_sharing, (4, 6)
    views = normal(num_views, grid[0] * grid[1], model.config.vision.patch_dim)
    final, taps = library.spatial.info_sharing(
        MultiViewTransformerInput(
            features=[v.reshape(1, *grid, -1).permute(0, 3, 1, 2) for v in views],
            additional_input_tokens=library.spatial.scale_token[None, :, None],
        )
    )
    want = torch.cat([v[0].flatten(1).T for out in (final, *taps) for v in out.features])
    assert relative_error(ours.trunk(*map(ours.project, views)), want) <= MODULE


def test_a_picture_of_another_size_is_refused_by_its_name(pair):
    model, library = pair
    seen = observed(model.config.views) | {"anchor_2": np.zeros((112, 140, 3), np.uint8)}
    with pytest.raises(ValueError, match=r"anchor_2 and frame give \[8, 10\] and \[8, 8\]"):
        library.prepare(instruction=WORDS, **seen)


def test_a_configuration_says_how_many_and_one_if_it_says_nothing(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(to_json(config_of(3)))
    assert read_config(path).anchor_names == ("anchor", "anchor_2", "anchor_3")
    path.write_text(to_json(config_of(1)).replace('  "anchors": 1,\n', ""))
    assert "anchors" not in path.read_text() and read_config(path) == CONFIGS["demo"]()
    for count in ("0", "17", "1.5", "true"):
        path.write_text(to_json(config_of(3)).replace('"anchors": 3', f'"anchors": {count}'))
        with pytest.raises(ValueError, match="anchors must be"):
            read_config(path)


def test_without_a_tokenizer_the_prompt_is_as_long_as_the_published_one(pair):
    config = pair[0].config
    fixed = family_of(config).fixed_tokens(config, published_prompt(config)[0], (18, 18))
    assert fixed == {
        "prefix": 20 + 81 + 1,
        **{f"anchor_{number}_prefix": 1 + 81 + 1 for number in range(2, config.anchors + 1)},
        "suffix": 6 + 81,
    }


def test_the_weights_do_not_say_how_many_anchors_there_are(tmp_path):
    """A checkpoint of one anchor and one of three have the same tensors: any layout is read."""
    seen: list[Checkpoint] = []
    for anchors in (1, 3):
        folder = tmp_path / str(anchors)
        folder.mkdir()
        config = config_of(anchors)
        write_random_checkpoint(
            folder, config, tokenizer=TOKENIZER, image=image_of(config),
            statistics=statistics_of(config), seed=0,
        )  # fmt: skip
        seen.append(load_checkpoint(folder))
    one, three = (checkpoint.model.state_dict() for checkpoint in seen)
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in three.items()}
    assert [len(checkpoint.parts.before) for checkpoint in seen] == [2, 4]
