"""What benchmarks/gpu.py does without a GPU: its check of our kernels, its table and its rows of costs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLACE))
        yield importlib.import_module("gpu")
        for name in ("gpu", "problems"):
            sys.modules.pop(name, None)


def case_of(gpu, norm, activation=None, residual=False, size="0.5 MB", dtype="float32"):
    shape = (gpu.ROWS if gpu.OVER[norm] == "C" else gpu.IMAGES)[size]
    return gpu.Case(norm, activation, residual, size, shape, dtype, "contiguous")


def test_the_traffic_that_cannot_be_avoided(gpu):
    case = case_of(gpu, "batch", "relu", True, "64 MB", "bfloat16")
    assert [count * case.bytes for count in case.passes] == [3 * 2 * 64**4, 4 * 2 * 64**4]


def test_a_wrong_kernel_is_seen(gpu, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setitem(gpu.ROWS, "64 MB", (64, 40))
    case = case_of(gpu, "layer", "silu", True, "64 MB")
    assert gpu.wrong(case, "triton", "cpu") is None
    right = gpu.ours
    factor = {"triton": 2.0, "reference": 1.0}
    monkeypatch.setattr(gpu, "ours", lambda case, offer: lambda *these: right(case, offer)(*these) * factor[offer])
    assert gpu.wrong(case, "triton", "cpu").startswith("y is off by")


def test_the_table_and_the_costs(gpu):
    small, large = (case_of(gpu, "batch", size=size) for size in ("0.5 MB", "411 MB"))
    found = {}
    for case in (small, large):
        ours = [10 + case.elements * 4e-6, 20 + case.elements * 6e-6]
        found[case.name] = {"wrong": None, "ours": ours, "torch": [2 * us for us in ours], "compile": [1.0, 1.0]}
    text = gpu.written(found, "A GPU", 4000.0)
    assert f"| {small.name} | " in text and text.count("**0.") == 2
    assert gpu.rows_of_costs(found) == [
        '("triton", "cuda", "NS", "contiguous", torch.float32): Cost(30, 0.01000),',
        '("aten", "cuda", "NS", "contiguous", torch.float32): Cost(60, 0.02000),',
    ]
