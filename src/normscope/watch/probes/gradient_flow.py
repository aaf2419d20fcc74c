"""How activations and gradients grow or fade from layer to layer: a gain of 0.5 is 10⁻³ after ten layers.

Glorot & Bengio 2010, section 4.2 (variances of activations forward and of gradients backward, layer by layer); He et
al. 2015, "Delving Deep into Rectifiers", section 2.2, for the condition that each layer's gain be 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from normscope.stats.summary import Summary
from normscope.watch.measure import Measure, Reading, Scalar, View


class GradientFlow(Measure):
    """Layer by layer, where a layer is a producer (linear, convolution, recurrent, embedding) in order of execution.

    - ``activation_gain``: the root mean square of this layer's output over that of the layer before it.
    - ``gradient_gain``: the root mean square of the gradient at this layer's output over that at the next layer's: what
      one layer does to the gradient on its way down. Branches are read in the order in which they ran.

    The variances themselves are the series ``std`` of outputs and gradients.
    """

    def tell(self, view: View) -> Iterable[Reading]:
        """One gain of activations for each layer but the first, one of gradients for each but the last."""
        outputs = {
            found.site: found.summary
            for found in view.of("probe")
            if found.site.what == "output" and found.site.role == "producer"
        }
        layers = sorted(outputs, key=lambda site: (site.depth, site.call))
        gradients = {found.site.key: found.summary for found in view.of("probe") if found.site.what == "gradient"}
        for before, after in pairwise(layers):
            grown = gain(outputs[after], outputs[before])
            if grown is not None:
                yield Scalar(after, "activation_gain", grown)
            here, next_one = (gradients.get(site.at("gradient").key) for site in (before, after))
            passed = gain(here, next_one)
            if passed is not None:
                yield Scalar(before.at("gradient"), "gradient_gain", passed)


def gain(to: Summary | None, of: Summary | None) -> float | None:
    """The root mean square of `to` over that of `of`; None where either is missing, or not above zero."""
    if to is None or of is None or not of.rms > 0 or not to.rms >= 0:
        return None
    return to.rms / of.rms
