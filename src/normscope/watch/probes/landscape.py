"""How smooth the loss is along its gradient, as far as steps of this training reach.

Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?", section 3.2 and figure 4: the variation of the
loss, the predictiveness of the gradient and the effective β-smoothness along the direction of the gradient. f is
β-smooth where ‖∇f(x) − ∇f(y)‖ ≤ β ‖x − y‖ (section 3.1); the effective β is the least that holds along that line.
"""

from __future__ import annotations

from collections.abc import Iterable

from normscope.watch.bench import Bench, Experiment, along, apart, norm
from normscope.watch.measure import Reading, Scalar

STEPS = (0.5, 1.0, 2.0, 4.0)
"""How far to go, in lengths of the real update: the paper goes from ½ to 4 times the learning rate."""


class Landscape(Experiment):
    """On the fixed batch from θ_t, along −g with g the gradient there, as far as each of `STEPS`.

    - ``loss_variation``: the largest loss less the smallest, the start among them. Not without a loss.
    - ``gradient_predictiveness``: the largest ‖g − g_η‖; the smaller, the better g foretells what follows.
    - ``effective_smoothness``: the largest ‖g − g_η‖ / ‖η g‖, the β of β-smoothness as far as it was seen.

    A length of the update stands for the learning rate, so that any optimizer will do; for plain gradient descent on
    this batch they are the same. This takes five forward and backward passes.
    """

    passes = len(STEPS) + 1

    def run(self, bench: Bench) -> Iterable[Reading]:
        """The three numbers, of the whole run."""
        here, far = bench.slope(bench.before), norm(bench.update)
        steepness = 0.0 if here is None else norm(here.gradient)
        if here is None or far == 0 or not 0 < steepness < float("inf"):
            return
        losses, changes = [here.loss], []
        for step in STEPS:
            there = bench.slope(along(bench.before, -step * far / steepness, here.gradient))
            if there is None:
                return
            losses.append(there.loss)
            changes.append(norm(apart(here.gradient, there.gradient)))
        known = [loss for loss in losses if loss is not None]
        if known:
            yield Scalar(None, "loss_variation", max(known) - min(known))
        yield Scalar(None, "gradient_predictiveness", max(changes))
        yield Scalar(None, "effective_smoothness", max(change / (step * far) for change, step in zip(changes, STEPS)))
