"""Robot units to policy units and back, against the formulas of the formats' authors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.normalization import Normalization, choose_embodiment, medoid

STATISTICS = {
    "min": [-2.0, 0.0, 5.0, -1.0],
    "max": [2.0, 1.0, 9.0, 1.0],
    "mean": [0.5, 0.5, 7.0, 0.0],
    "std": [0.25, 0.1, 2.0, 1.0],
    "q01": [-1.5, 0.1, 5.5, -1.0],
    "q99": [1.0, 0.9, 8.5, 1.0],
}


def make(*modes, units=None, statistics=STATISTICS):
    units = units or ["m"] * len(modes)
    return Normalization.from_statistics(statistics, modes, units, what="robot.action")


def test_each_mode_follows_its_formula():
    actions = make("q99", "min_max", "mean_std", "identity").to_robot(
        np.array([0.5, -0.5, 2.0, 3.0], np.float32)
    )
    x, q01, q99 = 0.5, -1.5, 1.0
    np.testing.assert_allclose(actions, [(x + 1) / 2 * (q99 - q01) + q01, 0.25, 11.0, 3.0])


def test_binary_thresholds_actions_and_passes_states():
    gripper = make("q99", "min_max", "mean_std", "binary")
    assert gripper.to_robot(np.array([0, 0, 0, 0.51], np.float32))[3] == 1.0
    assert gripper.to_robot(np.array([0, 0, 0, 0.5], np.float32))[3] == 0.0
    assert gripper.to_policy(np.array([0, 0, 0, 0.3], np.float32))[3] == np.float32(0.3)


@given(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4))
def test_there_and_back_is_the_same(values):
    both = make("q99", "min_max", "mean_std", "identity")
    x = np.array(values, np.float32)
    # Two roundings per direction, on numbers of the size of the offset (7) over a scale of 2.
    np.testing.assert_allclose(both.to_policy(both.to_robot(x)), x, atol=1e-6)


@pytest.mark.parametrize(
    ("modes", "statistics", "message"),
    [
        (["q98"], STATISTICS, r"robot.action\[0\]: unknown mode 'q98', know \['q99'"),
        (["q99"], {}, "the statistics hold no 'q01', only"),
        (["q99"], {"q01": [0.0], "q99": [0.0]}, r"q01 >= q99 \(0.0 >= 0.0\).*never moved"),
        (["min_max"], {"min": [1.0], "max": [0.0]}, "min >= max"),
        (["mean_std"], {"mean": [1.0], "std": [0.0]}, "std must be above zero, got 0.0"),
        (["q99"], {"q01": [0.0, 1.0], "q99": [1.0]}, "'q01' has 2 numbers for 1 dimensions"),
        (["q99"], {"q01": [float("nan")], "q99": [1.0]}, "q01 is nan"),
        (["q99"], {"q01": [0.0], "q99": [1e39]}, r"robot.action\[0\]: q99 is 1e\+39"),
        (["q99"], {"q01": [-1e39], "q99": [0.0]}, r"robot.action\[0\]: q01 is -1e\+39"),
        (["q99"], {"q01": [None], "q99": [1.0]}, r"action\[0\]: q01 must be a number, got None"),
        (["q99"], {"q01": ["0"], "q99": [1.0]}, "q01 must be a number, got '0'"),
        (["q99"], {"q01": [True], "q99": [2.0]}, "q01 must be a number, got True"),
        (["q99"], {"q01": 0.0, "q99": [1.0]}, "'q01' must be a list of numbers, got 0.0"),
        (
            ["min_max"],
            {"min": [0.1], "max": [0.1 + 1e-9]},
            "max - min is 1e-09, at least 1e-06 .* s",
        ),
        (["min_max"], {"min": [-5e-10], "max": [5e-10]}, "is 1e-09, at least 1e-06 is expected"),
        (
            ["q99"],
            {"q01": [500.0], "q99": [500.0004]},
            "q99 - q01 is 0.0004, at least 0.0005 .* 500",
        ),
        (["mean_std"], {"mean": [0.0], "std": [9e-7]}, "std is 9e-07, at least 1e-06"),
        (["mean_std"], {"mean": [-40.0], "std": [3e-5]}, "std is 3e-05, at least 4e-05"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(modes, statistics, message):
    with pytest.raises(ValueError, match=message):
        make(*modes, statistics=statistics)


@pytest.mark.parametrize("unit", ["rad", "rad/step"])
@pytest.mark.parametrize(
    ("mode", "fine", "wrong"),
    [
        ("q99", {"q01": [-3.14], "q99": [3.14]}, {"q01": [-3.15], "q99": [3.15]}),
        ("min_max", {"min": [0.0], "max": [6.28]}, {"min": [0.0], "max": [6.29]}),
        ("mean_std", {"mean": [90.0], "std": [3.14]}, {"mean": [0.0], "std": [3.15]}),
    ],
)
def test_degrees_where_radians_are_meant_are_refused(unit, mode, fine, wrong):
    make(mode, units=[unit], statistics=fine)
    make(mode, units=["m/step"], statistics=wrong)
    with pytest.raises(ValueError, match=f"is in {unit} but .* a full turn.* in degrees"):
        make(mode, units=[unit], statistics=wrong)


@pytest.mark.parametrize(
    ("unit", "low", "high"),
    [
        ("m", 0.0, 1e-6),
        ("rad", 0.0, 2 * np.pi),
        ("m", 0.0, float(np.finfo(np.float32).max)),
    ],
)
def test_the_limits_themselves_are_taken(unit, low, high):
    both = make("min_max", units=[unit], statistics={"min": [low], "max": [high]})
    assert both.scale == np.float32(high / 2) and both.binary.dtype == np.bool_
    assert both.to_robot(np.ones(1, np.float32)).dtype == np.float32
    assert both.modes == ("min_max",) and both.units == (unit,)


@pytest.mark.parametrize(("unit", "std"), [("m", 1e-6), ("rad", np.pi)])
def test_the_limits_of_a_deviation_are_taken(unit, std):
    both = make("mean_std", units=[unit], statistics={"mean": [0.5], "std": [std]})
    assert both.scale == np.float32(std) and both.offset == np.float32(0.5)


def test_a_spread_that_the_unit_can_mean_is_taken():
    make("min_max", "q99", statistics={
        "min": [0.1, 0], "max": [0.1 + 2e-6, 0], "q01": [0, 500.0], "q99": [0, 500.001]
    })  # fmt: skip


@pytest.mark.parametrize(
    ("modes", "mask"),
    [
        (["q99", "min_max", "mean_std", "binary"], [True, True, True, False]),
        (["q99", "min_max", "mean_std", "identity"], [True, True, True, False]),
        (["q99", "min_max", "mean_std", "q99"], None),
    ],
)
def test_a_mask_that_agrees_with_the_modes_changes_nothing(modes, mask):
    masked = make(*modes, statistics=STATISTICS | {"mask": mask})
    plain = make(*modes)
    assert np.array_equal(masked.offset, plain.offset)
    assert np.array_equal(masked.scale, plain.scale)


@pytest.mark.parametrize(
    ("mode", "mask", "message"),
    [
        (
            "min_max",
            [True] * 3 + [False],
            r"robot.action\[3\]: mask says that it was not norm.*'min_m",
        ),
        (
            "mean_std",
            [True] * 3 + [False],
            r"\[3\]: .* its mode 'mean_std' that it was; mend the one",
        ),
        ("identity", [True] * 4, r"\[3\]: mask says that it was normalized .* that it was not"),
        (
            "binary",
            [True] * 4,
            r"\[3\]: mask says that it was normalized .*'binary' that it was not",
        ),
        ("q99", [True] * 3, "'mask' has 3 values for 4 dimensions"),
        ("q99", [True, 1, True, True], r"mask must be a list of true and false, got \[True, 1"),
        ("q99", [1, 1, 1, 1], r"mask must be a list of true and false, got \[1, 1, 1, 1\]"),
        ("q99", True, "mask must be a list of true and false, got True"),
    ],
)
def test_a_mask_that_contradicts_the_modes_is_refused(mode, mask, message):
    with pytest.raises(ValueError, match=message):
        make("q99", "q99", "q99", mode, statistics=STATISTICS | {"mask": mask})


def test_a_robot_is_never_guessed():
    assert choose_embodiment({"bridge": {}}, None) == "bridge"
    assert choose_embodiment({"a": {}, "b": {}}, "b") == "b"
    with pytest.raises(ValueError, match=r"2 embodiments, choose one of \['a', 'b'\]"):
        choose_embodiment({"a": {}, "b": {}}, None)
    with pytest.raises(
        ValueError, match=r"no statistics for embodiment 'c'; there are \['a', 'b'\]"
    ):
        choose_embodiment({"a": {}, "b": {}}, "c")


MIXED = Normalization.from_statistics(
    {"min": [-2.0, 0.0, 0.0], "max": [2.0, 0.5, 1.0]},
    ["min_max", "min_max", "binary"],
    ["m", "m", ""],
    what="action",
)


def test_the_medoid_is_a_sample_and_its_binary_dimensions_are_the_majority_of_all():
    random = np.random.default_rng(0)
    for _ in range(50):
        samples = random.uniform(-1, 1, (5, 4, 3)).astype(np.float32)
        samples[..., 2] = random.integers(0, 2, (5, 4))
        kept = samples.copy()
        actions, spread = medoid(samples, MIXED)
        x = samples[..., :2].astype(float) / [2.0, 0.25]
        between = [[np.sqrt(((a - b) ** 2).mean()) for b in x] for a in x]
        chosen = min(range(5), key=lambda k: sum(between[k]))
        assert actions[:, :2].tobytes() == samples[chosen, :, :2].tobytes()
        votes = (samples[..., 2] == 1).sum(axis=0)
        assert actions[:, 2].tolist() == [float(count >= 3) for count in votes]
        others = [d for k, d in enumerate(between[chosen]) if k != chosen]
        assert spread == pytest.approx(np.sqrt(np.mean(np.square(others))))
        assert samples.tobytes() == kept.tobytes(), "what was sampled is not written into"


def test_of_two_groups_the_medoid_is_in_the_larger_and_never_between():
    left, right = np.full((3, 2, 3), -1, np.float32), np.full((2, 2, 3), 1, np.float32)
    actions, _ = medoid(np.concatenate([right, left]), MIXED)
    assert (actions[:, :2] == -1).all()


def test_half_of_the_votes_are_no_majority():
    samples = np.zeros((2, 1, 3), np.float32)
    samples[0, 0, 2] = 1
    assert medoid(samples, MIXED)[0][0, 2] == 0


def test_binary_dimensions_alone_have_no_distance():
    samples = np.ones((3, 2, 3), np.float32)
    gripper = Normalization.from_statistics({}, ["binary"] * 3, [""] * 3, what="action")
    actions, spread = medoid(samples, gripper)
    assert (actions == 1).all() and spread == 0


STARVLA = {"q99_clipped": "q99", "min_max_or_zero": "min_max", "threshold": "binary"}
"""Our modes, and what starVLA calls its own."""
MOVING = {
    "min": [-2.0, 0.0, 5.0], "max": [2.0, 1.0, 9.0],
    "q01": [-1.5, 0.1, 5.5], "q99": [1.0, 0.9, 8.5],
}  # fmt: skip
STILL = {"min": [0.75] * 3, "max": [0.75] * 3, "q01": [-0.25, 3.0, 0.0], "q99": [-0.25, 3.0, 0.0]}


def as_starvla(mode, statistics, value, *, back):
    """Restated from its formulas, a number at a time: `Normalizer.forward` and `.inverse`."""
    made = []
    for i, x in enumerate(value.tolist()):
        if mode == "binary":
            made.append(1.0 if x > 0.5 else 0.0)
            continue
        low, high = (
            statistics[k][i] for k in (("q01", "q99") if mode == "q99" else ("min", "max"))
        )
        if back:
            made.append((x + 1) / 2 * (high - low) + low)
        elif low == high:
            made.append(max(-2.2, min(2.2, x)) if mode == "q99" else 0.0)
        else:
            scaled = 2 * ((x - low) / (high - low)) - 1
            made.append(max(-2.2, min(2.2, scaled)) if mode == "q99" else scaled)
    return np.array(made)


@pytest.mark.parametrize("statistics", [MOVING, STILL], ids=["moving", "still"])
@pytest.mark.parametrize("mode", STARVLA)
@given(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3))
def test_modes_of_starvla_follow_its_formulas(mode, statistics, values):
    both, x = make(*[mode] * 3, statistics=statistics), np.array(values, np.float32)
    for got, back in ((both.to_policy(x), False), (both.to_robot(x), True)):
        assert got.dtype == np.float32
        want = as_starvla(STARVLA[mode], statistics, x, back=back)
        # Some roundings of numbers up to 30, over a scale of 0.4 at least.
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)


def test_what_starvla_clips_and_thresholds_is_exact():
    clipped = make(*["q99_clipped"] * 3, statistics=MOVING)
    far = clipped.to_policy(np.array([1e9, -1e9, np.inf], np.float32))
    assert far.tolist() == [np.float32(2.2), -np.float32(2.2), np.float32(2.2)]
    assert clipped.to_robot(np.array([5.0, 0, 0], np.float32))[0] == pytest.approx(7.25 - 1 / 4 - 1)
    open_and_closed = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), -3], np.float32)
    gripper = make(*["threshold"] * 3, statistics={})
    for to in (gripper.to_policy, gripper.to_robot):
        assert to(open_and_closed).tolist() == [0.0, 1.0, 0.0]
    assert np.isnan(clipped.to_policy(np.full(3, np.nan, np.float32))).all()


def test_still_is_what_is_the_same_in_float32():
    """starVLA compares its quantiles as float32 tensors."""
    near = {"q01": [0.1], "q99": [0.1 + 1e-9], "min": [0.1], "max": [0.1 + 1e-9]}
    x = np.array([0.3], np.float32)
    assert make("q99_clipped", statistics=near).to_policy(x) == x
    assert make("min_max_or_zero", statistics=near).to_policy(x) == 0
    hardly = {"q01": [0.0], "q99": [1e-7], "min": [0.0], "max": [1e-7]}
    assert make("q99_clipped", statistics=hardly).to_policy(x) == np.float32(2.2)
    with pytest.raises(ValueError, match="max - min is 1e-07, at least 1e-06"):
        make("min_max_or_zero", statistics=hardly)
    for mode in ("q99_clipped", "min_max_or_zero"):
        for low, high, words in ((1.0, 0.0, r">= .* \(1.0 >= 0.0\)"), (-90.0, 90.0, "in degrees")):
            wrong = {"q01": [low], "min": [low], "q99": [high], "max": [high]}
            with pytest.raises(ValueError, match=words):
                make(mode, units=["rad"], statistics=wrong)


def test_a_mask_counts_the_modes_of_starvla_as_what_they_are():
    for mode, is_on in (("q99_clipped", True), ("min_max_or_zero", True), ("threshold", False)):
        make(mode, statistics={k: v[:1] for k, v in MOVING.items()} | {"mask": [is_on]})
        with pytest.raises(ValueError, match="mask says"):
            make(mode, statistics={k: v[:1] for k, v in MOVING.items()} | {"mask": [not is_on]})


def test_a_medoid_has_no_distance_in_thresholds():
    both = make("q99_clipped", "threshold", statistics={"q01": [-1.5, 0], "q99": [1.0, 0]})
    samples = np.array([[[0, 1]], [[0.1, 0]], [[0.5, 1]]], np.float32)
    actions, _ = medoid(samples, both)
    assert actions.tolist() == [[np.float32(0.1), 1.0]]


def as_openvla(mode, statistics, value, *, back):
    """Restated in float64 from OpenVLA-OFT's `normalize_proprio` and `_unnormalize_actions`."""
    low, high = (
        np.array(statistics[key], np.float64)
        for key in (("q01", "q99") if mode == "bounds_q99" else ("min", "max"))
    )
    value = value.astype(np.float64)
    if back:
        return 0.5 * (value + 1) * (high - low + 1e-8) + low
    return np.clip(2 * (value - low) / (high - low + 1e-8) - 1, -1.0, 1.0)


