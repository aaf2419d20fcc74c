"""Whether a weight's length matters: a norm behind it takes the length out, and the gradient stands upright on it.

van Laarhoven 2017, "L2 Regularization versus Batch and Weight Normalization", section 2: where L(a·w) = L(w), the
gradient is orthogonal to w (Euler), updates can only lengthen w, and the effective learning rate is lr / ‖w‖².
"""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.watch.measure import Measure, Sight


class ScaleInvariance(Measure):
    """``radial_gradient``: |⟨w, ∇w⟩| / (‖w‖ ‖∇w‖) of each weight with two axes or more; 0 is scale invariance.

    For such weights the series ``weight_norm`` says how far the length has grown, and ``effective_learning_rate`` what
    lr / ‖w‖² this leaves.
    """

    def see(self, sight: Sight) -> None:
        """Compare the gradient of each weight with the weight."""
        site = sight.site
        if site.what != "gradient" or not site.name or sight.module is None or sight.tensor.ndim < 2:
            return
        weight = getattr(sight.module, site.name, None)
        if isinstance(weight, Tensor) and weight.shape == sight.tensor.shape:
            share = radial(weight.detach(), sight.tensor)
            if share is not None:
                self.find(site.at("parameter", site.name), "radial_gradient", share)


def radial(weight: Tensor, gradient: Tensor) -> float | None:
    """The absolute cosine of weight and gradient; None where one of them is zero or not finite."""
    w, g = (tensor.reshape(-1).to(torch.float32) for tensor in (weight, gradient))
    lengths = float(torch.linalg.vector_norm(w, dtype=torch.float64) * torch.linalg.vector_norm(g, dtype=torch.float64))
    if not 0 < lengths < float("inf"):
        return None
    return abs(float(torch.dot(w, g))) / lengths
