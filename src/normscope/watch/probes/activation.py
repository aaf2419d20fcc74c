"""The distribution of each site's input and output on the fixed batch, in both modes.

From these a reader derives the internal shift: the same place, the same batch, other parameters (Ioffe & Szegedy 2015,
section 2: "the change in the distribution of network activations due to the change in network parameters").
"""

from __future__ import annotations

from collections.abc import Iterable

from normscope.watch.measure import Measure, Reading, View


class Activation(Measure):
    """The summaries of inputs and outputs, with moments per channel."""

    def tell(self, view: View) -> Iterable[Reading]:
        """Every input and output that was seen."""
        return (found for found in view.summaries.values() if found.site.what != "gradient")
