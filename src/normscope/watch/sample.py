"""The part of a tensor that is read, and stands for all of it: the same elements each time."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from normscope.stats.sample import strided
from normscope.stats.summary import Summary
from normscope.stats.values import exact
from normscope.terms.site import Site

ELEMENTS = 32768
"""How much of a tensor of the fixed batch is read: with 64 channels 512 cells each, a mean to 4% of a deviation.

The same elements are read at every probe, so this error is the same each time and no change between probes comes of it.
"""


class Row(NamedTuple):
    """A strided sample of one tensor, copied: 1-D, float32 or float64; `size` is how many elements it stands for."""

    site: Site
    sample: Tensor
    size: int


def row_of(site: Site, tensor: Tensor | None) -> Row | None:
    """The row of `tensor` as it is now; None when there is nothing to read."""
    values = readable(tensor)
    if values is None:
        return None
    sample = strided(values)
    copied = exact(sample)
    return Row(site, sample.clone() if copied is sample else copied, values.numel())


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


def summary_of(tensor: Tensor, channel_axis: int | None) -> Summary:
    """The summary of at most about `ELEMENTS` elements of `tensor`, the same ones each time; with every channel."""
    size = tensor.numel()
    if channel_axis is None or not -tensor.ndim <= channel_axis < tensor.ndim or tensor.ndim < 2:
        return replace(Summary.of(strided(tensor, ELEMENTS)), size=size)
    return replace(Summary.of(rows_of(tensor, channel_axis), 1), size=size)


def rows_of(tensor: Tensor, channel_axis: int, elements: int = ELEMENTS) -> Tensor:
    """Some of the cells of `tensor`, each with all its channels: (rows, channels), at most about `elements`."""
    moved = tensor.detach().movedim(channel_axis, -1)
    channels = moved.shape[-1]
    cells = moved.numel() // channels
    rows = max(1, elements // channels)
    if cells <= rows:
        return moved.reshape(cells, channels)
    stride = -(-cells // rows)
    while gcd(stride, cells) != 1:
        stride += 1
    chosen = torch.arange(0, cells, stride, device=tensor.device)
    return moved[torch.unravel_index(chosen, moved.shape[:-1])]
