"""What is said to a served policy and what it answers, by openpi's own client on real sockets."""

import numpy as np
import pytest
from websockets.sync.client import connect

from tests.runtime.stand_ins.served import (
    PICTURE,
    client,
    leave,
    observation,
    packed_array,
    told,
)


def test_metadata_are_the_declared_inputs_and_outputs(driver):
    said = driver.get_server_metadata()
    assert list(said["inputs"]) == ["anchor", "instruction", "frame", "state", "noise", "leftover"]
    state = said["inputs"]["state"]
    assert (state["kind"], state["shape"], state["dtype"]) == ("vector", [2], "float32")
    assert state["unit"] == "rad" and state["is_required"]
    assert state["keys"] == ["observation/state", "state"]
    assert said["inputs"]["instruction"]["keys"] == ["prompt", "instruction"]
    assert not said["inputs"]["anchor"]["is_required"]
    assert said["outputs"]["chunk"]["units"] == ["m", "m", "1"]
    assert said["chunk_shape"] == [2, 3] and said["rate_hz"] == 20.0
    assert (said["policy"], said["embodiment"]) == ("stand-in", "tester")


def test_an_episode_is_that_of_its_connection_and_its_first_frame_is_the_anchor(server, driver):
    first = driver.infer(observation(7))
    assert first["actions"].dtype == np.float32
    np.testing.assert_array_equal(first["actions"], [[0, 7, 7], [0.25, 2, first["seed"]]])
    without_text = observation(8)
    del without_text["prompt"]
    second = driver.infer(without_text)
    np.testing.assert_array_equal(second["actions"][0], [1, 8, 7])
    assert second["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
    leave(driver)
    next_one = client(server)
    third = next_one.infer(observation(9))
    np.testing.assert_array_equal(third["actions"][0], [0, 9, 9])
    assert (third["episode"], third["seed"]) == (first["episode"] + 1, first["seed"] + 1)
    leave(next_one)


def test_a_new_prompt_is_a_new_instruction_and_reset_a_new_episode(driver):
    driver.infer(observation(1))
    said = driver.infer(observation(2, prompt="stop it"))
    np.testing.assert_array_equal(said["actions"], [[1, 2, 1], [0.25, 7, said["seed"]]])
    again = driver.infer(observation(3, reset=True, seed=40))
    np.testing.assert_array_equal(again["actions"], [[0, 3, 3], [0.25, 2, 40]])
    assert again["episode"] == said["episode"] + 1


def test_a_latch_keeps_this_frame_or_the_one_that_is_sent(driver):
    driver.infer(observation(1))
    assert driver.infer(observation(2, latch=["anchor"]))["actions"][0, 2] == 2
    sent = np.full(PICTURE, 9, np.uint8)
    assert driver.infer(observation(3, anchor=sent))["actions"][0, 2] == 9
    assert driver.infer(observation(4))["actions"][0, 2] == 9


def test_a_client_says_what_it_will_carry_out_meanwhile_and_the_answer_keeps_it(driver):
    leftover = np.array([[1, 0.25, 0.5, 0.75], [0.5, 8, 8, 8]], np.float32)
    actions = driver.infer(observation(7, leftover=leftover))["actions"]
    np.testing.assert_array_equal(actions[0], [0.25, 0.5, 0.75])
    assert actions[1, 0] == 0.25, "the state, as without a leftover"
    np.testing.assert_array_equal(driver.infer(observation(7))["actions"][0], [1, 7, 7])
    assert not driver.get_server_metadata()["inputs"]["leftover"]["is_required"]


def test_an_output_comes_along_when_it_is_asked_for(driver):
    answer = driver.infer(observation(1, outputs=["likeness"]))
    np.testing.assert_array_equal(answer["outputs"]["likeness"], [0.5])
    assert "outputs" not in driver.infer(observation(1))


REFUSED = {
    "no observation at all": ({}, "the observation lacks instruction, frame, state; the first of"),
    "a missing value": ({"frame": np.zeros(PICTURE, np.uint8), "prompt": "go"}, "lacks state"),
    "a name that is unknown": (observation(speed=3), "no input 'speed'; what may be sent is: "),
    "a value twice": (observation(**{"observation/state": np.zeros(2)}), "state is given twice"),
    "a picture of floats": (
        observation() | {"frame": np.zeros(PICTURE, np.float32)},
        "frame must be uint8 [8, 6, 3], got float32 [8, 6, 3]",
    ),
    "channels first": (
        observation() | {"frame": np.zeros((3, 8, 6), np.uint8)},
        "frame must be uint8 [8, 6, 3], got uint8 [3, 8, 6]",
    ),
    "a state too long": (observation() | {"state": np.zeros(3)}, "numbers [2], got float64 [3]"),
    "a state of truths": (observation() | {"state": np.ones(2, bool)}, "numbers [2], got bool [2]"),
    "a list that is no vector": (observation() | {"state": ["x", 1]}, "a list of numbers"),
    "a number too large": (observation() | {"state": [1, 2**63]}, None),
    "NaN": (observation() | {"state": np.array([np.nan, 0])}, "state holds NaN or infinity"),
    "an instruction that is none": (observation(prompt=3), "instruction must be text, got int"),
    "an unknown output": (observation(outputs=["x"]), "no outputs 'x'; this policy has chunk, "),
    "an unknown latch": (observation(latch=["frame"]), "no latch 'frame'; this policy has anchor"),
    "a latch that is no list": (observation(latch="anchor"), "latch must be a list of names"),
    "a reset that is a text": (observation(reset="no"), "reset must be true or false, got 'no'"),
    "a seed below zero": (observation(reset=True, seed=-1), "seed must be a whole number in [0, "),
    "an id that is a text": (observation(request_id="a"), "request_id must be a whole number"),
    "another question": ({"ask": "keys"}, "ask must be one of status, got 'keys'"),
    "a question that is an array": ({"ask": np.zeros(4)}, "ask must be one of status, got array"),
    "a question beside values": (observation(ask="status"), "a question stands alone, without"),
    "an array of objects": (
        observation() | {"state": packed_array([2], "|O", bytes(16))},
        "'state' is an array of '|O'; arrays of |u1",
    ),
    "a record": (
        observation() | {"state": packed_array([2], "<f4,<f4", bytes(16))},
        "is an array of '<f4,<f4'",
    ),
    "a shape larger than its bytes": (
        observation() | {"frame": packed_array([2**40, 2**40, 3], "|u1", b"abc")},
        "'frame' is an array |u1 of shape [1099511627776, 1099511627776, 3] in 3 bytes",
    ),
    "bytes beyond its shape": (
        observation() | {"state": packed_array([2], "<f4", bytes(12))},
        "'state' is an array <f4 of shape [2] in 12 bytes",
    ),
    "a shape below zero": (
        observation() | {"frame": packed_array([-1, 6, -3], "|u1", bytes(18))},
        "of shape [-1, 6, -3] in 18 bytes",
    ),
    "deep nesting": (observation(latch=[[[[["anchor"]]]]]), "the message nests deeper than 4"),
    "very many values": (observation(latch=["anchor"] * 500), "the message holds more than"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_changes_nothing_and_the_next_is_answered(what, driver):
    message, words = REFUSED[what]
    if words is None:  # large, but a number
        assert driver.infer(message)["step"] == 0
        return
    if "lacks" not in words:
        driver.infer(observation(5))
    assert words in told(driver, message)
    if "lacks" not in words:
        after = driver.infer(observation(6))["actions"]
        np.testing.assert_array_equal(after[0], [1, 6, 5])


def test_the_seed_of_an_episode_is_not_changed_on_its_way(driver):
    driver.infer(observation())
    assert "a seed is of an episode: say reset beside it" in told(driver, observation(seed=3))


def test_a_reset_that_is_refused_leaves_the_episode(driver):
    driver.infer(observation(5))
    told(driver, observation(6, reset=True) | {"state": np.array([np.nan, 0])})
    np.testing.assert_array_equal(driver.infer(observation(7))["actions"][0], [1, 7, 5])


def test_a_request_id_comes_back_with_the_answer_and_with_the_refusal(driver):
    assert driver.infer(observation(request_id=3))["request_id"] == 3
    assert "request_id" not in driver.infer(observation())
    assert told(driver, observation(request_id=4, speed=1)).endswith("(request_id 4)")
    assert driver.infer({"ask": "status", "request_id": 5})["request_id"] == 5


def test_a_request_id_that_was_used_is_refused_so_no_answer_fits_two_questions(driver):
    driver.infer(observation(request_id=3))
    for number in (3, 2):
        assert "request_id must be above the last one, 3" in told(
            driver, observation(request_id=number)
        )
    told(driver, observation(request_id=4, speed=1))
    assert "above the last one, 4" in told(driver, observation(request_id=4))


def test_a_text_is_no_message(server):
    with connect(f"ws://127.0.0.1:{server.port}") as one:
        one.recv()
        one.send("hello")
        assert one.recv() == "a message is binary msgpack, got a text"


def test_a_refusal_quotes_no_more_than_a_line(driver):
    assert len(told(driver, {"x" * 5000: 1})) <= 500
