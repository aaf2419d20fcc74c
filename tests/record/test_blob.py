"""Arrays come back bitwise; anything else is a RecordError."""

import io
import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from normscope.record import blob
from normscope.record.blob import pack, unpack
from normscope.terms.errors import RecordError

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)


def forged(header, body=b""):
    return zlib.compress(json.dumps(header).encode() + b"\n" + body)


@given(st.dictionaries(st.text(max_size=5), ARRAYS, max_size=4))
def test_arrays_come_back_bitwise(arrays):
    found = unpack(pack(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@given(hnp.arrays(np.dtype("<u2"), st.integers(0, 50)).map(np.sort))
def test_gaps_of_older_records_are_read(bins):
    stored = forged([["bins", "<u2", [len(bins)], "gaps"]], np.diff(bins, prepend=np.uint16(0)).tobytes())
    assert np.array_equal(unpack(stored)["bins"], bins)


def test_the_bytes_are_little_endian_whatever_the_machine():
    stored = zlib.decompress(pack({"x": np.array([1.0, -2.5], dtype=">f8")}))
    assert stored == b'[["x","<f8",[2],"plain"]]\n' + np.array([1.0, -2.5], dtype="<f8").tobytes()


def test_objects_are_refused_when_written():
    with pytest.raises(TypeError, match="`x` is an array of object"):
        pack({"x": np.array([object()])})


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (None, "bytes"),
        (b"", "cut off"),
        (b"junk", "header check"),
        (pickle.dumps([1, 2]), "header check"),
        (pack({"x": np.arange(100.0)})[:-9], "cut off"),
        (zlib.compress(b"no newline"), "no header"),
        (zlib.compress(b"not json\n"), "Expecting value"),
        (zlib.compress(b"[" * 100_000 + b"\n"), "recursion"),
        (forged({"x": 1}), "unpack"),
        (forged([["x", "<f8", [1]]], bytes(8)), "unpack"),
        (forged([["x", "|O", [1], "plain"]], bytes(8)), "no form of numbers"),
        (forged([["x", "<f8", [1], "pickle"]], bytes(8)), "no form of numbers"),
        (forged([[["x"], "<f8", [1], "plain"]], bytes(8)), "no form of numbers"),
        (forged([["x", "<f8", [-1], "plain"]], bytes(8)), "shape"),
        (forged([["x", "<f8", [1.0], "plain"]], bytes(8)), "shape"),
        (forged([["x", "<f8", [2**28, 2**28, 2**28], "plain"]], bytes(8)), "of 8"),
        (forged([["x", "<f8", [1], "plain"]], bytes(9)), "9 are there"),
        (forged([["x", "<f8", 3, "plain"]], bytes(8)), "iterable"),
    ],
)
def test_what_is_malformed_is_a_record_error(stored, says):
    with pytest.raises(RecordError, match=says) as error:
        unpack(stored)
    assert len(str(error.value).splitlines()) == 4


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_any_bytes_are_arrays_or_a_record_error(header, body):
    for stored in (header, zlib.compress(header), zlib.compress(header + b"\n" + body)):
        with pytest.raises(RecordError):
            unpack(stored)


def test_no_blob_can_fill_the_memory(monkeypatch):
    monkeypatch.setattr(blob, "LIMIT", 1000)
    with pytest.raises(RecordError, match="more than 1000 bytes"):
        unpack(pack({"x": np.zeros(1000)}))


def test_numpys_own_pickles_are_not_opened():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RecordError):
        unpack(zlib.compress(file.getvalue()))
