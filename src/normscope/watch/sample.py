"""The part of a tensor that is read, and stands for all of it: the same elements each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import chain
from math import gcd, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normscope.kernels.cpu import pool
from normscope.stats import compiled
from normscope.stats.batch import summarize
from normscope.stats.digest import Digest, Digests
from normscope.stats.quantiles import Quantiles
from normscope.stats.sample import strided
from normscope.stats.summary import Summary
from normscope.stats.values import exact
from normscope.terms.site import Site
from normscope.watch import on_device

if TYPE_CHECKING:
    from normscope.stats._reading import Sample

ELEMENTS = 32768
"""How much of a tensor of the fixed batch is read: with 64 channels 512 cells each, a mean to 4% of a deviation.

The same elements are read at every probe, so this error is the same each time and no change between probes comes of it.
"""


CELLS = 512
"""How many cells of a channel its quantiles are told from: enough for a tenth of them to be known to a seventh."""

FEW = 8
"""Samples that one thread tells sooner than two have been woken."""


class Row(NamedTuple):
    """What was read of one tensor as it was at one moment.

    Attributes:
        size: elements of the tensor.
        sample: strided, copied, 1-D, float32 or float64: as the compiled loops made it, or a tensor.
        before: an earlier sample of the same tensor, which is to be subtracted.
    """

    site: Site
    size: int
    sample: Tensor | Sample
    before: Sample | None = None

    @property
    def finite(self) -> bool:
        """Whether every value that was read is finite."""
        sample = self.sample
        return bool(sample.isfinite().all()) if isinstance(sample, Tensor) else sample.finite

    def over(self, scale: float) -> Row:
        """The row of a tensor that was multiplied with `scale`."""
        if scale == 1.0:
            return self
        sample = self.sample
        divided = sample / scale if isinstance(sample, Tensor) else compiled.over(sample, scale)
        return self._replace(sample=divided)

    def at(self, site: Site) -> Row:
        """The same elements, seen at another site."""
        return Row(site, self.size, self.sample, self.before)


@dataclass(frozen=True, eq=False)
class Told(Sequence[tuple[Site, Digest]]):
    """Digests and the sites that they are of."""

    sites: list[Site]
    digests: Digests

    @property
    def broken(self) -> list[Site]:
        """The sites of which something is not finite."""
        return [self.sites[at] for at in np.flatnonzero(self.digests.nonfinite)] if self.digests.broken else []

    def __add__(self, other: Told) -> Told:
        return Told(self.sites + other.sites, Digests.joined([self.digests, other.digests]))

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, at: Any) -> Any:
        return Told(self.sites[at], self.digests[at]) if isinstance(at, slice) else (self.sites[at], self.digests[at])

    def __iter__(self) -> Iterator[tuple[Site, Digest]]:
        return zip(self.sites, self.digests)


def row_of(site: Site, tensor: Tensor | None, n: int = 8192) -> Row | None:
    """The row of at most `n` elements of `tensor` as it is now; None when there is nothing to read."""
    if tensor is None:
        return None
    return _row(site, tensor, compiled.gathered(tensor, n), n)


def rows_of_all(pairs: Sequence[tuple[Site, Tensor]], n: int = 8192) -> list[Row | None]:
    """The row of each tensor as it is now, all read together."""
    found = compiled.gathered_all([tensor for _, tensor in pairs], n, _team(len(pairs)))
    return [_row(site, tensor, copied, n) for (site, tensor), copied in zip(pairs, found)]


def _row(site: Site, tensor: Tensor, copied: Sample | None, n: int) -> Row | None:
    """What was copied of `tensor`, or what torch reads, where the loops do not serve it."""
    if copied is not None:
        return Row(site, copied.size, copied) if copied.size else None
    values = readable(tensor)
    if values is None:
        return None
    sample = strided(values, n)
    exactly = exact(sample)
    return Row(site, values.numel(), sample.clone() if exactly is sample else exactly)


def _team(tasks: int) -> tuple[int, int]:
    """Torch's threads, to share so many tasks; this one alone where it is as quick."""
    return (pool.runtime(), min(tasks, torch.get_num_threads())) if tasks >= FEW else compiled.ALONE


def change_of(row: Row, now: Row | None) -> Row | None:
    """The row of what a tensor has become `now` since its `row`, less what it was; None when it is another tensor."""
    if now is None or now.size != row.size:
        return None
    old, new = row.sample, now.sample
    if isinstance(old, Tensor):
        alike = isinstance(new, Tensor) and (old.shape, old.dtype) == (new.shape, new.dtype)
        return now._replace(sample=new - old) if alike else None  # pyright: ignore[reportOperatorIssue]
    alike = not isinstance(new, Tensor) and (old.elements, old.bytes) == (new.elements, new.bytes)
    return Row(now.site, now.size, new, old) if alike else None


def digests(rows: Sequence[Row]) -> Told:
    """The site and the digest of each of `rows`, all of one kind and device made together."""
    known: dict[int, int] = {}  # an input is often the output before it
    ours: list[Sample] = []
    less: list[Sample | None] = []
    torchs: list[tuple[Tensor, int]] = []
    places: list[int] = []
    for _, size, sample, before in rows:
        place = known.get(id(sample)) if before is None else None
        if place is None:
            if isinstance(sample, Tensor):
                torchs.append((sample, size))
                place = -len(torchs)
            else:
                place = len(ours)
                ours.append(sample)
                less.append(before)
            if before is None:
                known[id(sample)] = place
        places.append(place)
    made = compiled.digests(ours, less, _team(len(ours)))
    if torchs:
        summaries = summarize([sample for sample, _ in torchs], [size for _, size in torchs], on_device.told)
        made = Digests.joined([made, Digests.of([Digest.of(summary) for summary in reversed(summaries)])])
    return Told([row[0] for row in rows], made.at(places))


