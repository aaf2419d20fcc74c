"""The short way through a layer: one call of ATen that is all of it.

The long way, `sources.run`, is the specification: it checks, measures, learns, and refuses in words. A shortcut gives
the same, bit for bit, for the calls that training and inference mostly consist of. Every other call, to which it
answers None and torch with an error, takes the long way. Which shortcut serves is settled once a description, and a
call looks at little but the shape: finding one attribute of a module costs a tenth of a layer norm of a few rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normscope.kernels import native
from normscope.norms.sources.averaged import learned, terms
from normscope.terms.spec import NormSpec

Shortcut = Callable[[Any, Tensor], "Tensor | None"]  # of a `Norm` and its input


def shortcuts(spec: NormSpec) -> tuple[Shortcut | None, Shortcut | None]:
    """The short ways through a layer described by `spec`: at inference, and in training."""
    if spec.activation is not None or native.refuses(spec) is not None:
        return None, None
    found = _OWN.get((native.family(spec), spec.layout))
    own = None if found is None else partial(found, spec.eps)
    kept = partial(_kept, spec.eps)
    alone = spec.train_from == "synchronized"
    while_training = None
    if native.averages(spec.but(train_from="batch") if alone else spec):
        while_training = partial(_learned_alone if alone else _learned, terms(spec))
    elif spec.train_from == "given":
        while_training = kept
    elif not spec.keeps_state and not alone:
        while_training = own
    return (kept if spec.keeps_state and spec.layout == "channels_first" else own), while_training


def _layer(eps: Any, norm: Any, x: Tensor) -> Tensor | None:
    return None if norm.channels == 1 else torch.layer_norm(x, norm.shape, *_affine(norm), eps)


def _rms(eps: Any, norm: Any, x: Tensor) -> Tensor | None:
    return torch.rms_norm(x, norm.shape, _affine(norm)[0], eps)


def _group(eps: Any, norm: Any, x: Tensor) -> Tensor | None:
    groups = norm.spec.groups
    if not _fits(norm, x.shape) or x.numel() <= x.shape[0] * groups:
        return None
    return torch.group_norm(x, groups, *_affine(norm), eps)


def _instance(eps: Any, norm: Any, x: Tensor) -> Tensor | None:
    if not _fits(norm, x.shape) or x.numel() <= x.shape[0] * norm.channels or not x.is_contiguous():
        return None
    return torch.instance_norm(x, *_affine(norm), None, None, True, 0.0, eps, _cudnn(x))


def _batch(eps: Any, norm: Any, x: Tensor) -> Tensor | None:
    if not _fits(norm, x.shape) or x.numel() <= norm.channels or native.doubtful(x):
        return None
    return torch.batch_norm(x, *_affine(norm), None, None, True, 0.0, eps, _cudnn(x))


def _kept(eps: Any, norm: Any, x: Tensor) -> Tensor | None:
    if not _fits(norm, x.shape):
        return None
    buffers = norm._buffers
    mean, var = buffers["running_mean"], buffers["running_var"]
    return torch.batch_norm(x, *_affine(norm), mean, var, False, 0.0, eps, _cudnn(x))


def _learned(how: Any, norm: Any, x: Tensor) -> Tensor | None:
    if not _fits(norm, x.shape) or torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
        return None  # (the last as `recomputing`, which would ask again whether this is being compiled)
    return learned(x, norm._buffers, *_affine(norm), *how)


def _learned_alone(how: Any, norm: Any, x: Tensor) -> Tensor | None:
    return None if dist.is_available() and dist.is_initialized() else _learned(how, norm, x)


# by family and layout: the statistics of the input or of the batch, none kept
_OWN: dict[tuple[str | None, str], Callable[[Any, Any, Tensor], Tensor | None]] = {
    ("layer", "channels_last"): _layer,
    ("rms", "channels_last"): _rms,
    ("group", "channels_first"): _group,
    ("instance", "channels_first"): _instance,
    ("batch", "channels_first"): _batch,
}


def _fits(norm: Any, shape: torch.Size) -> bool:
    """Whether the rank and the channels of (N, C, *) are those that the layer was made for."""
    ranks = norm.ranks
    return len(shape) > 1 and (ranks is None or len(shape) in ranks) and shape[1] == norm.channels


def _affine(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    """The weight and the bias; parametrized, pruned and frozen ones are no parameters, and slower to find."""
    held = norm._parameters
    if "weight" in held and "bias" in held:
        return held["weight"], held["bias"]
    return norm.weight, norm.bias


def _cudnn(x: Tensor) -> bool:
    """Whether cuDNN may serve; on the host the answer is not read, and is slow to ask for."""
    return x.is_cpu or torch.backends.cudnn.enabled
