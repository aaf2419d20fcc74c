"""The door to `fused`: digests and summaries of tensors by its compiled loops, where they are to be had."""

from __future__ import annotations

import threading
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.stats.digest import Digest
from normscope.stats.moments import Moments
from normscope.stats.sample import stride
from normscope.stats.sketch import BINS
from normscope.stats.values import is_dense

if TYPE_CHECKING:
    from types import ModuleType

    import torch

MOST = 2**18 - 4
"""Elements of one digest, at most."""

_BYTES = 3 * BINS  # of the longest code: of that many elements few bins hold more than two bytes can tell
_NO_PLACES = np.empty(0, dtype=np.int64)

_loops: ModuleType | None = None
_kinds: dict[torch.dtype, int] = {}  # as `fused.told32` numbers them
_types: tuple[type, ...] = ()  # as long as there are no loops nothing is served
_strided: Any = None
_missing: str | None = None


def prepare() -> str | None:
    """Load the loops: half a second, and some six when they are first compiled on a machine.

    Returns None when they are there, else why not; then `digest` and `by_channel` give None, and torch computes.
    """
    global _loops, _missing, _types, _strided
    if _loops is None and _missing is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from normscope.stats import fused
            import torch

            _kinds.update({torch.float32: 4, torch.float16: 3, torch.bfloat16: 2, torch.float64: 8})
            _types, _strided = (torch.Tensor, torch.nn.Parameter), torch.strided
            _loops = fused
        except Exception as error:  # not installed, nowhere to keep what was compiled, another LLVM: torch serves too
            _missing = f"{type(error).__name__}: {error}"
    return _missing


class _Room(threading.local):
    """What the loops write to; hooks of several threads may run at once."""

    def __init__(self) -> None:
        self.numbers = np.empty(9)
        self.code = np.empty(_BYTES, dtype=np.uint8)
        self.samples = {4: np.empty(0, dtype=np.float32), 8: np.empty(0)}

    def sample(self, itemsize: int, count: int) -> np.ndarray:
        if len(self.samples[itemsize]) < count:
            self.samples[itemsize] = np.empty(count, dtype=self.samples[itemsize].dtype)
        return self.samples[itemsize][:count]


_room = _Room()


def serves(x: torch.Tensor) -> bool:
    """Whether the loops can read `x`."""
    return _kind(x) is not None


def digest(x: torch.Tensor, n: int = 8192) -> Digest | None:
    """The digest of ``strided(x, n)``, read where it lies; None for what the loops do not serve."""
    kind = _kind(x)
    if kind is None:
        return None
    step, places, count = _layout(x.shape, x.stride(), n)
    return _told(x, kind, step, places, _room.sample(8 if kind == 8 else 4, count), less=False)


def digest_and_sample(x: torch.Tensor, n: int = 8192) -> tuple[Digest, torch.Tensor] | None:
    """The digest, and the sample itself: 1-D, float32 or float64."""
    kind = _kind(x)
    if kind is None:
        return None
    import torch

    step, places, count = _layout(x.shape, x.stride(), n)
    sample = torch.empty(count, dtype=torch.float64 if kind == 8 else torch.float32)
    return _told(x, kind, step, places, sample.numpy(), less=False), sample


def digest_of_change(x: torch.Tensor, before: torch.Tensor, n: int = 8192) -> Digest | None:
    """The digest of ``strided(x, n) - before``, where `before` is an earlier sample of the same tensor."""
    kind = _kind(x)
    if kind is None or (kind == 8) != (before.dtype.itemsize == 8):
        return None
    step, places, count = _layout(x.shape, x.stride(), n)
    return None if count != len(before) else _told(x, kind, step, places, before.numpy(), less=True)


def digest_by_channel(x: torch.Tensor, places: np.ndarray, channels: int) -> tuple[Digest, Moments, np.ndarray] | None:
    """The digest of the elements at `places` in memory, counted from the first of `x`, and the moments per channel.

    Beside them the elements themselves (cells, channels), which the next call in this thread overwrites.

    places: int64, channel by channel of one cell after the other, at most `MOST`.
    """
    kind = _kind(x)
    if kind is None or _loops is None:
        return None
    sample, moments = _room.sample(8 if kind == 8 else 4, len(places)), np.empty((3, channels))
    told = _told(x, kind, 1, places, sample, less=False)
    rows = sample.reshape(-1, channels)
    _loops.channels(rows, moments)
    return told, Moments(*moments), rows


def _kind(x: torch.Tensor) -> int | None:
    """How its numbers lie in memory; None for subclasses of Tensor, other devices, what is sparse or negated."""
    if type(x) not in _types or not x.is_cpu or x.is_neg() or x.layout != _strided:
        return None
    return _kinds.get(x.dtype)


def _told(x: torch.Tensor, kind: int, step: int, places: np.ndarray, sample: np.ndarray, *, less: bool) -> Digest:
    assert _loops is not None
    numbers, code = _room.numbers, _room.code
    if kind == 8:
        length = _loops.told64(x.data_ptr(), step, places, less, sample, numbers, code)
    else:
        length = _loops.told32(x.data_ptr(), kind, step, places, less, sample, numbers, code)
    return Digest._make((*numbers.tolist(), code[:length].tobytes(), x.numel()))


@lru_cache(maxsize=256)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...], n: int) -> tuple[int, np.ndarray, int]:
    """Which elements `strided` takes: the step through memory, or their places there, and how many."""
    numel = 1
    for size in shape:
        numel *= size
    if is_dense(shape, strides):
        step = stride(tuple(size for _, size in sorted(zip(strides, shape))), n)
        return step, _NO_PLACES, -(-numel // step)
    step = stride(tuple(shape[::-1]), n)
    chosen = np.unravel_index(np.arange(0, numel, step), shape)
    places = sum(index * by for index, by in zip(chosen, strides))
    return 1, np.ascontiguousarray(places, dtype=np.int64), len(chosen[0])
