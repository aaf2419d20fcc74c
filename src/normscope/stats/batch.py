"""Summaries of many small samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from normscope.stats.sample import strided
from normscope.stats.summary import Summary

if TYPE_CHECKING:
    import torch


class Batch:
    """Room for samples that are copied when they are added and summarized together."""

    def __init__(self, capacity_rows: int = 256, n: int = 8192) -> None:
        self.n = n
        self._rows: list[tuple[torch.Tensor, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, tensor: torch.Tensor, size: int | None = None) -> int:
        """Copy a sample of at most `n` elements of `tensor`; the index of its summary in `summaries`."""
        self._rows.append((strided(tensor, self.n).clone(), tensor.numel() if size is None else size))
        return len(self._rows) - 1

    def summaries(self) -> list[Summary]:
        """One summary for each sample added since the last call, in order; the room is free again."""
        from dataclasses import replace

        found = [replace(Summary.of(row), size=size) for row, size in self._rows]
        self._rows.clear()
        return found


def summarize(rows: Sequence[torch.Tensor], sizes: Sequence[int] | None = None) -> list[Summary]:
    """The summary of each row; `sizes` are the numbers of elements of the tensors that the rows stand for."""
    batch = Batch(len(rows), max((row.numel() for row in rows), default=1))
    for index, row in enumerate(rows):
        batch.add(row, None if sizes is None else sizes[index])
    return batch.summaries()
