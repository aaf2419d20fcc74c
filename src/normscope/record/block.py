"""A block: the summaries of many tensors at one step as one row, written without an object for each of them.

How it stands in its table is told in `schema`. What reads raises RecordError where a block is malformed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from normscope.record.malformed import reading
from normscope.record.rows import PLAIN, known_source
from normscope.stats.digest import Digests
from normscope.terms.site import Site

TOGETHER = 64
"""Tensors of one row, at most: whoever asks for one of them reads the numbers of as many, 5 kB a step."""

NUMBERS = 11  # of each tensor: those of a digest, its size, the end of its code
BYTES = 8 * NUMBERS
_NUMBER, _SITE = np.dtype("<f8"), np.dtype("<i4")


class Block(NamedTuple):
    """Summaries of the training at one step, to be inserted."""

    step: int
    source: str
    sites: Sequence[Site]
    told: Digests
    table: str = "summary"  # what its entries count as

    def rows(self) -> Iterator[tuple[int, str, int, bytes, bytes]]:
        """The columns of each row of at most `TOGETHER` tensors, after `layout`."""
        for start in range(0, len(self.sites), TOGETHER):
            told = self.told[start : start + TOGETHER]
            numbers = np.empty((len(told), NUMBERS), _NUMBER)
            numbers[:, :9], numbers[:, 9] = told.numbers, told.sizes
            numbers[:, 10] = np.cumsum([len(code) for code in told.codes])
            yield self.step, self.source, int(told.nonfinite.sum()), numbers.tobytes(), b"".join(told.codes)


def block_of(step: int, source: str, sites: Sequence[Site], told: Digests) -> Block:
    """The block of many tensors at one step. Raises ValueError for an unknown `source`, or not as many sites."""
    if len(sites) != len(told):
        raise ValueError(f"{len(told)} summaries of {len(sites)} tensors")
    return Block(int(step), known_source(source), sites, told)


def layouts_of(numbers: Sequence[int]) -> list[bytes]:
    """Of the sites of a block, by their numbers, the layout of each of its rows."""
    return [np.array(numbers[at : at + TOGETHER], _SITE).tobytes() for at in range(0, len(numbers), TOGETHER)]


@reading("A layout")
def read_layout(sites: bytes) -> np.ndarray:
    """The numbers of the sites, int32."""
    return np.frombuffer(sites, _SITE)


@reading("A block of summaries")
def read_numbers(numbers: bytes) -> np.ndarray:
    """The `NUMBERS` of each tensor, float64 (n, 11)."""
    return np.frombuffer(numbers, _NUMBER).reshape(-1, NUMBERS)


@reading("A block of summaries")
def read_summaries(layout: np.ndarray, numbers: bytes, codes: bytes) -> list[tuple[int, tuple[Any, ...]]]:
    """Of each tensor the number of its site, and the columns `rows.SUMMARY` as a row of its own would have them."""
    told = read_numbers(numbers).tolist()
    if len(told) != len(layout):
        raise ValueError(f"{len(told)} summaries of {len(layout)} tensors")
    ends = [int(row[10]) for row in told]
    return [
        (site, (*row[:9], PLAIN + codes[start:end], row[9]))
        for site, row, start, end in zip(layout.tolist(), told, [0, *ends], ends)
    ]


@reading("A block of summaries")
def read_one(place: int, numbers: bytes, codes: bytes) -> tuple[Any, ...]:
    """The columns `rows.SUMMARY` of the tensor at one place of the layout."""
    told = read_numbers(numbers)
    start = int(told[place - 1, 10]) if place else 0
    *row, size, end = told[place].tolist()
    return (*row, PLAIN + codes[start : int(end)], size)
