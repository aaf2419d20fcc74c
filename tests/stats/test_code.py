"""The code of a sketch's counts: nothing lost, few bytes, and what is no code is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from normscope.stats.code import decode, encode

COUNTS = hnp.arrays(np.int64, 2048, elements=st.integers(0, 2**40), fill=st.just(0))


@given(COUNTS)
def test_every_count_comes_back(counts):
    assert np.array_equal(decode(encode(counts), 2048), counts)


@pytest.mark.parametrize(
    ("filled", "code"),
    [
        ({}, b""),
        ({0: 5}, bytes([0, 1, 5])),
        ({2: 1, 3: 127, 5: 128}, bytes([2, 2, 1, 127, 1, 1, 128, 1])),
        ({2047: 300}, bytes([0xFF, 0x0F, 1, 0xAC, 0x02])),
    ],
    ids=str,
)
def test_the_code_is_what_its_description_says(filled, code):
    counts = np.zeros(2048, dtype=np.int64)
    counts[list(filled)] = list(filled.values())
    assert encode(counts) == code


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (b"\x01", "a run of 0 bins"),
        (b"\x00\x02\x05", "a run of 2 bins"),
        (b"\x00\x01\x85", "cut off"),
        (b"\xff\x7f\x01\x01", "from bin 16383 on"),
        (b"\xff" * 10 + b"\x01", "too long"),
    ],
)
def test_what_is_no_code_is_refused(code, why):
    with pytest.raises(ValueError, match=why):
        decode(code, 2048)
