"""What is one batch, and what holds batches."""

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.anatomy.batch import Probe
from normscope.treat.batches import batches, first

X = torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (X, 1),
        ({"x": X}, 1),
        ((X, X), 1),
        (Probe((X,)), 1),
        ([X, torch.zeros(5, dtype=torch.long)], 1),
        ([X, torch.zeros(5, 1)], 1),
        ([X, X], 2),
        ([X], 1),
        ([X, torch.zeros(2, 3)], 2),
        ([torch.zeros(5, 7), torch.zeros(5, 8), torch.zeros(2, 9)], 3),
        ([(X, X), (X, X)], 2),
        (iter([X, X, X]), 3),
        ([], 0),
    ],
)
def test_one_batch_or_several(data, count):
    found = list(batches(data, nn.Linear(3, 1)))
    assert len(found) == count and all(probe.args or probe.kwargs for probe in found)


def test_what_holds_no_batch():
    with pytest.raises(ns.NormscopeError, match="data that holds no batch"):
        list(batches("cifar10", nn.Linear(3, 1)))
    with pytest.raises(ns.NormscopeError, match="found none"):
        first([], nn.Linear(3, 1))


def test_batches_go_to_the_device_of_the_model():
    assert first(X, nn.Linear(3, 1, device="meta")).args[0].device.type == "meta"
