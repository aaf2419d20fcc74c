"""How far apart training mode and evaluation mode are: the same batch and parameters, both modes."""

from __future__ import annotations

from collections.abc import Iterable

from normscope.watch.deviation import deviation
from normscope.watch.measure import Measure, Reading, Scalar, View


class EvalGap(Measure):
    """``eval_gap``: the distance of both modes' outputs, in standard deviations of the training-mode output.

    Channel by channel (`watch.deviation`). What differs sample by sample with mean zero, as dropout's masks do, counts
    only as far as it changes a channel's mean or spread.
    """

    def tell(self, view: View) -> Iterable[Reading]:
        """One gap for each output; that of the whole model has the path ``""``."""
        for site, training, evaluation in view.pairs():
            if site.what == "output":
                yield Scalar(site, "eval_gap", deviation(training, evaluation))
