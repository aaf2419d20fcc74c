"""Normalized weights, as torch parametrizations: the formula, applied to the rows of a weight.

A row holds the weights of one output: for a convolution all but the first axis, for a transposed one the inputs and
the kernel of that output's group. Assigning to the weight, ``torch.nn.init``, `copy.deepcopy`, `state_dict` and
``torch.nn.utils.parametrize.remove_parametrizations`` work as with torch's own parametrizations.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import string_at
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normscope.kernels.reference import normalize
from normscope.norms import past
from normscope.norms.glance import SIZE, TOP, can_be_looked_at
from normscope.norms.shapes import expect_module
from normscope.norms.sources import recomputing
from normscope.norms.sources.snapshot import snapshot
from normscope.terms.errors import ModelError, SpecError
from normscope.terms.spec import NormSpec

M = TypeVar("M", bound=nn.Module)

_ROW = NormSpec(over=frozenset("C"), train_from="input", infer_from="input", affine=False, bias=False)
_UNIT = _ROW.but(center=False, scale="l2", eps=1e-12, eps_place="floor")
# the first bytes of floats from 2^-39 (float32), 2^-31 (float64) up to below the largest
_FAR_FROM_ZERO = {4: bytes(range(0x2C, 0x7F)), 8: bytes(range(0x3E, 0x7F))}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Rows(nn.Module):
    """``w = g · (v − μ)/σ``, row by row.

    Args:
        spec: what μ and σ of a row are.
        groups: the groups of a transposed convolution, whose outputs stand on the second axis; None for any other.
        gain: "row" learns one g a row, started at the row's own σ (weight norm); "fan_in" learns one g a row for rows
            of unit norm, started at 1 (scaled standardization); None leaves g at 1.
    """

    def __init__(self, spec: NormSpec, groups: int | None = None, gain: str | None = None) -> None:
        super().__init__()
        self.spec, self.groups, self.gain = spec, groups, gain
        self._lengthens = gain == "row" and not spec.center and groups is None

    def rows(self, weight: Tensor) -> Tensor:
        """`weight` as (outputs, fan in)."""
        if self.groups is not None:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight.flatten(1)

    def unrows(self, rows: Tensor, like: torch.Size) -> Tensor:
        """The rows as the weight that they came from, of shape `like`."""
        if self.groups is None:
            return rows.reshape(like)
        parts = rows.reshape(self.groups, like[1], like[0] // self.groups, *like[2:])
        return parts.transpose(1, 2).reshape(like)

    def forward(self, *stored: Tensor) -> Tensor:
        """The weight that the layer uses, from (v) or from (g, v)."""
        if self._lengthens and (weight := _lengthened(stored[1], stored[0])) is not None:
            return weight
        rows = normalize(self.rows(stored[-1]), self.spec)
        if self.gain is not None:
            gain = stored[0].flatten()[:, None]
            rows = rows * (gain if self.gain == "row" else gain / rows.shape[1] ** 0.5)
        return self.unrows(rows, stored[-1].shape)

    def right_inverse(self, weight: Tensor) -> Any:
        """What to store so that the layer's weight is `weight`, as far as the reparametrization reaches it."""
        if self.gain is None:
            return weight
        rows = self.rows(weight)
        size = torch.linalg.vector_norm(rows, dim=1)
        shape = (-1, *[1] * (weight.ndim - 1))
        if self.gain == "fan_in":
            return torch.ones_like(size).view(shape), weight
        if self.spec.center:
            size = torch.linalg.vector_norm(rows - rows.mean(1, keepdim=True), dim=1)
        # a row of zeros has no direction: any will do, so that its gain has a gradient
        direction = torch.zeros_like(rows)
        direction[:, 0] = 1
        rows = torch.where(size[:, None] > 0, rows, direction)
        return size.view(shape) if self.groups is None else size.view(1, -1, *shape[2:]), self.unrows(
            rows, weight.shape
        )


