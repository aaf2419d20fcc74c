"""1.9: behind a convolution, batch normalization shares its statistics over images and pixels.

128 images through 64 kernels give 128 × 64 maps; for each kernel one mean and one variance over all pixels of its 128
maps: two vectors of shape (64,).
"""

from __future__ import annotations

import torch

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.exact import TOLERANCE, draw, each, generator, residual, weigh
from normscope.claims.outcomes import Case

IMAGES, KERNELS = 128, 64
CONDITIONS = ("shape (64,)", "mean over 128 × H × W", "variance over 128 × H × W", "output, by torch")


def cases(draws: int) -> list[Case]:
    """Each part of the sentence on random images."""
    return each(CONDITIONS, draws)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """How far the layer's statistics are from those of the sentence."""
    turns = generator(case)
    images = torch.randn(IMAGES, 3, 6, 6, dtype=torch.float64, generator=turns)
    kernels = torch.randn(KERNELS, 3, 3, 3, dtype=torch.float64, generator=turns)
    x = torch.nn.functional.conv2d(images, kernels)
    layer = nn.BatchNorm2d(KERNELS, momentum=1.0, dtype=torch.float64)
    y = layer(x)
    got, wanted = {
        "shape (64,)": (torch.tensor(layer.state["running_mean"].shape), torch.tensor([KERNELS])),
        "mean over 128 × H × W": (layer.state["running_mean"], x.transpose(0, 1).flatten(1).mean(1)),
        "variance over 128 × H × W": (layer.state["running_var"], x.transpose(0, 1).flatten(1).var(1)),
        "output, by torch": (y, torch.nn.BatchNorm2d(KERNELS, dtype=torch.float64)(x)),
    }[case["condition"]]
    return {"residual": residual(got, wanted)}


CLAIM = Claim(
    id="1.9",
    kind="exact",
    en="For a convolution of 64 kernels on 128 images, batch normalization keeps statistics of shape (64,), each over "
    "the pixels of all 128 maps.",
    zh="128 张图经 64 个卷积核，BN 对每个核的 128 张图的所有像素求均值和方差，得到形状 (64,) 的向量。",
    source="001, section 6",
    protocol="Random images through a 3 × 3 convolution in float64; the layer's kept statistics against those taken by "
    "hand over images and pixels, and its output against torch's.",
    decision=Decision.exact(TOLERANCE),
    sizes={"quick": {"draws": 3}, "full": {"draws": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm",),
)
