"""What is kept of an episode of any length: few things, evenly spread, and the last one."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Thinned(Generic[T]):
    """Things by number.

    When more than `capacity` are kept, every second one goes, and from then on every second one is
    not taken.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: dict[int, T] = {}
        self._last: tuple[int, T] | None = None
        self._stride = 1

    def add(self, number: int, thing: T) -> None:
        """Of a later number than the last."""
        self._last = number, thing
        if number % self._stride:
            return
        self._kept[number] = thing
        while len(self._kept) > self.capacity:
            self._stride *= 2
            self._kept = {n: t for n, t in self._kept.items() if n % self._stride == 0}

    @property
    def things(self) -> dict[int, T]:
        """By number, in order; at most `capacity` and the last one."""
        return self._kept | dict([self._last] if self._last else [])

    @property
    def last(self) -> T | None:
        """The last one, if there is any."""
        return self._last[1] if self._last else None


class Film(Thinned[NDArray[np.uint8]]):
    """Pictures by control step."""

    def __init__(self, capacity: int = 16) -> None:
        super().__init__(capacity)

    def add(self, number: int, thing: NDArray[np.uint8]) -> None:
        """Of a later step than the last, uint8 [H, W, 3]; what is kept is a copy."""
        super().add(number, thing.copy())

    @property
    def pictures(self) -> dict[int, NDArray[np.uint8]]:
        """By step, in order; at most `capacity` and the last one."""
        return self.things
