"""2.4: residual connections shorten the gradient's path; LSTM eases vanishing in time.

Untrained networks. Over depth: the gradient of a block's input over that of the last block's, 40 tanh layers with and
without connections around them. Over time: the gradient by the input of the first step over that by the last one, for a
plain recurrent layer, an LSTM as torch starts it, and an LSTM whose forget gate starts open (bias 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTH, LAG, WIDTH = 40, 40, 32
ARMS = ("plain layers", "residual layers", "RNN", "LSTM", "LSTM, open forget gate")


def cases(seeds: int) -> list[Case]:
    """Each kind of path in random networks."""
    return [{"arm": arm, "seed": seed} for arm in ARMS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Decades of the gradient at each place of the path over that at its end, nearest first."""
    torch.manual_seed(case["seed"])
    gradients = _depth(case["arm"]) if "layers" in case["arm"] else _time(case["arm"])
    norms = torch.stack([gradient.norm() for gradient in gradients]).clamp(min=1e-300)
    return {"decades": (norms / norms[0]).log10().tolist()}


def _depth(arm: str) -> list[Tensor]:
    x, places = torch.randn(64, WIDTH, dtype=torch.float64, requires_grad=True), []
    for _ in range(DEPTH):
        places.append(x)
        weight = torch.randn(WIDTH, WIDTH, dtype=torch.float64) / WIDTH**0.5
        x = torch.tanh(x @ weight.T) + (x if arm == "residual layers" else 0)
    return list(torch.autograd.grad(x.square().sum(), places))[::-1]


def _time(arm: str) -> list[Tensor]:
    layer = (nn.RNN if arm == "RNN" else nn.LSTM)(WIDTH, WIDTH, dtype=torch.float64)
    if "open" in arm:
        with torch.no_grad():
            dict(layer.named_parameters())["bias_ih_l0"][WIDTH : 2 * WIDTH] = 2.0
    x = torch.randn(LAG, 64, WIDTH, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0][-1].square().sum(), x)
    return list(gradient.unbind(0))[::-1]


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Decades of gradient that the remedy saves at the far end."""
    far = {arm: [row[-1] for row in outcomes.where(arm=arm).column("decades")] for arm in ARMS}
    return {
        f"{remedy} against {against}": paired([one - other for one, other in zip(far[remedy], far[against])], "decades")
        for remedy, against in (
            ("residual layers", "plain layers"),
            ("LSTM", "RNN"),
            ("LSTM, open forget gate", "RNN"),
        )
    }


def draw(outcomes: Outcomes) -> Curves:
    """The gradient over the distance, mean of networks."""
    rows = {arm: outcomes.where(arm=arm).column("decades") for arm in ARMS}
    return Curves(
        title="The gradient over the distance from the loss, in layers or time steps, mean of random networks.",
        x=Axis("layers or steps back"),
        y=Axis("decades"),
        curves=tuple(
            Curve(arm, tuple(map(float, range(len(row[0])))), tuple(sum(at) / len(at) for at in zip(*row)))
            for arm, row in rows.items()
        ),
    )


CLAIM = Claim(
    id="2.4",
    kind="measurement",
    en="Residual connections shorten the gradient's path, and LSTM eases vanishing in time.",
    zh="残差网络减少梯度传播的路径长度；RNN 中用 LSTM 减轻梯度消失。",
    source="002, first section, last two remedies",
    protocol="Random tanh networks of 40 layers (Xavier's weights), and recurrent layers over 40 steps (torch's "
    "start), width 32, float64; log₁₀ of the gradient at the far end over that at the near one, remedy less "
    "plain, paired by seed.",
    decision=Decision(0.5, 0.0, "decades of gradient saved", "a factor of 3 over the whole path eases"),
    sizes={"quick": {"seeds": 9}, "full": {"seeds": 50}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS201", "NS115"),
)
