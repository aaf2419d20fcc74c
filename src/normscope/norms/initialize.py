"""Starting weights: by the variance of the signal, by measurement on data, or without norms at all.

Every function changes the module in place and returns it. Gains are those of the activation that follows, from
`normscope.terms.activations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normscope.anatomy.batch import Probe
from normscope.norms.shapes import expect_module
from normscope.terms.activations import ACTIVATIONS, activation_named
from normscope.terms.errors import DataError, ModelError, UnknownNameError

M = TypeVar("M", bound=nn.Module)
Layer = Any  # one of _PRODUCERS: with `weight`, `bias` and, for convolutions, `groups`
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PRODUCERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def gain_of(activation: str | None) -> float:
    """The gain of an activation by torch's functional or class name; 1 for None.

    Raises:
        UnknownNameError: no such activation is known.
    """
    if activation is None:
        return 1.0
    known = activation_named(activation)
    if known is None:
        raise UnknownNameError(
            "An initialization was asked for the gain of an activation that is not known.",
            found=f"`{activation}`",
            because="the gain is a number of that function",
            do="choose one of " + ", ".join(sorted(ACTIVATIONS)),
        )
    return known.gain


def xavier(module: M, activation: str | None = None, *, uniform: bool = False) -> M:
    """Variance ``gain² · 2/(fan_in + fan_out)`` (Glorot & Bengio 2010, equation 12); biases 0.

    Args:
        module: the model or layer.
        activation: what follows each layer, for the gain.
        uniform: whether weights are uniform rather than normal.

    Raises:
        UnknownNameError: no such activation is known.
    """
    gain = gain_of(activation)
    return _each(module, lambda w, fan_in, fan_out: _draw(w, gain * math.sqrt(2 / (fan_in + fan_out)), uniform))


def he(module: M, activation: str | None = "relu", *, mode: str = "fan_in", uniform: bool = False) -> M:
    """Variance ``gain²/fan`` (He et al. 2015, equations 10 and 14); biases 0.

    Args:
        module: the model or layer.
        activation: what follows each layer, for the gain.
        mode: "fan_in" keeps the variance of signals, "fan_out" that of gradients.
        uniform: whether weights are uniform rather than normal.

    Raises:
        UnknownNameError: no such activation, or no such mode.
    """
    if mode not in ("fan_in", "fan_out"):
        raise UnknownNameError(
            "He's initialization was asked for a mode that it does not have.",
            found=f"mode={mode!r}",
            because="it keeps the variance of signals or that of gradients",
            do='choose "fan_in" or "fan_out"',
        )
    gain = gain_of(activation)
    return _each(module, lambda w, i, o: _draw(w, gain / math.sqrt(i if mode == "fan_in" else o), uniform))


def orthogonal(module: M, activation: str | None = None) -> M:
    """Rows (or columns) orthogonal, of length `gain` (Saxe et al. 2014); biases 0.

    Args:
        module: the model or layer.
        activation: what follows each layer, for the gain.

    Raises:
        UnknownNameError: no such activation is known.
    """
    gain = gain_of(activation)
    return _each(module, lambda w, i, o: nn.init.orthogonal_(w, gain))


def lsuv(module: M, batch: Any, *, tolerance: float = 0.01, max_steps: int = 10) -> M:
    """Orthogonal weights, scaled layer by layer until each output has variance 1 on `batch` (Mishkin & Matas 2016).

    Args:
        module: the model, run as `normscope.Probe` runs it.
        batch: real inputs, as the loader yields them.
        tolerance: how far the variance may stay from 1.
        max_steps: how often a layer is scaled at most.

    Raises:
        DataError: a layer's output is constant, or not finite, on the batch.
    """
    orthogonal(module)

    def scale(layer: Layer, output: Callable[[], Tensor]) -> None:
        for _ in range(max_steps):
            var = _spread(layer, output().reshape(1, -1))
            if abs(var.item() - 1) < tolerance:
                return
            _assign(layer, layer.weight / var.sqrt())

    return _layer_by_layer(module, batch, scale)


def data_dependent(module: M, batch: Any) -> M:
    """Scale and shift each output unit to mean 0 and variance 1 on `batch` (Salimans & Kingma 2016, equations 5 and 6).

    Weights keep their directions; call it after another initialization. Layers without a bias are only scaled.

    Args:
        module: the model, run as `normscope.Probe` runs it.
        batch: real inputs, as the loader yields them.

    Raises:
        DataError: a unit's output is constant, or not finite, on the batch.
    """

    def fit(layer: Layer, output: Callable[[], Tensor]) -> None:
        units = _units(layer, output())
        deviation = _spread(layer, units).sqrt()
        along = [1] * layer.weight.ndim
        if isinstance(layer, _TRANSPOSED):  # (inputs, outputs of a group, …), the groups along the inputs
            along[1] = -1
            rows = layer.weight.unflatten(0, (layer.groups, -1))
            _assign(layer, (rows / deviation.view(layer.groups, *along)).flatten(0, 1))
        else:
            along[0] = -1
            _assign(layer, layer.weight / deviation.view(along))
        if layer.bias is not None:
            layer.bias.copy_((layer.bias - units.mean(1)) / deviation)

    return _layer_by_layer(module, batch, fit)


def fixup(branches: Sequence[nn.Module], *, activation: str | None = "relu") -> None:
    """Residual branches that start at zero and need no norm (Zhang, Dauphin, Ma 2019, "Fixup Initialization").

    In each of the L branches of m weight layers the last layer starts at 0 and the others at He's standard deviation
    times ``L^(−1/(2m − 2))`` (rule 2). Rule 3, scalar biases and a scalar multiplier, is a matter of the
    architecture; a classifier at the end starts at 0 (rule 1): use `torch.nn.init.zeros_`.

    Args:
        branches: the residual branches, without their shortcuts, in any order.
        activation: what follows each layer, for the gain.

    Raises:
        ModelError: a branch holds no weight layer.
        UnknownNameError: no such activation is known.
    """
    if isinstance(branches, nn.Module) or not branches:
        raise ModelError(
            "Fixup was asked for without a list of residual branches.",
            found="an empty list" if not isinstance(branches, nn.Module) else f"one {type(branches).__name__}",
            because="the scale of each branch depends on how many there are",
            do="pass the branches alone, such as [block.branch for block in model.blocks]",
        )
    for branch in branches:
        layers = [layer for layer in branch.modules() if isinstance(layer, _PRODUCERS)]
        if not layers:
            raise ModelError(
                "Fixup was given a residual branch without weights.",
                found=f"{type(branch).__name__} with {len(list(branch.modules())) - 1} modules",
                because="it scales the weight layers of each branch",
                do="pass the branches alone, such as [block.branch for block in model.blocks]",
            )
        he(branch, activation)
        shrink = len(branches) ** (-1 / (2 * len(layers) - 2)) if len(layers) > 1 else 1.0
        for layer in layers[:-1]:
            _assign(layer, layer.weight.detach() * shrink)
        _assign(layers[-1], torch.zeros_like(layers[-1].weight))


def _each(module: M, fill: Callable[[Tensor, int, int], object]) -> M:
    """Fill the weight of every weight layer, given its fan in and fan out, and zero its bias."""
    expect_module("An initialization", module)
    for layer in module.modules():
        if isinstance(layer, _PRODUCERS):
            weight = layer.weight.detach().clone()
            outputs, inputs = weight.shape[:2]
            if isinstance(layer, _TRANSPOSED):
                outputs, inputs = inputs, outputs // layer.groups
            elif not isinstance(layer, nn.Linear):
                outputs //= layer.groups
            field = weight[0, 0].numel()
            fill(weight, inputs * field, outputs * field)
            _assign(layer, weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def _draw(weight: Tensor, deviation: float, uniform: bool) -> None:
    if uniform:
        nn.init.uniform_(weight, -math.sqrt(3) * deviation, math.sqrt(3) * deviation)
    else:
        nn.init.normal_(weight, 0.0, deviation)


def _assign(layer: Layer, weight: Tensor) -> None:
    """Set the weight, through its parametrization where it has one."""
    with torch.no_grad():
        if parametrize.is_parametrized(layer, "weight"):
            layer.weight = weight
        else:
            layer.get_parameter("weight").copy_(weight)


def _layer_by_layer(module: M, batch: Any, fit: Callable[[Layer, Callable[[], Tensor]], None]) -> M:
    """Run the batch through once; each weight layer is fitted when it is first reached, on what reaches it then."""
    expect_module("An initialization on data", module)
    done: set[nn.Module] = set()

    def reach(layer: Layer, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if layer in done:
            return output
        done.add(layer)
        fit(layer, lambda: layer.forward(*args))
        return layer.forward(*args)

    hooks = [layer.register_forward_hook(reach) for layer in module.modules() if isinstance(layer, _PRODUCERS)]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.no_grad():
            Probe.of(batch).run(module)
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, before in buffers:
            buffer.copy_(before)
    if not done:
        raise ModelError(
            "An initialization on data was asked of a model that has nothing to fit.",
            found=f"{type(module).__name__}, of which the batch reached no linear or convolutional layer",
            because="it scales the weights of such layers by what reaches them",
            do="pass the whole model, and a batch that runs through all of it",
        )
    return module


def _units(layer: Layer, output: Tensor) -> Tensor:
    """The outputs as (units, cells)."""
    positions = 0 if isinstance(layer, nn.Linear) else layer.weight.ndim - 2
    return output.movedim(output.ndim - 1 - positions, 0).flatten(1)


def _spread(layer: Layer, values: Tensor) -> Tensor:
    """The biased variance of each row of (units, cells).

    Raises:
        DataError: it is zero or not finite for some.
    """
    var = values.var(1, unbiased=False)
    if (var > 0).all() and var.isfinite().all():
        return var
    raise DataError(
        "An initialization measured a layer on data that do not spread.",
        found=f"variance {var.min().item():.3g} to {var.max().item():.3g} behind {layer}",
        because="the weights are divided by the deviation of the output",
        do="give a batch of several different, finite inputs, and check that no unit before this layer is dead",
    )
