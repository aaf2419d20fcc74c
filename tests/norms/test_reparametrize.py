"""Normalized weights: against torch, against the papers' equations, and what broke elsewhere."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import normscope as ns

F64 = torch.float64
LAYERS = {
    "linear": lambda: nn.Linear(5, 4),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "conv2d": lambda: nn.Conv2d(3, 4, 3),
    "conv3d": lambda: nn.Conv3d(2, 4, 2),
    "transposed1d": lambda: nn.ConvTranspose1d(4, 6, 3),
    "transposed2d": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "transposed3d": lambda: nn.ConvTranspose3d(4, 2, 2),
}
WAYS = ["weight_norm", "centered_weight_norm", "weight_standardization", "cosine", "spectral_norm"]


def made(name):
    torch.manual_seed(0)
    return LAYERS[name]().double()


def outputs(layer, weight):
    """The weights of each output, one list each, by the definition of the layer."""
    if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return [row.flatten() for row in weight]
    groups = weight.chunk(layer.groups, 0)
    return [group[:, out].flatten() for group in groups for out in range(weight.shape[1])]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("way", WAYS)
def test_rows_are_what_the_paper_says(way, kind):
    layer = made(kind)
    before = layer.weight.detach().clone()
    getattr(ns.nn, way)(layer)
    rows, old = outputs(layer, layer.weight), outputs(layer, before)
    if way == "spectral_norm":
        axis = 1 if "transposed" in kind else 0
        layer.train()
        for _ in range(200):
            layer.weight  # noqa: B018
        matrix = layer.weight.movedim(axis, 0).flatten(1)
        torch.testing.assert_close(torch.linalg.matrix_norm(matrix, 2).item(), 1.0, rtol=1e-6, atol=0)
        return
    for row, v in zip(rows, old, strict=True):
        wanted = {
            "weight_norm": v,
            "centered_weight_norm": v - v.mean(),
            "weight_standardization": (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt(),
            "cosine": v / v.norm(),
        }[way]
        torch.testing.assert_close(row, wanted)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("way", WAYS)
def test_round_trips(way, kind):
    layer = getattr(ns.nn, way)(made(kind)).eval()
    twin = getattr(ns.nn, way)(LAYERS[kind]().double()).eval()
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin.weight, layer.weight)
    torch.testing.assert_close(copy.deepcopy(layer).weight, layer.weight)
    nn.init.xavier_normal_(layer.weight)  # through the parametrization: no error
    layer.weight = torch.ones_like(layer.weight)
    if way == "weight_norm":
        torch.testing.assert_close(layer.weight, torch.ones_like(layer.weight))
    held = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    torch.testing.assert_close(layer.weight, held)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_zeros_is_no_nan_and_can_learn(way):
    layer = made("conv2d")
    with torch.no_grad():
        layer.weight.zero_()
    getattr(ns.nn, way)(layer)
    layer(torch.randn(2, 3, 5, 5, dtype=F64)).sum().backward()
    assert layer.weight.isfinite().all()
    grads = [p.grad for p in layer.parametrizations.weight.parameters()]
    assert all(grad.isfinite().all() for grad in grads)
    if way == "weight_norm":
        assert (grads[0] != 0).all()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "spectral_norm"])
def test_gradients_twice(way):
    layer = getattr(ns.nn, way)(nn.Linear(3, 2, dtype=F64))
    originals = [p.detach().requires_grad_() for p in layer.parametrizations.weight.parameters()]
    rows = layer.parametrizations.weight[0]
    torch.autograd.gradcheck(rows, originals)
    torch.autograd.gradgradcheck(rows, originals)


def test_weight_norm_is_torchs():
    ours, theirs = ns.nn.weight_norm(made("conv2d")), parametrizations.weight_norm(made("conv2d"))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5, 5, dtype=F64)
    torch.testing.assert_close(ours(x), theirs(x))
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    for one, other in zip(ours.parametrizations.weight.parameters(), theirs.parametrizations.weight.parameters()):
        torch.testing.assert_close(one.grad, other.grad)


def test_spectral_norm_loads_from_torch():
    theirs = parametrizations.spectral_norm(made("conv2d"))
    ours = ns.nn.spectral_norm(made("conv2d"))
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval().weight, theirs.eval().weight)


def test_old_weight_norm_keys_load():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.Sequential(nn.utils.weight_norm(made("conv2d")))
    new = nn.Sequential(ns.nn.weight_norm(LAYERS["conv2d"]().double()))
    assert "0.weight_g" in old.state_dict()
    new.load_state_dict(old.state_dict())
    x = torch.randn(1, 3, 5, 5, dtype=F64)
    torch.testing.assert_close(new(x), old(x))


def test_group_norm_after_standardized_weights_ignores_their_scale():
    layer = ns.nn.weight_standardization(made("conv2d"), eps=0.0)
    norm = nn.GroupNorm(2, 4).double()
    x = torch.randn(2, 3, 5, 5, dtype=F64)
    before = norm(F.conv2d(x, layer.weight))
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(100).add_(3)
    torch.testing.assert_close(norm(F.conv2d(x, layer.weight)), before)


def test_centred_weights_do_not_see_a_constant_added_to_the_input():
    layer = ns.nn.centered_weight_norm(made("linear"))
    x = torch.randn(7, 5, dtype=F64)
    torch.testing.assert_close(layer(x + 30), layer(x))


def test_scaled_standardization_keeps_the_variance():
    torch.manual_seed(0)
    layer = ns.nn.weight_standardization(nn.Linear(512, 512, bias=False, dtype=F64), gain=True)
    y = layer(torch.randn(256, 512, dtype=F64))
    assert abs(y.var().item() - 1) < 0.05
    assert [tuple(p.shape) for p in layer.parametrizations.weight.parameters()] == [(512, 1), (512, 512)]


def test_cosine_weights_bound_the_output_by_the_input():
    layer = ns.nn.cosine(nn.Linear(7, 9, bias=False, dtype=F64))
    x = torch.randn(50, 7, dtype=F64)
    assert (layer(x).abs() <= x.norm(dim=1, keepdim=True) * (1 + 1e-12)).all()


def test_cosine_linear():
    torch.manual_seed(0)
    layer = ns.nn.CosineLinear(7, 9, dtype=F64)
    x = torch.randn(5, 7, dtype=F64)
    torch.testing.assert_close(layer(x), F.cosine_similarity(x[:, None], layer.weight[None], dim=-1))
    extreme = torch.cat([layer.weight * 1e6, -layer.weight, torch.zeros(1, 7, dtype=F64)])
    assert layer(extreme).abs().max() <= 1 and layer(extreme).isfinite().all()


@pytest.mark.parametrize("groups", [1, 2])
def test_cosine_conv(groups):
    torch.manual_seed(0)
    layer = ns.nn.CosineConv2d(4, 6, 3, padding=1, stride=2, groups=groups, dtype=F64)
    x = torch.randn(2, 4, 7, 5, dtype=F64)
    x[0] = 0
    patches = F.unfold(x, 3, padding=1, stride=2).unflatten(1, (groups, 1, -1))  # (N, groups, 1, fan in, places)
    filters = layer.weight.flatten(1).unflatten(0, (groups, -1))[None, ..., None]
    wanted = F.cosine_similarity(patches, filters, dim=3, eps=1e-300).flatten(1, 2)
    y = layer(x)
    torch.testing.assert_close(y.flatten(2), wanted)
    assert y.abs().max() <= 1


def test_errors():
    with pytest.raises(ns.NormscopeError, match="name a weight of this layer: weight"):
        ns.nn.weight_norm(nn.Linear(2, 2), "weigth")
    with pytest.raises(ns.NormscopeError, match="so they must come first"):
        ns.nn.weight_norm(ns.nn.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ns.NormscopeError, match="it has none"):
        ns.nn.cosine(nn.ReLU())
