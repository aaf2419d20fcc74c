"""What lies on a GPU is summarized by one kernel: here in Triton's interpreter, on the host."""

import numpy as np
import pytest
import torch

from normscope.kernels.triton import summary
from normscope.stats import Summary
from normscope.stats.batch import summarize
from normscope.terms.site import Site
from normscope.watch import on_device, sample

pytest.importorskip("triton")


@pytest.fixture
def blocks(monkeypatch):
    """The shapes that the kernel was asked for."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(on_device, "is_served", lambda x: True)
    monkeypatch.setattr(on_device, "_broken", [])
    monkeypatch.setattr(sample.compiled, "_reading", None)
    right = summary.of_rows
    monkeypatch.setattr(summary, "of_rows", lambda rows: seen.append(tuple(rows.shape)) or right(rows))
    return seen


def samples():
    torch.manual_seed(0)
    tensors = [torch.randn(3, 50) * 10.0**power for power in range(-3, 3)] + [torch.randn(41), torch.randn(1, 41) + 3]
    tensors[1][0, :3] = torch.tensor([float("nan"), float("inf"), 0.0])
    return [tensor.bfloat16() if place == 2 else tensor for place, tensor in enumerate(tensors)]


def equal(one: Summary, other: Summary) -> None:
    assert one.size == other.size and np.array_equal(one.sketch.counts, other.sketch.counts)
    for name in ("mean", "std", "low", "high", "nonfinite_share"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12, nan_ok=True)


def test_rows_of_a_step_are_those_of_torch_and_read_together(blocks):
    rows = [sample.row_of(Site(str(place)), tensor) for place, tensor in enumerate(samples())]
    told = sample.digests(rows)
    assert sorted(blocks) == [(2, 41), (6, 150)]
    for (_, digest), tensor in zip(told, samples(), strict=True):
        equal(digest.summary, Summary.of(tensor))


@pytest.mark.parametrize("axis", [None, 1])
def test_a_tensor_of_the_fixed_batch(blocks, monkeypatch, axis):
    monkeypatch.setattr(sample, "ELEMENTS", 1000)
    x = torch.randn(7, 6, 5, 31)
    found = sample.summary_of(x, axis)
    assert blocks
    monkeypatch.setattr(on_device, "is_served", lambda x: False)
    equal(found, sample.summary_of(x, axis))


def test_a_kernel_that_cannot_be_built_ends_no_training(blocks, monkeypatch):
    asked = []

    def broken(rows):
        asked.append(rows)
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(summary, "of_rows", broken)
    for found, tensor in zip(summarize(samples(), tell=on_device.told), samples(), strict=True):
        equal(found, Summary.of(tensor))
    assert len(asked) == 1 and str(on_device._broken[0]) == "no C compiler"


def test_float64_is_left_to_torch(blocks):
    (found,) = summarize([torch.ones(3, dtype=torch.float64)], tell=on_device.told)
    assert not blocks and found.mean == 1.0
