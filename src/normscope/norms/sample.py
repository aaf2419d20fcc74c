"""Norms of single samples that torch does not have, and the oldest one that it has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.kernels.cells import cells, counted, each
from normscope.kernels.reference import measure, root, scale_and_shift, wide
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.module import Norm
from normscope.norms.shapes import expect_channels, expect_floats, expect_size
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import ShapeError, SpecError
from normscope.terms.spec import Layout


class PositionalNorm(Norm):
    """Normalization of (N, C, *) over the channels of each position (Li et al. 2019, "Positional Normalization").

    `moments` gives the mean and deviation that were taken out, for the paper's moment shortcut.
    """

    def __init__(
        self, num_channels: int, eps: float = 1e-5, affine: bool = False, device: Any = None, dtype: Any = None
    ) -> None:
        spec = CATALOG["PositionalNorm"].but(eps=eps, affine=affine, bias=affine)
        super().__init__(spec, num_channels, device=device, dtype=dtype)

    def moments(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the deviation of each position, each (N, 1, *): injected later as ``y · deviation + mean``."""
        expect_channels(self, input, self.channels)
        seen = measure(input, self.spec)
        return seen.mean.flatten(1, 2), root(seen.var, self.spec).flatten(1, 2)


class FilterResponseNorm(Norm):
    """``max(g · x/√(mean x² + ε) + b, τ)`` for (N, C, *) (Singh & Krishnan 2020): response norm and its threshold τ.

    Args:
        num_channels: C.
        eps: ε.
        learned_eps: whether |ε′|, one learned number a channel that starts at 1e-4, is added to ε; the paper's advice
            where a channel has few positions, down to one.
        threshold: whether the thresholded linear unit with a learned τ a channel follows; it is part of the method.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    tau: Tensor | None
    eps_learned: Tensor | None

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        learned_eps: bool = False,
        threshold: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(CATALOG["FilterResponseNorm"].but(eps=eps), num_channels, device=device, dtype=dtype)
        for name, wanted, start in (("tau", threshold, 0.0), ("eps_learned", learned_eps, 1e-4)):
            values = torch.full((num_channels,), start, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if wanted else None)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The thresholded response; without positions, (N, C), each number is its own mean."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        expect_channels(self, input, self.channels)
        x = input.unsqueeze(-1) if input.ndim == 2 else input
        if mask is not None:
            mask = counted(x, self.spec, mask.unsqueeze(-1) if input.ndim == 2 else mask)
        var = measure(x, self.spec, mask).var
        if self.eps_learned is not None:
            var = var + cells(x, self.spec).along_channels(self.eps_learned.abs())
        sigma = root(var, self.spec)
        if mask is None:
            y = self._above(x, sigma)
        else:
            y = scale_and_shift(x, self.spec, None, sigma, self.weight, self.bias, mask)
            if self.tau is not None:
                tau = self.tau.view(-1, *[1] * (x.ndim - 2)).to(y.dtype)
                y = torch.where(mask.unsqueeze(1) & (y <= tau), tau, y)
        return y.squeeze(-1) if input.ndim == 2 else y

    def _above(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``max(g · x/σ + b, τ)`` as ``relu(x · (g/σ) + b − τ) + τ``: two passes, and two back."""
        view = cells(x, self.spec)
        weight, bias = (each(wide(value), sigma, view) for value in (self.weight, self.bias) if value is not None)
        tau = None if self.tau is None else each(wide(self.tau), sigma, view)
        y = torch.addcmul(bias if tau is None else bias - tau, view.split(wide(x)), weight / sigma)
        return view.join(y if tau is None else torch.relu(y) + tau).to(x.dtype)


class LocalResponseNorm(nn.Module):
    """Division by the energy of neighbouring channels (Krizhevsky et al. 2012); see `torch.nn.LocalResponseNorm`.

    As in torch, α weighs the mean of the neighbours' squares; the paper's weighs their sum, so that its α = 1e-4 with
    5 neighbours is 5e-4 here.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        expect_size("LocalResponseNorm", size=size)
        if size == 0:
            raise ShapeError(
                "LocalResponseNorm was asked for a neighbourhood of no channel.",
                found={"size": size},
                because="each channel is divided by the energy of `size` channels around it, itself among them",
                do="use size ≥ 1, AlexNet's is 5",
            )
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        """``x / (k + α/size · Σ x² over `size` channels)^β``."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        expect_floats(self, input)
        if input.ndim < 3:
            raise ShapeError(
                "LocalResponseNorm was given an input without positions.",
                found={"input": tuple(input.shape)},
                because="it reads (N, C, *) with one axis of positions or more",
                do="pass input.unsqueeze(-1) where there is one position",
            )
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """As torch writes it."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class DynamicTanh(nn.Module):
    """``g · tanh(α x) + b`` (Zhu et al. 2025, "Transformers without Normalization"): no statistics at all.

    Args:
        num_channels: C.
        alpha: the starting value of the one learned α.
        layout: whether the input is (N, *, C) or (N, C, *).
        device: of parameters.
        dtype: of parameters.

    Raises:
        SpecError: another layout.
        ShapeError: at a call, the input has other channels.
    """

    def __init__(
        self,
        num_channels: int,
        alpha: float = 0.5,
        layout: Layout = "channels_last",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if layout not in ("channels_first", "channels_last"):
            raise SpecError(
                "DynamicTanh was asked for a layout that there is not.",
                found={"layout": repr(layout)},
                because="channels stand on the second axis or on the last",
                do='choose "channels_first" or "channels_last"',
            )
        self.layout = layout
        self.alpha = nn.Parameter(torch.full((1,), alpha, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.ones(num_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        """The squashed input."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        expect_channels(self, input, len(self.weight), 1 if self.layout == "channels_first" else -1)
        tail = (1,) * (input.ndim - 2) if self.layout == "channels_first" else ()
        weight, bias = self.weight.view(-1, *tail), self.bias.view(-1, *tail)
        return (torch.tanh(self.alpha * input) * weight + bias).to(input.dtype)

    def extra_repr(self) -> str:
        """The channels and the layout."""
        return f"{self.weight.numel()}, layout={self.layout!r}"
