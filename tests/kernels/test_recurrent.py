"""The compiled walk of an LSTM and of a GRU against its specification in float64, and against the loop of the layer."""

import contextlib
import copy

import pytest
import torch

import normscope as ns
from normscope.kernels.cpu import recurrent
from normscope.kernels.cpu.recurrent import Inputs, Walk

pytest.importorskip("numba")

WALKS = [
    Walk(cell, norm, fixed=fixed)
    for cell in ("lstm", "gru")
    for norm, fixed in (("layer", False), ("rms", False), ("batch", False), ("batch", True))
]


def named(walk: Walk) -> str:
    return f"{walk.cell}-{walk.norm}" + "-fixed" * walk.fixed


def inputs(walk, steps=5, rows=19, hidden=24, bias=True, scale=1.0):
    torch.manual_seed(0)
    width, lstm = walk.gates * hidden, walk.cell == "lstm"
    sizes = (width, hidden) if lstm else (width,)
    told = [f(steps, size) for size in sizes for f in (torch.randn, lambda *at: torch.rand(*at) + 0.5)]
    return Inputs(
        torch.randn(steps, rows, width) * scale,
        torch.randn(rows, hidden),
        torch.randn(rows, hidden) if lstm else None,
        torch.randn(width, hidden) / hidden**0.5,
        torch.randn(width) if bias else None,
        1 + 0.2 * torch.randn(width),
        1 + 0.2 * torch.randn(hidden) if lstm else None,
        torch.randn(hidden) if lstm and walk.norm != "rms" else None,
        torch.cat(told, -1).double() if walk.fixed else None,
    )


def leaves(these, dtype):
    return Inputs(*(None if x is None else x.detach().to(dtype).requires_grad_() for x in these[:-1]), these.told)


def differentiated(way, walk, these, dtype):
    these = leaves(these, dtype)
    outputs = [y for y in way(walk, these)[:2] if y.numel()]
    torch.manual_seed(1)
    ups = [torch.randn(y.shape, dtype=torch.float64).to(dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x for x in these[:-1] if x is not None], ups)]


def error(found, truth):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("walk", WALKS, ids=named)
@pytest.mark.parametrize(
    "more", [{}, {"bias": False, "rows": 8, "steps": 1}, {"scale": 30.0}, {"hidden": 70}, {"scale": 1e-4}], ids=str
)
def test_it_is_the_specification(walk, more):
    these = inputs(walk, **more)
    found = differentiated(recurrent.walked, walk, these, torch.float32)
    bound = 1e-5 if walk.norm == "batch" else 4e-6  # a column of 8 rows may hardly spread
    assert error(found, differentiated(recurrent.plain, walk, these, torch.float64)) <= bound


@pytest.mark.parametrize("walk", WALKS, ids=named)
def test_only_one_output_is_used(walk):
    these = leaves(inputs(walk), torch.float32)
    (found,) = torch.autograd.grad(recurrent.walked(walk, these)[0][2].sum(), these.given)
    (wanted,) = torch.autograd.grad(recurrent.plain(walk, these)[0][2].sum(), these.given)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("walk", WALKS[::2], ids=named)
def test_the_gradient_of_the_gradient(walk):
    plain = inputs(walk, steps=3, rows=6, hidden=4)

    def curvature(way, dtype):
        these = leaves(plain, dtype)
        there = [x for x in these[:-1] if x is not None]
        first = torch.autograd.grad(way(walk, these)[0].square().sum(), there, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), there)

    assert error(curvature(recurrent.walked, torch.float32), curvature(recurrent.plain, torch.float64)) <= 3e-5


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
def test_a_layer_takes_it_where_there_is_much_to_do_and_the_plain_way_is_asked_for_by_name(kind, norm, monkeypatch):
    taken = []
    monkeypatch.setattr(recurrent, "walked", lambda *args, way=recurrent.walked: taken.append(1) or way(*args))
    torch.manual_seed(0)
    layer, x = getattr(ns.nn, kind)(8, 64, 2, bidirectional=True, norm=norm, max_steps=8), torch.randn(12, 40, 8)
    exact = copy.deepcopy(layer).double()

    def differentiated(layer, x):
        y, last = layer(x)
        return [y, *(last if kind == "LSTM" else [last]), *torch.autograd.grad(y.square().mean(), layer.parameters())]

    found = differentiated(layer, x)
    assert len(taken) == 4
    with ns.kernels.using("reference"):
        truth = differentiated(exact, x.double())
    assert len(taken) == 4
    assert error(found, truth) <= (2e-3 if norm == "batch" else 2e-5)  # a column of the batch may hardly spread
    for name, buffer in exact.named_buffers():  # what batch statistics learned
        torch.testing.assert_close(layer.get_buffer(name).to(buffer.dtype), buffer, rtol=1e-4, atol=1e-5)
    layer.eval(), exact.eval()
    assert error([layer(x)[0]], [exact(x.double())[0]]) <= 2e-5
    assert len(taken) == 8


