"""The dispatch under what torch does to a function: compilation, autocast, DDP, vmap, a second differentiation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.kernels import dispatch, fused
from normscope.kernels.offer import Operands, Problem
from normscope.terms.errors import SpecError

pytest.importorskip("numba")
F64 = torch.float64
# Kernels are compiled for each activation with and without a residual: these are those of test_offers.py, so that they
# are compiled once.
BATCH = ns.NormSpec("NS", "batch", "batch", activation="relu")
ROWS = ns.NormSpec("C", "input", "input", layout="channels_last", activation="relu")
RMS = ROWS.but(center=False, scale="rms", bias=False, eps=None, activation=None)


def leaves(shape, spec, residual=False, dtype=None):
    torch.manual_seed(0)
    channels = shape[1 if spec.layout == "channels_first" else -1]
    values = [torch.randn(shape), torch.rand(channels) + 0.5, torch.randn(channels) if spec.bias else None]
    values.append(torch.randn(shape) if residual else None)
    return [None if value is None else value.to(dtype).requires_grad_() for value in values]


def normalized(spec, x, weight, bias, residual):
    return ns.functional.normalize(x, spec, weight=weight, bias=bias, residual=residual)


def differentiated(function, these):
    """The output and the gradients of all operands."""
    y = function(*these)
    torch.manual_seed(1)
    wanted = [one for one in these if one is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.randn(y.shape).to(y.dtype))]


def near(found, wanted, rounding=1e-5):
    for value, truth in zip(found, wanted, strict=True):
        assert (value - truth).abs().max() <= rounding * truth.abs().max()


def offer_of(spec, these, name="numba"):
    problem = Problem.of(spec, Operands(*these))
    with ns.kernels.using(name):
        return dispatch.choose(problem), problem


# torch's own checks of the operators ------------------------------------------------------------------------------


def operators():
    """Each operator with arguments of each kind: what is kept for the backward pass, and given statistics."""
    smooth = BATCH.but(activation="silu")
    for spec, shape in ((BATCH, (4, 6, 5, 5)), (smooth, (4, 6, 5, 5)), (ROWS, (7, 12)), (RMS, (7, 12))):
        residual = spec is not RMS
        these = leaves(shape, spec, residual)
        offer, problem = offer_of(spec, these)
        words, tensors = fused._words(offer, problem), fused._tensors(Operands(*these))
        yield torch.ops.normscope.fused, (*tensors, *words)
        with torch.no_grad():
            y, mean, var = torch.ops.normscope.fused(*tensors, *words)
        kept = problem.keeps()
        x, weight, bias, added = these
        saved = (x, weight, bias, added if kept == "residual" else None, None, None, y if kept == "y" else None)
        saved = [None if one is None else one.detach().requires_grad_() for one in saved]
        arguments = (torch.randn_like(y).requires_grad_(), *saved, mean, var, residual, *words)
        yield torch.ops.normscope.fused_backward, arguments


@pytest.mark.parametrize("number", range(8))
def test_the_operators_are_good_citizens_of_torch(number):
    operator, arguments = list(operators())[number]
    torch.library.opcheck(operator, arguments)


def test_every_operator_is_checked():
    fused = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("normscope::fused")}
    assert {str(operator) for operator, _ in operators()} == {name.replace("::", ".") for name in fused}


# torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "shape"), [(BATCH, (16, 8, 32, 32)), (ROWS, (256, 512))])
def test_inductor_takes_the_kernel_in_one_graph(spec, shape):
    these = leaves(shape, spec, True)
    with ns.kernels.using("numba"):
        compiled = torch.compile(normalized, fullgraph=True)
        found = differentiated(lambda *these: compiled(spec, *these) * 2, these)
    near(found, differentiated(lambda *these: normalized(spec, *these) * 2, these))


def test_sizes_may_change_without_another_compilation():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(normalized, backend=counter, fullgraph=True, dynamic=True)
    compilations = []  # of a forward and a backward graph
    with ns.kernels.using("numba"):
        for samples in (6, 4, 9):
            these = leaves((samples, 8, 7, 5), BATCH, True)
            near(differentiated(lambda *these: compiled(BATCH, *these), these),
                 differentiated(lambda *these: normalized(BATCH, *these), these))  # fmt: skip
            compilations.append(counter.frame_count)
    assert compilations == [2, 2, 2]


def test_compiled_the_kernel_is_held_against_what_the_compiler_makes_of_atens(monkeypatch):
    from normscope.kernels import costs

    points = {"aten": ((1 << 16, 300.0),), "numba": ((1 << 16, 200.0),), "compile": ((1 << 16, 100.0),)}
    plain = BATCH.but(activation=None)
    held = {(name, "cpu", "NS", "contiguous", "float32", ""): points[name] for name in points}
    held |= {(name, "cpu", "NS", "contiguous", "float32", "relu"): points[name] for name in ("aten", "numba")}
    monkeypatch.setattr(costs, "COSTS", held)
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    these = leaves((16, 8, 32, 32), BATCH)
    for spec, wanted in ((plain, False), (BATCH, True)):  # nobody measured what becomes of the second
        graphs = []
        torch._dynamo.reset()
        noted = lambda graph, _, graphs=graphs: graphs.append(graph.code) or graph.forward  # noqa: E731
        compiled = torch.compile(normalized, backend=noted, fullgraph=True)
        near([compiled(spec, *these)], [normalized(spec, *these)])
        assert ("normscope" in graphs[0]) is wanted
        assert ns.kernels.explain(spec, these[0]).choice == "numba"


def test_a_second_differentiation_of_the_operator():
    smooth = BATCH.but(activation="silu")
    these = leaves((4, 6, 5, 5), smooth, True)
    offer, problem = offer_of(smooth, these)
    words = fused._words(offer, problem)

    def curvature(function, these):
        first = torch.autograd.grad((function(*these) ** 2).sum(), these, create_graph=True)
        return torch.autograd.grad(sum((one**2).sum() for one in first), these)

    found = curvature(lambda *these: torch.ops.normscope.fused(*these, None, None, *words)[0], these)
    wide = leaves((4, 6, 5, 5), smooth, True, dtype=F64)
    with ns.kernels.using("reference"):
        near(found, curvature(lambda *these: normalized(smooth, *these), wide), 1e-4)


# what else torch does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reference", "aten", "numba"])
@pytest.mark.parametrize(("spec", "shape"), [(BATCH, (4, 6, 5, 5)), (ROWS, (16, 12))])
def test_autocast_leaves_the_dtype_of_the_input(name, spec, shape):
    x, weight, bias, residual = leaves(shape, spec, True)
    x, residual = (one.detach().bfloat16().requires_grad_() for one in (x, residual))
    with torch.autocast("cpu", dtype=torch.bfloat16), ns.kernels.using(name):
        y = normalized(spec, x, weight, bias, residual)
    assert y.dtype is torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad.dtype is torch.bfloat16 and weight.grad.dtype is torch.float32
    wide = normalized(spec, *(one.double() for one in (x, weight, bias, residual)))
    near([y.double()], [wide], 2**-7)


def test_vmap_is_told_of_or_taken_by_another():
    x = torch.randn(3, 64, 8, 24, 24)
    spec = BATCH.but(activation=None)
    truth = torch.stack([ns.functional.normalize(one, spec) for one in x])
    near([torch.vmap(lambda one: ns.functional.normalize(one, spec))(x)], [truth])
    with ns.kernels.using("numba"), pytest.raises(SpecError, match="a function transform is under way"):
        torch.vmap(lambda one: ns.functional.normalize(one, spec))(x)


def test_forward_differentiation_goes_round_the_kernel():
    these = leaves((64, 8, 24, 24), BATCH)
    x, weight, bias, _ = (None if one is None else one.detach() for one in these)
    along = torch.randn_like(x)
    _, found = torch.func.jvp(lambda x: normalized(BATCH, x, weight, bias, None), (x,), (along,))
    wide = [None if one is None else one.double() for one in (x, weight, bias, None)]
    with ns.kernels.using("reference"):
        _, truth = torch.func.jvp(lambda x: normalized(BATCH, x, *wide[1:]), (wide[0],), (along.double(),))
    near([found], [truth], 1e-4)


# processes and imports --------------------------------------------------------------------------------------------

RANK = """
import sys, torch, torch.distributed as dist, normscope as ns
rank, place = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + place + "/meet", rank=rank, world_size=2)
torch.manual_seed(0)
x, up = torch.randn(2, 8, 6, 5, 5), torch.randn(2, 8, 6, 5, 5)
layer = ns.nn.BatchNorm2d(6)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(torch.nn.Conv2d(6, 6, 1), layer))
alone = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 1), ns.nn.BatchNorm2d(6))
alone.load_state_dict(model.module.state_dict())
with ns.kernels.using("numba"):
    assert ns.kernels.explain(layer, x[rank]).choice == "numba"
    (model(x[rank]) * up[rank]).sum().backward()