def _lengthened(v: Tensor, g: Tensor) -> Tensor | None:
    """``g · v/‖v‖`` a row, by ATen's kernel; None where it serves not, or a row is next to zero, which it makes NaN."""
    if not can_be_looked_at(v):
        return None
    weight, lengths = torch._weight_norm_interface(v, g)
    size = SIZE[v.dtype]
    if string_at(lengths.data_ptr(), lengths.numel() * size)[TOP[size]].translate(None, _FAR_FROM_ZERO[size]):
        return None
    node = weight.grad_fn
    if node is not None:
        node.register_hook(partial(_twice, v, g))
    return weight


def _twice(v: Tensor, g: Tensor, slopes: Sequence[Tensor | None], grads: Sequence[Tensor]) -> Any:
    """The gradients in a form that can be differentiated again: ATen's holds ‖v‖ constant, which is wrong."""
    if not torch.is_grad_enabled():
        return None
    axes = tuple(range(1, v.ndim))
    size = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
    along = (grads[0] * v / size).sum(axes, keepdim=True)
    found = g / size * (grads[0] - along * v / size), along
    return tuple(None if slope is None else one for slope, one in zip(slopes, found, strict=False))


class Spectral(nn.Module):
    """``w / σ₁(w)``, the largest singular value by power iteration (Miyato et al. 2018, algorithm 1).

    One iteration in each forward pass while training; the vectors are buffers named as torch names them.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, axis: int, iterations: int, eps: float) -> None:
        super().__init__()
        self.axis, self.iterations, self.eps = axis, iterations, eps
        matrix = self.matrix(weight.detach())
        for name, size in zip(("_u", "_v"), matrix.shape, strict=True):
            start = nn.functional.normalize(torch.randn(size, dtype=matrix.dtype, device=matrix.device), dim=0)
            self.register_buffer(name, start)
        self.iterate(matrix, 15)

    def matrix(self, weight: Tensor) -> Tensor:
        """`weight` as a matrix, its outputs down."""
        return (weight.movedim(self.axis, 0) if self.axis else weight).flatten(1)

    @torch.no_grad()
    def iterate(self, matrix: Tensor, times: int) -> None:
        """Turn both vectors towards the first singular ones."""
        for _ in range(times):
            nn.functional.normalize(torch.mv(matrix, self._v), dim=0, eps=self.eps, out=self._u)
            nn.functional.normalize(torch.mv(matrix.H, self._u), dim=0, eps=self.eps, out=self._v)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with spectral norm 1; zero stays zero."""
        matrix = self.matrix(weight)
        again = self.training and recomputing()
        if self.training and not again:
            self.iterate(matrix, self.iterations)
        keep = snapshot if self.training else Tensor.clone
        u, v = past.again(self._u, ()) if again else (keep(self._u), keep(self._v))
        sigma = torch.vdot(u, torch.mv(matrix, v))
        if not can_be_looked_at(sigma) or not sigma.item() > self.eps:
            sigma = sigma.clamp(min=self.eps)
        normalized = weight / sigma
        if self.training and not again:
            past.keep(self._u, (), (u, v), normalized)
        return normalized

    def right_inverse(self, value: Tensor) -> Tensor:
        """Any weight may be stored."""
        return value


def weight_norm(module: M, name: str = "weight") -> M:
    """``w = g · v/‖v‖``, one length g and one direction v a row (Salimans & Kingma 2016, equation 2).

    Checkpoints of torch's `parametrizations.weight_norm` load as they are, and so do those of its older form with
    ``weight_g`` and ``weight_v``.

    Args:
        module: the layer; changed in place.
        name: the parameter.

    Raises:
        ModelError: the layer has no such parameter.
    """
    _register(module, name, Rows(_UNIT, _groups(module), "row"))
    module._register_load_state_dict_pre_hook(partial(_rename_old_keys, name))
    return module


