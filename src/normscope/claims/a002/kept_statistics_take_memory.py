"""2.14: batch normalization must keep statistics, and that takes much memory.

Kept are two numbers a channel. What training really pays for is the output of the layer, which the backward pass keeps
too: it has a number for every channel, sample and position.
"""

from __future__ import annotations

from typing import Any

from torch import nn as torch_nn

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile, Rule
from normscope.terms.verdict import Effect

SIDE, BATCH = 16, 32


def cases() -> list[Case]:
    """Convolutions of several widths."""
    return [{"channels": channels} for channels in (16, 64, 256)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Numbers kept by the norm, held by the convolution before it, and put out by the norm in a batch."""
    channels = case["channels"]
    norm = nn.BatchNorm2d(channels)
    convolution = torch_nn.Conv2d(channels, channels, 3, bias=False)
    return {
        "kept": sum(buffer.numel() for buffer in norm.buffers()),
        "weights": sum(weight.numel() for weight in convolution.parameters()),
        "output": BATCH * channels * SIDE * SIDE,
    }


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Numbers kept a channel, and their share of the layer."""
    effects = {}
    for row in outcomes:
        where = f"{row['channels']} channels"
        effects[f"{where}: keeps statistics"] = exact(row["kept"] / row["channels"], "numbers a channel")
        effects[f"{where}: much against the weights"] = exact(row["kept"] / row["weights"], "share")
        effects[f"{where}: much against its output"] = exact(row["kept"] / row["output"], "share")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """The share of what is kept."""
    places = tuple(f"{row['channels']} channels" for row in outcomes)
    return Profile(
        title="The numbers that batch normalization keeps, as a share of what is around them.",
        places=places,
        roles=("",) * len(places),
        x=Axis("share", log=True),
        columns=(
            Column("of the convolution's weights", tuple(row["kept"] / row["weights"] for row in outcomes)),
            Column("of its own output", tuple(row["kept"] / row["output"] for row in outcomes)),
        ),
        rules=(Rule(0.1, "a tenth"),),
    )


CLAIM = Claim(
    id="2.14",
    kind="exact",
    en="Batch normalization must keep statistics, which takes much memory.",
    zh="BN 每层都需保存统计量，占用内存大。",
    source="002, section BN",
    protocol="Numbers in the layer's buffers for 16, 64 and 256 channels, by channel, as a share of the weights of the "
    "3 × 3 convolution before it, and as a share of its output for a batch of 32 images of 16 × 16.",
    decision=Decision(0.1, 0.1, "share, or numbers a channel", "a tenth of what is there anyway is much"),
    sizes={"quick": {}, "full": {}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS301"),
)
