"""The short way is torch's own call and nothing beside it, and steps aside for what it does not serve."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.utils.prune
from torch.utils._python_dispatch import TorchDispatchMode

import normscope as ns

LAYERS = [
    ("BatchNorm1d", (6,), {}, (8, 6)),
    ("BatchNorm2d", (6,), {"momentum": None}, (2, 6, 3, 4)),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, (2, 6, 3, 4)),
    ("SyncBatchNorm", (6,), {}, (2, 6, 3, 4)),
    ("InstanceNorm2d", (6,), {}, (2, 6, 3, 4)),
    ("InstanceNorm2d", (6,), {"affine": True, "track_running_stats": True}, (2, 6, 3, 4)),
    ("GroupNorm", (3, 6), {}, (2, 6, 3, 4)),
    ("LayerNorm", (6,), {}, (1, 6)),
    ("LayerNorm", ((3, 4),), {}, (2, 3, 4)),
    ("RMSNorm", (6,), {}, (1, 6)),
]


class Counted(TorchDispatchMode):
    """The operators that were dispatched, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def pair(name, args, kwargs):
    return getattr(ns.nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_the_operators_and_the_bits_are_torchs(case, training):
    name, args, kwargs, shape = case
    layers = [layer.train(training) for layer in pair(name, args, kwargs)]
    if kwargs.get("track_running_stats") and "Instance" in name and not training:
        pytest.skip("torch repeats the statistics for each sample, ours once")
    x, told, outputs = torch.randn(shape), [], []
    for layer in layers:
        with Counted() as counted:
            outputs.append(layer(x))
        told.append([op for op in counted.names if "_local_scalar_dense" not in op])
    assert sorted(told[0]) == sorted(told[1])
    assert torch.equal(*outputs)
    for key, value in layers[1].state_dict().items():
        assert torch.equal(value, layers[0].state_dict()[key]), key


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_a_new_description_is_obeyed(case):
    name, args, kwargs, shape = case
    layer, torchs = pair(name, args, kwargs)
    x = torch.randn(shape)
    layer(x), torchs(x)
    layer = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    layer.eps = torchs.eps = 0.3
    assert torch.equal(layer(x), torchs(x))
    layer.spec = layer.spec.but(activation="relu")
    assert layer(x).min() == 0


def test_a_weight_that_is_no_parameter_is_found():
    layer = ns.nn.LayerNorm(4)
    torch.nn.utils.prune.random_unstructured(layer, "weight", amount=2)
    torch.testing.assert_close(layer(torch.randn(3, 4)) != 0, layer.weight_mask.bool().expand(3, 4))


def test_statistics_near_overflow_are_learned_the_long_way():
    layer, torchs = ns.nn.BatchNorm1d(2, momentum=1.0), torch.nn.BatchNorm1d(2, momentum=1.0)
    x = torch.tensor([[1.0, 1.3e19], [2.0, -1.3e19]])
    torch.testing.assert_close(layer(x), torchs(x))
    torch.testing.assert_close(layer.running_var, torchs.running_var)
    assert layer.running_var[1] > 2.0**127 and layer.num_batches_skipped == 0
