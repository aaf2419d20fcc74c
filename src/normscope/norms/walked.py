"""The steps of a recurrent layer by a kernel: what its norms are, and what batch statistics they learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from normscope.kernels.cpu import recurrent
from normscope.kernels.explain import Candidate, Explanation
from normscope.norms.classes import LayerNorm, RMSNorm
from normscope.norms.temporal import TemporalBatchNorm

_KINDS = {"layer": LayerNorm, "rms": RMSNorm, "batch": TemporalBatchNorm}


def walked(layer: Any, cell: Any, projected: Tensor, state: Any, suffix: str, mask: Tensor | None) -> Any:
    """The outputs (T, N, H) and the last states, or None where no kernel serves.

    The modules of the norms inside are not called then; their weights are used, and their statistics learn.

    Args:
        layer: an `Unrolled` with norms inside.
        cell: "lstm" or "gru".
        projected: the normalized product of the inputs with its bias, (T, N, W).
        state: the first hidden state, and of an LSTM the first cell, (N, H) each.
        suffix: of the parameters of this layer and direction.
        mask: (T, N), where sequences have several lengths.
    """
    of_product, of_cell = _norms(layer, suffix)
    norms = of_product if of_cell is None else [*of_product, of_cell]
    if not _usual(layer.norm, norms, of_product):
        return None
    batch, eps = layer.norm == "batch", norms[0].eps
    walk = recurrent.Walk(cell, layer.norm, eps, batch and not norms[0].training)
    inputs = _inputs(layer, projected, state, suffix, of_product, of_cell)
    if recurrent.refuses(inputs, mask is not None):
        return None
    if walk.fixed:
        inputs = inputs._replace(told=_kept(len(projected), of_product, of_cell))
    elif batch:
        norms[0]._check_batch(state[0])
    y, c, told = recurrent.walked(walk, inputs)
    if batch and not walk.fixed:
        _learn(told, y.shape[1], of_product, of_cell)
    return y, (y[-1],) if of_cell is None else (y[-1], c)


def explained(layer: Any, input: Tensor | PackedSequence) -> Explanation:
    """What takes the steps of an `Unrolled` over `input`, in all layers and directions alike, and why."""
    masked = isinstance(input, PackedSequence)
    x = input.data if masked else input
    if masked:
        sizes = len(input.batch_sizes), int(input.batch_sizes[0])
    elif x.ndim == 2:
        sizes = len(x), 1
    else:
        sizes = (x.shape[1], x.shape[0]) if layer.batch_first else (x.shape[0], x.shape[1])
    reason = _reason(layer, x, sizes, masked)
    what = f"{layer.cell or 'rnn'} with {'no norm' if layer.norm is None else f'{layer.norm} norm'} inside"
    size = "×".join(map(str, (*sizes, x.shape[-1])))
    told = f"{what}, {layer.hidden_size} hidden units: {size} {str(x.dtype).removeprefix('torch.')}, {x.device.type}"
    torchs = "loop" if layer.norm in (None, "weight") else "steps"
    whys = {
        None: "a kernel that walks through time is taken wherever it serves",
        "loop": "without a norm between the steps torch's own loop is the layer",
        "steps": "no kernel serves, so torch's functions take one step after the other",
    }
    seen = (Candidate("numba", "walk", reason, None, reason is None), Candidate("aten", torchs, chosen=bool(reason)))
    return Explanation(told, whys[torchs if reason else None], seen)


def _reason(layer: Any, x: Tensor, sizes: tuple[int, int], masked: bool) -> str | None:
    """Why no kernel walks, in words, or None."""
    if layer.norm in (None, "weight"):
        return "it walks with norms between the steps"
    if layer.cell is None:
        return "it walks LSTM and GRU"
    suffix = "_l0"
    of_product, of_cell = _norms(layer, suffix)
    if not _usual(layer.norm, of_product if of_cell is None else [*of_product, of_cell], of_product):
        return "a norm inside is not the one that the layer made, or has no weight, or a bias of its own"
    nothing = x.new_empty(1)
    state = tuple(nothing.expand(sizes[1], layer.hidden_size) for _ in range(layer.states))
    projected = nothing.expand(*sizes, sum(layer.parts) * layer.hidden_size)
    return recurrent.refuses(_inputs(layer, projected, state, suffix, of_product, of_cell), masked)


def _norms(layer: Any, suffix: str) -> tuple[list[Any], Any]:
    """The norms of the recurrent product, and that of the cell or None."""
    of_product = [layer.norms[f"hh{n}{suffix}"] for n in range(len(layer.parts))]
    return of_product, layer.norms["cell" + suffix] if layer.cell == "lstm" else None


def _inputs(
    layer: Any, projected: Tensor, state: Any, suffix: str, of_product: list[Any], of_cell: Any
) -> recurrent.Inputs:
    return recurrent.Inputs(
        projected,
        state[0],
        None if of_cell is None else state[1],
        getattr(layer, "weight_hh" + suffix),
        getattr(layer, "bias_hh" + suffix, None),
        torch.cat([norm.weight for norm in of_product]) if len(of_product) > 1 else of_product[0].weight,
        None if of_cell is None else of_cell.weight,
        getattr(of_cell, "bias", None),
    )


def _usual(norm: str, norms: list[Any], of_product: list[Any]) -> bool:
    """Whether the norms are those that a layer makes: no other module in their place, no bias in the product's."""
    same = all(type(one) is _KINDS[norm] and one.weight is not None and one.eps is not None for one in norms)
    return same and len({(one.eps, one.training) for one in norms}) == 1 and all(
        getattr(one, "bias", None) is None for one in of_product
    )  # fmt: skip


def _kept(steps: int, of_product: list[Any], of_cell: Any) -> Tensor:
    means, variances = zip(*[norm.kept(steps) for norm in of_product])
    return torch.cat([*means, *variances, *(() if of_cell is None else of_cell.kept(steps))], -1).double()


def _learn(told: Tensor, count: int, of_product: list[Any], of_cell: Any) -> None:
    widths = [norm.channels for norm in of_product]
    parts = iter(told.split([*widths, *widths, *([of_cell.channels] * 2 if of_cell is not None else [])], -1))
    means, variances = [next(parts) for _ in widths], [next(parts) for _ in widths]
    for norm, mean, var in zip(of_product, means, variances, strict=True):
        norm.learn(mean, var, count)
    if of_cell is not None:
        of_cell.learn(next(parts), next(parts), count)
