"""Norms over their own input: the same gradients as the reference, the output alone kept, nothing silently wrong."""

from __future__ import annotations

import pytest
import torch

import normscope as ns
from normscope.kernels.offer import Operands, Problem

pytest.importorskip("numba")
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def spec_over(over: str, groups: int = 1, activation: str | None = None) -> ns.NormSpec:
    source = "batch" if "N" in over else "input"
    return ns.NormSpec(over=over, train_from=source, infer_from=source, groups=groups, activation=activation)


def tensors(last: bool, weight: list[float], bias: list[float], dtype=F32, shape=(3, 8, 9, 7)):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype) * 2 + 1
    if last:
        x = x.to(memory_format=torch.channels_last)
    return x, torch.tensor(weight), torch.tensor(bias)


def gradients(name: str, spec: ns.NormSpec, x, weight, bias, dtype) -> list[torch.Tensor]:
    leaves = [value.detach().to(dtype).requires_grad_() for value in (x, weight, bias)]
    inner = leaves[0] * 1.0  # what a convolution would hand over: no leaf
    with ns.kernels.using(name):
        y = ns.functional.normalize(inner, spec, weight=leaves[1], bias=leaves[2])
    if name == "inplace":
        assert y.data_ptr() == inner.data_ptr() and y.stride() == x.stride()
    seen = y.detach().clone()
    torch.manual_seed(1)
    y.backward(torch.randn(x.shape, dtype=F64).to(x.dtype).to(y.dtype))
    return [seen, *(leaf.grad for leaf in leaves)]


PLAIN = ([1.5, -0.7, 0.3, 2.0, -1.0, 0.9, 1.1, -0.2], [0.1, -0.3, 0.2, 0.0, 0.5, -0.1, 0.3, 0.1])
HARD = ([1.5, 0.0, 1e-12, -2.0, -1e-3, 0.9, 1.1, -0.2], [0.1, -0.3, 0.2, 0.0, 0.5, -0.1, 0.3, 0.1])


@pytest.mark.parametrize("affine", [PLAIN, HARD], ids=["any sign", "zero and tiny"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("over", "groups", "activation"),
    [("NS", 1, "leaky_relu"), ("S", 1, "leaky_relu"), ("CS", 4, "leaky_relu"), ("S", 1, None)],
)
def test_the_gradients_are_the_references(over, groups, activation, last, affine):
    spec = spec_over(over, groups, activation)
    x, weight, bias = tensors(last, *affine)
    found = gradients("inplace", spec, x, weight, bias, F32)
    for value, truth in zip(found, gradients("reference", spec, x, weight, bias, F64), strict=True):
        assert (value - truth).abs().max() <= 3e-5 * truth.abs().max()


def test_bfloat16_loses_the_digits_that_its_output_has_not():
    spec = spec_over("NS", activation="leaky_relu")
    x, weight, bias = tensors(False, *HARD, dtype=BF16)
    found = gradients("inplace", spec, x, weight, bias, BF16)
    wide = [value.to(BF16).double() for value in (weight, bias)]
    for value, truth in zip(found, gradients("reference", spec, x, *wide, F64), strict=True):
        assert (value - truth).abs().max() <= 2.0**-5 * truth.abs().max()


def kept(function, *leaves: torch.Tensor) -> set[int]:
    """The storages of more than a number a channel that autograd keeps."""
    held: set[int] = set()

    def note(value: torch.Tensor) -> torch.Tensor:
        if value.numel() >= 1000:
            held.add(value.untyped_storage().data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        held.add(function(*leaves).untyped_storage().data_ptr())
    return held


def test_the_output_alone_is_kept_and_torch_keeps_three():
    spec = spec_over("NS", activation="leaky_relu")
    x, weight, bias = tensors(True, *PLAIN)
    weight.requires_grad_()

    def ours(name: str):
        def run(x: torch.Tensor) -> torch.Tensor:
            with ns.kernels.using(name):
                return ns.functional.normalize(x, spec, weight=weight, bias=bias)

        return run

    def torchs(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.batch_norm(x, None, None, weight, bias, True)
        return torch.nn.functional.leaky_relu(y)

    counts = [len(kept(run, x.clone().requires_grad_() + 0)) for run in (ours("inplace"), ours("numba"), torchs)]
    assert counts == [1, 2, 3]


def test_a_leaf_and_a_view_are_left_alone():
    spec = spec_over("NS")
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    before = x.detach().clone()
    with ns.kernels.using("inplace"):
        ns.functional.normalize(x, spec).sum().backward()
        base = x * 1.0
        seen = base.detach().clone()
        ns.functional.normalize(base[:2], spec)
    assert torch.equal(x, before) and torch.equal(base, seen)


def test_who_needs_the_overwritten_input_hears_of_it():
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    needed = x.exp()  # whose gradient reads its output
    with ns.kernels.using("inplace"):
        y = ns.functional.normalize(needed, spec_over("NS"))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ({"spec": spec_over("NS", activation="relu")}, "the input of relu cannot be told from its output"),
        ({"residual": True}, "the norm's share of a sum with a residual cannot be told from the output"),
        ({"given": True}, "with given statistics nothing but the output is kept anyway"),
    ],
)
def test_it_says_what_it_does_not_serve(problem, reason):
    from normscope.kernels import fused

    offer = next(offer for offer in fused.OFFERS if offer.name == "inplace")
    usual = Problem.of(spec_over("NS"), Operands(torch.ones(2, 3, 4, 4)))
    assert offer.refuses(usual) is None
    assert offer.refuses(usual._replace(**problem)) == reason
