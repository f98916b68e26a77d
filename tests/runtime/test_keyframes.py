"""Which pictures are kept: against the authors' server and client told again, and step by step."""

import dataclasses

import numpy as np
import pytest

from runtime.errors import EngineError
from runtime.functions.keyframes import EventSettings, KeyframeMemory

QUIET = 0.1


def picture(step):
    return np.full((2, 3, 3), step % 256, np.uint8)


# The authors' two halves, told again: dictionaries and loops, and no part of what is tested.


class Server:
    """The model's side: what it is asked at a step, it answers with an offset and a confidence."""

    def __init__(self, threshold, first, window, cooldown):
        self.threshold, self.first = threshold, first
        self.window, self.cooldown = window, cooldown
        self.state = {"pending": None, "confidence": 0.0, "committed": None}

    def ask(self, probabilities, now):
        state = self.state
        if state["pending"] is not None and now >= state["pending"]:
            state.update(committed=state["pending"], pending=None, confidence=0.0)
        for offset, confidence in self.peaks(probabilities):
            at = now + offset
            committed = state["committed"]
            if committed is not None and abs(at - committed) <= self.cooldown:
                continue
            if state["pending"] is not None and abs(at - state["pending"]) <= self.cooldown:
                is_better = confidence > state["confidence"]
                is_same = abs(confidence - state["confidence"]) <= 1e-8
                if not is_better and not (is_same and at >= state["pending"]):
                    continue
            state.update(pending=at, confidence=confidence)
            return offset, confidence
        return None

    def peaks(self, probabilities):
        """Maximum by maximum, each of which blots its surroundings out."""
        left = {k: float(p) for k, p in enumerate(probabilities) if k >= self.first}
        found = []
        while left:
            best = max(left, key=lambda k: (left[k], -k))
            if left[best] < self.threshold:
                break
            found.append((best, left[best]))
            for k in range(best - self.window, best + self.window + 1):
                left.pop(k, None)
            left.pop(best, None)
        return found


class Client:
    """The robot's side: a plan, where in it the event is, and the pictures."""

    def __init__(self, server, most):
        self.server, self.most = server, most
        self.start = self.offset = None
        self.is_done, self.count, self.bank = True, 0, []
        self.plan_start = self.length = None
        self.log = []

    def step(self, now, probabilities_of, replan):
        committed = False
        if not self.is_done and now - self.start == self.offset:
            self.bank.append((now, picture(now)))
            while len(self.bank) > self.most:
                del self.bank[0]
            self.is_done, committed = True, True
            self.count += 1
        ended = self.plan_start is None or now - self.plan_start >= self.length
        if ended or replan or (committed and self.count < 4):
            probabilities = probabilities_of(now)
            self.plan_start, self.length = now, len(probabilities)
            event = self.server.ask(probabilities, now)
            if event is not None:
                self.start, self.offset, self.is_done = now, event[0], False
            self.log.append((now, event))


def ours(settings, probabilities_of, replans, num_steps):
    """The same loop on a memory; states of it, and what was planned when."""
    memory, start, length, log = KeyframeMemory(settings=settings), None, None, []
    for now in range(num_steps):
        replan = now in replans
        if memory.is_due(now):
            memory = memory.keep(now, picture(now))
            replan |= memory.replans
        if start is None or now - start >= length or replan:
            probabilities = probabilities_of(now)
            start, length, before = now, len(probabilities), memory
            memory = memory.consider(probabilities, now)
            event = memory.pending
            taken = None if memory is before else (event.step - now, event.probability)
            log.append((now, taken))
        yield memory, list(log)


def drawn(random):
    """Settings, chunks by step and steps of further plans: ties, plateaus and values at the
    threshold are common."""
    settings = EventSettings(
        threshold=float(random.choice([0.55, 0.5, 0.9])),
        least_offset=int(random.integers(1, 4)),
        nms_window=int(random.choice([0, 1, 3, 20])),
        cooldown=int(random.choice([0, 1, 4, 20])),
        most_keyframes=int(random.integers(1, 6)),
    )
    horizon = int(random.choice([2, 8, 16, 50]))
    levels = np.array([0.1, 0.5, 0.55, 0.55, 0.6, 0.9, 0.95, 1.0], np.float32)
    rare = float(random.choice([0.02, 0.2, 1.0]))
    every = float(random.choice([0.0, 0.05, 0.5]))
    num_steps = 3 * horizon + 20
    shape = num_steps, horizon
    values = random.choice(levels, shape) if random.random() < 0.5 else random.random(shape)
    values = np.where(random.random(shape) < rare, values, QUIET).astype(np.float32)
    replans = set(np.flatnonzero(random.random(num_steps) < every).tolist())
    return settings, values, replans


