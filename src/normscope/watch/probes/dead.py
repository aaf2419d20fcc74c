"""Units that say the same whatever the input: the share, at each activation, over the whole fixed batch.

For the ReLU family the constant is zero and the unit receives no gradient from any sample (Lu et al. 2019, "Dying ReLU
and Initialization", section 2); a saturated sigmoid is constant at 0 or 1.
"""

from __future__ import annotations

from torch import Tensor

from normscope.watch.measure import Measure, Sight
from normscope.watch.sample import rows_of

_MIXING = frozenset(["Softmax", "Softmax2d", "LogSoftmax", "softmax", "log_softmax"])  # an output is no unit of its own


class Dead(Measure):
    """``dead``: the share of units (channels) whose output is one value in every cell of the batch."""

    def see(self, sight: Sight) -> None:
        """Count at the output of activations, in training mode."""
        site = sight.site
        if (site.role, site.what, sight.mode) != ("activation", "output", "probe") or site.kind in _MIXING:
            return
        share = dead_share(sight.tensor, site.channel_axis)
        if share is not None:
            self.find(site, "dead", share)


def dead_share(tensor: Tensor, channel_axis: int | None) -> float | None:
    """The share of channels that are constant over all cells; None where there are no channels, or only one cell."""
    if channel_axis is None or tensor.ndim < 2 or not -tensor.ndim <= channel_axis < tensor.ndim:
        return None
    channels = tensor.shape[channel_axis]
    if tensor.numel() == channels:
        return None
    suspects = _constant(rows_of(tensor, channel_axis)).nonzero().flatten()
    if not len(suspects):
        return 0.0
    every_cell = tensor.detach().index_select(channel_axis, suspects).movedim(channel_axis, -1)
    return float(_constant(every_cell.reshape(-1, len(suspects))).sum()) / channels


def _constant(rows: Tensor) -> Tensor:
    return (rows == rows[:1]).all(0)
