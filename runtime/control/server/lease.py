"""Who may act: one client at a time. The others may look on.

The first who acts has the lease, until its connection ends. If it says nothing for a while another
may take it over; the one that lost it is told so, and never acts again without connecting anew:
the robot has moved meanwhile, and its episode is over.

An operator may stop whoever acts. Then nobody does, until an operator takes that stop back; and
after that nobody who was connected before, since such a client knows nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


class LeaseError(Exception):
    """Somebody may not act now."""


class StopError(Exception):
    """An operator has stopped it."""


@dataclass(slots=True)
class Lease:
    """Clients are told apart by a number each, which is never used again."""

    silence_s: float
    """After which somebody else may take over."""
    clock: Callable[[], float] = time.monotonic
    holder: int | None = None
    count: int = 0
    """How often it was taken. A new one is a new episode."""
    used_at: float = 0.0
    num_stops: int = 0
    why_stopped: str = ""
    """Empty while somebody may act."""
    _oldest: int = 0
    """Clients below this number were connected when a stop was taken back."""
    _robbed: dict[int, float] = field(default_factory=dict)
    """Clients that lost it while they were connected, and how long they had been silent."""

    def use(self, client: int) -> int:
        """Act under it, and take it where nobody has it.

        Returns:
            The number of the lease.

        Raises:
            LeaseError: somebody else has it, or took it over.
            StopError: an operator has stopped it.
        """
        now = self.clock()
        if self.why_stopped:
            raise StopError(
                f"{self.why_stopped}: the robot has to stand, and nobody drives until an operator "
                "allows it again; connect again then"
            )
        if client < self._oldest:
            raise LeaseError(
                "an operator stopped the robot while this client was connected: connect again"
            )
        if client in self._robbed:
            raise LeaseError(
                f"this client was silent for {self._robbed[client]:.1f} s, and another one took "
                "over: connect again"
            )
        if self.holder not in (None, client):
            silent_s = now - self.used_at
            if silent_s <= self.silence_s:
                raise LeaseError(
                    f"another client drives, and acted {silent_s:.1f} s ago: wait until it leaves, "
                    f'or is silent for {self.silence_s:g} s; {{"ask": "status"}} tells'
                )
            self._robbed[self.holder] = silent_s
            self.holder = None
        if self.holder is None:
            self.holder = client
            self.count += 1
        self.used_at = now
        return self.count

    def answered(self, client: int) -> None:
        """The holder was given an answer: its silence begins now."""
        if client == self.holder:
            self.used_at = self.clock()

    def stop(self, why: str) -> int | None:
        """Nobody acts from now on; whoever did until now, if anybody."""
        if not self.why_stopped:
            self.why_stopped = why
            self.num_stops += 1
        holder, self.holder = self.holder, None
        return holder

    def release(self, number: int, next_client: int) -> bool:
        """Take a stop back.

        Args:
            number: of the stop that is meant.
            next_client: a number above those of all clients that are connected.

        Returns:
            False if that is not the present stop: whoever asks has not heard of a later one.
        """
        if not self.why_stopped or number != self.num_stops:
            return False
        self.why_stopped, self._oldest = "", next_client
        return True

    def drop(self, client: int) -> None:
        """Its connection has ended."""
        self._robbed.pop(client, None)
        if client == self.holder:
            self.holder = None