def test_it_keeps_what_the_authors_server_and_client_keep_together():
    random, kept, replaced, forgotten = np.random.default_rng(0), 0, 0, 0
    for _ in range(3000):
        settings, values, replans = drawn(random)
        server = Server(
            settings.threshold, settings.least_offset, settings.nms_window, settings.cooldown
        )
        client = Client(server, settings.most_keyframes)
        steps = ours(settings, values.__getitem__, replans, len(values))
        for now, (memory, log) in enumerate(steps):
            waited = server.state["pending"]
            client.step(now, values.__getitem__, now in replans)
            assert [k.step for k in memory.keyframes] == [step for step, _ in client.bank]
            for keyframe, (_, seen) in zip(memory.keyframes, client.bank, strict=True):
                assert np.array_equal(keyframe.picture, seen)
            assert log == client.log and memory.num_kept == client.count
            replaced += waited is not None and server.state["pending"] not in (None, waited)
        kept += client.count
        forgotten += client.count > len(client.bank)
    assert min(kept, replaced, forgotten) > 500


SETTINGS = EventSettings()


def chunk(horizon=50, **likely):
    """Probabilities by offset, `o7=0.9`."""
    values = np.full(horizon, QUIET, np.float32)
    for name, value in likely.items():
        values[int(name[1:])] = value
    return values


def waiting(step, **likely):
    return KeyframeMemory(settings=SETTINGS).consider(chunk(**likely), step)


def kept_at(step, offset=10):
    """A memory that has just kept a picture at this step."""
    return waiting(step - offset, **{f"o{offset}": 0.9}).keep(step, picture(step))


def test_nothing_likely_is_nothing_to_wait_for():
    memory = waiting(0, o10=0.549)
    assert memory.pending is None and not any(map(memory.is_due, range(100)))


def test_the_likeliest_step_is_waited_for_and_kept_when_it_comes():
    memory = waiting(100, o7=0.8, o30=0.9)
    assert (memory.pending.step, memory.pending.probability) == (130, np.float32(0.9))
    assert [step for step in range(100, 133) if memory.is_due(step)] == [130, 131, 132]
    memory = memory.keep(130, picture(130))
    assert [k.step for k in memory.keyframes] == [130] and memory.last_step == 130
    assert memory.pending is None and not memory.is_due(131)


def test_a_step_at_the_threshold_is_an_event_and_the_first_step_is_none():
    assert waiting(0, o10=0.55).pending.step == 10  # float32: a little above
    assert waiting(0, o0=0.9).pending is None
    assert waiting(0, o0=0.9, o1=0.6).pending.step == 1


def test_of_equals_the_earlier_of_a_chunk_is_waited_for():
    assert waiting(0, o10=0.7, o40=0.7).pending.step == 10


@pytest.mark.parametrize(("distance", "step"), [(20, None), (21, 121)])
def test_near_the_last_event_there_is_no_other(distance, step):
    memory = kept_at(100).consider(chunk(**{f"o{distance}": 0.99}), 100)
    assert (memory.pending and memory.pending.step) == step


def test_what_a_likelier_step_takes_with_it_is_no_candidate_even_if_that_is_refused():
    """The likelier step is too near the last event; the other is not, but near the likelier."""
    memory = kept_at(100)
    assert memory.consider(chunk(o15=0.9, o30=0.8), 100).pending is None
    assert memory.consider(chunk(o15=0.9, o36=0.8), 100).pending.step == 136


@pytest.mark.parametrize(
    ("offset", "probability", "step"),
    [
        (20, 0.8, 30),  # of equals the later
        (18, 0.8, 28),
        (12, 0.8, 25),  # earlier
        (12, 0.81, 22),
        (20, 0.79, 25),
        (35, 0.79, 25),
        (36, 0.79, 46),  # far away: replaces what is waited for, though less likely
    ],
)
def test_a_later_chunk_may_move_what_is_waited_for(offset, probability, step):
    memory = waiting(0, o25=0.8).consider(chunk(**{f"o{offset}": probability}), 10)
    assert memory.pending.step == step


