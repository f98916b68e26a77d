"""A forecast in words, for terminal and page alike."""

from __future__ import annotations

from collections.abc import Iterator

from export.forecast.forecast import Band, Forecast
from export.forecast.stages import Cost, StageCost
from quant.boards import EFFICIENCY
from runtime.graph import whole_of


def summary(made: Forecast) -> Iterator[str]:
    """What a reader has to know, a sentence each."""
    yield tick_words(made)
    yield fit_words(made)
    if made.fitting != [made.recipe.name]:
        yield other_recipes(made)
    yield block_words(made)
    yield energy_words(made)
    yield from (f"missing: {words}" for words in made.missing)


def tick_words(made: Forecast) -> str:
    """With and without the cache, and how often."""
    warm, cold = made.band(made.warm), made.band(made.cold)
    if warm is None or cold is None or made.rate_hz is None or made.actions_hz is None:
        return "tick: not known, a figure of the board is missing"
    gain = (made.cold.roofline_ms or 0.0) / (made.warm.roofline_ms or 1.0)
    return (
        f"tick: {span(warm)} ms with the {made.kept_for} kept, {span(cold)} ms with every input "
        f"changed (the cache gives {gain:.2f} x); at most {made.rate_hz.best:.1f} ticks and "
        f"{made.actions_hz.best:.0f} actions a second, at the slow end {made.rate_hz.worst:.1f} "
        f"and {made.actions_hz.worst:.0f}"
    )


def fit_words(made: Forecast) -> str:
    """Does it fit?"""
    need, room = made.memory.total, made.room
    if room is None:
        return f"memory: {gb(need)} resident; whether it fits is not known"
    has = f"{made.board.memory_gb:.1f} GB of {made.board_name}"
    if room < 0:
        return f"memory: does not fit: {gb(need)} resident, {gb(-room)} more than the {has}"
    return (
        f"memory: fits: {gb(need)} resident of the {has}; CUDA, TensorRT and Python share the "
        f"{gb(room)} left with the robot's other programs, and nobody has measured what they take"
    )


def other_recipes(made: Forecast) -> str:
    """Which recipe would fit, or the closest and what it lacks."""
    own = made.recipe.name
    if made.board.memory_gb is None:
        return "recipes: " + ", ".join(f"{n} {gb(size)}" for n, size in made.recipes.items())
    others = [name for name in made.fitting if name != own]
    if others:
        named = ", ".join(f"{name} ({gb(made.recipes[name])})" for name in others)
        also = "also " if own in made.fitting else ""
        return f"recipes that {also}fit: {named}"
    if own in made.fitting:
        return "no other recipe for this board fits"
    closest = min(made.recipes, key=lambda name: made.recipes[name])
    lacks = made.recipes[closest] - made.board.memory_gb * 1e9
    return f"no recipe fits; the closest is {closest}, {gb(lacks)} too large"


def block_words(made: Forecast) -> str:
    """The largest engine against what was seen to build."""
    name, size = made.largest_engine
    limit = made.board.largest_engine_bytes
    words = f"largest engine: {name}, {size / 1e6:.0f} MB"
    if limit is None:
        return f"{words}; no limit of one engine is known for this board"
    above = ": it may fail to build" if size > limit else ""
    return f"{words}; {limit / 1e6:.0f} MB was seen to build on this board{above}"


def energy_words(made: Forecast) -> str:
    """A bound and what it is a bound of."""
    energy = made.energy_j
    if energy is None or made.board.power_w is None:
        return "energy: not known, a figure of the board is missing"
    return (
        f"energy: at most {energy.best:.2f} to {energy.worst:.2f} J a warm tick, the whole module "
        f"at its {made.board.power_w:.0f} W all the while"
    )


def header(made: Forecast) -> str:
    """What was forecast."""
    policy = made.policy
    width, height = policy.image_size
    tokens = ", ".join(f"{call} {used.new}" for call, used in policy.used.items())
    return (
        f"{width} x {height} pixels, {policy.grid[0]} x {policy.grid[1]} patches; language calls "
        f"of {policy.slots} tokens ({tokens} used); {len(policy.work())} engines"
    )


def band_words() -> str:
    """What a band means."""
    low, high = EFFICIENCY
    return (
        f"Every time is a band: the roofline over {high:.0%} and over {low:.0%}, which published "
        "engines reached of it on an AGX Orin. It is no promise, and nothing of it was measured on "
        "a board."
    )


def sentence_of(words: str) -> str:
    """With a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def when(stage: StageCost) -> str:
    """When a stage runs."""
    if not stage.needs:
        return "once, at load"
    return f"with a new {' or '.join(sorted(stage.needs))}" if stage.is_kept else "every tick"


def counted(name: str, calls: int) -> str:
    """A row and how often its engines are called."""
    return name if calls == 1 else f"{whole_of(name)} x {calls}"


def span(band: Band) -> str:
    return f"{digits(band.best)} to {digits(band.worst)}"


def digits(value: float) -> str:
    """Three of them at most, no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def gb(num_bytes: float) -> str:
    """1e9 bytes; megabytes where that is little."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def cells(cost: Cost) -> list[str]:
    """Of a stage, between its name and when it runs. One that only looks up has no products."""
    time = cost.roofline_ms
    return [
        digits(cost.flops / 1e9),
        f"{cost.useful_flops / cost.flops:.0%}" if cost.flops else "",
        digits(cost.weight_bytes / 1e6),
        digits(cost.port_bytes / 1e6),
        digits(cost.intensity),
        "missing" if time is None else digits(time),
    ]
