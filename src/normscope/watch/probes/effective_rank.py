"""How many directions the activations of the fixed batch span: in deep networks without norms they fall to one.

Daneshmand et al. 2020, "Batch Normalization Provably Avoids Rank Collapse for Randomly Initialised Deep Networks": with
M = HᵀH / N of the hidden representation H (N samples by d units), rank(H) ≥ tr(M)² / ‖M‖², by Cauchy and Schwarz over
the eigenvalues of M; equal where all that are not zero are alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.watch.measure import Measure, Sight
from normscope.watch.sample import rows_of


class EffectiveRank(Measure):
    """``effective_rank``: tr(M)² / ‖M‖² of each output, from 1 (all samples on one line) to the number of channels.

    Each cell (a sample, or one of its positions) is a row of H. The mean is part of H, as in the paper: samples that
    differ by little beside their common mean count as one direction.
    """

    def see(self, sight: Sight) -> None:
        """Measure at outputs with channels, in training mode."""
        site, axis = sight.site, sight.site.channel_axis
        if site.what != "output" or sight.mode != "probe" or axis is None or site.role == "other":
            return
        if sight.tensor.ndim < 2 or not -sight.tensor.ndim <= axis < sight.tensor.ndim:
            return
        rank = effective_rank(rows_of(sight.tensor, axis))
        if rank is not None:
            self.find(site, "effective_rank", rank)


def effective_rank(rows: Tensor) -> float | None:
    """tr(M)² / ‖M‖² of ``rows`` (N, C); None where there is one row or column only, or nothing finite above zero."""
    if min(rows.shape) < 2:
        return None
    rows = rows.detach().to(torch.float32)
    largest = rows.abs().max()
    if not 0 < float(largest) < float("inf"):  # NaN fails as well
        return None
    rows = rows / largest
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    return float(gram.diagonal().sum(dtype=torch.float64) ** 2 / gram.square().sum(dtype=torch.float64))
