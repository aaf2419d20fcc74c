"""The short way through a layer: one call of ATen that is all of it, but for the residual and the activation.

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
from normscope.kernels.direct import cudnn, direct
from normscope.norms.sources.averaged import learned, terms
from normscope.terms.spec import NormSpec

Shortcut = Callable[[Any, Tensor], "Tensor | None"]  # of a `Norm` and its input


def shortcuts(spec: NormSpec) -> tuple[Shortcut | None, Shortcut | None]:
    """The short ways through a layer described by `spec`: at inference, and in training."""
    if native.refuses(spec) is not None:
        return None, None
    (found, _), rows = direct(spec), _ROWS.get(native.family(spec) or "")
    own = None if found is None else partial(_own, found) if rows is None else partial(rows, spec.eps)
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


def _own(found: Any, norm: Any, x: Tensor) -> Tensor | None:
    return found(x, *_affine(norm)) if _fits(norm, x.shape) else None


def _kept(eps: Any, norm: Any, x: Tensor) -> Tensor | None:
    if not _fits(norm, x.shape):
        return None
    buffers = norm._buffers
    mean, var = buffers["running_mean"], buffers["running_var"]
    return torch.batch_norm(x, *_affine(norm), mean, var, False, 0.0, eps, cudnn(x))


def _learned(how: Any, norm: Any, x: Tensor) -> Tensor | None:
    if not _fits(norm, x.shape) or torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
        return None  # (the last as `recomputing`, which would ask again whether this is being compiled)
    return learned(x, norm._buffers, *_affine(norm), *how)


def _learned_alone(how: Any, norm: Any, x: Tensor) -> Tensor | None:
    return None if dist.is_available() and dist.is_initialized() else _learned(how, norm, x)


# by family, where several trailing axes may be the channels
_ROWS: dict[str, Callable[[Any, Any, Tensor], Tensor | None]] = {"layer": _layer, "rms": _rms}


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
