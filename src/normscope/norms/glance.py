"""A look at the values of small tensors on the host: their bytes, in less time than one of torch's functions takes."""

from __future__ import annotations

import functools
import sys
from ctypes import c_char
from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels.cells import transforming

# By the size of a float, where in each stands the byte with the sign and most of the exponent.
TOP = {size: slice(size - 1 if sys.byteorder == "little" else 0, None, size) for size in (4, 8)}
SIZE = {torch.float32: 4, torch.float64: 8}
_PLAIN = (Tensor, nn.Parameter)


def can_be_looked_at(x: Tensor) -> bool:
    """Whether the bytes of `x` are its numbers: plain eager torch on the host, in a float that `SIZE` knows."""
    plain = type(x) in _PLAIN and x.is_cpu and x.dtype in SIZE and x.is_contiguous()
    return plain and not torch.compiler.is_compiling() and not transforming()


@functools.lru_cache(maxsize=4096)
def memory(place: int, size: int) -> Any:
    """The bytes at a place in memory, read as they are when they are asked for."""
    return (c_char * size).from_address(place)
