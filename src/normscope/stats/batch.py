"""Summaries of many small samples at once: the road by which a watched step is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from normscope.stats.moments import Moments
from normscope.stats.rows import Tell, measured, rows_at_once
from normscope.stats.sketch import Sketch
from normscope.stats.summary import Summary
from normscope.stats.values import exact, values

if TYPE_CHECKING:
    import torch


def summarize(
    rows: Iterable[torch.Tensor], sizes: Sequence[int] | None = None, tell: Tell | None = None
) -> list[Summary]:
    """The summary of each of `rows`: tensors of any length, dtype and device, measured together with others like them.

    sizes: the numbers of elements of the tensors that the rows stand for; without it, a row stands for itself.
    tell: a faster way for some of them, see `rows.measured`.
    """
    samples = [exact(values(row)).reshape(-1) for row in rows]
    sizes = [sample.numel() for sample in samples] if sizes is None else sizes
    found: dict[int, Summary] = {}
    for alike in _by_device(samples):
        indices = [index for group in alike for index in group]
        found.update(zip(indices, _summaries(_matrices(samples, alike), [sizes[index] for index in indices], tell)))
    return [found[index] for index in range(len(samples))]


def _by_device(samples: Sequence[torch.Tensor]) -> list[list[list[int]]]:
    """For each device: the indices of its samples, those of one length and type together."""
    groups: dict[torch.device, dict[tuple[torch.dtype, int], list[int]]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.device, {}).setdefault((sample.dtype, sample.numel()), []).append(index)
    return [list(alike.values()) for alike in groups.values()]


def _matrices(samples: Sequence[torch.Tensor], alike: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    """The samples as rows, stacked just before they are measured, so that they are still in the cache."""
    import torch

    for group in alike:
        step = rows_at_once(samples[group[0]])
        for start in range(0, len(group), step):
            yield torch.stack([samples[index] for index in group[start : start + step]])


def _summaries(matrices: Iterable[torch.Tensor], sizes: Sequence[int], tell: Tell | None) -> list[Summary]:
    rows = measured(matrices, tell)
    moments = zip(rows.moments.count, rows.moments.mean, rows.moments.m2)
    bounds = zip(rows.low.tolist(), rows.high.tolist())
    return [
        Summary(Moments(*map(np.asarray, each)), Sketch.from_tally(tally), low, high, size)
        for each, tally, (low, high), size in zip(moments, rows.tally, bounds, sizes)
    ]
