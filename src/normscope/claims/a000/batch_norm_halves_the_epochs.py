"""0.11: batch normalization halves the epochs to a given accuracy (the article: 70% in 50 epochs instead of 100).

The same network with and without it, from the same weights and on the same batches, at equal rates; and each at the
rate that suits it best, which is the comparison that a user can act on.
"""

from __future__ import annotations

import math
from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp, vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Curves
from normscope.terms.verdict import Effect

TARGET = 0.7
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


def cases(seeds: int, epochs: int) -> list[Case]:
    """Two networks, with and without batch normalization, at five rates."""
    return [
        {"net": net, "norm": norm, "rate": rate, "epochs": epochs, "seed": seed}
        for net in ("dense, 8 layers", "convolutional, 4 layers")
        for norm in ("none", "BatchNorm")
        for rate in RATES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve of one training, and the epochs to the target."""
    shape = bench.images.x.shape
    if case["net"].startswith("dense"):
        build = lambda: mlp(shape[1:].numel(), depth=8, width=64, norm=case["norm"])  # noqa: E731
    else:
        build = lambda: vgg(shape[1], depth=4, width=8, norm=case["norm"])  # noqa: E731
    _, curve = bench.train(build, seed=case["seed"], rate=case["rate"], epochs=case["epochs"])
    return {**told(curve), "epochs_to": curve.epochs_to(TARGET)}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """How often the number of epochs is halved: at each rate, and each arm at its best one."""
    effects = {}
    for net in outcomes.levels("net"):
        rows = outcomes.where(net=net)
        for rate in RATES:
            pairs = rows.where(rate=rate).pairs("epochs_to", {"norm": "none"}, {"norm": "BatchNorm"})
            effects[f"{net}, rate {rate:g}"] = paired(
                [math.log2(plain / normed) for plain, normed in pairs], "halvings"
            )
        plain, normed = (_best(rows.where(norm=norm)) for norm in ("none", "BatchNorm"))
        pairs = zip(plain.column("epochs_to"), normed.column("epochs_to"))
        effects[f"{net}, each at its best rate"] = paired([math.log2(one / other) for one, other in pairs], "halvings")
    return effects


def _best(rows: Outcomes) -> Outcomes:
    """The runs at the rate that needs the fewest epochs."""
    return min((rows.where(rate=rate) for rate in RATES), key=lambda one: sum(one.column("epochs_to")))


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy over epochs at the middle rate."""
    return accuracy_by(
        outcomes.where(rate=RATES[2]), "net", "norm", title=f"Accuracy at rate {RATES[2]:g}, mean of seeds."
    )


CLAIM = Claim(
    id="0.11",
    kind="training",
    en="Batch normalization halves the epochs to a given accuracy.",
    zh="加入 BN 后达到同一精度所需的轮数减半。",
    source="000, section 5, last case",
    protocol="SGD with momentum 0.9, batch 64, on the bench's images; epochs to 70% test accuracy, interpolated; log₂ "
    "of the ratio without over with batch normalization, paired by seed; a training that never gets there counts one "
    "epoch more than it had.",
    decision=Decision(0.8, 0.5, "halvings of the epochs", "0.8 is 43% fewer epochs, nearly half; 0.5 is 30% fewer"),
    sizes={"quick": {"seeds": 5, "epochs": 12}, "full": {"seeds": 10, "epochs": 60}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm",),
)
