"""2.3: gradient-free training (evolution, particle swarm) trains a network whose gradient vanishes.

A sigmoid network of six small layers from weights of Xavier's size, where the gradient of the first layer is next to
nothing: CMA-ES (Hansen & Ostermeier 2001), differential evolution and particle swarms, by `cma` and `nevergrad`,
against gradient descent at its best of three rates. All may evaluate the loss equally often; a gradient counts as one
more evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.outcomes import Case, Outcomes
from normscope.claims.search import SEARCHES, searched
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

DEPTH, WIDTH, INPUTS, CLASSES = 6, 4, 4, 3
SHAPES = ((INPUTS, WIDTH), *[(WIDTH, WIDTH)] * (DEPTH - 1), (WIDTH, CLASSES))
RATES = (0.01, 0.1, 1.0)


def cases(seeds: int, evaluations: int) -> list[Case]:
    """Each search, and gradient descent at each rate."""
    arms = [*SEARCHES, *(f"gradient descent, rate {rate:g}" for rate in RATES)]
    return [{"arm": arm, "evaluations": evaluations, "seed": seed} for arm in arms for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The test accuracy at the end, and decades from the last hidden layer's gradient down to the first's."""
    x, y, test_x, test_y = _task(bench)
    turns = torch.Generator().manual_seed(case["seed"])
    start = torch.cat([(torch.randn(shape, generator=turns) / shape[0] ** 0.5).flatten() for shape in SHAPES])
    start = torch.cat([start, torch.zeros(sum(out for _, out in SHAPES))])
    if case["arm"] in SEARCHES:
        found = searched(
            case["arm"], start, lambda at: _losses(at, x, y), seed=case["seed"], evaluations=case["evaluations"]
        )
    else:
        found = _descended(start, x, y, float(case["arm"].split()[-1]), case["evaluations"] // 2)
    right = (_scores(found[None], test_x)[0].argmax(1) == test_y).double().mean().item()
    return {"accuracy": right, "decades": _decades(start, x, y), "guess": test_y.bincount().max().item() / len(test_y)}


def _task(bench: Bench) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first classes of the bench, as their first principal components at unit variance."""
    split = bench.images.flat
    x, test_x = (part[label < CLASSES].cpu() for part, label in ((split.x, split.y), (split.test_x, split.test_y)))
    _, _, axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    project = lambda part: (part - x.mean(0)) @ axes[:INPUTS].T  # noqa: E731
    scale = project(x).std(0)
    y, test_y = (label[label < CLASSES].cpu() for label in (split.y, split.test_y))
    return project(x) / scale, y, project(test_x) / scale, test_y


def _scores(weights: Tensor, x: Tensor) -> Tensor:
    """What networks with these weights (P, parameters) say of x (N, inputs): (P, N, classes)."""
    h, at, shift = x.expand(len(weights), *x.shape), 0, sum(a * b for a, b in SHAPES)
    for layer, (fan_in, out) in enumerate(SHAPES):
        matrix = weights[:, at : at + fan_in * out].view(-1, fan_in, out)
        h = h @ matrix + weights[:, None, shift : shift + out]
        h = torch.sigmoid(h) if layer < DEPTH else h
        at, shift = at + fan_in * out, shift + out
    return h


def _losses(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    scores = _scores(weights, x)
    return cross_entropy(scores.transpose(1, 2), y.expand(len(weights), -1), reduction="none").mean(1)


def _descended(start: Tensor, x: Tensor, y: Tensor, rate: float, steps: int) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        _losses(weights[None], x, y).sum().backward()
        optimizer.step()
    return weights.detach()


def _decades(start: Tensor, x: Tensor, y: Tensor) -> float:
    weights = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(_losses(weights[None], x, y).sum(), weights)
    first, last = slope[: INPUTS * WIDTH], slope[INPUTS * WIDTH + (DEPTH - 2) * WIDTH**2 :][: WIDTH**2]
    return (last.square().mean().sqrt() / first.square().mean().sqrt()).log10().item()


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """How far each search gets beyond guessing, and beyond gradient descent at its best rate."""
    descents = [outcomes.where(arm=arm).column("accuracy") for arm in outcomes.levels("arm") if arm not in SEARCHES]
    best = max(descents, key=sum)
    effects = {}
    for arm in SEARCHES:
        rows = outcomes.where(arm=arm)
        learned = [row["accuracy"] - row["guess"] for row in rows]
        effects[f"{arm}: better than guessing"] = paired(learned, "accuracy")
        ahead = [one - other for one, other in zip(rows.column("accuracy"), best)]
        effects[f"{arm}: better than gradient descent"] = paired(ahead, "accuracy")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """The accuracy of each way to train."""
    rows = Outcomes(outcomes)
    title = "Test accuracy after an equal number of evaluations, mean of seeds."
    return averages(rows, "accuracy", "evaluations", "arm", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="2.3",
    kind="training",
    en="Training without gradients (evolutionary algorithms, particle swarms) trains a network whose gradient "
    "vanishes.",
    zh="不使用梯度的训练方法（遗传与进化算法、粒子群优化）可训练梯度消失的网络。",
    source="002, first section, remedies without gradients",
    protocol="A sigmoid network of 6 layers of 4 units (weights of Xavier's size) on the first three classes, 4 "
    "principal components; CMA-ES by cma, differential evolution and particle swarm by nevergrad, generations of 20, "
    "against gradient descent with momentum 0.9 on all samples at its best of three rates, with an equal number of "
    "evaluations of the loss; test accuracy less that of guessing the most frequent class and less that of gradient "
    "descent, paired by seed.",
    decision=Decision(0.1, 0.0, "accuracy", "10 points above guessing is a network that has learned"),
    sizes={"quick": {"seeds": 8, "evaluations": 3000}, "full": {"seeds": 20, "evaluations": 60000}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS201",),
)
