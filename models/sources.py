"""Where each parameter of a policy comes from, and how it is read: one tensor at a time.

In: what a layout found in the files of a checkpoint (`models.layouts`). Out: `Weights`, a mapping
from the published name of every parameter to its `Source`. Nothing is read until it is asked for,
and what is read is mapped, not copied, unless it has to be put together from parts. The trade-off:
whether values are finite shows only when they are read; names, shapes and types show at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.families import family_of
from models.policy_config import PolicyConfig
from runtime.storage.listed import sha256_of

LISTED = 8
"""Names shown in an error before "and so many more"."""
FLOATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""Types that weights may be stored in, and what they are called."""
FLAG = "BOOL"
"""What a truth value's type is called, which is no weight's but may stand beside them."""
AS_IT_IS = "as it is"


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor in a file."""

    name: str
    """As the file has it."""
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """Its name, for a type that weights may not have."""
    read: Callable[[], Tensor]
    """Maps it: of its own shape and dtype, or of truth values. Writing into it changes no file."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where one parameter comes from."""

    name: str
    """The published one, as in the `state_dict()` of the policy's module."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """As it is stored."""
    stored: tuple[Stored, ...]
    """What it is made of; nothing for a parameter that is drawn at random."""
    how: str
    """What is done with it, in words for a table."""
    read: Callable[[], Tensor]
    """The parameter, of `shape` and `dtype`; mapped if it is stored as it is, else new."""

    def __post_init__(self) -> None:
        assert self.dtype in FLOATS or self.dtype == torch.bool, (self.name, self.dtype)

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def origin(self) -> str:
        """Its tensors and their files, in words."""
        return ", ".join(f"{stored.name} of {stored.file}" for stored in self.stored) or self.how


@dataclass(frozen=True, slots=True)
class Unused:
    """Something stored that no parameter comes from."""

    name: str
    file: Path
    why: str


class Weights(Mapping[str, Source]):
    """The source of every parameter of a policy, by its published name and in the policy's order.

    Attributes:
        files: all that hold weights, in name order.
        unused: what was left out, and why.
    """

    def __init__(
        self, sources: Mapping[str, Source], files: Iterable[Path], unused: Iterable[Unused] = ()
    ) -> None:
        self._sources = dict(sources)
        self.files = tuple(files)
        self.unused = tuple(unused)

    def __getitem__(self, name: str) -> Source:
        return self._sources[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def num_bytes(self) -> int:
        """Of all parameters, as stored."""
        return sum(source.num_bytes for source in self.values())

    def sha256(self) -> str:
        """Over the weight files, in name order. Reads them all."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(sha256_of(file).encode())
        return digest.hexdigest()


@dataclass(slots=True)
class Misfits:
    """What keeps a checkpoint from being a policy's, collected to be told all at once."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def refuse(self, where: Path) -> None:
        """
        Raises:
            CheckpointError: there are any.
        """
        labels = {
            "missing tensors": self.missing,
            "extra tensors": self.extra,
            "tensors under both of their names": self.twice,
            "tensors of another shape": self.misshaped,
            f"tensors of another type than {', '.join(FLOATS.values())}": self.mistyped,
            "tensors with NaN or infinity": self.broken,
        }
        problems = [f"{label}: {some(names)}" for label, names in labels.items() if names]
        if problems:
            raise CheckpointError(f"{where}: " + "; ".join(problems))


def parameter_shapes(config: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a policy, by its published name."""
    with torch.device("meta"):
        model = family_of(config).model(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def is_finite(value: Tensor) -> bool:
    """No NaN and no infinity? Takes no memory of the tensor's size."""
    rows = value.flatten(1) if value.ndim > 1 else value.reshape(1, -1)
    return all(bool(torch.isfinite(part).all()) for part in rows.split(4096))


def some(names: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
