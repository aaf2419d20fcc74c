"""Units whose activation function is flat for most of the batch: they say little and learn slowly.

Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", section 3.1, follow
saturated units layer by layer. Where each function saturates stands in `terms.activations`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.terms.activations import Activation, activation_named
from normscope.watch.measure import Measure, Sight
from normscope.watch.sample import rows_of

MOST = 0.5
"""A unit counts as saturated when more than this share of its pre-activations is: its median is then in the flat."""


class SaturatedUnits(Measure):
    """``saturated_units``: the share of units (channels) that are saturated in most cells of the batch.

    For functions that fall silent (the ReLU family, hardswish) the flat side is the silent one; ``dead`` counts those
    of them that never speak at all.
    """

    def see(self, sight: Sight) -> None:
        """Count at the input of activation functions that are flat somewhere, in training mode."""
        site, axis = sight.site, sight.site.channel_axis
        if (site.role, site.what, sight.mode) != ("activation", "input", "probe") or axis is None:
            return
        function = activation_named(site.kind)
        if function is None or sight.tensor.ndim < 2 or not -sight.tensor.ndim <= axis < sight.tensor.ndim:
            return
        shares = saturated_shares(rows_of(sight.tensor, axis), function)
        if shares is not None:
            self.find(site, "saturated_units", float((shares > MOST).double().mean()))


def saturated_shares(rows: Tensor, function: Activation) -> Tensor | None:
    """Of each unit of ``rows`` (N, C) the share of pre-activations in the flat; None for a function without one.

    Silence is strict, as it is in the gradient: a ReLU is silent at 0 and below.
    """
    flat = torch.zeros_like(rows, dtype=torch.bool)
    if function.silent_below is not None:
        flat |= rows <= function.silent_below
    if function.low is not None:
        flat |= rows < function.low
    if function.high is not None:
        flat |= rows > function.high
    if function.silent_below is None and not function.saturates:
        return None
    return flat.double().mean(0)
