"""What benchmarks/gpu.py does without a GPU: its check of our kernels, its table and its rows of costs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PLACE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("benchmark_gpu", PLACE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_traffic_that_cannot_be_avoided(gpu):
    case = gpu.Case("batch", "relu", True, "64 MB", "bfloat16", "contiguous")
    assert case.bytes == (3 * 2 * 64**4, 4 * 2 * 64**4)


def test_a_wrong_kernel_is_seen(gpu, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setitem(gpu.ROWS, "64 MB", (64, 40))
    case = gpu.Case("layer", "silu", True, "64 MB", "float32", "contiguous")
    assert gpu.wrong(case, "triton", "cpu") is None
    right = gpu.ours
    factor = {"triton": 2.0, "reference": 1.0}
    monkeypatch.setattr(gpu, "ours", lambda case, offer: lambda *these: right(case, offer)(*these) * factor[offer])
    assert gpu.wrong(case, "triton", "cpu").startswith("y is off by")


def test_the_table_and_the_costs(gpu):
    small, large = (gpu.Case("batch", None, False, size, "float32", "contiguous") for size in ("0.5 MB", "411 MB"))
    found = {}
    for case in (small, large):
        elements = torch.Size(case.shape).numel()
        ours = [10 + elements * 4e-6, 20 + elements * 6e-6]
        found[case.name] = {"wrong": None, "ours": ours, "torch": [2 * us for us in ours], "compile": [1.0, 1.0]}
    text = gpu.written(found, "A GPU", 4000.0)
    assert f"| {small.name} | " in text and text.count("**0.") == 2
    assert gpu.rows_of_costs(found) == [
        '("triton", "cuda", "NS", "contiguous", torch.float32): Cost(30, 0.01000),',
        '("aten", "cuda", "NS", "contiguous", torch.float32): Cost(60, 0.02000),',
    ]
