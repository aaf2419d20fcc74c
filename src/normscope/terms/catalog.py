"""Every normalization that one formula covers, a row each.

Adding a norm is adding a row: name, description. What a row cannot say is a field that `NormSpec` lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from normscope.terms.spec import NormSpec

_BATCH = NormSpec(over=frozenset("NS"), train_from="batch", infer_from="running", momentum=0.1)
_LAYER = NormSpec(over=frozenset("CS"), train_from="input", infer_from="input")

CATALOG: Mapping[str, NormSpec] = MappingProxyType(
    {
        # statistics over the batch ------------------------------------------------------------------------------------
        "BatchNorm": _BATCH,
        "SyncBatchNorm": _BATCH.but(train_from="synchronized"),
        "FrozenBatchNorm": _BATCH.but(train_from="given", infer_from="given", momentum=None),
        # statistics of one sample -------------------------------------------------------------------------------------
        "LayerNorm": _LAYER.but(over="C", layout="channels_last"),
        "LayerNorm2d": _LAYER.but(over="C"),
        "GroupNorm": _LAYER.but(groups=32),
        "InstanceNorm": _LAYER.but(over="S", affine=False, bias=False),
        "RMSNorm": _LAYER.but(over="C", layout="channels_last", center=False, scale="rms", bias=False, eps=None),
    }
)
