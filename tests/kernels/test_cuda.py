"""On a GPU, where there is one: no host waits for the kernels, and a CUDA graph of them replays.

Where there is none, `test_no_wait.py` shows the first on tensors without numbers, and Triton's interpreter the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import normscope as ns

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
RMS = {"center": False, "scale": "rms", "bias": False}
SPECS = {
    "batch": ns.NormSpec(frozenset("NS"), "batch", "batch", activation="relu"),
    "group": ns.NormSpec(frozenset("CS"), "input", "input", 4, activation="silu"),
    "instance": ns.NormSpec(frozenset("S"), "input", "input"),
    "layer": ns.NormSpec(frozenset("C"), "input", "input", layout="channels_last", activation="gelu"),
    "rms": ns.NormSpec(frozenset("C"), "input", "input", layout="channels_last", **RMS),
}


@pytest.fixture(params=SPECS)
def step(request) -> tuple[Tensor, Callable[[], tuple[Tensor, ...]]]:
    """An input, and forward and backward of it by our kernel, once run so that all is compiled."""
    spec = SPECS[request.param]
    shape = (64, 96) if spec.layout == "channels_last" else (8, 32, 9, 9)
    size = shape[-1] if spec.layout == "channels_last" else shape[1]
    x = torch.randn(shape, device="cuda", requires_grad=True)
    weight, bias, upstream = torch.rand(size, device="cuda") + 0.5, torch.rand(size, device="cuda"), torch.randn_like(x)

    def run() -> tuple[Tensor, ...]:
        with ns.kernels.using("triton"):
            y = ns.functional.normalize(x, spec, weight=weight, bias=bias if spec.bias else None)
        return y.detach(), *torch.autograd.grad(y, x, upstream)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    return x, run


@pytest.fixture
def hurried() -> Iterator[None]:
    """Whoever waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits(step, hurried):
    step[1]()


def test_a_summary_waits_for_nothing(hurried):
    from normscope.kernels.triton import summary

    torch.cuda.set_sync_debug_mode("default")
    x = torch.randn(1 << 16, device="cuda")
    summary.told(x)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    summary.told(x)


def test_a_graph_of_it_replays_on_other_numbers(step):
    x, run = step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = run()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for seen, truth in zip(recorded, run(), strict=True):
        assert torch.equal(seen, truth)
