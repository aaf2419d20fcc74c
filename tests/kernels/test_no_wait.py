"""Nothing waits for the GPU: on CUDA tensors that hold no numbers, whatever asked for one would raise.

So a step can be recorded in a CUDA graph: no number is read, no size depends on one, buffers stay where they are.
Launches are noted and do nothing here; what the kernels compute is tested in Triton's interpreter.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import normscope as ns
from normscope.kernels import fused, offer
from normscope.kernels.offer import Operands, Problem
from normscope.kernels.triton import groups, rows, summary, sweeps
from normscope.norms.sources import averaged

RMS = {"center": False, "scale": "rms", "bias": False}


class Noted:
    """The kernels of a module, whose launches are noted; all that they are given lies on the GPU."""

    def __init__(self, module: str, launched: list[str]) -> None:
        self.module, self.launched = module, launched

    def __getattr__(self, kernel: str):
        def launch(*arguments, **options):
            tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
            assert len({value.device for value in tensors}) == 1
            self.launched.append(f"{self.module}.{kernel}")

        class Grid:
            def __getitem__(self, grid):
                assert all(isinstance(size, int) and size > 0 for size in grid)
                return launch

        return Grid()


@pytest.fixture
def noted(monkeypatch):
    found: list[str] = []
    for part in (groups, rows, summary, sweeps):
        monkeypatch.setattr(part, "loops", lambda module: Noted(module, found))
        monkeypatch.setattr(part, "on", lambda x: nullcontext())
    monkeypatch.setattr(offer, "_odd", lambda operands: None)  # a fake tensor is a subclass
    monkeypatch.setattr("normscope.kernels.triton.form.missing", lambda: None)
    return found


@pytest.fixture
def launched(noted):
    with FakeTensorMode():
        yield noted


def operands(shape, residual=False):
    x = torch.empty(shape, device="cuda")
    weight, bias = torch.empty(2, shape[1], device="cuda").unbind()
    return Operands(x, weight, bias, torch.empty_like(x) if residual else None)


def test_a_tensor_without_numbers_refuses_to_tell_one(launched):
    with pytest.raises(DataDependentOutputException):
        torch.empty(3, device="cuda").sum().item()


@pytest.mark.parametrize(
    ("over", "shape", "fields"),
    [
        ("NS", (64, 64, 32, 32), {"activation": "relu"}),
        ("CS", (64, 64, 32, 32), {"groups": 32, "activation": "silu"}),
        ("CS", (2, 64, 256, 256), {"groups": 2}),
        ("S", (64, 64, 32, 32), {}),
        ("C", (4096, 768), {"activation": "gelu"}),
        ("C", (64, 100_000), RMS),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_forward_and_backward(launched, over, shape, fields, residual):
    source = "batch" if "N" in over else "input"
    these = operands(shape, residual)._replace(**{} if fields is not RMS else {"bias": None})
    problem = Problem.of(ns.NormSpec(over, source, source, **fields), these, told=True)
    served = [one for one in fused.OFFERS if one.name == "triton" and one.refuses(problem) is None]
    assert len(served) == 1
    made = served[0].forward(problem, these)
    y = made.y if problem.keeps() == "y" else None
    back = served[0].backward(problem, these, y, made, torch.empty_like(these.x))
    assert made.y.shape == back.x.shape == these.x.shape and back.weight.shape == these.weight.shape
    assert len(launched) >= 2


class Waits(TorchDispatchMode):
    """What would wait for a GPU: a number told to the host, and a size that depends on one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "masked_select",
            "unique",
        ):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("source", ["running", "cumulative"])
def test_a_step_of_training_and_its_buffers(noted, monkeypatch, source):
    monkeypatch.setattr(averaged, "_on_host", lambda value: False)  # the host may look at its own numbers
    layer = ns.nn.Norm(ns.NormSpec("NS", "batch", source, momentum=0.1 if source == "running" else None), 6)
    before = {name: (buffer, buffer._version) for name, buffer in layer.named_buffers()}
    with Waits() as waits, ns.kernels.using("triton"):
        layer(torch.randn(4, 6, 5, 5)).sum().backward()
        layer.eval()(torch.randn(4, 6, 5, 5))
    assert not waits.found
    assert noted[:3] == ["channels.moments", "channels.settled", "channels.mapped"] and len(noted) == 7
    assert before and all(
        buffer is before[name][0] and buffer._version > before[name][1] for name, buffer in layer.named_buffers()
    )
    with waits:
        torch.ones(1).item()
    assert waits.found


def test_the_batch_of_several_processes(launched):
    these = operands((64, 64, 32, 32))
    spec = ns.NormSpec("NS", "synchronized", "running", activation="relu")
    problem = Problem.of(spec, these, told=True)
    with ns.kernels.using("triton"):
        chosen = ns.kernels.dispatch.staged(problem)
    gathered = []

    def gather(own):
        gathered.append(tuple(own.shape))
        return torch.stack((own, own))

    class Context:
        def save_for_backward(self, *kept):
            self.saved_tensors = kept

        def mark_non_differentiable(self, *values):
            pass

    context = Context()
    with torch.no_grad():
        function = ns.kernels.together._Together
        y = function.forward(context, chosen, problem, gather, None, *these[:4])[0]
        context.needs_input_grad = (True,) * 8
        back = function.backward(context, y)
    assert gathered == [(3, 64), (2, 64)] and back[4].shape == y.shape


def test_a_summary(launched):
    told = summary.told(torch.empty(64, 64, 32, 32, device="cuda"))
    assert told.is_cuda and launched == ["summary.summed", "summary.merged"]
