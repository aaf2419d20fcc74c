"""Layer and RMS norm on the host: rows of every length, activations and their slopes, and what is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import normscope as ns
from normscope.kernels import dispatch, fused
from normscope.kernels.offer import Operands, Problem

pytest.importorskip("numba")
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}


def spec(rms: bool, activation: str | None = None, eps: float | None = 1e-5) -> ns.NormSpec:
    name = "RMSNorm" if rms else "LayerNorm"
    return ns.catalog[name].but(over="C", layout="channels_last", activation=activation, eps=eps)


def differentiated(name, described, these, dtype):
    leaves = [None if value is None else value.detach().to(dtype).requires_grad_() for value in these]
    x, weight, bias, residual = leaves
    with ns.kernels.using(name):
        y = dispatch.normalized(x, described, weight, bias, residual=residual)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape, dtype=F64).to(these[0].dtype).to(dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


# each activation, residual, dtype and length with each kind of norm once, but not all with all: each is a compilation
@pytest.mark.parametrize(
    ("rms", "shape", "activation", "residual", "dtype"),
    [
        (False, (5, 17), None, False, F32),
        (False, (300, 33), "gelu", False, F32),
        (False, (2, 65536), "gelu", False, F32),
        (False, (2, 65000), None, True, F32),
        (False, (3, 1025), "silu", True, F32),
        (False, (200, 63), "relu", True, F32),
        (False, (130, 40), "gelu_tanh", True, F32),
        (False, (9, 31), "gelu_tanh", False, BF16),
        (False, (1040, 1040), "relu", True, F32),  # written past the caches
        (False, (2000, 1056), None, False, BF16),
        (True, (5, 17), None, False, F32),
        (True, (300, 33), "gelu", False, F32),
        (True, (2, 65536), "gelu", False, F32),
        (True, (3, 1025), None, True, F32),
        (True, (200, 63), "relu", True, F32),
        (True, (7, 2049), "gelu", False, BF16),
        (True, (1040, 1040), "relu", True, F32),
    ],
    ids=str,
)
def test_rows_of_every_length(rms, shape, activation, residual, dtype):
    torch.manual_seed(0)
    channels = shape[-1]
    these = [torch.randn(shape), torch.randn(channels), None if rms else torch.randn(channels)]
    these += [torch.randn(shape) if residual else None]
    these = [None if value is None else value.to(dtype) for value in these]
    found = differentiated("numba", spec(rms, activation), these, dtype)
    truth = differentiated("reference", spec(rms, activation), these, F64)
    rounding = 2.0**-8 if dtype is BF16 else 2e-6
    for value, wanted in zip(found, truth, strict=True):
        assert (value.double() - wanted).abs().max() <= rounding * wanted.abs().max()


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name])
def test_activations_and_their_slopes_to_rounding(activation):
    """Of rows whose norm does nothing, so that every number from far below to far above is met."""
    z = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -1e4, -40.0, 0.0, -0.0, 40.0, 1e4, 1e30])])
    x, weight = torch.ones(2, len(z)), z.clone().requires_grad_()  # the root mean square of ones is one
    described = spec(True, activation, eps=0.0)
    with ns.kernels.using("numba"):
        y = dispatch.normalized(x, described, weight, None)
    (slope,) = torch.autograd.grad(y[0].sum(), weight)
    exact = z.double().requires_grad_()
    truth = ACTIVATIONS[activation](exact)
    (wanted,) = torch.autograd.grad(truth.sum(), exact)
    assert torch.allclose(y[0].double(), truth, rtol=1e-6, atol=1e-6)
    bulk = exact.abs() < 1e20  # torch's own slope of the tanh form is NaN beyond
    bound = 3e-6 if activation == "gelu_tanh" else 1e-6  # its exponent, up to 10, is rounded
    assert (slope.double() - wanted)[bulk].abs().max() <= bound and slope.isfinite().all()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_without_eps_rms_norm_takes_that_of_the_dtype_of_its_statistics(dtype):
    x = (1e-4 * torch.randn(6, 32)).to(dtype)
    problem = Problem.of(spec(True, eps=None), Operands(x))
    assert any(offer.name == "numba" and offer.refuses(problem) is None for offer in dispatch.fused.OFFERS)
    found = differentiated("numba", spec(True, eps=None), [x, None, None, None], dtype)
    truth = differentiated("reference", spec(True, eps=torch.finfo(F32).eps), [x, None, None, None], F64)
    for value, wanted in zip(found, truth, strict=True):
        assert (value.double() - wanted).abs().max() <= (2.0**-8 if dtype is BF16 else 2e-6) * wanted.abs().max()


@pytest.mark.parametrize("activation", list(ACTIVATIONS), ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_no_more_than_input_and_output_or_residual_is_kept(activation, residual):
    """torch keeps the norm's output beside its input, since the activation's backward pass asks for it."""
    x, r, weight = torch.randn(64, 48, requires_grad=True), torch.randn(64, 48), torch.ones(48, requires_grad=True)

    def kept(function):
        seen = {}

        def note(value):
            memory = value.untyped_storage()
            if value.data_ptr() != weight.data_ptr():
                seen[memory.data_ptr()] = memory.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            y = function()  # held: what it keeps may be the output itself
        return sum(seen.values()), y

    def ours():
        with ns.kernels.using("numba"):
            return dispatch.normalized(x, spec(False, activation), weight, None, residual=r if residual else None)

    def torchs():
        y = F.layer_norm(x, (48,), weight)
        return ACTIVATIONS[activation](y + r if residual else y)

    size, statistics = x.numel() * 4, 2 * len(x) * 8
    assert kept(ours)[0] == size * (1 + (residual and activation is not None)) + statistics
    if activation is not None:
        assert kept(ours)[0] <= kept(torchs)[0] + statistics


def test_a_cast_before_the_weight_is_none_in_float32():
    early = ns.catalog["RMSNorm"].but(cast="normalized")
    torch.manual_seed(0)
    these = [torch.randn(40, 96), torch.randn(96), None, None]
    truth = differentiated("reference", early, these, F64)
    for name in ("numba", "aten"):
        for value, wanted in zip(differentiated(name, early, these, F32), truth, strict=True):
            assert (value - wanted).abs().max() <= 2e-6 * wanted.abs().max()
    assert ns.kernels.explain(early, torch.empty(8192, 768)).choice == "numba"
    half = Problem.of(early, Operands(torch.empty(8192, 768, dtype=BF16)))
    assert dispatch.choose(half).name == "reference"
    reasons = {offer.refuses(half) for offer in fused.OFFERS if offer.name in ("numba", "aten")}
    assert (
        "it has eps inside the root and casts last" in reasons and "ATen has no weight offset and casts last" in reasons
    )
