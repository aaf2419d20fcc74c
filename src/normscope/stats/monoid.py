"""What `Moments`, `Sketch` and `Summary` share: a merge, and arrays that hold everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.terms.datum import plain

if TYPE_CHECKING:
    from typing_extensions import Self

Arrays = dict[str, np.ndarray]


class Monoid:
    """Mixed into a frozen dataclass with `merge` and `to_arrays`: ``+``, ``sum(…)``, and equality of every number."""

    __slots__ = ()

    def merge(self, other: Any) -> Self:
        """What one pass over both data sets would have found."""
        raise NotImplementedError

    def to_arrays(self) -> Arrays:
        """Everything that this value knows, as named arrays; `from_arrays` gives back an equal value."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The arrays of `to_arrays` as JSON values."""
        return plain(self.to_arrays())

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.merge(other)

    def __radd__(self, other: Any) -> Self:
        if not (isinstance(other, int) and other == 0):  # what sum(…) starts from
            return NotImplemented
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return mine.keys() == theirs.keys() and all(_same(mine[key], theirs[key]) for key in mine)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """`arrays` under names that begin with `prefix`."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def unprefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Those of `arrays` whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
