"""0.14, a dispute: batch normalization's success comes from a smoother landscape, not from less shift.

After Santurkar et al. 2018. Noise of changing mean and deviation behind each batch normalization makes the shift
larger than in the plain network; if shift were the cause, it would train as badly. And the loss along the gradient, by
the measure `landscape` of `normscope.watch`: how much it varies, how far the gradient turns, how steep that turn is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp, pre_activations
from normscope.claims.outcomes import Case, Outcomes
from normscope.record.reader import Record
from normscope.report.parts import Curves
from normscope.terms.verdict import Effect

ARMS = ("none", "BatchNorm", "noisy BatchNorm")
LANDSCAPE = {  # quantity of the record → what the sentence says of it
    "loss_variation": "the loss varies less along the gradient",
    "gradient_predictiveness": "the gradient is more predictive",
    "effective_smoothness": "the gradient turns less steeply",
}
EVERY = 10


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
    """The curve; the step-to-step moves of pre-activations; the landscape ahead, at the same steps."""
    images = bench.images
    moves: list[float] = []
    last: list[Tensor] = []

    def build() -> nn.Sequential:
        model = mlp(images.x[0].numel(), depth=6, width=64, norm=case["arm"].split()[-1])
        layers = [[layer, Noise()] if type(layer).__name__ == "Norm" else [layer] for layer in model]
        return nn.Sequential(*(one for pair in layers for one in pair)) if "noisy" in case["arm"] else model

    def move(model: nn.Module, step: int) -> None:
        # the fixed batch of a watch sees the same noise at each look; here it is drawn anew, as the training draws it
        if step % EVERY < 2 and isinstance(model, nn.Sequential):
            now = torch.stack(pre_activations(model, images.test_x[:128]))
            if step % EVERY == 1:
                moves.append(((now.mean(1) - last[0].mean(1)).abs() / last[0].std(1).clamp(min=1e-6)).mean().item())
            last[:] = [now]

    def read(record: Record) -> dict[str, Any]:
        rows = {name: record.series(None, name).values.tolist() for name in LANDSCAPE}
        return {"landscape": rows, "steps": record.series(None, "loss_variation").steps.tolist()}

    curve, seen = bench.follow(
        build,
        read,
        at=lambda step: step % EVERY == 1,
        probe=(images.x[:256], images.y[:256]),
        measures=("landscape",),
        seed=case["seed"],
        rate=0.02,
        epochs=case["epochs"],
        after_step=move,
    )
    means = {name: sum(row) / len(row) for name, row in seen["landscape"].items()}
    return {**told(curve), **seen, **means, "moves": moves, "move": sum(moves) / len(moves)}


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
        **{said: ratio(name, plain, normed) for name, said in LANDSCAPE.items()},
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
    "of pre-activations in one step by their deviation; and by normscope.watch, along the gradient as far as half to "
    "four times the real update, the range of the loss, the largest change of the gradient, and that over the way. "
    "Logarithms of ratios and differences of accuracy, paired by "
    "seed.",
    decision=Decision(0.02, 0.0, "decades, or accuracy", "5% of a ratio or 2 points of accuracy"),
    sizes={"quick": {"seeds": 5, "epochs": 5}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS204"),
)
