"""The compiled walk of an LSTM against its specification in float64."""

import copy

import pytest
import torch

import normscope as ns
from normscope.kernels.cpu import recurrent

pytest.importorskip("numba")


def tensors(steps=5, rows=19, hidden=24, bias=True, scale=1.0):
    torch.manual_seed(0)
    given = torch.randn(steps, rows, 4 * hidden) * scale
    weight = torch.randn(4 * hidden, hidden) / hidden**0.5
    shift = torch.randn(4 * hidden) if bias else None
    states = torch.randn(2, rows, hidden).unbind()
    return [given, *states, weight, shift, 1 + 0.2 * torch.randn(4 * hidden), 1 + 0.2 * torch.randn(hidden)]


def differentiated(walk, rms, these, dtype):
    leaves = [None if x is None else x.detach().to(dtype).requires_grad_() for x in these]
    y, c = walk(rms, 1e-5, *leaves)
    torch.manual_seed(1)
    up = torch.randn(y.shape, dtype=torch.float64).to(dtype), torch.randn(c.shape, dtype=torch.float64).to(dtype)
    there = [x for x in leaves if x is not None]
    return [y, c, *torch.autograd.grad((y, c), there, up)]


@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize(
    "more", [{}, {"bias": False, "rows": 1, "steps": 1}, {"scale": 30.0}, {"scale": 1e-4}], ids=str
)
def test_it_is_the_specification(rms, more):
    these = tensors(**more)
    found = differentiated(recurrent.lstm, rms, these, torch.float32)
    truth = differentiated(recurrent.plain, rms, these, torch.float64)
    for value, wanted in zip(found, truth, strict=True):
        assert (value - wanted).abs().max() <= 3e-6 * wanted.abs().max()


def test_only_one_output_is_used():
    these = [None if x is None else x.requires_grad_() for x in tensors()]
    y, _ = recurrent.lstm(False, 1e-5, *these)
    (found,) = torch.autograd.grad(y[2].sum(), these[0])
    (wanted,) = torch.autograd.grad(recurrent.plain(False, 1e-5, *these)[0][2].sum(), these[0])
    torch.testing.assert_close(found, wanted)


def test_the_gradient_of_the_gradient():
    these = tensors(steps=3, rows=2, hidden=4)

    def curvature(walk, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in these]
        first = torch.autograd.grad(walk(False, 1e-5, *leaves)[0].square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

    found, wanted = curvature(recurrent.lstm, torch.float32), curvature(recurrent.plain, torch.float64)
    for value, truth in zip(found, wanted, strict=True):
        assert (value - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_layer_takes_it_where_there_is_much_to_do_and_the_plain_way_is_asked_for_by_name(norm, monkeypatch):
    taken = []
    monkeypatch.setattr(recurrent, "lstm", lambda *args, walk=recurrent.lstm: taken.append(1) or walk(*args))
    torch.manual_seed(0)
    layer, x = ns.nn.LSTM(8, 64, 2, bidirectional=True, norm=norm), torch.randn(10, 32, 8)

    def differentiated(layer, x):
        y, (h, c) = layer(x)
        return [y, h, c, *torch.autograd.grad(y.square().mean(), list(layer.parameters()))]

    found = differentiated(layer, x)
    assert len(taken) == 4
    with ns.kernels.using("reference"):
        differentiated(layer, x)
        truth = differentiated(copy.deepcopy(layer).double(), x.double())
    layer(x[:2])
    assert len(taken) == 4
    for value, wanted in zip(found, truth, strict=True):
        assert (value - wanted).abs().max() <= 2e-5 * wanted.abs().max()
