"""The counts of a sketch in few bytes: what is written to disk, and what waits in memory to be written.

Runs of filled bins, each told by the number of empty bins before it, its length, and its counts; every number in groups
of 7 bits, lowest first, the high bit set on all but the last group (LEB128). 8,192 normal values take 390 bytes.
"""

from __future__ import annotations

import numpy as np


def encode(counts: np.ndarray) -> bytes:
    """The code of non-negative `counts` (B,)."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return b""
    first = np.flatnonzero(np.diff(filled, prepend=-2) > 1)  # of each run, as a place in `filled`
    lengths = np.diff(first, append=len(filled))
    starts = filled[first]
    gaps = starts - np.concatenate(([0], (starts + lengths)[:-1]))
    numbers = np.empty(len(filled) + 2 * len(first), dtype=np.uint64)
    heads = first + 2 * np.arange(len(first))
    numbers[heads], numbers[heads + 1] = gaps, lengths
    numbers[np.arange(len(filled)) + 2 * np.repeat(np.arange(1, len(first) + 1), lengths)] = counts[filled]
    return _varints(numbers)


def decode(code: bytes, size: int) -> np.ndarray:
    """The counts of which `code` was made, int64 (size,). Raises ValueError when there are none."""
    numbers = _numbers(code)
    counts = np.zeros(size, dtype=np.int64)
    at = place = 0
    while at < len(numbers):
        gap, length = int(numbers[at]), int(numbers[at + 1]) if at + 1 < len(numbers) else 0
        at, place = at + 2, place + gap
        if length < 1 or place + length > size or at + length > len(numbers):
            raise ValueError(f"a run of {length} bins from bin {place} on, in a code of {size} bins")
        counts[place : place + length] = numbers[at : at + length]
        at, place = at + length, place + length
    return counts


def _varints(numbers: np.ndarray) -> bytes:
    groups = max(1, -(-int(numbers.max()).bit_length() // 7))
    shifts = np.arange(0, 7 * groups, 7, dtype=np.uint64)
    table = numbers[:, None] >> shifts
    more = table[:, 1:] > 0
    octets = (table & np.uint64(127)).astype(np.uint8)
    octets[:, :-1] |= more.astype(np.uint8) << 7
    return octets[np.concatenate((np.ones((len(numbers), 1), dtype=bool), more), axis=1)].tobytes()


def _numbers(code: bytes) -> np.ndarray:
    octets = np.frombuffer(code, dtype=np.uint8)
    last = np.flatnonzero(octets < 128)
    if len(octets) and (not len(last) or last[-1] != len(octets) - 1):
        raise ValueError("the last number is cut off")
    start = np.concatenate(([0], last[:-1] + 1))[: len(last)]
    if len(last) and (last - start).max() > 8:  # 9 groups are 63 bits
        raise ValueError("a number is too long")
    shift = 7 * (np.arange(len(octets)) - np.repeat(start, last - start + 1))
    parts = (octets & 127).astype(np.int64) << shift
    return np.add.reduceat(parts, start) if len(last) else parts
