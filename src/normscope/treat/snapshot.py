"""A model as it was, so that a treatment that fails half way leaves nothing behind."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normscope.anatomy.isolate import computed
from normscope.terms.errors import ModelError


class Snapshot:
    """Everything of `model` that a treatment can change: modules, parameters, buffers, hooks, modes, attributes."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _attributes(module)) for module in model.modules()]
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if not is_lazy(tensor)}
        self._tensors = [_Kept(tensor) for tensor in tensors.values()]

    def restore(self) -> None:
        """Put everything back, bit for bit, into the same objects."""
        for module, kind, attributes in self._modules:
            module.__class__ = kind
            _put_back(vars(module), attributes)
        for kept in self._tensors:
            kept.restore()


class _Kept:
    """One tensor: its storage, its numbers, its gradient and whether it asks for one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.storage, self.numbers = tensor, tensor.data, tensor.detach().clone()
        self.wants_gradient = tensor.requires_grad
        self.gradient = tensor.grad if tensor.is_leaf else None

    def restore(self) -> None:
        self.tensor.data = self.storage
        self.tensor.data.copy_(self.numbers)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.wants_gradient)
            self.tensor.grad = self.gradient


def working_copy(model: nn.Module) -> nn.Module:
    """A deep copy of `model`, hooks and ties included; of a tensor that a module computed, the numbers alone.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model, dict(computed(model)))
    except Exception as error:
        raise ModelError(
            f"A copy of {type(model).__name__} was asked for, to treat it and leave the original alone.",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            because="copy.deepcopy cannot copy this model (a lock, an open file)",
            do="treat the model itself with inplace=True, or make it copyable",
        ) from error


_Attribute = tuple[Any, Any]  # the object itself, and its contents when it is a container


def _attributes(module: nn.Module) -> dict[str, _Attribute]:
    return {
        name: (value, copy.copy(value) if type(value) in (dict, OrderedDict, list, set) else None)
        for name, value in vars(module).items()
    }


def _put_back(attributes: dict[str, Any], kept: dict[str, _Attribute]) -> None:
    """Make `attributes` what they were. Containers are refilled, not replaced: handles of hooks point at them."""
    for name in attributes.keys() - kept.keys():
        del attributes[name]
    for name, (value, contents) in kept.items():
        if contents is not None:
            value.clear()
            (value.extend if type(value) is list else value.update)(contents)
        attributes[name] = value
