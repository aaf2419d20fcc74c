"""Every normalization as a module, under the names and arguments of torch.nn where torch has it."""

from __future__ import annotations

from normscope.nn import init
from normscope.norms.batch import BatchRenorm, GhostBatchNorm, OnlineNorm
from normscope.norms.classes import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LayerNorm2d,
    RMSNorm,
    SyncBatchNorm,
)
from normscope.norms.combined import BatchChannelNorm, SwitchableNorm
from normscope.norms.cosine import CosineConv1d, CosineConv2d, CosineConv3d, CosineLinear
from normscope.norms.evonorm import EvoNormB0, EvoNormS0
from normscope.norms.module import Norm, build
from normscope.norms.recurrent import GRU, LSTM, RNN
from normscope.norms.reparametrize import (
    centered_weight_norm,
    cosine,
    spectral_norm,
    weight_norm,
    weight_standardization,
)
from normscope.norms.sample import DynamicTanh, FilterResponseNorm, LocalResponseNorm, PositionalNorm
from normscope.norms.temporal import TemporalBatchNorm
from normscope.norms.whitening import DecorrelatedBatchNorm, IterNorm

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BatchChannelNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm",
    "CosineConv1d",
    "CosineConv2d",
    "CosineConv3d",
    "CosineLinear",
    "DecorrelatedBatchNorm",
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "IterNorm",
    "LayerNorm",
    "LayerNorm2d",
    "LocalResponseNorm",
    "Norm",
    "OnlineNorm",
    "PositionalNorm",
    "RMSNorm",
    "SwitchableNorm",
    "SyncBatchNorm",
    "TemporalBatchNorm",
    "build",
    "centered_weight_norm",
    "cosine",
    "init",
    "spectral_norm",
    "weight_norm",
    "weight_standardization",
]
