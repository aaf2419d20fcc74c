"""The numbers of a kernel do not depend on how many threads share its tasks, though chance says which one ends."""

from __future__ import annotations

import pytest
import torch

import normscope as ns

pytest.importorskip("numba")
CASES = {
    "batch": (ns.NormSpec(frozenset("NS"), "batch", "batch"), (2, 200, 33, 31)),
    "instance": (ns.NormSpec(frozenset("S"), "input", "input"), (25, 8, 32, 32)),
    "group, channels last": (ns.NormSpec(frozenset("CS"), "input", "input", 2, "channels_last"), (70, 9, 6)),
    "layer": (ns.NormSpec(frozenset("C"), "input", "input", layout="channels_last"), (1100, 96)),
}


def computed(spec: ns.NormSpec, shape: tuple[int, ...], threads: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    channels = shape[1 if spec.layout == "channels_first" else -1]
    leaves = [torch.randn(shape), torch.rand(channels), torch.rand(channels)]
    x, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ns.kernels.using("numba"):
            y = ns.functional.normalize(x, spec, weight=weight, bias=bias)
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.randn(shape))]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_one_thread(name):
    alone = computed(*CASES[name], threads=1)
    for _ in range(20):
        together = computed(*CASES[name], threads=4)
        assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("affine", [True, False])
def test_defaults_of_torch_do_not_reach_a_kernel(name, affine):
    spec, shape = CASES[name]
    x, channels = torch.randn(shape), shape[1 if spec.layout == "channels_first" else -1]
    leaves = [x, *([torch.rand(channels), torch.rand(channels)] if affine else [])]

    def computed() -> list[torch.Tensor]:
        these = [leaf.clone().requires_grad_() for leaf in leaves]
        with ns.kernels.using("numba"):
            y = ns.functional.normalize(these[0], spec, **dict(zip(("weight", "bias"), these[1:])))
        return [y.detach(), *torch.autograd.grad(y.square().sum(), these)]

    wanted = computed()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found = computed()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
