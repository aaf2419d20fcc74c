"""4.4: batch normalization is unfit for online learning with varying batch sizes.

A stream: each batch is first predicted in evaluation mode and then learned from, once. Its size is 8 throughout, or
varies from 1 to 32 with the same mean; halfway the images change their brightness and contrast, so that what was kept
of the past no longer fits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Profile
from normscope.terms.verdict import Effect

ARMS = ("BatchNorm", "BatchRenorm", "OnlineNorm", "GroupNorm")
SIZE = 8
STREAMS = {"constant": (SIZE,), "varying": (1, 1, 2, 4, 8, 8, 8, 32)}


def cases(seeds: int, passes: int) -> list[Case]:
    """Every norm in both streams."""
    return [
        {"arm": arm, "stream": stream, "passes": passes, "seed": seed}
        for arm in ARMS
        for stream in STREAMS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The share of the stream that was predicted right before it was learned, whole and after the change."""
    split = bench.images
    torch.manual_seed(case["seed"])
    model = vgg(split.x.shape[1], depth=3, width=8, norm=case["arm"]).to(bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    turns = torch.Generator().manual_seed(case["seed"])
    order = torch.cat([torch.randperm(len(split.y), generator=turns) for _ in range(case["passes"])])
    sizes, at = STREAMS[case["stream"]], 0
    right: list[torch.Tensor] = []
    while at < len(order):
        size = sizes[int(torch.randint(len(sizes), (), generator=turns))]
        chosen = order[at : at + size].to(bench.device)
        x, y = split.x[chosen], split.y[chosen]
        x = x * 0.5 + 1.0 if at > len(order) // 2 else x
        model.eval()
        with torch.no_grad():
            right.append(model(x).argmax(1) == y)
        model.train()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        at += size
    told = torch.cat(right).double()
    return {"accuracy": told.mean().item(), "later": told[len(told) // 2 :].mean().item()}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What varying sizes cost batch normalization, and what it predicts less well than the others in that stream."""
    own = outcomes.where(arm="BatchNorm").pairs("accuracy", {"stream": "constant"}, {"stream": "varying"})
    effects = {"varying sizes cost BatchNorm": paired([one - other for one, other in own], "accuracy lost")}
    rows = outcomes.where(stream="varying")
    for arm in ARMS[1:]:
        pairs = rows.pairs("accuracy", {"arm": arm}, {"arm": "BatchNorm"})
        effects[f"BatchNorm below {arm}"] = paired([one - other for one, other in pairs], "accuracy lost")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """The accuracy of each norm in both streams."""
    axis = Axis("share predicted right", share=True)
    title = "What was predicted right before it was learned, in streams of constant and varying batches, mean of seeds."
    return averages(outcomes, "accuracy", "stream", "arm", title=title, axis=axis)


CLAIM = Claim(
    id="4.4",
    kind="training",
    en="Batch normalization is unfit for online learning, where batch sizes vary.",
    zh="BN 不利于在线学习：批量大小不断变化，会影响性能。",
    source="004, section on online learning",
    protocol="A stream of images in batches of 8, or of 1 to 32 with mean 8, halfway at half the contrast and one "
    "deviation brighter; convolutional networks of 3 layers, one step of SGD (rate 0.01, momentum 0.9) a batch; share "
    "of images predicted right in evaluation mode before they are learned; constant less varying for BatchNorm, and "
    "each other norm less BatchNorm in the varying stream, paired by seed.",
    decision=Decision(0.02, 0.0, "accuracy lost", "2 points are a loss that a user sees"),
    sizes={"quick": {"seeds": 7, "passes": 2}, "full": {"seeds": 20, "passes": 10}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "BatchRenorm", "OnlineNorm", "GroupNorm", "NS102", "NS305"),
)
