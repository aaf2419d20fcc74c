"""What the common list of problems in test_offers.py leaves out: float16, long rows, large groups, the summary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import normscope as ns
from normscope.kernels import dispatch
from normscope.kernels.explain import _why
from normscope.kernels.force import using
from normscope.kernels.offer import Problem
from normscope.kernels.triton import channels, form, groups, rows, sweeps
from normscope.stats import Summary

pytest.importorskip("triton")
summary = pytest.importorskip("normscope.kernels.triton.summary")

RMS = {"center": False, "scale": "rms", "bias": False, "layout": "channels_last"}
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def spec(over: str, **fields) -> ns.NormSpec:
    source = "batch" if "N" in over else "input"
    return ns.NormSpec(over=over, train_from=source, infer_from=source, **fields)


def differentiated(this: ns.NormSpec, x: torch.Tensor, name: str, dtype: torch.dtype | None = None, residual=None):
    """Output and gradients of x, weight, bias and the residual by the offer `name`, in `dtype`."""
    size = x.shape[1 if this.layout == "channels_first" else -1]
    generator = torch.Generator().manual_seed(3)
    affine = [torch.randn(size, generator=generator) for _ in range(1 + this.bias)]
    leaves = [
        value if dtype is None else value.to(dtype) for value in (x, *affine, *[residual] * (residual is not None))
    ]
    leaves = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in leaves]
    x, weight = leaves[:2]
    bias = leaves[2] if this.bias else None
    with ns.kernels.using(name):
        y = dispatch.normalized(x, this, weight, bias, residual=leaves[-1] if residual is not None else None)
    y.backward(torch.randn(y.shape, generator=generator).to(x.dtype if dtype is None else y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def agree(this: ns.NormSpec, x: torch.Tensor, rounding: float, residual: torch.Tensor | None = None) -> None:
    found = differentiated(this, x, "triton", None, residual)
    wanted = differentiated(this, x, "reference", F64, residual)
    for value, truth in zip(found, wanted, strict=True):
        assert (value.double() - truth).abs().max() <= rounding * truth.abs().max()


@pytest.mark.parametrize(
    ("over", "shape", "fields"),
    [
        ("NS", (4, 6, 9, 7), {"activation": "silu"}),
        ("CS", (3, 6, 9, 7), {"groups": 3, "activation": "gelu"}),
        ("S", (3, 6, 9, 7), {}),
        ("C", (7, 130), {"activation": "relu", "layout": "channels_last"}),
        (
            "C",
            (7, 130),
            {"center": False, "scale": "rms", "bias": False, "weight_offset": 1.0, "layout": "channels_last"},
        ),
    ],
)
def test_float16_equals_the_reference(over, shape, fields):
    torch.manual_seed(0)
    agree(spec(over, **fields), torch.randn(shape).to(F16), 2**-10)


@pytest.mark.parametrize(("rms", "activation"), [(False, None), (False, "relu"), (True, "silu")])
def test_rows_longer_than_a_tile(rms, activation, monkeypatch):
    torch.manual_seed(0)
    for name in ("_LONG", "_LONG_BACK", "_PIECE"):
        monkeypatch.setattr(rows, name, 256)
    x = torch.randn(3, 701) + 1e3 * (not rms)
    this = spec("C", layout="channels_last", center=not rms, scale="rms" if rms else "std", activation=activation)
    agree(this, x, 3e-6, torch.randn_like(x) if activation else None)


def test_a_row_of_more_than_64k():
    torch.manual_seed(0)
    agree(spec("C", layout="channels_last"), torch.randn(1, 70_001) + 5, 3e-6)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 2])
def test_few_large_groups_are_cut_into_chunks(memory, count, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(groups, "_SMALL", 1 << 10)
    monkeypatch.setattr(sweeps, "PROGRAMS", 8)
    x = (torch.randn(2, 4, 31, 43) + 1e3).to(memory_format=memory)
    agree(spec("CS", groups=count, activation="silu"), x, 3e-6, torch.randn_like(x))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_group_larger_than_a_tile_in_one_program(memory, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(form, "_TILE", 256)
    x = (torch.randn(1, 4, 17, 19) + 1e3).to(memory_format=memory)
    agree(spec("CS", groups=2, activation="leaky_relu"), x, 3e-6, torch.randn_like(x))
    agree(spec("S"), x, 3e-6)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_batch_in_many_chunks(memory, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(form, "_TILE", 256)
    x = (torch.randn(3, 5, 9, 17) + 1e3).to(memory_format=memory)
    agree(spec("NS", activation="gelu"), x, 3e-6)


def test_two_runs_give_the_same_bits():
    torch.manual_seed(0)
    x = torch.randn(6, 5, 9, 11)
    for one, other in zip(*(differentiated(spec("NS"), x, "triton") for _ in range(2)), strict=True):
        assert torch.equal(one, other)


def test_what_is_refused_is_said_in_words(monkeypatch):
    problem = Problem(spec("NS"), (4, 6, 5, 5), F32, device="cuda", weight=True, bias=True)
    served = {offer: offer.refuses(problem) for part in (channels, groups, rows) for offer in part.OFFERS}
    assert list(served.values()).count(None) == 1
    supports = channels.OFFERS[0].refuses
    assert supports(problem._replace(dtype=F64)) == "it computes float32, bfloat16 and float16, not float64"
    assert supports(problem._replace(mask=True)) == "it counts all cells, masked or not"
    assert supports(problem._replace(shape=(0, 6, 5, 5))) == "the input is empty"
    assert supports(problem._replace(memory="strided")) == "the input is neither contiguous nor channels_last"
    assert supports(problem._replace(spec=spec("NS", activation="tanh"))) == "it has no tanh"
    assert supports(problem._replace(spec=spec("NS", eps_place="floor"))) == "it has eps inside the root and casts last"
    assert supports(problem._replace(device="mps")) == "it computes on CUDA, not on mps"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert supports(problem._replace(device="cpu")) == "it computes on CUDA, not on cpu"
    assert supports(problem) is None
    monkeypatch.setattr(form, "find_spec", lambda name: None)
    form.missing.cache_clear()
    assert supports(problem) == "the package triton is not installed: pip install normscope[gpu]"
    form.missing.cache_clear()


def test_on_cuda_no_kernel_is_chosen_that_nobody_has_measured():
    problem = Problem(spec("NS", activation="relu"), (128, 256, 56, 56), BF16, device="cuda", weight=True, bias=True)
    assert dispatch.choose(problem).name == "aten"
    assert "nothing has been measured on CUDA yet" in _why(problem)
    with using("triton"):
        assert dispatch.choose(problem).name == "triton"


# the summary ------------------------------------------------------------------------------------------


def read(told: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The tally, and the five numbers."""
    return told[: summary.CELLS].numpy(), told[summary.CELLS :].numpy().view(np.float64)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("gap", [1, 3])
