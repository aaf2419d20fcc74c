"""The door to `_reading.c`: samples and digests of tensors by its compiled loops, where they are to be had."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from normscope.stats.digest import Digest, Digests
from normscope.stats.moments import Moments
from normscope.stats.sample import stride
from normscope.stats.values import is_dense

if TYPE_CHECKING:
    import torch

    from normscope.stats._reading import Sample

_missing: str | None = None
try:
    from normscope.stats import _reading
except ImportError as error:  # no compiler, or no headers of Python, where it was installed: torch serves too
    _reading, _missing = None, f"{type(error).__name__}: {error}"

ALONE = (0, 1)
"""Who shares many tasks: the address of ``GOMP_parallel`` of an OpenMP runtime and how many of its threads; nobody."""


def prepare() -> str | None:
    """Have tensors on the CPU served from here on.

    Returns None when they are, else why not; then `gathered` and `digest` give None, and torch computes.
    """
    if _reading is None:
        return _missing
    import torch

    dtypes = torch.float32, torch.float16, torch.bfloat16, torch.float64
    _reading.prepare(torch.Tensor, torch.nn.Parameter, *dtypes, torch.strided, _layout)
    return None


def values(sample: Sample) -> np.ndarray:
    """The elements of a sample, 1-D, float32 or float64."""
    return np.asarray(sample)


def over(sample: Sample, scale: float) -> Sample:
    """The sample of a tensor that was multiplied with `scale`."""
    assert _reading is not None
    return _reading.over(sample, scale)


def release() -> None:
    """Give back the room that is kept for the samples of the next step."""
    if _reading is not None:
        _reading.release()


def serves(x: torch.Tensor) -> bool:
    """Whether the loops can read `x`: no subclass of Tensor, on the CPU, neither sparse nor negated."""
    return _reading is not None and _reading.serves(x)


def gathered(x: torch.Tensor, n: int = 8192) -> Sample | None:
    """``strided(x, n)``, copied from where it lies; None for what the loops do not serve."""
    return None if _reading is None else _reading.take(x, n)


def gathered_all(
    tensors: Sequence[torch.Tensor], n: int = 8192, team: tuple[int, int] = ALONE
) -> Sequence[Sample | None]:
    """The same of many tensors at once, by a `team` as `ALONE` tells."""
    return [None] * len(tensors) if _reading is None else _reading.take_all(list(tensors), n, *team)


def digests(samples: Sequence[Sample], before: Sequence[Sample | None], team: tuple[int, int] = ALONE) -> Digests:
    """The digest of each of `samples`, less the earlier one that stands at its place in `before`."""
    if not samples:
        return Digests.of([])
    assert _reading is not None
    numbers, codes, sizes = _reading.tell(list(samples), list(before), *team)
    return Digests(np.frombuffer(numbers).reshape(-1, 9), codes, sizes)


def digest(x: torch.Tensor, n: int = 8192) -> Digest | None:
    """The digest of ``strided(x, n)``; None for what the loops do not serve."""
    sample = gathered(x, n)
    return None if sample is None else digests([sample], [None])[0]


def digest_by_channel(x: torch.Tensor, places: np.ndarray, channels: int) -> tuple[Digest, Moments, np.ndarray] | None:
    """The digest of the elements at `places` in memory, counted from the first of `x`, and the moments per channel.

    Beside them the elements themselves (cells, channels).

    places: int64, channel by channel of one cell after the other.
    """
    sample = None if _reading is None else _reading.take_at(x, _place(places), len(places), x.numel())
    if _reading is None or sample is None:
        return None
    moments = np.frombuffer(_reading.channels(sample, channels)).reshape(3, channels)
    return digests([sample], [None])[0], Moments(*moments), values(sample).reshape(-1, channels)


def _place(values: np.ndarray) -> int:
    return values.__array_interface__["data"][0]


@lru_cache(maxsize=256)
def _layout(
    shape: tuple[int, ...], strides: tuple[int, ...], n: int
) -> tuple[int, int, int, int] | tuple[int, int, int, int, np.ndarray]:
    """Which elements `strided` takes: each so many in memory, or those at the places at an address; how many; of whom.

    The places come along, so that their address stays theirs.
    """
    numel = prod(shape)
    if is_dense(shape, strides):
        step = stride(tuple(size for _, size in sorted(zip(strides, shape))), n)
        return step, 0, -(-numel // step), numel
    step = stride(tuple(shape[::-1]), n)
    chosen = np.unravel_index(np.arange(0, numel, step), shape)
    places = np.asarray(sum(index * by for index, by in zip(chosen, strides)), dtype=np.int64)
    return 1, _place(places), len(places), numel, places
