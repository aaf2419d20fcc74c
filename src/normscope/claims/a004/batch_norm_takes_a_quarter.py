"""4.2: batch normalization takes about a quarter of the training time; it reads its input twice.

The article's figure is of ResNet-50 on one GPU. Here a step of a convolutional network is timed with its norms and
without, in processor time on the CPU; the share depends on the width, for a convolution's cost grows with its square.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap
from normscope.claims.models import vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Interval, Intervals, Rule
from normscope.terms.verdict import Effect

WIDTHS = (8, 32, 128)
REPEATS = 3
KINDS = {
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "ReLU": ("relu", "threshold", "clamp_min"),
    "pool": ("pool",),
}


def cases(seeds: int) -> list[Case]:
    """Networks of three widths."""
    return [{"width": width, "seed": seed} for width in WIDTHS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Seconds of a step with and without batch normalization; and what each kind of operator takes."""
    torch.manual_seed(case["seed"])
    x = torch.randn(16, 3, 16, 16, device=bench.device)
    models = {norm: vgg(3, depth=4, width=case["width"], norm=norm).to(bench.device) for norm in ("none", "BatchNorm")}
    seconds = {norm: min(_step(model, x) for _ in range(REPEATS)) for norm, model in models.items()}
    return {**seconds, "kinds": _shares(models["BatchNorm"], x)}


def _step(model: nn.Module, x: torch.Tensor) -> float:
    """Processor seconds of a forward and a backward pass."""
    started = time.process_time()
    model(x).square().sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.process_time() - started


def _shares(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """The share of each kind of operator in the self time of a step, where it was spent."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if x.is_cuda else [])]
    with profile(activities=activities) as told:
        _step(model, x)
    taken = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in told.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "other")
        taken[kind] += event.self_device_time_total if x.is_cuda else event.self_cpu_time_total
    return {kind: spent / sum(taken.values()) for kind, spent in taken.items()}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The share of the step that goes when the norms go."""
    return {
        f"width {width}": bootstrap([1 - row["none"] / row["BatchNorm"] for row in outcomes.where(width=width)])
        for width in WIDTHS
    }


def draw(outcomes: Outcomes) -> Intervals:
    """The share by width."""
    return Intervals(
        title="The share of a training step that batch normalization takes.",
        rows=tuple(Interval(name, effect.value, effect.low, effect.high) for name, effect in weigh(outcomes).items()),
        x=Axis("share of the step", share=True),
        rules=(Rule(0.25, "the article's quarter"),),
    )


CLAIM = Claim(
    id="4.2",
    kind="measurement",
    en="Batch normalization takes about a quarter of the training time, since it reads its input twice.",
    zh="批归一化消耗总训练时间的约 1/4，因为它要对输入遍历两次。",
    source="004, section on training time",
    protocol="Forward and backward pass of convolutional networks of 4 layers on 16 images of 16 × 16, processor time, "
    "the fastest of three; one minus the ratio without over with batch normalization, median over "
    "repetitions. Beside it the self time of each kind of operator by torch's profiler.",
    decision=Decision(0.15, 0.1, "share of the step", "15% is of the order of a quarter, 10% is not"),
    sizes={"quick": {"seeds": 7}, "full": {"seeds": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm",),
)
