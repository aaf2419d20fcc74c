"""2.5: covariate shift is equal p(y|x) and unequal p(x); weighting samples by the density ratio repairs it.

Shimodaira (2000, section 3): a straight line through a bent curve, learned where x ~ N(1, 0.5²), used where
x ~ N(2, 0.3²). And images: a linear classifier learned on those that one rule of x picks and used on those that the
opposite rule picks. The ratio is the true one or the estimate of `normscope.density_weights` (Kanamori et al.
2009). A model that can say the truth needs no weights: they then only cost samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.verdict import Effect
from normscope.treat.density import density_weights

TASKS = ("a line through a curve", "a curve through a curve", "images, linear classifier")
RATIOS = ("none", "true", "estimated")
SAMPLES = 300
_PULL = 1.5  # how strongly an image's first principal component decides which domain shows it


def cases(seeds: int) -> list[Case]:
    """Each task without weights, with the true ratio and with an estimated one."""
    return [{"task": task, "ratio": ratio, "seed": seed} for task in TASKS for ratio in RATIOS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The error in the target domain, of what the source domain taught."""
    turns = torch.Generator().manual_seed(case["seed"])
    images = case["task"].startswith("images")
    source, target, ratio, features = _images(bench, turns) if images else _curves(case["task"], turns)
    (x, y), (there, wanted) = source, target
    weights = torch.ones(len(x), dtype=torch.float64)
    if case["ratio"] == "true":
        weights = ratio(x)
    elif case["ratio"] == "estimated":
        weights = density_weights(x.reshape(len(x), -1), there.reshape(len(there), -1), method="ulsif")
    solution = _fit(features(x), y, weights)
    said = features(there) @ solution
    error = (said - wanted).square().mean() if not images else (said.argmax(1) != wanted.argmax(1)).double().mean()
    return {"error": error.item(), "effective": (weights.sum() ** 2 / weights.square().sum() / len(weights)).item()}


def _curves(task: str, turns: torch.Generator) -> tuple[Any, Any, Any, Any]:
    """Both domains of y = −x + x³ with noise, the true ratio, and the model's features."""
    draw = lambda mean, spread: mean + spread * torch.randn(SAMPLES, dtype=torch.float64, generator=turns)  # noqa: E731
    truth = lambda x: -x + x**3  # noqa: E731
    x, there = draw(1.0, 0.5), draw(2.0, 0.3)
    density = lambda x, mean, spread: torch.exp(-(((x - mean) / spread) ** 2) / 2) / spread  # noqa: E731
    powers = range(2 if "line" in task else 4)
    return (
        (x, truth(x) + draw(0.0, 0.3)),
        (there, truth(there)),
        lambda x: density(x, 2.0, 0.3) / density(x, 1.0, 0.5),
        lambda x: torch.stack([x**power for power in powers], 1),
    )


def _images(bench: Bench, turns: torch.Generator) -> tuple[Any, Any, Any, Any]:
    """Training images that a rule of x picks, test images that the opposite rule picks, the true ratio, features."""
    split = bench.images.flat
    mean, axes = split.x.mean(0), torch.linalg.svd(split.x - split.x.mean(0), full_matrices=False)[2]
    project = lambda x: ((x - mean) @ axes[:8].T).double().cpu()  # noqa: E731
    scale = project(split.x).std(0)
    x, there = project(split.x) / scale, project(split.test_x) / scale
    shown = torch.rand(len(x), dtype=torch.float64, generator=turns) < torch.sigmoid(-_PULL * x[:, 0])
    used = torch.rand(len(there), dtype=torch.float64, generator=turns) < torch.sigmoid(_PULL * there[:, 0])
    classes = int(split.y.max()) + 1
    y, wanted = (one_hot(label.cpu(), classes).double() for label in (split.y, split.test_y))
    constant = lambda x: torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)  # noqa: E731
    return (x[shown], y[shown]), (there[used], wanted[used]), lambda x: torch.exp(_PULL * x[:, 0]), constant


def _fit(features: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted least squares with a hundred-thousandth of a ridge."""
    weighted = features * (weights / weights.mean())[:, None]
    ridge = 1e-5 * len(features) * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(weighted.T @ features + ridge, weighted.T @ y)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Halvings of the error by weighting, for each task and ratio."""
    effects = {}
    for task in TASKS:
        for ratio in RATIOS[1:]:
            pairs = outcomes.where(task=task).pairs("error", {"ratio": "none"}, {"ratio": ratio})
            gained = [(torch.tensor(plain) / weighted).log2().item() for plain, weighted in pairs]
            effects[f"{task}, {ratio} ratio"] = paired(gained, "halvings of the error")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """The error in the target domain."""

    def mean(task: str, ratio: str) -> float:
        errors = outcomes.where(task=task, ratio=ratio).column("error")
        return sum(errors) / len(errors)

    return Profile(
        title="The error in the target domain without and with weights, mean of draws.",
        places=TASKS,
        roles=TASKS,
        x=Axis("squared error, or share of images", log=True),
        columns=tuple(Column(f"{ratio} ratio", tuple(mean(task, ratio) for task in TASKS)) for ratio in RATIOS),
    )


CLAIM = Claim(
    id="2.5",
    kind="measurement",
    en="Covariate shift is equal p(y|x) and unequal p(x); weighting the samples by the density ratio repairs it.",
    zh="协变量偏移即 p(y|x) 相同而 p(x) 不同；按密度比对样本加权即可修正。",
    source="002, section on covariate shift, and the direct remedy",
    protocol="Two domains with one p(y|x): 300 draws of y = −x + x³ at N(1, 0.5²), used at N(2, 0.3²), by a line or "
    "by a cubic; images picked by the first principal component, one way for training and the other way for test, by "
    "least squares on eight components. Weighted least squares by the true ratio, or by one estimated with kernels "
    "(uLSIF); log₂ of the error in the target domain without over with weights, paired by draw.",
    decision=Decision(0.15, 0.0, "halvings of the error", "10% less error is the least that a user sees"),
    sizes={"quick": {"seeds": 20}, "full": {"seeds": 100}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS305",),
)
