"""Batches that a norm refused to learn from, because their statistics were not finite (`nn.BatchNorm2d` and others)."""

from __future__ import annotations

from torch import Tensor

from normscope.watch.measure import Measure, Sight


class SkippedBatches(Measure):
    """``num_batches_skipped``: how many batches the live norm has left out of its running statistics so far."""

    def see(self, sight: Sight) -> None:
        """Read the counter in evaluation mode, before a pass in training mode can count."""
        site, counter = sight.site, getattr(sight.module, "num_batches_skipped", None)
        here = (site.role, site.what, sight.mode, site.call) == ("norm", "output", "probe_eval", 0)
        if here and isinstance(counter, Tensor):
            self.find(site, "num_batches_skipped", float(counter))
