"""Summaries of many small samples at once: the road by which a watched step is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from normscope.stats.moments import Moments
from normscope.stats.rows import measured
from normscope.stats.sample import strided
from normscope.stats.sketch import Sketch
from normscope.stats.summary import Summary
from normscope.stats.values import exact

if TYPE_CHECKING:
    import torch


class Batch:
    """Samples that are copied when they are added and measured together, in memory that is used again.

    A sample is a copy, because the tensor may be changed in place before it is measured. Samples of one length, type
    and device lie as rows of one block, so nothing is padded. `n` is the greatest number of elements of a sample.
    """

    def __init__(self, n: int = 8192) -> None:
        self.n = n
        self._blocks: dict[tuple[torch.device, torch.dtype, int], _Block] = {}
        self._sizes: list[int] = []

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, tensor: torch.Tensor, size: int | None = None) -> int:
        """Copy the `strided` sample of `tensor`; the index of its summary in `summaries`.

        size: the number of elements that the sample stands for, when `tensor` is a sample already.
        """
        sample = exact(strided(tensor, self.n))
        key = (sample.device, sample.dtype, sample.numel())
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block(*key)
        index = len(self._sizes)
        block.add(sample, index)
        self._sizes.append(tensor.numel() if size is None else size)
        return index

    def summaries(self) -> list[Summary]:
        """The summaries of what was added since the last call, in that order; one measurement for each device."""
        blocks = [block for block in self._blocks.values() if block.indices]
        found: dict[int, Summary] = {}
        for device in {block.rows.device for block in blocks}:
            there = [block for block in blocks if block.rows.device == device]
            indices = [index for block in there for index in block.indices]
            found.update(zip(indices, _summaries(there, [self._sizes[index] for index in indices])))
        self._blocks = {key: block for key, block in self._blocks.items() if block.indices}  # lengths that still occur
        self.clear()
        return [found[index] for index in range(len(found))]

    def clear(self) -> None:
        """Forget what was added; the memory is kept for what comes."""
        self._sizes.clear()
        for block in self._blocks.values():
            block.indices.clear()


class _Block:
    """Rows of one length, type and device, and whose index each of them has."""

    def __init__(self, device: torch.device, dtype: torch.dtype, length: int) -> None:
        self.rows = _room(4, length, dtype, device)
        self.indices: list[int] = []

    def add(self, sample: torch.Tensor, index: int) -> None:
        used = len(self.indices)
        if used == len(self.rows):
            grown = _room(2 * used, self.rows.shape[1], self.rows.dtype, self.rows.device)
            grown[:used].copy_(self.rows)
            self.rows = grown
        self.rows[used].copy_(sample)
        self.indices.append(index)


def summarize(rows: Iterable[torch.Tensor], sizes: Sequence[int] | None = None) -> list[Summary]:
    """The summary of each of `rows`, all measured together.

    sizes: the numbers of elements of the tensors that the rows stand for; without it, a row stands for itself.
    """
    rows = list(rows)
    batch = Batch(max((row.numel() for row in rows), default=1))
    for index, row in enumerate(rows):
        batch.add(row, None if sizes is None else sizes[index])
    return batch.summaries()


def _summaries(blocks: Sequence[_Block], sizes: Sequence[int]) -> list[Summary]:
    rows = measured(*(block.rows[: len(block.indices)] for block in blocks))
    moments = zip(rows.moments.count, rows.moments.mean, rows.moments.m2)
    bounds = zip(rows.low.tolist(), rows.high.tolist())
    return [
        Summary(Moments(*map(np.asarray, each)), Sketch.from_tally(tally), low, high, size)
        for each, tally, (low, high), size in zip(moments, rows.tally, bounds, sizes)
    ]


def _room(count: int, length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch

    with torch.inference_mode(False):  # so that the room can be written again outside of the mode it was made in
        return torch.empty((count, length), dtype=dtype, device=device)
