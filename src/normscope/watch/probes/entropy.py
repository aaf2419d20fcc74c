"""How evenly attention and other softmax outputs are spread: near 0 each row has put all of its weight on one place.

Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", section 3: the entropy of
each row of the attention matrix, averaged over rows and heads.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from normscope.watch.measure import Measure, Sight

ROWS = 1 << 20
"""Elements of the weights that are read: whole rows, evenly over heads, samples and queries."""

_SOFTMAX = frozenset(["Softmax", "Softmax2d", "softmax"])


class Entropy(Measure):
    """``entropy``: −Σ p ln p of each softmax row as a share of ln(length), the mean over rows; attention included.

    Attention is seen in `torch.nn.MultiheadAttention` and in `scaled_dot_product_attention`, whose weights are
    reckoned once more for it, and wherever a softmax is a call of its own. A causal mask leaves early rows few places,
    and their entropy counts as low as it is.
    """

    def see(self, sight: Sight) -> None:
        """Measure the outputs of softmax functions and what is shown as the weights of an attention."""
        site = sight.site
        if sight.mode != "probe" or sight.tensor.ndim < 2:
            return
        if site.what == "output" and site.role == "activation" and site.kind in _SOFTMAX:
            axis = _axis_of(sight.tensor)
        elif (site.what, site.name) == ("statistic", "attention"):
            axis = -1
        else:
            return
        spread = None if axis is None else entropy(sight.tensor, axis)
        if spread is not None:
            self.find(site.at("output"), "entropy", spread)


def entropy(weights: Tensor, axis: int = -1) -> float | None:
    """The mean entropy of the rows along `axis` as a share of ln(length), 0 to 1; None for rows of one element."""
    length = weights.shape[axis]
    if length < 2:
        return None
    rows = weights.detach().movedim(axis, -1).reshape(-1, length)
    rows = rows[:: max(1, rows.numel() // ROWS)].to(torch.float32)
    each = torch.special.entr(rows).sum(-1)
    known = each.isfinite()  # a row that is masked everywhere is NaN
    return float(each[known].double().mean()) / log(length) if bool(known.any()) else None


def _axis_of(weights: Tensor) -> int | None:
    """The axis along which the weights sum to one: the last, or that of channels."""
    rounding = 2e-2 if weights.dtype.itemsize < 4 else 1e-3
    for axis in (-1, 1):
        total = weights.sum(axis, dtype=torch.float32)
        if bool(((total - 1).abs() < rounding).all()):
            return axis
    return None
