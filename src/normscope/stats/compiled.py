"""The door to `fused`: digests and summaries of tensors by its compiled loops, where they are to be had."""

from __future__ import annotations

import threading
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import string_at
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from normscope.stats.digest import Digest, Digests
from normscope.stats.moments import Moments
from normscope.stats.sample import stride
from normscope.stats.sketch import BINS
from normscope.stats.values import is_dense

if TYPE_CHECKING:
    from types import ModuleType

    import torch

MOST = 2**18 - 4
"""Elements of one digest, at most."""

AT_ONCE = 256
"""Digests of one call: room for more would be wasted on small models."""

WORDS = 40
"""Of the argument of a compiled loop, at least: who launches it may use the last ones."""

_BYTES = 3 * BINS  # of the longest code: of that many elements few bins hold more than two bytes can tell
_BLOCK = 2**15  # words that samples share; of 8 bytes each

Launch = Callable[[Any, Any, int], None]

_loops: ModuleType | None = None
_kinds: dict[torch.dtype, int] = {}  # as `fused.gather` numbers them
_types: tuple[type, ...] = ()  # as long as there are no loops nothing is served
_strided: Any = None
_missing: str | None = None


def prepare() -> str | None:
    """Load the loops: a third of a second, and about five when they are first compiled on a machine.

    Returns None when they are there, else why not; then `gathered` and `digest` give None, and torch computes.
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


_made = tuple.__new__  # what a named tuple's own __new__ does, in Python, with its arguments one by one


class _Room:
    """What the loops of a thread write to, kept from one call to the next."""

    def __init__(self) -> None:
        self.words = array("q", [0] * WORDS)  # gives what it holds as int, which a C function takes
        self.where = self.words.buffer_info()[0]
        self.samples = np.empty((0, 5), dtype=np.int64)
        self.numbers = np.empty((0, 9))
        self.codes = np.empty((0, _BYTES), dtype=np.uint8)
        self.places: tuple[int, ...] = ()  # of the three
        self._block = np.empty(0)
        self._next = self._end = 0  # addresses

    def grow(self, count: int) -> None:
        """Have room for so many digests."""
        if len(self.samples) < count or not self.places:
            self.samples = np.empty((count, 5), dtype=np.int64)
            self.numbers = np.empty((count, 9))
            self.codes = np.empty((count, _BYTES), dtype=np.uint8)
            self.places = tuple(map(_place, (self.samples, self.numbers, self.codes)))

    def sample(self, kind: int, count: int, size: int) -> Sample:
        """Room for so many elements of a tensor of this kind and `size`. It keeps alive its block."""
        width = 8 if kind == 8 else 4
        start, room = self._next, (width * count + 7) & -8
        if start + room > self._end:
            self._block = np.empty(max(_BLOCK, room // 8))
            start = _place(self._block)
            self._end = start + self._block.nbytes
        self._next = start + room
        return _made(Sample, (self._block, start, width, count, size))


_rooms = threading.local()  # hooks of several threads may run at once


def _room() -> _Room:
    try:
        return _rooms.own
    except AttributeError:
        _rooms.own = room = _Room()
        return room


class _Layout(NamedTuple):
    """Which elements `strided` takes: each so many in memory; or where they lie, by the address of `listed` places."""

    step: int
    places: int
    listed: int
    taken: int
    size: int
    kept: np.ndarray | None = None  # the places, so that their address stays theirs


class Sample(NamedTuple):
    """Elements of a tensor, to be told in a digest: so many, one after the other, of 4 or 8 `bytes` each.

    block: the words among which they lie, kept alive. address: where they begin. size: elements of the tensor.
    """

    block: np.ndarray
    address: int
    bytes: int
    elements: int
    size: int

    @property
    def values(self) -> np.ndarray:
        """The elements, 1-D, float32 or float64."""
        start = self.address - _place(self.block)
        kind = np.float64 if self.bytes == 8 else np.float32
        return self.block.view(np.uint8)[start : start + self.bytes * self.elements].view(kind)

    @classmethod
    def of(cls, values: np.ndarray, size: int) -> Sample:
        """That of contiguous values."""
        return cls(values, _place(values), values.itemsize, len(values), size)


def serves(x: torch.Tensor) -> bool:
    """Whether the loops can read `x`."""
    return _kind(x) is not None


def gathered(x: torch.Tensor, n: int = 8192) -> Sample | None:
    """``strided(x, n)``, copied from where it lies; None for what the loops do not serve."""
    kind = _kind(x)
    if kind is None or _loops is None:
        return None
    step, places, listed, count, size, _ = _layout(x.shape, x.stride(), n)
    sample = _room().sample(kind, count, size)
    _loops.gather(x.data_ptr(), kind, step, places, listed, count, sample[1])
    return sample


def gathered_all(tensors: Iterable[torch.Tensor], launch: Launch, n: int = 8192) -> list[Sample | None]:
    """The same of many tensors at once; `launch` as for `digests`."""
    found: list[Sample | None] = []
    calls: list[tuple[int, ...]] = []
    room = _room()
    for x in tensors:
        kind = _kind(x)
        if kind is None:
            found.append(None)
            continue
        step, places, listed, count, size, _ = _layout(x.shape, x.stride(), n)
        sample = room.sample(kind, count, size)
        found.append(sample)
        calls.append((x.data_ptr(), kind, step, places, listed, count, sample[1]))
    if calls and _loops is not None:
        told, words = np.array(calls, dtype=np.int64), room.words
        words[:4] = array("q", (0, room.where, len(calls), _place(told)))
        launch(_loops.gather_all, words, len(calls))
    return found


def digests(samples: Sequence[tuple[Sample, Sample | None]], launch: Launch | None = None) -> Digests:
    """The digest of each of `samples`, less the earlier one that comes with it. Only where the loops are there.

    Each is of at most `MOST` elements. launch: ``launch(C function, its words, tasks)`` has several threads run it;
    without it this thread does all.
    """
    if len(widths := {sample.bytes for sample, _ in samples}) > 1:
        found = {at: digest for width in widths for at, digest in _of_width(samples, width, launch)}
        return Digests.of([found[at] for at in range(len(samples))])
    parts = [_told(samples[start : start + AT_ONCE], launch) for start in range(0, len(samples), AT_ONCE)]
    return parts[0] if len(parts) == 1 else Digests.joined(parts)


def _of_width(
    samples: Sequence[tuple[Sample, Sample | None]], width: int, launch: Launch | None
) -> Iterator[tuple[int, Digest]]:
    """The digests of those whose elements have so many bytes, with their places."""
    places = [at for at, (sample, _) in enumerate(samples) if sample.bytes == width]
    return zip(places, digests([samples[at] for at in places], launch))


def _told(samples: Sequence[tuple[Sample, Sample | None]], launch: Launch | None) -> Digests:
    assert _loops is not None
    count, room = len(samples), _room()
    room.grow(count)
    known, words = room.samples, room.words
    known[:count, :4] = [
        (width, elements, address, 0 if before is None else before[1])
        for (_, address, width, elements, _), before in samples
    ]
    words[:7] = array("q", (0, room.where, count, *room.places, _BYTES))
    tell = _loops.tell if samples[0][0].bytes == 4 else _loops.tell_wide()
    if launch is None:
        tell.ctypes(room.where)
    else:
        launch(tell, words, count)
    codes, lengths = room.places[2], known[:count, 4].tolist()
    told = list(map(string_at, range(codes, codes + count * _BYTES, _BYTES), lengths))
    return Digests(room.numbers[:count].copy(), told, [sample[4] for sample, _ in samples])


def digest(x: torch.Tensor, n: int = 8192) -> Digest | None:
    """The digest of ``strided(x, n)``; None for what the loops do not serve."""
    sample = gathered(x, n)
    return None if sample is None else digests([(sample, None)])[0]


def digest_by_channel(x: torch.Tensor, places: np.ndarray, channels: int) -> tuple[Digest, Moments, np.ndarray] | None:
    """The digest of the elements at `places` in memory, counted from the first of `x`, and the moments per channel.

    Beside them the elements themselves (cells, channels).

    places: int64, channel by channel of one cell after the other, at most `MOST`.
    """
    kind = _kind(x)
    if kind is None or _loops is None:
        return None
    sample, moments = _room().sample(kind, len(places), x.numel()), np.empty((3, channels))
    _loops.gather(x.data_ptr(), kind, 1, _place(places), len(places), len(places), sample.address)
    rows = sample.values.reshape(-1, channels)
    _loops.channels(rows, moments)
    return digests([(sample, None)])[0], Moments(*moments), rows


def _kind(x: torch.Tensor) -> int | None:
    """How its numbers lie in memory; None for subclasses of Tensor, other devices, what is sparse or negated."""
    if type(x) not in _types or not x.is_cpu or x.is_neg() or x.layout is not _strided:
        return None
    return _kinds.get(x.dtype)


def _place(values: np.ndarray) -> int:
    return values.__array_interface__["data"][0]


@lru_cache(maxsize=256)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...], n: int) -> _Layout:
    numel = prod(shape)
    if is_dense(shape, strides):
        step = stride(tuple(size for _, size in sorted(zip(strides, shape))), n)
        return _Layout(step, 0, 0, -(-numel // step), numel)
    step = stride(tuple(shape[::-1]), n)
    chosen = np.unravel_index(np.arange(0, numel, step), shape)
    places = np.asarray(sum(index * by for index, by in zip(chosen, strides)), dtype=np.int64)
    return _Layout(1, _place(places), len(places), len(places), numel, places)