def test_a_summary_in_one_reading_is_the_summary(dtype, gap):
    torch.manual_seed(0)
    x = torch.randn(3, 7, 501) * torch.logspace(-12, 12, 501) + 1
    x[0, 0, :6] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-41])
    x = x.to(dtype)
    x = x if gap == 1 else x.flatten()[::gap]
    (tally, numbers), wanted = read(summary.told(x)), Summary.of(x)
    assert np.array_equal(
        tally, np.concatenate((wanted.sketch.counts, [getattr(wanted.sketch, name) for name in APART]))
    )
    moments = wanted.moments
    truth = [moments.count, moments.mean, moments.m2, wanted.low, wanted.high]
    np.testing.assert_allclose(numbers, np.array(truth, dtype=np.float64), rtol=1e-12)


APART = ("zeros", "nan", "pos_inf", "neg_inf")


def test_the_summary_of_numbers_none_of_which_is_finite():
    tally, numbers = read(summary.told(torch.tensor([float("nan"), float("inf")])))
    assert tally.sum() == 2 and tally[2049] == tally[2050] == 1
    assert numbers[0] == 0 and np.isnan(numbers[[1, 3, 4]]).all() and numbers[2] == 0


def test_summaries_of_rows(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(summary, "_BLOCK", 128)
    x = torch.randn(300, 3).T * torch.arange(1, 4)[:, None]
    assert torch.equal(summary.of_rows(x), torch.stack([summary.told(row) for row in x]))


def test_a_summary_by_many_programs_the_first_of_which_finds_nothing(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(summary, "_BLOCK", 64)
    x = torch.randn(3000) + 5
    x[:64] = float("nan")
    _, numbers = read(summary.told(x))
    wide = x[64:].double()
    truth = [2936, wide.mean(), ((wide - wide.mean()) ** 2).sum(), wide.min(), wide.max()]
    np.testing.assert_allclose(numbers, np.array(truth), rtol=1e-12)


def test_the_cells_are_those_of_the_sketch():
    from normscope.stats import sketch

    assert (summary.BINS, summary.CELLS, summary._LOWEST) == (sketch.BINS, sketch.CELLS, sketch._LOWEST)


def test_a_summary_is_refused_in_words(monkeypatch):
    assert summary.refuses(torch.ones(2)) is None
    assert summary.refuses(torch.ones(2, dtype=F64)) == "it reads float32, bfloat16 and float16, not float64"
    for x in (torch.ones(0), torch.ones(4, 4)[:, ::2]):
        assert summary.refuses(x) == "the tensor is empty, or neither contiguous, nor channels_last, nor of one axis"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert summary.refuses(torch.ones(2)) == "it computes on CUDA, not on cpu"
