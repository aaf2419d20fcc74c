"""How far apart training mode and evaluation mode are: the same batch and parameters, both modes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from normscope.stats.moments import Moments
from normscope.stats.summary import Summary
from normscope.watch.measure import Measure, Reading, Scalar, View


class EvalGap(Measure):
    """``eval_gap``: the distance of both modes' outputs, in standard deviations of the training-mode output.

    Per channel the 2-Wasserstein distance of Gaussians, √((μ−μ')² + (σ−σ')²); the root of its mean square over the
    channels, divided by the root of the channels' mean variance. What differs sample by sample with mean zero, as
    dropout's masks do, counts only as far as it changes a channel's mean or spread.
    """

    def tell(self, view: View) -> Iterable[Reading]:
        """One gap for each output; that of the whole model has the path ``""``."""
        for site, training, evaluation in view.pairs():
            if site.what == "output":
                yield Scalar(site, "eval_gap", gap(training, evaluation))


def gap(training: Summary, evaluation: Summary) -> float:
    """The distance in standard deviations; 0 where both are alike, NaN where one has no finite values."""
    ours, theirs = _moments(training), _moments(evaluation)
    if ours.mean.shape != theirs.mean.shape:
        ours, theirs = ours.pooled(), theirs.pooled()
    distance = np.mean((ours.mean - theirs.mean) ** 2 + (ours.std - theirs.std) ** 2)
    if distance == 0:
        return 0.0
    variance = np.mean(ours.var)
    return float(np.sqrt(distance / variance)) if variance > 0 else float("inf")


def _moments(summary: Summary) -> Moments:
    return summary.moments if summary.channels is None else summary.channels
