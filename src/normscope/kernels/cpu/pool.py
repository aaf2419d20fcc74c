"""Running a compiled kernel on torch's own threads.

torch's OpenMP runtime is asked to run it, so that kernels and ATen's functions take turns on one pool of threads; a
second pool (Numba's) would spin against the first. See docs/decisions/0005-kernels-on-torchs-threads.md.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from array import array
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = 40  # as in compiled/machine.py, which only a machine with Numba can import
OWN = 1  # the word that holds the address of the words
_LINE, _LARGE = 64, 1 << 22  # bytes
DONE = WORDS - 1  # the word where tasks that are done are counted
room = functools.partial(torch.empty, device="cpu")  # whatever the user's default is
_Affine = Callable[[], "tuple[Tensor | None, Tensor | None]"]


def missing() -> str | None:
    """Why no kernel can be compiled or run here, or None."""
    return _missing()


missing._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile calls it, and looks not inside


@functools.cache
def _missing() -> str | None:
    if find_spec("numba") is None:
        return "Numba is not installed: pip install 'normscope[cpu]'"
    if _parallel() is None:
        return "this build of torch has no OpenMP runtime that takes C functions (GOMP_parallel)"
    return None


@functools.cache
def _parallel() -> Callable[..., None] | None:
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            # a symbol is looked for in the library and in what it is linked to: torch's runtime, and no other
            found = getattr(ctypes.CDLL(str(folder / name)), "GOMP_parallel", None)
            if found is not None:
                found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
                found.restype = None
            return found
    return None


@functools.cache
def runtime() -> int:
    """Where `GOMP_parallel` of torch's OpenMP runtime begins, for compiled code that calls it itself; 0 without one."""
    found = _parallel()
    return ctypes.cast(found, ctypes.c_void_p).value or 0 if found is not None else 0  # pyright: ignore[reportArgumentType]


def plain(values: Tensor | None, size: int, missing: float) -> Tensor:
    """One float32 a channel, side by side: these, or `missing`."""
    if values is None:
        return torch.full((size,), missing, dtype=torch.float32, device="cpu")
    whole = values.dtype is torch.float32 and values.is_contiguous()
    return values if whole else values.detach().float().contiguous()


def past(*written: Tensor) -> bool:
    """Whether these are written past the caches: where they are too large for them, and begin with a line."""
    return all(y.data_ptr() % _LINE == 0 and y.numel() * y.element_size() >= _LARGE for y in written)


def affine(channels: int, weight: Tensor | None, bias: Tensor | None, packed: Any) -> _Affine:
    """Room for the gradients of weight and bias, told to a kernel; afterwards they are asked for, in their dtypes."""
    dw, db = room(channels, dtype=torch.float32), room(channels, dtype=torch.float32)
    packed[31], packed[32] = dw.data_ptr(), db.data_ptr()
    return lambda: (None if weight is None else dw.to(weight.dtype), None if bias is None else db.to(bias.dtype))


def smooth(kind: int) -> int:
    """The activation for which a kernel is compiled, by its number; 0 for none, ReLU and LeakyReLU, which share one."""
    return kind if kind > 2 else 0


def words(values: dict[int, int], eps: float = 0.0) -> Any:
    """The argument of a kernel: 64-bit words by their number, eps among them."""
    packed = array("q", bytes(8 * WORDS))
    for number, value in values.items():
        packed[number] = value
    packed[9] = struct.unpack("q", struct.pack("d", eps))[0]
    packed[OWN] = packed.buffer_info()[0]
    return packed


def launch(kernel: Any, packed: Any, tasks: int, size: int = 0) -> None:
    """Run the tasks of `kernel` on as many threads as torch uses, each with `size` bytes to work in; wait for them."""
    packed[0] = packed[DONE] = packed[38] = 0
    threads, size = max(1, min(torch.get_num_threads(), tasks)), -(-size // _LINE) * _LINE
    places = room(threads * size, dtype=torch.uint8)
    packed[36], packed[37] = places.data_ptr(), size
    parallel = _parallel()
    assert parallel is not None
    parallel(kernel.address, packed[OWN], threads, 0)