def merged(rounds: Iterable[Told]) -> Told:
    """What `rounds` tell, with one digest for each site: of all its elements, where the site was seen first."""
    parts: dict[Site, list[Digest]] = {}
    for site, digest in chain.from_iterable(rounds):
        parts.setdefault(site, []).append(digest)
    made = (
        of[0] if len(of) == 1 else Digest.of(reduce(Summary.merge, (each.summary for each in of)))
        for of in parts.values()
    )
    return Told(list(parts), Digests.of(list(made)))


def is_copy(tensor: Tensor) -> bool:
    """Whether `tensor` is distributed, and another process holds and records the very same part of it."""
    if type(tensor) is torch.nn.Parameter:
        return False
    mesh, placements = getattr(tensor, "device_mesh", None), getattr(tensor, "placements", ())
    coordinate = mesh.get_coordinate() if mesh is not None else None
    return coordinate is not None and any(place.is_replicate() and at > 0 for place, at in zip(placements, coordinate))


def readable(tensor: Tensor | None) -> Tensor | None:
    """`tensor` as statistics can read it: real, with values in memory; None when it is not to be had.

    Of a sharded tensor the shard of this process; of a complex one real and imaginary parts.
    """
    if tensor is None or tensor.device.type == "meta" or tensor.is_quantized or tensor.is_nested or not tensor.numel():
        return None
    values: Tensor = tensor.detach()
    if hasattr(values, "to_local"):
        values = values.to_local()  # type: ignore[operator]
    if values.is_sparse:
        values = values.coalesce().values()
    nowhere = type(values) is Tensor and values.layout is torch.strided and values.data_ptr() == 0
    if nowhere and values.numel():  # a shard may be empty
        return values.new_zeros(values.shape) if values._is_zerotensor() else None  # or its memory was given back
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def summary_of(tensor: Tensor, channel_axis: int | None, *, quantiles: bool = False) -> Summary:
    """The summary of at most about `ELEMENTS` elements of `tensor`, the same ones each time; with every channel.

    quantiles: whether to tell the distribution of each channel as well, from at most about `CELLS` of its elements.
    """
    size = tensor.numel()
    if channel_axis is None or not -tensor.ndim <= channel_axis < tensor.ndim or tensor.ndim < 2:
        digest = compiled.digest(tensor, ELEMENTS)
        if digest is not None:
            return digest.own
        return replace(Summary.of(strided(tensor, ELEMENTS), tell=on_device.told), size=size)
    if compiled.serves(tensor) and tensor.shape[channel_axis] <= ELEMENTS:
        places = _places(tuple(tensor.shape), tensor.stride(), channel_axis % tensor.ndim)
        found = compiled.digest_by_channel(tensor, places, tensor.shape[channel_axis])
        if found is not None:
            digest, channels, rows = found
            return replace(digest.own, channels=channels, quantiles=_quantiles(rows) if quantiles else None)
    rows = rows_of(tensor, channel_axis)
    return replace(Summary.of(rows, 1, on_device.told), size=size, quantiles=_quantiles(rows) if quantiles else None)


def _quantiles(rows: Any) -> Quantiles:
    some = rows[:: max(1, len(rows) // CELLS)]
    return Quantiles.of(some.float().cpu().numpy() if isinstance(some, Tensor) else some)


def rows_of(tensor: Tensor, channel_axis: int, elements: int = ELEMENTS) -> Tensor:
    """Some of the cells of `tensor`, each with all its channels: (rows, channels), at most about `elements`."""
    moved = tensor.detach().movedim(channel_axis, -1)
    channels = moved.shape[-1]
    cells = moved.numel() // channels
    rows = max(1, elements // channels)
    if cells <= rows:
        return moved.reshape(cells, channels)
    chosen = torch.arange(0, cells, _every(cells, rows), device=tensor.device)
    return moved[torch.unravel_index(chosen, moved.shape[:-1])]


def _every(cells: int, rows: int) -> int:
    """The step through `cells` that takes about `rows` of them, in no rhythm of theirs."""
    stride = -(-cells // rows)
    while gcd(stride, cells) != 1:
        stride += 1
    return stride


@lru_cache(maxsize=64)
def _places(shape: tuple[int, ...], strides: tuple[int, ...], axis: int) -> np.ndarray:
    """Where in memory the elements of `rows_of` lie, counted from the first: int64, one cell after the other."""
    channels, sizes = shape[axis], shape[:axis] + shape[axis + 1 :]
    cells, rows = prod(sizes), max(1, ELEMENTS // channels)
    index = np.unravel_index(np.arange(0, cells, 1 if cells <= rows else _every(cells, rows)), sizes)
    starts = sum(at * by for at, by in zip(index, strides[:axis] + strides[axis + 1 :]))
    return (np.asarray(starts)[:, None] + np.arange(channels) * strides[axis]).ravel()
