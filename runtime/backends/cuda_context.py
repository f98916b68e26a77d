"""The primary context of the first GPU: where it is current, and how the host waits in it.

pycuda keeps a stack of contexts per thread (read in its source, 2026.1). A call on a thread whose
stack is empty fails; what is let go there is not freed but warned about; a thread that ends with a
context on its stack takes the process down. So nothing stays on a stack: the context is pushed
around every call and popped after it, on whichever thread that is. A policy may be loaded on one
thread, act on another and be closed on a third.

A host that waits for a GPU blocks or spins. It is set before the context exists: CUDA's own choice
depends on the power profile of a Jetson, and two measurements would differ by it unseen. Blocking
is the default: a tick is tens of milliseconds, waking up costs tens of microseconds, and the core
and the watts that a spinning thread burns meanwhile belong to control loop, camera and GPU. Nobody
has measured either on a board; `ANCHORVLA_CUDA_WAIT=spin` is the other one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from typing import Any, Literal, get_args

from ..errors import EngineError

Wait = Literal["block", "spin"]
DEFAULT: Wait = "block"
VARIABLE = "ANCHORVLA_CUDA_WAIT"
FLAGS = {"auto": 0, "spin": 1, "yield": 2, "block": 4}
"""CU_CTX_SCHED_*; `auto` and `yield` come from somebody else in the process."""
MASK = 7


def wait_of_environment() -> Wait | None:
    """What `ANCHORVLA_CUDA_WAIT` asks for; None if it is unset or empty.

    Raises:
        ValueError: it holds another word.
    """
    word = os.environ.get(VARIABLE, "")
    for known in get_args(Wait):
        if word == known:
            return known  # type: ignore[no-any-return]
    if word:
        raise ValueError(f"{VARIABLE} must be {' or '.join(get_args(Wait))}, got {word!r}")
    return None


class PrimaryContext:
    """`with context:` makes it current on this thread; inside of another such block it is free.

    Args:
        driver: `pycuda.driver`.
        bindings: `cuda.bindings.driver`, for what pycuda has not.
        wait: how the host waits; `DEFAULT` if the context does not exist yet, and whatever it has
            if another library made it.

    Raises:
        EngineError: the context exists already and waits in another way than was asked for.
    """

    def __init__(self, driver: Any, bindings: Any, wait: Wait | None = None) -> None:
        driver.init()
        self._bindings = bindings
        _, exists = self._state()
        if not exists:
            self._call("cuDevicePrimaryCtxSetFlags", 0, FLAGS[wait or DEFAULT])
        self._context = _retain(driver)
        self._error = driver.Error
        self._local = threading.local()
        flags, _ = self._state()
        self.waits = next(name for name, flag in FLAGS.items() if flag == flags & MASK)
        """How the host waits for the GPU: a name of `FLAGS`, as the driver has it."""
        if wait is not None and self.waits != wait:
            raise EngineError(
                f"{wait!r} was asked for as the way to wait for the GPU, but its context exists "
                f"already and has {self.waits!r}: load the policy before other CUDA libraries of "
                f"this process, or do without {VARIABLE}"
            )

    def __enter__(self) -> None:
        depth = getattr(self._local, "depth", 0)
        if not depth:
            try:
                self._context.push()
            except self._error as error:
                raise EngineError(f"CUDA: the context cannot be made current: {error}") from error
        self._local.depth = depth + 1

    def __exit__(self, *error: object) -> None:
        self._local.depth -= 1
        if not self._local.depth:
            with contextlib.suppress(self._error):  # a broken context takes all along
                self._context.pop()

    def _state(self) -> tuple[int, int]:
        """Flags, and whether the context exists."""
        flags, exists = self._call("cuDevicePrimaryCtxGetState", 0)
        return flags, exists

    def _call(self, name: str, *arguments: int) -> list[Any]:
        status: Any
        values: list[Any]
        status, *values = getattr(self._bindings, name)(*arguments)
        if status != 0:
            raise EngineError(f"CUDA: {name} answered {getattr(status, 'name', status)}")
        return values


@functools.lru_cache(maxsize=1)
def _retain(driver: Any) -> Any:
    """Once for the life of the process: letting it go would take TensorRT's memory along."""
    return driver.Device(0).retain_primary_context()
