"""The part of a tensor that is read, and stands for all of it: the same elements each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from normscope.stats import compiled
from normscope.stats.batch import summarize
from normscope.stats.digest import Digest
from normscope.stats.quantiles import Quantiles
from normscope.stats.sample import strided
from normscope.stats.summary import Summary
from normscope.stats.values import exact
from normscope.terms.site import Site
from normscope.watch import on_device

ELEMENTS = 32768
"""How much of a tensor of the fixed batch is read: with 64 channels 512 cells each, a mean to 4% of a deviation.

The same elements are read at every probe, so this error is the same each time and no change between probes comes of it.
"""


CELLS = 512
"""How many cells of a channel its quantiles are told from: enough for a tenth of them to be known to a seventh."""


class Row(NamedTuple):
    """What was read of one tensor as it was at one moment: its digest, or a sample of which one is still to be made.

    Attributes:
        size: elements of the tensor.
        sample: strided, copied, 1-D, float32 or float64; None where nobody asked for it and the digest is there.
        digest: that of the sample; None where it is cheaper to make it later, together with others.
    """

    site: Site
    size: int
    sample: Tensor | None = None
    digest: Digest | None = None


def row_of(site: Site, tensor: Tensor | None, *, keep: bool = False) -> Row | None:
    """The row of `tensor` as it is now, with its sample if it is to be kept; None when there is nothing to read."""
    if tensor is not None and tensor.numel():
        if keep:
            both = compiled.digest_and_sample(tensor)
            if both is not None:
                return Row(site, both[0].size, both[1], both[0])
        elif (digest := compiled.digest(tensor)) is not None:
            return Row(site, digest.size, None, digest)
    values = readable(tensor)
    if values is None:
        return None
    sample = strided(values)
    copied = exact(sample)
    return Row(site, values.numel(), sample.clone() if copied is sample else copied)


def change_of(row: Row, site: Site, tensor: Tensor) -> Row | None:
    """The row of what `tensor` has become since its kept `row`, less what it was; None when it is another tensor."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.detach().to_local()  # type: ignore[operator]
    if tensor.numel() != row.size or row.sample is None:
        return None
    digest = compiled.digest_of_change(tensor, row.sample)
    if digest is not None:
        return Row(site, row.size, None, digest)
    now = row_of(site, tensor, keep=True)
    if now is None or now.sample is None or now.sample.shape != row.sample.shape:
        return None
    return Row(site, row.size, now.sample - row.sample)


def digests(rows: Sequence[Row]) -> list[tuple[Site, Digest]]:
    """The site and the digest of each of `rows`; those that are still to be made are made together."""
    samples = [(row.sample, row.size) for row in rows if row.digest is None and row.sample is not None]
    made = iter(summarize([sample for sample, _ in samples], [size for _, size in samples], on_device.told))
    return [(row.site, Digest.of(next(made)) if row.digest is None else row.digest) for row in rows]


def merged(told: Sequence[tuple[Site, Digest]]) -> list[tuple[Site, Digest]]:
    """`told` with one digest for each site: that of all its elements together, where the site was seen first."""
    parts: dict[Site, list[Digest]] = {}
    for site, digest in told:
        parts.setdefault(site, []).append(digest)
    return [
        (site, of[0] if len(of) == 1 else Digest.of(reduce(Summary.merge, (each.summary for each in of))))
        for site, of in parts.items()
    ]


def is_copy(tensor: Tensor) -> bool:
    """Whether `tensor` is distributed, and another process holds and records the very same part of it."""
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
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def summary_of(tensor: Tensor, channel_axis: int | None, *, quantiles: bool = False) -> Summary:
    """The summary of at most about `ELEMENTS` elements of `tensor`, the same ones each time; with every channel.

    quantiles: whether to tell the distribution of each channel as well, from at most about `CELLS` of its elements.
    """
    size = tensor.numel()
    if channel_axis is None or not -tensor.ndim <= channel_axis < tensor.ndim or tensor.ndim < 2:
        digest = compiled.digest(tensor, ELEMENTS)
        if digest is not None:
            return digest.summary
        return replace(Summary.of(strided(tensor, ELEMENTS), tell=on_device.told), size=size)
    if compiled.serves(tensor) and tensor.shape[channel_axis] <= ELEMENTS:
        places = _places(tuple(tensor.shape), tensor.stride(), channel_axis % tensor.ndim)
        found = compiled.digest_by_channel(tensor, places, tensor.shape[channel_axis])
        if found is not None:
            digest, channels, rows = found
            return replace(digest.summary, channels=channels, quantiles=_quantiles(rows) if quantiles else None)
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
