"""The gradient of the loss on the fixed batch, at each site's output and at each parameter."""

from __future__ import annotations

from collections.abc import Iterable

from normscope.watch.measure import Measure, Reading, View


class Gradient(Measure):
    """The summaries of gradients, where a loss or a held gradient was to be had."""

    def tell(self, view: View) -> Iterable[Reading]:
        """Every gradient that was seen."""
        return (found for found in view.summaries.values() if found.site.what == "gradient")
