"""Many samples measured together are what each would be alone."""

import numpy as np
import pytest
import torch

from normscope.stats import Summary, strided, summarize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def assert_same(found, alone):
    np.testing.assert_allclose(found.moments.m2, alone.moments.m2, rtol=1e-12)
    np.testing.assert_allclose(found.moments.mean, alone.moments.mean, rtol=1e-12)
    assert found.sketch == alone.sketch and found.moments.count == alone.moments.count
    np.testing.assert_array_equal([found.low, found.high], [alone.low, alone.high])
    assert found.size == alone.size and found.channels is None


def rows(device):
    torch.manual_seed(0)
    spoiled = torch.randn(500)
    spoiled[3:6] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    mixed = [
        *(torch.randn(500) * 10.0**scale for scale in range(-40, 30, 3)),
        spoiled,
        torch.full((500,), torch.nan),
        torch.randn(17),
        torch.tensor([0.0, -0.0, 1.0]),
        torch.empty(0),
        torch.tensor(3.0),
        torch.randn(500).relu_(),
        torch.randn(500).half(),
        torch.randn(500).bfloat16(),
        torch.randn(500).double() + 1e9,
        torch.arange(500),
        torch.rand(500) < 0.3,
    ]
    return [row.to(device) for row in mixed]


@pytest.mark.parametrize("device", DEVICES)
def test_each_row_is_summarized_as_if_alone(device):
    for found, row in zip(summarize(rows(device)), rows(device), strict=True):
        assert_same(found, Summary.of(row))


def test_sizes_are_those_of_the_tensors_the_rows_stand_for():
    x = torch.randn(64, 64, 20)
    found = summarize([strided(x, 1000), x[0, 0]], [x.numel(), 20])
    assert [one.size for one in found] == [81_920, 20]
    assert found[0].moments.count < 1000 and summarize([]) == []
    assert [one.size for one in summarize([x, x[0, 0]])] == [81_920, 20]


def test_the_rows_themselves_are_left_as_they_were():
    x = torch.tensor([-0.0, torch.nan, 3.0])
    summarize([x, x])
    assert str(x) == str(torch.tensor([-0.0, torch.nan, 3.0]))


def test_graph_autocast_random_state_and_default_dtype_are_left_alone():
    x, before = torch.randn(300, requires_grad=True), torch.get_rng_state()
    y = x * 2
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (found,) = summarize([y])
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(found, Summary.of(y))
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((300,), 2.0)) and torch.equal(before, torch.get_rng_state())


def test_deterministic_algorithms_are_enough():
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(summarize([torch.arange(9.0)])[0], Summary.of(torch.arange(9.0)))
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_of_one_block_do_not_leak_into_each_other():
    """A tally is one count over all rows: each must keep what is its own, in every block of rows."""
    wave = [torch.full((4096,), 2.0 ** (index % 60 - 30)) for index in range(150)]
    for index, found in enumerate(summarize(wave)):
        assert np.flatnonzero(found.sketch.counts).tolist() == [(index % 60 + 2) * 16]
        assert found.low == found.high == found.mean == 2.0 ** (index % 60 - 30)
