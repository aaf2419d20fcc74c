"""What became of a norm's scale γ and offset β: how far they drifted, which channels they shut, which rule the rest.

Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 3: a channel's γ is its
weight in the network; channels with γ near zero can be cut without a trace.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscope.watch.measure import Measure, Sight

COLLAPSED = 0.01
"""A γ of less than this share of the root mean square: the channel keeps less than 10⁻⁴ of the usual variance."""


class Affine(Measure):
    """Of each norm with a scale or an offset per channel; γ is what multiplies, a weight and the spec's offset to it.

    - ``scale_drift``, ``offset_drift``: the root mean square of γ − γ₀ (β − β₀) over that of γ₀, which stands for the
      spread of an output channel; where γ₀ is zero (or there is none) over 1. γ₀ and β₀ are what the first probe saw.
    - ``collapsed_channels``: the share of channels with |γ| below `COLLAPSED` of the root mean square.
    - ``dominance``: the largest γ² over the mean of γ²; 1 where all channels are alike, C where one has everything.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, tuple[Tensor | None, Tensor | None]] = {}

    def see(self, sight: Sight) -> None:
        """Read γ and β when the norm's output passes in training mode."""
        site = sight.site
        if (site.role, site.what, sight.mode, site.call) != ("norm", "output", "probe", 0) or sight.module is None:
            return
        scale, offset = (_vector(sight.module, name) for name in ("weight", "bias"))
        if scale is not None and site.spec is not None:
            scale += site.spec.weight_offset
        first_scale, first_offset = self._first.setdefault(site.key, (scale, offset))
        unit = None if first_scale is None else _rms(first_scale)
        for quantity, now, then in (
            ("scale_drift", scale, first_scale),
            ("offset_drift", offset, first_offset),
        ):
            if now is not None and then is not None and now.shape == then.shape:
                self.find(site, quantity, _rms(now - then) / (unit or 1.0))
        if scale is not None and len(scale) > 1:
            self.find(site, "collapsed_channels", collapsed(scale))
            self.find(site, "dominance", dominance(scale))


def collapsed(scale: Tensor) -> float:
    """The share of channels with a γ that is nothing beside the others; 1 where all are zero."""
    level = _rms(scale)
    return float((scale.abs() < COLLAPSED * level).double().mean()) if level else 1.0


def dominance(scale: Tensor) -> float:
    """The largest γ² over the mean of γ²; 1 where all are zero."""
    mean = float(scale.square().mean())
    return float(scale.square().max()) / mean if mean else 1.0


def _vector(module: nn.Module, name: str) -> Tensor | None:
    found = module._parameters.get(name)
    return None if found is None or not found.numel() else found.detach().double().reshape(-1).cpu().clone()


def _rms(values: Tensor) -> float:
    return float(torch.sqrt(values.square().mean()))