@pytest.mark.parametrize("mode", ["bounds", "bounds_q99"])
@pytest.mark.parametrize("statistics", [MOVING, STILL])
def test_openvla_s_modes_are_its_formulas(mode, statistics):
    """float32 rounds a number of size 10 by 6e-7, which is 2e-6 of the narrowest bounds here."""
    mapping = make(*[mode] * 3, statistics=statistics)
    low = np.array(statistics["q01" if mode == "bounds_q99" else "min"], np.float32)
    for seed in range(20):
        robot = np.random.default_rng(seed).uniform(-3, 10, 3).astype(np.float32)
        for value in (robot, low):
            want = as_openvla(mode, statistics, value, back=False)
            assert mapping.to_policy(value) == pytest.approx(want, abs=3e-6)
        policy = np.random.default_rng(seed).uniform(-1.5, 1.5, 3).astype(np.float32)
        want = as_openvla(mode, statistics, policy, back=True)
        assert mapping.to_robot(policy) == pytest.approx(want, abs=3e-6)
    assert mapping.to_policy(low).tolist() == [-1.0] * 3
    assert mapping.to_policy(np.full(3, 1e9, np.float32)).tolist() == [1.0] * 3


def test_what_openvla_does_not_say_is_refused():
    for low, high, words in ((1.0, 0.0, "exchanged"), (-90.0, 90.0, "in degrees")):
        wrong = {"q01": [low], "min": [low], "q99": [high], "max": [high]}
        for mode in ("bounds", "bounds_q99"):
            with pytest.raises(ValueError, match=words):
                make(mode, units=["rad"], statistics=wrong)
    for mode in ("bounds", "bounds_q99"):
        only = {k: v[:1] for k, v in MOVING.items()}
        make(mode, statistics=only | {"mask": [True]})
        with pytest.raises(ValueError, match="mask says"):
            make(mode, statistics=only | {"mask": [False]})
