"""The one call of ATen for small tensors: the bits of the long way, and words where it serves not."""

from __future__ import annotations

import pytest
import torch

import normscope as ns
from normscope import functional
from normscope.kernels import direct, dispatch
from normscope.terms.errors import ShapeError

SPECS = {
    "batch": ns.NormSpec("NS", "batch", "batch"),
    "group": ns.NormSpec("CS", "input", "input", 2),
    "instance": ns.NormSpec("S", "input", "input"),
    "layer": ns.NormSpec("C", "input", "input", layout="channels_last"),
    "rms": ns.NormSpec("C", "input", "input", layout="channels_last", center=False, scale="rms", bias=False),
}


def operands(name, dtype=torch.float32, residual=False):
    torch.manual_seed(0)
    shape = (3, 5, 6) if name in ("layer", "rms") else (3, 6, 5, 4)
    x, weight = torch.randn(shape, dtype=dtype), torch.rand(6, dtype=dtype) + 0.5
    bias = None if name == "rms" else torch.randn(6, dtype=dtype)
    return x, weight, bias, torch.randn_like(x) if residual else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("activation", "residual"), [(None, False), ("relu", True), ("gelu_tanh", False)])
@pytest.mark.parametrize("name", SPECS)
def test_it_is_the_long_way_bit_for_bit_without_going_it(monkeypatch, name, activation, residual, dtype):
    spec = SPECS[name].but(activation=activation)
    x, weight, bias, added = operands(name, dtype, residual)
    truth = dispatch.normalized(x, spec, weight, bias, residual=added)
    monkeypatch.setattr(functional, "run", lambda *_: pytest.fail("the long way was gone"))
    for training in (True, False):
        y = functional.normalize(x, spec, weight=weight, bias=bias, residual=added, training=training)
        assert torch.equal(y, truth) and (y.dtype, y.stride()) == (truth.dtype, truth.stride())


def test_what_it_does_not_serve_goes_the_long_way():
    x, weight, bias, _ = operands("batch")
    spec = SPECS["batch"]
    served = lambda *these: dispatch.at_once(*these) is not None  # noqa: E731
    assert served(x, spec, weight, bias)
    assert not served(torch.nn.Parameter(x), spec, weight, bias)
    assert not served(x, spec.but(eps_place="floor"), weight, bias)
    assert not served(torch.randn(1, 6), spec, weight, bias)  # one cell a statistic
    assert not served(x, spec, weight, bias, torch.randn(6, 5, 4))
    assert not served(x.double(), spec, weight, bias)  # which torch refuses
    assert not served(*operands("rms")[:1], SPECS["rms"], torch.ones(6, dtype=torch.float64), None)
    with ns.kernels.using("reference"):
        assert not served(x, spec, weight, bias)
    with pytest.raises(ShapeError, match="a weight that does not fit"):
        functional.normalize(x, spec, weight=torch.ones(6, 1), bias=bias)


def test_a_large_tensor_takes_it_where_no_kernel_gains(monkeypatch):
    pytest.importorskip("numba")
    from normscope.kernels import costs

    def held(kernel):
        points = {"aten": ((1 << 16, 100.0), (1 << 20, 2000.0)), "numba": ((1 << 16, 200.0), (1 << 20, kernel))}
        return {(name, "cpu", "NS", "contiguous", "float32", "relu"): points[name] for name in points}

    spec = SPECS["batch"].but(activation="relu")
    x = torch.randn(8, 16, 32, 32)
    for kernel, wanted in ((1000.0, False), (3000.0, True)):
        monkeypatch.setattr(costs, "COSTS", held(kernel))
        monkeypatch.setattr(direct, "_HELD", {})
        assert (dispatch.at_once(x, spec, None, None) is not None) is wanted
        assert (dispatch.at_once(x.bfloat16(), spec, None, None) is not None) is True  # nothing measured gains there
        assert dispatch.at_once(x, spec, None, None, x) is None  # with a residual, the table is asked
