"""Weights that lie on disk: a module that is larger than the memory computes with one at a time.

A `StoredTensor` stands in a module where a parameter or a buffer would. It knows shape and type;
its numbers are read when an operation needs them, and given up behind it but for those that were
used last (`SHELF`). So a module full of them runs, is copied and is folded as any other is. What is
traced into a file has to be `plain`, in memory as a whole. The trade-off: a weight that is used
again after many others is read again.

Why not `accelerate`, whose hooks load a module's weights before its `forward`: some of ours are
read past it (a convolution as a product, a projection behind the pooling), and a traced graph would
hold the hooks.

The stand-in is a tensor on torch's meta device: what would use it unread fails, and no number is
ever made up.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

Module = TypeVar("Module", bound=nn.Module)
KEPT_BYTES = 2 << 30
"""Of the weights that were used last. The action head of the published policy is 1.9 GB in float32,
and runs ten times in a row."""
M_MMAP_THRESHOLD = -3
"""Of malloc.h."""
RETURNED_BYTES = 1 << 20
"""Of a block that goes back at once. A smaller one costs more to get than to keep."""
Map = Callable[[], Tensor]
"""Gives a tensor, mapped or new, that is not to be changed."""
Edit = Callable[[Tensor], object]
"""Changes a tensor in place."""


def _getters(*names: str) -> set[Any]:
    return {getattr(Tensor, name).__get__ for name in names}


_DESCRIBES = _getters(
    "shape", "dtype", "device", "layout", "ndim", "nbytes", "itemsize", "requires_grad",
    "is_meta", "is_leaf", "is_sparse", "is_quantized", "is_nested", "grad", "grad_fn",
) | {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.stride,
    Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__,
}  # fmt: skip
"""What is answered without reading."""
_SAME = _getters("data") | {Tensor.detach, Tensor.requires_grad_}
"""What gives the same tensor again: there are no gradients."""
_keys = itertools.count()


class Shelf:
    """The tensors that were read last, so many bytes at most."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._num_bytes = 0

    def get(self, key: int, num_bytes: int, read: Map) -> Tensor:
        """The tensor of this key; what was not used for the longest time makes room for it."""
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        while self._kept and self._num_bytes + num_bytes > self._limit:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes
        value = read()
        if num_bytes <= self._limit:
            self._kept[key] = value
            self._num_bytes += value.nbytes
        return value

    def new_key(self) -> int:
        """One that no other tensor has."""
        return next(_keys)

    def drop(self, key: int) -> None:
        """Give a tensor up, if it is kept."""
        if (kept := self._kept.pop(key, None)) is not None:
            self._num_bytes -= kept.nbytes

    def clear(self) -> None:
        """Give all of them up."""
        self._kept.clear()
        self._num_bytes = 0


SHELF = Shelf()
"""One for the process, as its memory is."""


class StoredTensor(Tensor):
    """Stands for a tensor on disk. Nothing changes it; `edited` makes another one."""

    _map: Map
    _edits: tuple[Edit, ...]
    _key: int
    _is_param: bool = False
    """By which torch knows a parameter of a class of its own."""

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        source: Map,
        edits: tuple[Edit, ...] = (),
    ) -> StoredTensor:
        """
        Args:
            dtype: that it is computed with, whatever `source` gives.
            edits: done to it, in order, each time it was read.
        """
        stand_in = torch.empty(tuple(shape), dtype=dtype, device="meta")
        made: StoredTensor = torch.Tensor._make_subclass(cls, stand_in)
        made._map, made._edits, made._key = source, edits, next(_keys)
        for key in (made._key, ~made._key):  # of what is read, and of what is `made` of it
            weakref.finalize(made, SHELF.drop, key).atexit = False
        return made

    def read(self) -> Tensor:
        """Its numbers, in memory of their own."""
        value = self._map().to(self.dtype, copy=True)
        for edit in self._edits:
            edit(value)
        return value

    def load(self) -> Tensor:
        """Its numbers, not to be changed: the shelf keeps them for a while."""
        return SHELF.get(self._key, self.nbytes, self.read)

    def made(self, num_bytes: int, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Something else of its numbers, not to be changed: the shelf keeps it for a while.

        Args:
            num_bytes: of it.
            make: always the same.
        """
        return SHELF.get(~self._key, num_bytes, lambda: make(self.read()))

    def rows(self, index: Any) -> Tensor:
        """Some rows of it; no others are read."""
        if self._edits:
            return self.load()[index]
        return self._map()[index].to(self.dtype)

    def edited(self, edit: Edit) -> StoredTensor:
        """The same, changed."""
        made = StoredTensor(self.shape, self.dtype, self._map, (*self._edits, edit))
        made._is_param = self._is_param
        return made

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function in _DESCRIBES:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs or {})
        if function in _SAME:
            return args[0]
        if function is functional.embedding and isinstance(args[1], StoredTensor):
            return args[1].rows(args[0])
        if args and isinstance(args[0], StoredTensor) and _changes(function.__name__):
            raise RuntimeError(
                f"{function.__name__} would change a weight that lies on disk; make its module "
                "`models.stored.plain` first"
            )
        named = {name: _loaded(value) for name, value in (kwargs or {}).items()}
        return function(*map(_loaded, args), **named)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTensor:
        return self

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StoredTensor({tuple(self.shape)}, {self.dtype})"


def return_what_is_freed() -> None:
    """Have the C library give a tensor's memory back when it goes, for the rest of the process.

    glibc does so for blocks above a limit that it raises to 32 MB by itself. Weights of less stay
    in its heap then, and what is kept between them holds it apart: 9 GB where 3 were in use. What
    has no `mallopt` is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)


class Rows:
    """A table of float32 rows behind numpy's brackets; only rows that are asked for are read."""

    dtype = np.dtype(np.float32)

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self.shape = table.shape[0], table.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        table = self._table
        found = table.rows(index) if isinstance(table, StoredTensor) else table.detach()[index]
        rows: NDArray[np.float32] = found.numpy()
        return rows


def put(module: nn.Module, name: str, value: StoredTensor) -> None:
    """In place of the parameter or buffer of this name, a dotted path."""
    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    if own in owner._parameters:
        value._is_param = True
        owner._parameters[own] = value  # type: ignore[assignment]
    else:
        owner._buffers[own] = value


def plain(module: Module) -> Module:
    """A copy with all its weights in memory; those that were there already are shared."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    for key, value in memo.items():
        if isinstance(value, StoredTensor):
            read = value.read()
            memo[key] = nn.Parameter(read, requires_grad=False) if value._is_param else read
    return copy.deepcopy(module, memo)


def map_of(file: Path, name: str) -> Map:
    """What maps a tensor of a safetensors file. The map lasts as long as what it gives."""

    def source() -> Tensor:
        with safe_open(file, framework="pt") as tensors:
            mapped: Tensor = tensors.get_tensor(name)
        return mapped

    return source


def _loaded(value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return value.load()
    if type(value) in (list, tuple):
        return type(value)(map(_loaded, value))
    return value


def _changes(name: str) -> bool:
    """Whether a function of torch of this name changes its first argument."""
    if name.startswith("__"):
        in_place = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
        return in_place or name in ("__setitem__", "__set__")
    return name.endswith("_")
