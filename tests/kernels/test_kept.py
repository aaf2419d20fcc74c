"""What training keeps: told in bytes, by offer, and true."""

from __future__ import annotations

import pytest
import torch

import normscope as ns

pytest.importorskip("numba")
SIZE = 4 * 8 * 16 * 16 * 4  # bytes of the input below


def layer(activation, name="BatchNorm"):
    return ns.nn.Norm(ns.catalog[name].but(activation=activation), 8)


def tensors(found: dict[str, int]) -> dict[str, int]:
    """In tensors as large as the input, statistics left out."""
    return {name: size // SIZE for name, size in found.items()}


@pytest.mark.parametrize(
    ("activation", "residual", "wanted"),
    [
        (None, False, {"numba": 2, "aten": 2, "inplace": 1}),
        ("leaky_relu", False, {"numba": 2, "aten": 3, "inplace": 1}),
        ("relu", False, {"numba": 2, "aten": 2}),  # torch keeps the input and the output of ReLU
        ("gelu", False, {"numba": 2, "aten": 3}),
        ("silu", True, {"numba": 3, "aten": 3}),
    ],
)
def test_the_tensors_that_each_offer_keeps(activation, residual, wanted):
    x = torch.randn(4, 8, 16, 16)
    found = ns.kernels.kept(layer(activation), x, residual=torch.randn_like(x) if residual else None)
    assert {name: tensors(found)[name] for name in wanted} == wanted
    assert found["numba"] <= found["aten"] + 8 * 8 * 2 < found["reference"]
    assert ("inplace" in found) is (activation in (None, "leaky_relu") and not residual)


def test_nothing_of_the_layer_or_the_input_changes():
    norm, x = layer("leaky_relu"), torch.randn(4, 8, 16, 16)
    before = x.clone(), {name: value.clone() for name, value in norm.state_dict().items()}
    with torch.no_grad():
        ns.kernels.kept(norm, x)
    assert torch.equal(x, before[0]) and x.grad is None and norm.weight.grad is None
    assert all(torch.equal(value, before[1][name]) for name, value in norm.state_dict().items())


def test_a_module_without_a_description_is_refused():
    with pytest.raises(ns.NormscopeError, match="The kernels of a Linear were asked for"):
        ns.kernels.kept(torch.nn.Linear(2, 2), torch.ones(2, 2))
