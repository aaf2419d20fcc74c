"""Which norm suits a stream of batches: by the size of a batch, and by how alike and how steady its samples are.

Three numbers of the samples themselves, each sample first reduced to its means a channel, decide:

- the size of a batch;
- how much more alike the samples of one batch are than samples of the stream: the intraclass correlation
  ICC = (B − W)/(B + (n − 1)W) of the variance between and within batches (Fisher 1925), 0 for batches drawn at random
  and 1 for batches of copies;
- how far the stream drifts: the distance of the means of its two halves, in standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normscope.anatomy.batch import Probe, first_tensor
from normscope.terms.datum import Datum
from normscope.terms.errors import DataError

LARGE = 16  # samples from which batch statistics cost nothing (Wu & He 2018, figure 1: the loss begins below)
FEW = 4  # the smallest batch at which batch renormalization was shown (Ioffe 2017, section 4.2)
CERTAIN = 4.0  # standard errors beyond which likeness and drift are no accident: once in 16,000 streams


@dataclass(frozen=True, repr=False)
class Choice(Datum):
    """The norm that suits a stream.

    Attributes:
        norm: what `normscope.convert` takes: ``"BatchNorm"``, ``"BatchRenorm"``, ``"OnlineNorm"``, ``"GroupNorm+WS"``.
        reason: why, with what was measured.
        batch_size: the median over the batches.
        likeness: the intraclass correlation of batches; NaN for single samples.
        drift: in standard deviations.
        likeness_noise: the standard error of `likeness` in a stream of random batches.
        drift_noise: the standard error of `drift` in a stream without any.
    """

    norm: str
    reason: str
    batch_size: int
    likeness: float
    drift: float
    likeness_noise: float = math.nan
    drift_noise: float = math.nan


def norm_for_stream(data: Iterable[Any]) -> Choice:
    """Choose a norm for training on batches such as those of `data`, in their order.

    Batches that are alike inside, or a stream that drifts, ask for a norm that looks at no batch: GroupNorm with
    standardized weights. Else the size decides: BatchNorm from 16 samples, BatchRenorm from 4, below that GroupNorm
    with standardized weights, or OnlineNorm where samples have no positions to take statistics over.

    Args:
        data: two batches or more, as the loader yields them; the first tensor of each is looked at.

    Raises:
        DataError: there are fewer than two batches, or nothing varies in them.
    """
    tensors = [_samples(batch) for batch in ([data] if isinstance(data, Tensor) else data)]
    rows = [_means(x) for x in tensors]
    if len(rows) < 2 or not _varies(rows):
        raise DataError(
            "A norm was to be chosen for a stream that tells too little.",
            found=f"{len(rows)} batches" + ("" if len(rows) < 2 else " of equal samples"),
            because="how alike batches are is seen between batches, and in values that differ",
            do="pass a list of some thirty batches in the order in which training will meet them",
        )
    size = sorted(len(row) for row in rows)[len(rows) // 2]
    likeness, likeness_noise = _likeness(rows)
    drift, drift_noise = _drift(rows)
    if likeness > 0:  # samples that are alike tell less of a mean (Kish 1965, the design effect)
        drift_noise *= math.sqrt(1 + (size - 1) * likeness)
    measured = size, likeness, drift, likeness_noise, drift_noise
    return Choice(*_decided(measured, flat=tensors[0].ndim < 3), *measured)


def _decided(measured: tuple[int, float, float, float, float], *, flat: bool) -> tuple[str, str]:
    size, likeness, drift, likeness_noise, drift_noise = measured
    if drift > CERTAIN * drift_noise:
        return "GroupNorm+WS", (
            f"the stream drifts (its halves lie {drift:.2f} deviations apart, noise {drift_noise:.2g}): "
            "kept statistics fall behind, so a norm of single samples"
        )
    if size > 1 and likeness > CERTAIN * likeness_noise:
        return "GroupNorm+WS", (
            f"samples of a batch are alike (intraclass correlation {likeness:.2f}, noise {likeness_noise:.2g}): "
            "statistics of a batch are not those of the stream, so a norm of single samples"
        )
    steady = f"batches of {size} that are drawn alike (intraclass correlation {likeness:.2f}, drift {drift:.2f})"
    if size >= LARGE:
        return "BatchNorm", f"{steady}: {LARGE} samples estimate the statistics well enough"
    if size >= FEW:
        return "BatchRenorm", f"{steady}: fewer than {LARGE} samples, whose noise the running statistics correct"
    if flat:
        return "OnlineNorm", f"batches of {size} without positions: the stream itself gives the statistics"
    return "GroupNorm+WS", f"batches of {size}: too few for statistics over the batch, and positions give them for one"


def _samples(batch: Any) -> Tensor:
    probe = Probe.of(batch)
    x = first_tensor((probe.args, dict(probe.kwargs)))
    if x is None or not x.ndim:
        raise DataError(
            "A norm was to be chosen for a stream of something else than tensors.",
            found=type(batch).__name__,
            because="how alike samples are is measured on their values",
            do="pass batches as the loader yields them, with a tensor of samples first",
        )
    return x


def _means(x: Tensor) -> Tensor:
    """Each sample as its means a channel (n, C): what statistics over a batch are made of."""
    x = x.double()
    if x.ndim < 3:
        return x.reshape(len(x), -1)
    means = x.flatten(2).mean(2)
    spreads = x.flatten(2).std(2, correction=0)
    return torch.cat((means, spreads), 1)


def _varies(rows: Sequence[Tensor]) -> bool:
    return bool((torch.cat(list(rows)).var(0, correction=0) > 0).any())


def _likeness(rows: Sequence[Tensor]) -> tuple[float, float]:
    """The intraclass correlation of the batches, pooled over features, and its standard error without likeness.

    For k groups of n the error is √(2/((k − 1) n (n − 1))) for one feature (Fisher 1925); features are not counted as
    further evidence, since they depend on each other.
    """
    sizes = torch.tensor([float(len(row)) for row in rows], dtype=torch.float64)
    groups, total = len(rows), float(sizes.sum())
    if total <= groups:
        return math.nan, math.nan
    whole = torch.cat(list(rows))
    grand, unit = whole.mean(0), whole.var(0)
    kept = unit > 0
    between = sum(len(row) * (row.mean(0) - grand)[kept].square() / unit[kept] for row in rows) / (groups - 1)
    within = sum((row - row.mean(0))[:, kept].square().sum(0) / unit[kept] for row in rows) / (total - groups)
    size = (total - float(sizes.square().sum()) / total) / (groups - 1)
    between, within = float(torch.as_tensor(between).mean()), float(torch.as_tensor(within).mean())
    spread = between + (size - 1) * within
    correlation = (between - within) / spread if spread > 0 else 1.0
    return correlation, math.sqrt(2 / ((groups - 1) * size * max(size - 1, 1.0)))


def _drift(rows: Sequence[Tensor]) -> tuple[float, float]:
    """The distance of the means of both halves, root mean square over features, and its size without drift."""
    half = len(rows) // 2
    one, other = torch.cat(list(rows[:half])), torch.cat(list(rows[half:]))
    unit = torch.cat((one, other)).var(0)
    kept = unit > 0
    apart = (one.mean(0) - other.mean(0))[kept].square() / unit[kept]
    return float(apart.mean().sqrt()), math.sqrt(1 / len(one) + 1 / len(other))
