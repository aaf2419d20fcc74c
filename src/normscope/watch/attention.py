"""`Attending`: the weights of every attention while a model runs, whose own code never shows them."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LIMIT = 1 << 24
"""Elements of weights that are reckoned at once; of a larger batch the first samples are taken."""


class Attending(TorchFunctionMode):
    """Inside, `show` is given the weights (…, queries, keys) of each attention after it has run.

    They are reckoned a second time, without dropout and without gradients, for `multi_head_attention_forward` and
    `scaled_dot_product_attention`. No random number is drawn for it.
    """

    def __init__(self, show: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._show = show

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            weigh = _of_module
        elif func is F.scaled_dot_product_attention:
            weigh = attention_weights
        else:
            return output
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self._show(weigh(*args, **kwargs))
        return output


def _of_module(*args: Any, **kwargs: Any) -> Tensor:
    told = {**kwargs, "training": False, "need_weights": True, "average_attn_weights": False}
    return F.multi_head_attention_forward(*args, **told)[1]  # pyright: ignore[reportReturnType]


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) of `scaled_dot_product_attention` with these arguments, float32 (…, L, S)."""
    queries, keys = query.shape[-2], key.shape[-2]
    if enable_gqa and query.ndim > 2:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    some = slice(0, max(1, LIMIT * lead[0] // max(1, lead.numel() * queries * keys))) if lead else ...
    query, key = (tensor.expand(*lead, *tensor.shape[-2:])[some].float() for tensor in (query, key))
    logits = query @ key.mT * (1 / sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        logits = logits.masked_fill(logits.new_ones(queries, keys, dtype=torch.bool).tril().logical_not(), -torch.inf)
    if attn_mask is not None:
        mask = attn_mask.expand(*lead, queries, keys)[some]
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)
