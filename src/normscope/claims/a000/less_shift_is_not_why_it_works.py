"""0.14, a dispute: batch normalization's success comes from a smoother landscape, not from less shift.

After Santurkar et al. 2018. Noise of changing mean and deviation behind each batch normalization makes the shift
larger than in the plain network; if shift were the cause, it would train as badly. And the loss along the gradient:
over a range of step lengths, how much it varies, and how far the gradient turns.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp, pre_activations
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Curves
from normscope.terms.verdict import Effect

ARMS = ("none", "BatchNorm", "noisy BatchNorm")
STEPS = (0.02, 0.05, 0.1)  # along the gradient of the loss


class Noise(nn.Module):
    """Each unit times a factor plus an offset, drawn anew at each step, so that its distribution keeps moving."""

    def forward(self, x: Tensor) -> Tensor:
        """The input with a random affine map of each unit; in evaluation mode the input."""
        if not self.training:
            return x
        return x * (1 + 0.5 * torch.randn(x.shape[1], device=x.device)) + 0.5 * torch.randn(x.shape[1], device=x.device)


def cases(seeds: int, epochs: int) -> list[Case]:
    """The three networks."""
    return [{"arm": arm, "epochs": epochs, "seed": seed} for arm in ARMS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve; the mean step-to-step move of pre-activations; how the loss and its gradient vary ahead."""
    images = bench.images
    moves, roughness, turns = [], [], []
    last: list[Tensor] = []

    def build() -> nn.Sequential:
        model = mlp(images.x[0].numel(), depth=6, width=64, norm=case["arm"].split()[-1])
        layers = [[layer, Noise()] if type(layer).__name__ == "Norm" else [layer] for layer in model]
        return nn.Sequential(*(one for pair in layers for one in pair)) if "noisy" in case["arm"] else model

    def measure(model: nn.Module, step: int) -> None:
        if step % 10 < 2 and isinstance(model, nn.Sequential):
            now = torch.stack(pre_activations(model, images.test_x[:128]))
            if step % 10 == 1:
                moves.append(((now.mean(1) - last[0].mean(1)).abs() / last[0].std(1).clamp(min=1e-6)).mean().item())
                ahead = _ahead(model, images.x[:256], images.y[:256])
                roughness.append(ahead[0])
                turns.append(ahead[1])
            last[:] = [now]

    _, curve = bench.train(build, seed=case["seed"], rate=0.02, epochs=case["epochs"], after_step=measure)
    mean = {name: sum(row) / len(row) for name, row in (("move", moves), ("roughness", roughness), ("turn", turns))}
    return {**told(curve), **mean}


def _ahead(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The range of the loss, relative to it, and the largest turn of the gradient, relative to it, over `STEPS`."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    loss = cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, parameters)
    losses, turns = [loss.item()], []
    for length in STEPS:
        with torch.no_grad():
            for parameter, value, slope in zip(parameters, start, gradient):
                parameter.copy_(value - length * slope)
        there = cross_entropy(model(x), y)
        new = torch.autograd.grad(there, parameters)
        apart = sum((one - other).square().sum() for one, other in zip(new, gradient))
        turns.append(math.sqrt(float(apart) / float(sum(slope.square().sum() for slope in gradient))))
        losses.append(there.item())
    return (max(losses) - min(losses)) / losses[0], max(turns)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Shift and accuracy of the noisy network against the plain one; smoothness of the normalized against the plain."""
    plain, noisy, normed = {"arm": "none"}, {"arm": "noisy BatchNorm"}, {"arm": "BatchNorm"}

    def ratio(value: str, one: Case, other: Case) -> Effect:
        pairs = outcomes.pairs(value, one, other)
        return paired([math.log10(a / b) for a, b in pairs], "decades")

    pairs = outcomes.pairs("final", noisy, plain)
    return {
        "noise shifts more than no norm": ratio("move", noisy, plain),
        "with the noise it trains better than without norm": paired([one - other for one, other in pairs], "accuracy"),
        "the loss varies less along the gradient": ratio("roughness", plain, normed),
        "the gradient is more predictive": ratio("turn", plain, normed),
    }


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy of each arm."""
    return accuracy_by(
        outcomes, "arm", title="Accuracy without norm, with it, and with noise behind it, mean of seeds."
    )


CLAIM = Claim(
    id="0.14",
    kind="training",
    en="Batch normalization's success comes from a smoother landscape, not from less internal covariate shift.",
    zh="BN 的成功可能更多来自平滑梯度，而非直接减少内部协变量偏移。",
    source="000, section 6, disputed effect",
    protocol="Dense ReLU networks of 6 layers, SGD with rate 0.02, momentum 0.9, batch 64: plain, normalized, and with "
    "a random affine map of each unit behind each norm, drawn at each step. Every tenth step: the mean move "
    "of pre-activations in one step by their deviation; the range of the loss and the largest turn of the "
    "gradient over steps of 0.02 to 0.1 along it. Logarithms of ratios and differences of accuracy, paired by "
    "seed.",
    decision=Decision(0.02, 0.0, "decades, or accuracy", "5% of a ratio or 2 points of accuracy"),
    sizes={"quick": {"seeds": 5, "epochs": 5}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
)
