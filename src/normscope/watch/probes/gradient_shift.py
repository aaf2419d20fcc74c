"""How the update of the layers below changes what a layer should do: Santurkar's internal covariate shift.

Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?", section 2.2, definition 2.1: the difference of
G_{t,i} = ∇_{W_i} L(W_1^t, …, W_k^t) and G'_{t,i} = ∇_{W_i} L(W_1^{t+1}, …, W_{i−1}^{t+1}, W_i^t, …, W_k^t), same batch.
The paper takes the batch of the step; here it is the fixed batch, so that steps can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable

from normscope.watch.bench import LAYERS, Bench, Experiment, Values, apart, dot, norm, spread
from normscope.watch.measure import Reading, Scalar


class GradientShift(Experiment):
    """Of a layer's parameters, on the fixed batch, across one real update of the layers below.

    - ``gradient_shift``: ‖G − G'‖, in units of the loss per unit of the parameters.
    - ``gradient_shift_cosine``: the cosine of G and G'; 1 where the update below changed the length at most.

    W_i are all parameters of one norm or producer; or those that another module has of its own between two of them (a
    class token, the scale of a branch, a head written by hand), told at the value of the first. 1, …, i − 1 are those
    that come in before in the forward pass (`entry.entries`). At most `LAYERS` are looked at, evenly over the depth,
    the last among them; the first has none below. This takes one forward and backward pass for each, and one for all.
    """

    passes = LAYERS + 1

    def run(self, bench: Bench) -> Iterable[Reading]:
        """Both numbers of each layer that was chosen."""
        here = bench.slope(bench.before)
        if here is None or norm(bench.update) == 0:
            return
        for layer in spread([layer for layer in bench.layers if layer.below], LAYERS):
            there = bench.slope(bench.mixed(layer.below))
            if there is None:
                return
            old, new = (_of(slope.gradient, layer.own) for slope in (here, there))
            yield Scalar(layer.site, "gradient_shift", norm(apart(old, new)))
            lengths = norm(old) * norm(new)
            if lengths > 0:
                yield Scalar(layer.site, "gradient_shift_cosine", dot(old, new) / lengths)


def _of(gradient: Values, own: Iterable[int]) -> Values:
    return [gradient[at] for at in own]