def test_a_step_that_is_not_finite_teaches_nothing_and_what_came_before_is_learned():
    torch.manual_seed(0)
    layer, x = ns.nn.LSTM(8, 64, norm="batch"), torch.randn(12, 40, 8)
    loop = copy.deepcopy(layer)
    x[4, 3, 2] = float("inf")
    layer(x)
    with ns.kernels.using("reference"):
        loop(x)
    for name, buffer in loop.named_buffers():
        if "hh" in name or "cell" in name:
            torch.testing.assert_close(layer.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("walk", WALKS[::2], ids=named)
def test_what_is_not_a_number_stays_so(walk):
    these = inputs(walk)
    these.given[2, 3, 40] = float("nan")  # a forget gate, or a reset or update gate
    found, truth = recurrent.walked(walk, these)[0], recurrent.plain(walk, these)[0]
    assert torch.equal(found.isfinite(), truth.isfinite()) and not truth.isfinite().all()


def test_it_says_why_it_does_not_walk():
    walk = Walk("gru", "layer")
    these, short = inputs(walk, steps=64), inputs(walk, steps=2)
    assert recurrent.refuses(these) is None
    assert recurrent.refuses(these, masked=True) == "the sequences have several lengths"
    assert recurrent.refuses(short) == "the sequences are so short that the call itself is what costs"
    with ns.kernels.using("numba"):
        assert recurrent.refuses(short) is None
    with ns.kernels.using("aten"):
        assert recurrent.refuses(these) == '"aten" is asked for'
    assert recurrent.refuses(these._replace(h=these.h.double())) == "it computes float32 on the CPU"
    with torch.autocast("cpu", torch.bfloat16):
        assert recurrent.refuses(these) == "the step is compiled, or in mixed precision"


def test_explain_says_what_takes_the_steps_and_why_no_kernel_does():
    x = torch.empty(128, 32, 16)
    for kind in ("LSTM", "GRU"):
        for norm in ("layer", "rms", "batch"):
            told = ns.kernels.explain(getattr(ns.nn, kind)(16, 24, norm=norm), x)
            assert told.choice == "numba"
            assert told.problem == f"{kind.lower()} with {norm} norm inside, 24 hidden units: 128×32×16 float32, cpu"
    layer = ns.nn.LSTM(16, 24, norm="layer", batch_first=True)

    def reason(layer, x):
        told = ns.kernels.explain(layer, x)
        assert told.choice == "aten" and told.candidates[0].name == "numba"
        return told.candidates[0].refuses

    assert reason(layer, torch.empty(4, 9, 16)) == "the sequences are so short that the call itself is what costs"
    assert reason(copy.deepcopy(layer).double(), x.double()) == "it computes float32 on the CPU"
    assert reason(ns.nn.RNN(16, 24, norm="layer"), x) == "it walks LSTM and GRU"
    assert reason(ns.nn.LSTM(16, 24), x) == "it walks with norms between the steps"
    packed = torch.nn.utils.rnn.pack_sequence([torch.empty(900, 16), torch.empty(7, 16)])
    assert reason(layer, packed) == "the sequences have several lengths"
    layer.norms["cell_l0"] = torch.nn.LayerNorm(24)
    assert "not the one that the layer made" in reason(layer, x)


@pytest.mark.parametrize("shape", [(128, 32, 16), (3, 2, 16)])
def test_explain_tells_what_then_happens(monkeypatch, shape):
    layer, x = ns.nn.GRU(16, 24, norm="rms"), torch.randn(shape)
    taken = []
    monkeypatch.setattr(recurrent._Walk, "apply", lambda *these: taken.append(1))
    choice = ns.kernels.explain(layer, x).choice
    with contextlib.suppress(TypeError):  # nothing was computed
        layer(x)
    assert bool(taken) is (choice == "numba")
