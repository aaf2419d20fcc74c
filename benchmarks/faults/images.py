"""The data: handwritten digits, which come with scikit-learn, and two classes of CIFAR-10 where a folder holds it."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

CIFAR: list[Path] = []
"""The folder with train.parquet and test.parquet; empty where there is none."""

TOLD_APART = (0, 6)
"""Airplanes and frogs: of ten classes two that a small network tells apart in a hundred steps."""


class Images(NamedTuple):
    """(inputs, labels) for training and held out; inputs are standardized as a whole."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]


@cache
def digits() -> Images:
    """1,397 images of 64 pixels for training and 400 held out."""
    data, target = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(7))
    images, labels = torch.tensor(data, dtype=torch.float32)[order], torch.tensor(target)[order]
    images = (images - images.mean()) / images.std()
    return Images((images[:1397], labels[:1397]), (images[1397:], labels[1397:]))


@cache
def cifar() -> Images:
    """1,600 images of 3 × 16 × 16 for training and 600 held out."""
    train, held_out = (
        _parquet(CIFAR[0] / f"{name}.parquet", count) for name, count in (("train", 1600), ("test", 600))
    )
    mean, std = train[0].mean(), train[0].std()
    return Images(((train[0] - mean) / std, train[1]), ((held_out[0] - mean) / std, held_out[1]))


def _parquet(file: Path, count: int) -> tuple[Tensor, Tensor]:
    from PIL import Image  # both only where CIFAR-10 is
    from pyarrow import parquet

    rows = parquet.read_table(file).slice(0, 6 * count)
    pairs = [(row["img"]["bytes"], row["label"]) for row in rows.to_pylist() if row["label"] in TOLD_APART][:count]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32) for data, _ in pairs])
    images = torch.nn.functional.avg_pool2d(torch.tensor(pixels).permute(0, 3, 1, 2), 2)
    return images, torch.tensor([TOLD_APART.index(label) for _, label in pairs])
