"""Fresh memory for the tensors that kernels make: large ones on large pages.

A large tensor comes from the system page by page, when each is first written, and goes back when it dies; by pages of
4 kB that takes longer than the normalization. See docs/decisions/0020-large-pages.md.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

_LEAST = 1 << 22  # bytes; two pages of 2 MB lie whole in so many, wherever these begin
_PAGE = 1 << 12  # bytes, to which the system wants the ends rounded
_HUGEPAGE = 14  # Linux, mman-common.h


def like(x: Tensor) -> Tensor:
    """`torch.empty_like(x)`, for which Linux is asked to use pages of 2 MB.

    It is the tensor that torch allocates, and stays torch's: the advice is about its whole pages alone, keeps nothing
    from being freed, and where the system does not follow it changes nothing.
    """
    y = torch.empty_like(x)
    size = y.numel() * y.element_size()
    if size >= _LEAST:
        advise = _advise()
        if advise is not None:
            start = -(-y.data_ptr() // _PAGE) * _PAGE
            advise(start, (y.data_ptr() + size) // _PAGE * _PAGE - start, _HUGEPAGE)
    return y


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """The system's `madvise`, where it is Linux'."""
    if sys.platform != "linux":
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