def centered_weight_norm(module: M, name: str = "weight") -> M:
    """Weight norm of rows whose mean is taken out (Huang et al. 2017, "Centered Weight Normalization").

    Args:
        module: the layer; changed in place.
        name: the parameter.

    Raises:
        ModelError: the layer has no such parameter.
    """
    return _register(module, name, Rows(_UNIT.but(center=True), _groups(module), "row"))


def weight_standardization(module: M, name: str = "weight", *, gain: bool = False, eps: float = 1e-5) -> M:
    """``w = (v − mean v)/√(var v + ε)``, row by row (Qiao et al. 2019, "Micro-Batch Training…").

    Args:
        module: the layer; changed in place.
        name: the parameter.
        gain: whether the rows are divided by √fan_in and multiplied by a learned gain, which keeps the variance of
            the signal (Brock et al. 2021, "Characterizing signal propagation…").
        eps: ε.

    Raises:
        ModelError: the layer has no such parameter.
    """
    return _register(module, name, Rows(_ROW.but(eps=eps), _groups(module), "fan_in" if gain else None))


def cosine(module: M, name: str = "weight") -> M:
    """``w = v/‖v‖``, row by row: outputs are bounded by the length of the input (Luo et al. 2018, weights alone).

    Args:
        module: the layer; changed in place.
        name: the parameter.

    Raises:
        ModelError: the layer has no such parameter.
    """
    return _register(module, name, Rows(_UNIT, _groups(module)))


def spectral_norm(module: M, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12) -> M:
    """``w = v/σ₁(v)``: the layer's Lipschitz constant is 1 (Miyato et al. 2018).

    Args:
        module: the layer; changed in place.
        name: the parameter.
        n_power_iterations: power iterations in each forward pass while training.
        eps: the floor of lengths and of σ₁.

    Raises:
        SpecError: no iteration.
        ModelError: the layer has no such parameter.
    """
    if n_power_iterations < 1:
        raise SpecError(
            "Spectral norm was asked for without a power iteration.",
            found={"n_power_iterations": n_power_iterations},
            because="the largest singular value is followed by one iteration a step, or more, while the weight moves",
            do="use n_power_iterations ≥ 1",
        )
    axis = 0 if _groups(module) is None else 1
    return _register(module, name, Spectral(_parameter(module, name), axis, n_power_iterations, eps))


def _register(module: M, name: str, parametrization: nn.Module) -> M:
    _parameter(module, name)
    if parametrize.is_parametrized(module, name) and getattr(parametrization, "gain", None) is not None:
        raise ModelError(
            f"A gain for the rows of `{name}` was asked of {type(module).__name__}, which is parametrized already.",
            found=f"`{name}` has a parametrization",
            because="gain and direction are stored in place of the weight, so they must come first",
            do="torch.nn.utils.parametrize.remove_parametrizations(layer, name), then ask again",
        )
    parametrize.register_parametrization(module, name, parametrization)
    return module


def _groups(module: nn.Module) -> int | None:
    return module.groups if isinstance(module, _TRANSPOSED) else None


def _parameter(module: nn.Module, name: str) -> Tensor:
    expect_module("A reparametrization of weights", module)
    value = getattr(module, name, None)
    if isinstance(value, Tensor) and value.ndim > 1:
        return value
    raise ModelError(
        f"A reparametrization of `{name}` was asked of {type(module).__name__}.",
        found=f"{name}={'nothing' if value is None else tuple(getattr(value, 'shape', ()))}",
        because="it works on the rows of a weight, which needs at least two axes",
        do="name a weight of this layer: "
        + (", ".join(key for key, weight in module.named_parameters() if weight.ndim > 1) or "it has none"),
    )


def _rename_old_keys(name: str, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Bring the keys of torch's older weight norm to the present ones."""
    for old, new in (("g", 0), ("v", 1)):
        if f"{prefix}{name}_{old}" in state_dict:
            value = state_dict.pop(f"{prefix}{name}_{old}")
            state_dict[f"{prefix}parametrizations.{name}.original{new}"] = value