for one in range(2):
    (alone(x[one]) * up[one]).sum().backward()
for mine, wanted in zip(model.parameters(), alone.parameters()):
    torch.testing.assert_close(mine.grad * 2, wanted.grad, rtol=1e-4, atol=1e-4)
dist.barrier()
dist.destroy_process_group()
"""


def test_ddp_over_two_processes(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", RANK, str(rank), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        _, told = rank.communicate(timeout=120)
        assert rank.returncode == 0, told.decode()[-2000:]


def test_numba_and_triton_are_loaded_when_they_compute():
    code = (
        "import sys, torch, normscope as ns\n"
        "loaded = lambda: {'numba', 'triton'} & set(sys.modules)\n"
        "x, layer = torch.randn(4, 6, 5, 5), ns.nn.Norm(ns.catalog['BatchNorm'].but(activation='relu'), 6)\n"
        "layer(x)\n"
        "ns.kernels.explain(layer, x)\n"
        "assert not loaded(), loaded()\n"
        "with ns.kernels.using('numba'):\n"
        "    layer(x, residual=x)\n"
        "assert loaded() == {'numba'}, loaded()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# what is said -----------------------------------------------------------------------------------------------------


def test_an_offer_says_yes_or_why_not():
    rows = next(offer for offer in fused.OFFERS if (offer.name, offer.part) == ("numba", "rows"))
    x = torch.randn(4, 6)
    assert rows.supports(ROWS, x) is None
    assert rows.supports(ROWS, x.double()) == "it computes float32 and bfloat16, not float64"
    assert (
        rows.supports(ROWS, x, residual=torch.randn(4, 7)) == "the residual is (4, 7) of torch.float32, the input not"
    )
    assert rows.supports(ROWS, x, mask=torch.ones(4, dtype=torch.bool)) is not None


def test_small_tensors_take_aten_and_large_ones_what_the_table_says(monkeypatch):
    from normscope.kernels import costs

    table = {
        (name, "cpu", "NS", "contiguous", "float32", "relu"): ((1 << 16, start), (1 << 20, end))
        for name, start, end in (("aten", 100.0, 2000.0), ("numba", 200.0, 1000.0))
    }
    monkeypatch.setattr(costs, "COSTS", table)
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    spec = BATCH.but(activation="relu")

    def choice(samples):
        told = ns.kernels.explain(spec, torch.empty(samples, 16, 32, 32))
        return told.choice, {one.name: one.cost for one in told.candidates if one.cost is not None}, told.why

    name, _, why = choice(2)
    assert name == "aten" and why == "below 65,536 numbers the call itself is what costs"
    assert choice(4)[:2] == ("aten", {"aten": 100.0, "numba": 200.0})
    assert choice(64)[:2] == ("numba", {"aten": 2000.0, "numba": 1000.0})
    assert choice(128)[1] == {"aten": 4000.0, "numba": 2000.0}
    between = 100.0 + 1900.0 * (1 << 16) / ((1 << 20) - (1 << 16))
    assert choice(8)[1]["aten"] == pytest.approx(between)


def test_explain_prints_candidates_reasons_and_choice():
    for what in (ns.nn.LayerNorm(6), ns.spec_of(nn.LayerNorm(6))):
        told = repr(ns.kernels.explain(what, torch.randn(4, 6))).splitlines()
        assert told[0] == "over C: 4×6 float32, contiguous, cpu"
        assert [line.split()[:2] for line in told if line.startswith("  →")] == [["→", "aten"]]
        assert any("numba" in line and "it takes statistics of channels or groups, not over C" in line for line in told)
        assert told[-1] == "  because below 65,536 numbers the call itself is what costs"
    with ns.kernels.using("reference"):
        assert 'because `using("reference")` asks for it' in repr(ns.kernels.explain(ROWS, torch.randn(4, 6)))
