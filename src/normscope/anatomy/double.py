"""A stand-in for a module of an unknown class: the same code with random numbers, to be tried without harm."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.anatomy.isolate import isolated

_WEIGHTS = ("weight", "gamma", "scale", "g", "alpha", "a_2")
_BIASES = ("bias", "beta", "shift", "b", "b_2")
_EPS = ("eps", "variance_epsilon", "epsilon", "_eps", "norm_eps", "layer_norm_eps")
_USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 0.0)
_CHANNELS = ("num_features", "num_channels", "normalized_shape", "hidden_size", "dim", "features", "channels")
_BATCH, _LENGTH, _HEIGHT, _WIDTH = 11, 7, 5, 3
_LARGEST = 65536  # elements of a tensor; a norm has one number per channel


@dataclass(frozen=True)
class Parts:
    """The tensors of a norm by their part in the formula: one number per channel, or one, or None."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None


@dataclass(frozen=True)
class Run:
    """What a module made of one input in one mode."""

    x: Tensor
    y: Tensor
    training: bool


class Double:
    """A copy of `module` with random positive numbers in its tensors, without hooks.

    Attributes:
        whole: the copy.
        norm: the copy with the modules inside it (an activation, a dropout) taken out.

    Raises:
        Exception: whatever the parts of the module raise when they are copied.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        memo: dict[int, Any] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            memo[id(tensor)] = _random(tensor, dtype, generator)
        for each in module.modules():
            memo.update({id(value): type(value)() for name, value in vars(each).items() if name.endswith("_hooks")})
        self.whole = copy.deepcopy(module, memo)
        self.norm = copy.deepcopy(self.whole)
        for name, _ in list(self.norm.named_children()):
            setattr(self.norm, name, nn.Identity())

    @staticmethod
    def is_worth_it(module: nn.Module) -> bool:
        """Whether `module` is as small as a norm."""
        return all(tensor.numel() <= _LARGEST for tensor in (*module.parameters(), *module.buffers()))

    @property
    def parts(self) -> Parts:
        """The tensors of the norm by their part in the formula, known by their names."""
        own = (*self.norm.named_parameters(recurse=False), *self.norm.named_buffers(recurse=False))
        floating = {name: tensor.detach().cpu().flatten() for name, tensor in own if tensor.is_floating_point()}

        def first(names: Iterable[str]) -> Tensor | None:
            return next((floating[name] for name in names if name in floating), None)

        return Parts(
            weight=first(_WEIGHTS),
            bias=first(_BIASES),
            mean=first(name for name in floating if "mean" in name),
            var=first(name for name in floating if "var" in name),
        )

    @property
    def channels(self) -> int:
        """How many channels the norm works on: what its tensors or its attributes say, else some."""
        own = (*self.norm.parameters(recurse=False), *self.norm.buffers(recurse=False))
        sizes = [tensor.numel() for tensor in own if tensor.is_floating_point() and tensor.numel() > 1]
        for name in _CHANNELS:
            said = getattr(self.norm, name, None)
            said = said[0] if isinstance(said, tuple | list) and len(said) == 1 else said
            if isinstance(said, int) and not isinstance(said, bool):
                sizes.append(said)
        return sizes[0] if sizes else 2 * self.groups if self.groups > 1 else 8

    @property
    def groups(self) -> int:
        """Into how many groups the norm says that it splits its channels."""
        said = getattr(self.norm, "num_groups", getattr(self.norm, "groups", 1))
        return said if isinstance(said, int) and said > 0 else 1

    @property
    def eps(self) -> tuple[float, ...]:
        """The eps that the norm says it has, or the usual ones."""
        said = (getattr(self.norm, name, None) for name in _EPS)
        return next(((float(eps),) for eps in said if isinstance(eps, float)), _USUAL_EPS)

    def runs(self, std: float) -> list[Run]:
        """The norm on inputs of that deviation, channels second or last: a run for each shape taken and each mode."""
        generator = torch.Generator().manual_seed(1)
        runs: list[Run] = []
        for shape in self._shapes():
            x = (torch.randn(shape, generator=generator) + 0.5) * std
            answers = {training: self.answer(x, training) for training in (True, False)}
            if all(y is not None for y in answers.values()):
                runs += [Run(x, y, training) for training, y in answers.items() if y is not None]
        return runs

    def answer(self, x: Tensor, training: bool, module: nn.Module | None = None) -> Tensor | None:
        """What the norm (or `module`, a part of this double) makes of `x`; None when it does not take it."""
        module = module if module is not None else self.norm
        device = next((tensor.device for tensor in (*self.whole.parameters(), *self.whole.buffers())), x.device)
        try:
            with isolated(module, training=training), torch.no_grad():
                y = module.forward(x.to(device, copy=True))
        except Exception:  # whatever a stranger's forward raises for a shape it does not take
            return None
        usable = isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point() and bool(y.isfinite().all())
        return y.cpu() if usable else None

    def after(self, x: Tensor) -> Parts:
        """The tensors of the norm after one run in training mode."""
        with isolated(self.norm, training=True), torch.no_grad():
            self.norm.forward(x.clone())
            return self.parts

    def _shapes(self) -> list[tuple[int, ...]]:
        c = self.channels  # as many samples as channels would let a weight be taken along the wrong axis
        n, length, height, width = _BATCH if c != _BATCH else _BATCH + 2, _LENGTH, _HEIGHT, _WIDTH
        return [(n, c, height, width), (n, height, width, c), (n, c, length), (n, length, c), (n, c)]


def _random(tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A plain tensor in the place of `tensor`, whatever it is made of: positive numbers, or integer zeros."""
    device = "cpu" if tensor.is_meta else tensor.device
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    value = (torch.rand(tensor.shape, generator=generator) + 0.5).to(device, dtype)
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
