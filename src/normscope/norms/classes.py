"""The norms of torch.nn by their names: torch's arguments and `state_dict` keys, and a row of the catalog each.

Nothing is computed here: a class turns torch's arguments into a description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normscope.norms.module import Norm
from normscope.norms.sources.meeting import PATIENCE
from normscope.terms.catalog import CATALOG
from normscope.terms.spec import NormSpec


class _OfFeatures(Norm):
    """The arguments that torch's batch and instance norms share."""

    _row = ""
    _ranks: tuple[int, ...] | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        **fields: Any,
    ) -> None:
        row = CATALOG[self._row]
        kept = "cumulative" if momentum is None and "N" in row.over else "running"
        own = "batch" if "N" in row.over else "input"
        spec = row.but(
            infer_from=kept if track_running_stats else own,
            eps=eps,
            momentum=0.0 if momentum is None and kept == "running" else momentum,  # torch's InstanceNorm stands still
            affine=affine,
            bias=affine and bias,
        ).but(**fields)
        super().__init__(spec, num_features, ranks=self._ranks, device=device, dtype=dtype)
        if not track_running_stats:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                self.register_buffer(name, None)

    @property
    def num_features(self) -> int:
        """C."""
        return self.channels

    @property
    def affine(self) -> bool:
        """Whether there is a learned weight."""
        return self.spec.affine

    @property
    def track_running_stats(self) -> bool:
        """Whether inference uses statistics kept from training."""
        return self.spec.keeps_state

    def extra_repr(self) -> str:
        """As torch writes it."""
        return (
            f"{self.channels}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, bias={self.spec.bias}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_OfFeatures):
    """Batch normalization of (N, C) or (N, C, L) (Ioffe & Szegedy 2015); see `torch.nn.BatchNorm1d`."""

    _row, _ranks = "BatchNorm", (2, 3)


class BatchNorm2d(_OfFeatures):
    """Batch normalization of (N, C, H, W) (Ioffe & Szegedy 2015); see `torch.nn.BatchNorm2d`."""

    _row, _ranks = "BatchNorm", (4,)


class BatchNorm3d(_OfFeatures):
    """Batch normalization of (N, C, D, H, W) (Ioffe & Szegedy 2015); see `torch.nn.BatchNorm3d`."""

    _row, _ranks = "BatchNorm", (5,)


class SyncBatchNorm(_OfFeatures):
    """Batch normalization of (N, C, *) over the batches of all processes; works with gloo on the CPU too.

    Batches may differ in size, and a rank without data calls the layer on an empty batch. Where a rank makes no call
    at all, the others are warned after 30 seconds and raise a `ModelError` after `patience`, which name it. Both need
    gloo; with NCCL the GPU waits, and torch's watchdog ends the process after the timeout of `process_group`.

    Args:
        num_features: C.
        eps: the guard of the division.
        momentum: the weight of the newest batch in the running statistics; None for their plain average.
        affine: whether there are a learned weight and bias.
        track_running_stats: whether inference uses statistics kept from training.
        process_group: the ranks that share statistics; None for all.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: whether there is a learned bias.
        patience: how many seconds a rank waits for the others.

    Raises:
        ModelError: at a call, a rank did not come in time, or is gone.
    """

    _row = "SyncBatchNorm"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group, self.patience = process_group, patience


class FrozenBatchNorm(Norm):
    """Batch normalization of (N, C, *) with constants: no mode, no gradient and no batch changes it.

    The parameters are buffers, as in torchvision's `FrozenBatchNorm2d`, whose checkpoints and those of BatchNorm load.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, device: Any = None, dtype: Any = None) -> None:
        super().__init__(CATALOG["FrozenBatchNorm"].but(eps=eps), num_features, device=device, dtype=dtype)
        for name in ("weight", "bias"):
            value: Tensor = getattr(self, name)
            delattr(self, name)
            self.register_buffer(name, value.detach())

    def extra_repr(self) -> str:
        """As torchvision writes it."""
        return f"{self.channels}, eps={self.eps}"


class InstanceNorm(_OfFeatures):
    """Instance normalization of (N, C, *) (Ulyanov et al. 2016)."""

    _row = "InstanceNorm"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)

    def _in_full(self, input: Tensor, mask: Tensor | None, residual: Tensor | None) -> Tensor:
        """One sample without a batch axis is taken as a batch of one."""
        if self.ranks is not None and isinstance(input, Tensor) and input.ndim == self.ranks[0] - 1:
            whole = (None if value is None else value.unsqueeze(0) for value in (mask, residual))
            return self.forward(input.unsqueeze(0), *whole).squeeze(0)
        return super()._in_full(input, mask, residual)


class InstanceNorm1d(InstanceNorm):
    """Instance normalization of (N, C, L) or (C, L); see `torch.nn.InstanceNorm1d`."""

    _ranks = (3,)


class InstanceNorm2d(InstanceNorm):
    """Instance normalization of (N, C, H, W) or (C, H, W); see `torch.nn.InstanceNorm2d`."""

    _ranks = (4,)


class InstanceNorm3d(InstanceNorm):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W); see `torch.nn.InstanceNorm3d`."""

    _ranks = (5,)


class GroupNorm(Norm):
    """Group normalization of (N, C, *) (Wu & He 2018); see `torch.nn.GroupNorm`."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        spec = CATALOG["GroupNorm"].but(groups=num_groups, eps=eps, affine=affine, bias=affine and bias)
        super().__init__(spec, num_channels, device=device, dtype=dtype)

    @property
    def num_groups(self) -> int:
        """G."""
        return self.spec.groups

    @property
    def num_channels(self) -> int:
        """C."""
        return self.channels

    @property
    def affine(self) -> bool:
        """Whether there is a learned weight."""
        return self.spec.affine

    def extra_repr(self) -> str:
        """As torch writes it."""
        return f"{self.num_groups}, {self.channels}, eps={self.eps}, affine={self.affine}, bias={self.spec.bias}"


class _OfShape(Norm):
    """What torch's LayerNorm and RMSNorm share: the normalized axes are the last ones."""

    def __init__(self, spec: NormSpec, normalized_shape: int | Sequence[int], device: Any, dtype: Any) -> None:
        several = isinstance(normalized_shape, tuple | list)
        shape: Any = tuple(normalized_shape) if several else (normalized_shape,)
        super().__init__(spec, shape, device=device, dtype=dtype)

    @property
    def normalized_shape(self) -> torch.Size:
        """The sizes of the axes that share statistics."""
        return torch.Size(self.shape)

    @property
    def elementwise_affine(self) -> bool:
        """Whether there is a learned weight."""
        return self.spec.affine

    def extra_repr(self) -> str:
        """As torch writes it."""
        return f"{self.shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class LayerNorm(_OfShape):
    """Layer normalization over the last axes (Ba, Kiros, Hinton 2016); see `torch.nn.LayerNorm`."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        spec = CATALOG["LayerNorm"].but(eps=eps, affine=elementwise_affine, bias=elementwise_affine and bias)
        super().__init__(spec, normalized_shape, device, dtype)


class RMSNorm(_OfShape):
    """Division by the root mean square over the last axes (Zhang & Sennrich 2019); see `torch.nn.RMSNorm`.

    ``cast="normalized"`` and ``weight_offset=1.0`` are the conventions of Llama and T5, and of Gemma.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        **fields: Any,
    ) -> None:
        spec = CATALOG["RMSNorm"].but(eps=eps, affine=elementwise_affine).but(**fields)
        super().__init__(spec, normalized_shape, device, dtype)


class LayerNorm2d(Norm):
    """Layer normalization over the channels of (N, C, *), position by position (timm's `LayerNorm2d`)."""

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        spec = CATALOG["LayerNorm2d"].but(eps=eps, affine=affine, bias=affine and bias)
        super().__init__(spec, num_channels, device=device, dtype=dtype)
