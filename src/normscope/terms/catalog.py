"""Every normalization that one formula covers, a row each.

Adding a norm is adding a row: name, description. What a row cannot say is a field that `NormSpec` lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from normscope.terms.spec import NormSpec

_BATCH = NormSpec(over=frozenset("NS"), train_from="batch", infer_from="running", momentum=0.1)
_LAYER = NormSpec(over=frozenset("CS"), train_from="input", infer_from="input")
_RMS = _LAYER.but(over="C", layout="channels_last", center=False, scale="rms", bias=False, eps=None)

CATALOG: Mapping[str, NormSpec] = MappingProxyType(
    {
        # statistics over the batch ------------------------------------------------------------------------------------
        "BatchNorm": _BATCH,
        "SyncBatchNorm": _BATCH.but(train_from="synchronized"),
        "FrozenBatchNorm": _BATCH.but(train_from="given", infer_from="given", momentum=None),
        "GhostBatchNorm": _BATCH.but(train_from="ghost", virtual_batch=32),
        "BatchRenorm": _BATCH.but(
            train_from="renormalized", momentum=0.01, eps=1e-3, corrections=((3.0, 5_000, 40_000), (5.0, 5_000, 25_000))
        ),
        "EstimatedBatchNorm": _BATCH.but(train_from="running"),
        "PopulationBatchNorm": _BATCH.but(infer_from="population", momentum=None),
        "OnlineNorm": _BATCH.but(train_from="online", infer_from="online", momentum=None, decay=(0.999, 0.99)),
        "DecorrelatedBatchNorm": _BATCH.but(scale="whiten", eps=1e-3),
        "IterNorm": _BATCH.but(scale="whiten", iterations=5),
        # statistics of one sample -------------------------------------------------------------------------------------
        "LayerNorm": _LAYER.but(over="C", layout="channels_last"),
        "LayerNorm2d": _LAYER.but(over="C"),
        "GroupNorm": _LAYER.but(groups=32),
        "InstanceNorm": _LAYER.but(over="S", affine=False, bias=False),
        "RMSNorm": _RMS,
        "LlamaRMSNorm": _RMS.but(cast="normalized", eps=1e-6),  # also Qwen, Mistral and T5's T5LayerNorm
        "GemmaRMSNorm": _RMS.but(weight_offset=1.0, eps=1e-6),
        "PositionalNorm": _LAYER.but(over="C", affine=False, bias=False),
        "FilterResponseNorm": _LAYER.but(over="S", center=False, scale="rms", eps=1e-6),
    }
)
