"""The formula against numpy in float64, and ATen's kernels against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscope.kernels import dispatch, measure, native, normalize
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import ShapeError, SpecError
from normscope.terms.spec import NormSpec

F64 = torch.float64
SHAPES = [(1, 6), (7, 6), (2, 6, 5), (3, 6, 4, 2), (2, 6, 2, 3, 2)]


def spec_over(over: str, **fields) -> NormSpec:
    source = "batch" if "N" in over else "input"
    return NormSpec(over=frozenset(over), train_from=source, infer_from=source, **fields)


def by_numpy(x, spec, weight, bias, mask=None):
    """The formula cell by cell: every statistic from the list of the cells that share it."""
    a = x.double().numpy()
    if spec.layout == "channels_last":
        a = np.moveaxis(a, -1, 1)
    n, c = a.shape[:2]
    flat = a.reshape(n, c, -1)
    counted = np.ones((n, flat.shape[2]), bool) if mask is None else mask.numpy().reshape(n, -1)
    out = flat.copy()
    per_group = c // spec.groups
    for i in range(n):
        for j in range(c):
            for s in range(flat.shape[2]):
                if not counted[i, s]:
                    continue
                ns = range(n) if "N" in spec.over else [i]
                cs = range(c) if "C" in spec.over else [j]
                if "C" in spec.over:
                    cs = [k for k in cs if k // per_group == j // per_group]
                ss = range(flat.shape[2]) if "S" in spec.over else [s]
                cells = np.array([flat[u, v, w] for u in ns for v in cs for w in ss if counted[u, w]])
                mean = cells.mean()
                deviation = cells if spec.scale == "rms" else cells - mean
                var = {
                    "std": np.mean(deviation**2),
                    "rms": np.mean(deviation**2),
                    "l1": (np.mean(abs(deviation)) * np.sqrt(np.pi / 2)) ** 2,
                    "l2": np.sum(deviation**2),
                    "max": np.max(abs(deviation)) ** 2,
                }[spec.scale]
                sigma = {
                    "inside": np.sqrt(var + spec.eps),
                    "outside": np.sqrt(var) + spec.eps,
                    "floor": max(np.sqrt(var), spec.eps),
                }[spec.eps_place]
                value = (flat[i, j, s] - (mean if spec.center else 0)) / sigma
                out[i, j, s] = value * (weight[j].item() + spec.weight_offset) + bias[j].item()
    out = out.reshape(a.shape)
    return np.moveaxis(out, 1, -1) if spec.layout == "channels_last" else out


FORMULAS = [
    *(spec_over(over) for over in ("NS", "CS", "C", "S", "N", "NCS", "NC")),
    spec_over("CS", groups=3, layout="channels_last"),
    spec_over("NS", layout="channels_last", eps_place="outside", eps=0.1),
    spec_over("C", groups=2, center=False, scale="rms", weight_offset=1.0),
    spec_over("S", eps_place="floor", eps=0.5),
    *(spec_over("NS", scale=scale) for scale in ("l1", "l2", "max")),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spec", FORMULAS, ids=str)
def test_formula_is_the_definition(spec, masked):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, generator=generator, dtype=F64) * 2 + 1
    mask = torch.rand(3, 4, generator=generator) > 0.3 if masked else None
    if spec.layout == "channels_last":
        x = x.movedim(1, -1).contiguous()
    if masked and spec.scale == "max":
        mask = torch.ones(3, 4, dtype=torch.bool)
        mask[0, 1] = False
    weight, bias = torch.randn(2, 6, generator=generator, dtype=F64)
    y = normalize(x, spec, weight=weight, bias=bias, mask=mask)
    np.testing.assert_allclose(y.numpy(), by_numpy(x, spec, weight, bias, mask), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(CATALOG))
def test_native_is_the_formula(name, shape):
    spec = CATALOG[name]
    spec = spec.but(groups=3) if spec.groups > 1 else spec
    if native.refuses(spec):
        pytest.skip(native.refuses(spec) or "")
    if "C" not in spec.over and shape in ([(1, 6)] if "N" in spec.over else SHAPES[:2]):
        pytest.skip("one cell a statistic")
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    if spec.layout == "channels_last":
        x = x.movedim(1, -1).detach().requires_grad_()
    weight = torch.randn(6, dtype=F64, requires_grad=True)
    bias = torch.randn(6, dtype=F64, requires_grad=True) if spec.bias else None
    wanted = normalize(x, spec, weight=weight, bias=bias)
    torch.testing.assert_close(dispatch.normalized(x, spec, weight, bias), wanted)
    if "C" not in spec.over:
        y, seen = dispatch.measured(x, spec, weight, bias)
        own = measure(x, spec)
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(seen.mean, own.mean.mean(0, keepdim=True).detach())
        torch.testing.assert_close(seen.unbiased(), own.unbiased().mean(0, keepdim=True).detach())
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    upstream = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(wanted, leaves, upstream),
        torch.autograd.grad(dispatch.normalized(x, spec, weight, bias), leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_variance_never_turns_negative():
    x = (torch.randn(4096, 3) * 0.01 + 30).float()
    seen = measure(x, spec_over("NS"))
    truth = x.double().var(0, unbiased=False).float().view_as(seen.var)
    torch.testing.assert_close(seen.var, truth, rtol=1e-3, atol=0)
    assert (x.square().mean(0) - x.mean(0).square() - truth.flatten()).abs().max() > 0.1 * truth.min()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_measured_in_float32(dtype):
    x = (torch.randn(4, 3, 64) * 0.5 + 20).to(dtype)
    y = normalize(x, spec_over("S"))
    assert y.dtype is dtype
    torch.testing.assert_close(y, normalize(x.double(), spec_over("S")).to(dtype), rtol=1e-2, atol=1e-2)
    assert measure(x, spec_over("S")).var.dtype is torch.float32


def test_cast_before_or_after_the_weight():
    x = torch.randn(2, 512).bfloat16()
    weight = torch.randn(512).bfloat16()
    last = spec_over("C", center=False, scale="rms", layout="channels_last")
    early = last.but(cast="normalized")
    hidden = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(normalize(x, early, weight=weight), hidden.bfloat16() * weight)
    assert torch.equal(normalize(x, last, weight=weight), (hidden * weight.float()).bfloat16())


@pytest.mark.parametrize("over", ["NS", "C", "CS", "S"])
def test_memory_layout_is_kept(over):
    for x in (torch.randn(2, 6, 4, 3), torch.randn(2, 6, 4, 3).contiguous(memory_format=torch.channels_last)):
        for y in (normalize(x, spec_over(over)), dispatch.normalized(x, spec_over(over), None, None)):
            assert y.stride() == x.stride()


def test_masked_cells_neither_leak_nor_change():
    x = torch.randn(3, 4, 5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    x[1, :, 3] = float("nan")
    x.requires_grad_()
    y = normalize(x, spec_over("NS"), mask=mask)
    torch.testing.assert_close(y[1, :, 3:], x[1, :, 3:], equal_nan=True)
    y[0].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_given_statistics():
    x = torch.randn(5, 3)
    spec = spec_over("NS")
    torch.testing.assert_close(normalize(x[:1], spec, statistics=measure(x, spec)), normalize(x, spec)[:1])


def test_errors():
    with pytest.raises(ShapeError, match="split 30 channels into 32 groups"):
        normalize(torch.randn(2, 30), spec_over("CS", groups=32))
    with pytest.raises(SpecError, match="whitening divides by a matrix"):
        normalize(torch.randn(2, 3), spec_over("NS", scale="whiten"))


def test_refusals_are_words():
    assert "eps" in (native.refuses(spec_over("C", eps_place="floor")) or "")
    assert "eps" in (native.refuses(spec_over("NS", eps=0.0)) or "")
    assert native.refuses(spec_over("N")) is not None
