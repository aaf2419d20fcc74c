"""Starting weights: variances against the papers, fits against what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.nn import init


def spread(layer):
    return layer.weight.std().item()


@pytest.mark.parametrize("uniform", [False, True])
def test_variances(uniform):
    torch.manual_seed(0)
    layer = nn.Linear(400, 600)
    assert spread(init.xavier(layer, "tanh", uniform=uniform)) == pytest.approx(5 / 3 * math.sqrt(2 / 1000), rel=0.01)
    assert spread(init.he(layer, uniform=uniform)) == pytest.approx(math.sqrt(2 / 400), rel=0.01)
    assert spread(init.he(layer, None, mode="fan_out")) == pytest.approx(math.sqrt(1 / 600), rel=0.01)
    assert not layer.bias.any()


@pytest.mark.parametrize(("kind", "fan_in"), [(nn.Conv2d, 64 // 4 * 9), (nn.ConvTranspose2d, 64 // 4 * 9)])
def test_fans_of_grouped_convolutions(kind, fan_in):
    torch.manual_seed(0)
    layer = init.he(kind(64, 128, 3, groups=4), None)
    assert spread(layer) == pytest.approx(1 / math.sqrt(fan_in), rel=0.02)


def test_he_keeps_the_signal_of_a_deep_relu_network():
    torch.manual_seed(0)
    model = nn.Sequential(*(module for _ in range(20) for module in (nn.Linear(256, 256), nn.ReLU())))
    x = torch.randn(512, 256)
    y = init.he(model)(x)
    assert 0.3 < y.square().mean() / x.square().mean() < 3


def test_orthogonal():
    layer = init.orthogonal(nn.Linear(8, 5), "relu")
    torch.testing.assert_close(layer.weight @ layer.weight.T, 2 * torch.eye(5))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(6 * 49, 5),
    )  # fmt: skip


def outputs(model, x):
    found = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            found.append(x)
    return found


def test_lsuv_gives_every_layer_variance_one():
    model, x = net(), torch.randn(32, 3, 8, 8) * 7
    init.lsuv(model, x)
    assert (model[2].running_mean == 0).all()  # the measurement left no trace
    for y in outputs(model, x):
        assert abs(y.var().item() - 1) < 0.05


def test_data_dependent_standardizes_every_unit():
    model, x = net(), torch.randn(32, 3, 8, 8) * 7 + 2
    ns.nn.weight_norm(model[0])
    init.data_dependent(model, (x, torch.zeros(32)))
    for y in outputs(model, x):
        units = y.movedim(1, 0).flatten(1)
        torch.testing.assert_close(units.mean(1), torch.zeros(len(units)), rtol=0, atol=1e-4)
        torch.testing.assert_close(units.var(1, unbiased=False), torch.ones(len(units)), rtol=1e-3, atol=0)


def test_fixup_starts_as_the_identity_and_scales_by_depth():
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)) for _ in range(16)]
    init.fixup(branches)
    assert all(not branch(torch.randn(2, 256)).any() for branch in branches)
    assert spread(branches[0][0]) == pytest.approx(math.sqrt(2 / 256) * 16 ** (-1 / 2), rel=0.02)
    with pytest.raises(ns.NormscopeError, match="pass the branches alone"):
        init.fixup([nn.ReLU()])


def test_errors():
    with pytest.raises(ns.NormscopeError, match="choose one of"):
        init.xavier(nn.Linear(2, 2), "tanhh")
    with pytest.raises(ns.NormscopeError, match="fan_out"):
        init.he(nn.Linear(2, 2), mode="fan")
    with pytest.raises(ns.NormscopeError, match="variance 0"):
        init.lsuv(nn.Linear(2, 2), torch.zeros(4, 2))