def test_the_oldest_keyframes_are_forgotten_and_the_first_three_ask_for_a_plan():
    memory, replans = KeyframeMemory(settings=SETTINGS), []
    for begin in range(0, 180, 30):
        memory = memory.consider(chunk(o25=0.9), begin).keep(begin + 25, picture(begin + 25))
        replans.append(memory.replans)
    assert replans == [True, True, True, False, False, False]
    assert [k.step for k in memory.keyframes] == [85, 115, 145, 175] and memory.num_kept == 6
    assert [int(k.picture[0, 0, 0]) for k in memory.keyframes] == [85, 115, 145, 175]
    silent = dataclasses.replace(SETTINGS, num_replans=0)
    assert not dataclasses.replace(memory, settings=silent, num_kept=1).replans


def test_a_step_that_was_left_out_is_made_up_for_by_the_next():
    """The cool-down counts from the event, the keyframe is of the step that was seen."""
    memory = waiting(0, o10=0.9)
    memory = memory.keep(13, picture(13))
    assert memory.keyframes[0].step == 13 and memory.last_step == 10
    assert memory.consider(chunk(o18=0.9), 13).pending.step == 31


def test_an_answer_that_comes_late_counts_from_its_observation():
    """Thought out at step 20 of what was seen at 12: the event of 10 was kept in between."""
    memory = waiting(0, o10=0.9).keep(10, picture(10))
    late = memory.consider(chunk(o15=0.9, o19=0.8), 12)
    assert late.pending is None
    assert memory.consider(chunk(o19=0.9), 12).pending.step == 31


def test_a_memory_stays_as_it_was_whatever_is_done_with_it():
    seen, memory = picture(9), waiting(0, o10=0.9)
    after = memory.keep(10, seen)
    seen[:] = 0
    assert after.keyframes[0].picture.max() == 9
    assert memory.is_due(10) and memory.keyframes == () and memory.num_kept == 0
    again = memory.keep(10, picture(9))
    assert np.array_equal(again.keyframes[0].picture, after.keyframes[0].picture)
    with pytest.raises(ValueError, match="read-only"):
        after.keyframes[0].picture[:] = 0
    assert after.consider(chunk(o40=0.9), 10).pending.step == 50 and after.pending is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((2, 8), 0.5, np.float32), r"got \[2, 8\] from 0.5"),
        (np.float32([0.5, np.nan]), r"got \[2\] from nan to nan"),
        (np.float32([0.5, 1.5]), "from 0.5 to 1.5; none was used"),
        (np.float32([-0.5, 0.5]), "from -0.5 to 0.5"),
    ],
)
def test_what_is_no_probability_is_refused(values, words):
    with pytest.raises(EngineError, match=words):
        KeyframeMemory(settings=SETTINGS).consider(values, 0)


def test_a_chunk_without_later_steps_has_no_event():
    for horizon in (0, 1):
        assert KeyframeMemory(settings=SETTINGS).consider(np.ones(horizon), 0).pending is None


def test_a_picture_that_nobody_waits_for_and_one_that_was_forgotten_are_refused():
    memory = waiting(0, o10=0.9)
    with pytest.raises(ValueError, match=r"^no event is due at step 9, waiting for Event\(step=10"):
        memory.keep(9, picture(9))
    with pytest.raises(ValueError, match="^no event is due at step 9, waiting for None"):
        KeyframeMemory(settings=SETTINGS).keep(9, picture(9))
    with pytest.raises(ValueError, match="^step 10: Event.* is due, keep its picture first"):
        memory.consider(chunk(), 10)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"threshold": 0.0}, r"events.threshold must be in \(0, 1\], got 0.0"),
        ({"threshold": 1.5}, "got 1.5"),
        ({"threshold": float("nan")}, "got nan"),
        ({"least_offset": 0}, "events.least_offset must be at least 1, got 0"),
        ({"nms_window": -1}, "events.nms_window must be at least 0, got -1"),
        ({"cooldown": -1}, "events.cooldown must be at least 0"),
        ({"most_keyframes": 0}, "events.most_keyframes must be at least 1, got 0"),
        ({"num_replans": -1}, "events.num_replans must be at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        EventSettings(**fields)
