"""Which call made which tensor, told by the tensor's identity."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import ReferenceType, ref

from torch import Tensor


class Makers:
    """Tensor → index of the call that made its value; tensors are not kept alive.

    No weak reference here has a callback: an interrupt (Ctrl-C) that falls into one would be lost. An entry of a
    tensor that is gone stays until its place in memory is used again, and is known to be stale by its reference.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[ReferenceType[Tensor], int]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        entry = self._known.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def get(self, tensor: Tensor, default: int) -> int:
        """The index of the call that made `tensor`; `default` where none was seen."""
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else default

    def note(self, tensors: Iterable[Tensor], index: int) -> None:
        """The call `index` made these."""
        for tensor in tensors:
            self._known[id(tensor)] = ref(tensor), index
