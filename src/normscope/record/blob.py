"""Named arrays as one blob, and back, without pickle: a blob from a stranger is data or an error, never code.

The layout, in zlib's frame: one line of JSON ``[[name, dtype, shape, form], …]``, a newline, then the bytes of the
arrays one after the other, little-endian, in C order. The form is ``plain``; older records also have ``gaps``, of a
vector of unsigned integers that never falls: each element less the one before it, the first less 0.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping

import numpy as np

from normscope.record.malformed import reading

LEVEL = 0  # stored: moments and quantiles are noise in their lower bits, and 20 kB of them shrink by 6% in 0.4 ms
LIMIT = 1 << 28  # bytes a blob may unpack to; the moments of 4 million channels fit

_DTYPES = frozenset({"|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"})


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """`arrays` as one blob. Raises TypeError for an array of anything but numbers.

    >>> unpack(pack({"bins": np.array([3, 5, 300])}))
    {'bins': array([  3,   5, 300])}
    """
    header: list[tuple[str, str, tuple[int, ...], str]] = []
    bodies: list[bytes] = []
    for name, given in arrays.items():
        array = np.asarray(given)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in _DTYPES:
            raise TypeError(f"a record holds numbers, and `{name}` is an array of {array.dtype}")
        header.append((name, array.dtype.str, array.shape, "plain"))
        bodies.append(array.tobytes())
    line = json.dumps(header, separators=(",", ":")).encode()
    return zlib.compress(b"".join((line, b"\n", *bodies)), LEVEL)


@reading("An array")
def unpack(blob: bytes) -> dict[str, np.ndarray]:
    """The arrays of a blob that `pack` made. Raises RecordError when it is malformed."""
    inflate = zlib.decompressobj()
    data = inflate.decompress(blob, LIMIT)
    if not inflate.eof:
        raise ValueError(f"it is cut off, or unpacks to more than {LIMIT} bytes")
    line, newline, body = data.partition(b"\n")
    if not newline:
        raise ValueError("it has no header")
    arrays: dict[str, np.ndarray] = {}
    place = 0
    for name, dtype, shape, form in json.loads(line):
        if not isinstance(name, str) or dtype not in _DTYPES or form not in ("plain", "gaps"):
            raise ValueError(f"{name!r} is to be {form!r} of {dtype!r}, which is no form of numbers")
        if not all(type(length) is int and 0 <= length <= LIMIT for length in shape):
            raise ValueError(f"{name!r} is to have the shape {shape!r}")
        end = place + math.prod(shape) * np.dtype(dtype).itemsize
        if end > len(body):
            raise ValueError(f"{name!r} ends at byte {end} of {len(body)}")
        array = np.frombuffer(body[place:end], dtype).reshape(shape)
        arrays[name] = np.cumsum(array, dtype=dtype) if form == "gaps" else array
        place = end
    if place != len(body):
        raise ValueError(f"its header tells of {place} bytes and {len(body)} are there")
    return arrays
