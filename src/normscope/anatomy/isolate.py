"""Running a model without leaving a trace in it."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy
from torch.nn.utils import parametrize

from normscope.terms.errors import ModelError

Container: TypeAlias = "dict[Any, Any] | list[Any] | set[Any] | deque[Any]"

LARGEST = 1024
"""Entries of a container in a module's attributes up to which it is put back: a cache, not a vocabulary."""

OF_TORCH = frozenset(nn.Module().__dict__)
"""Attributes that every module has: hooks, and the dictionaries of what it holds."""

_NO_TENSORS = frozenset({type(None), bool, int, float, str, dict, OrderedDict, list, tuple, set})


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that the user wrote: inside `torch.compile`, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@contextmanager
def isolated(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Inside, `model` may be run in any mode; afterwards it is bitwise what it was, whatever happened.

    Buffers are replaced by clones and put back; so are the attributes of every module (counters, the ``training`` flag,
    caches in dicts, lists, sets and deques of up to `LARGEST` entries), the random states of torch, NumPy and Python,
    and the generators that modules hold. Gradients are neither kept nor cleared here: ask for them with
    `torch.autograd.grad`, inside (activation checkpointing runs the forward pass again). Compiled parts run eagerly. A
    forward that writes into its own *parameters* is not undone.

    Args:
        model: any module; wrappers are passed through.
        training: False runs every module in evaluation mode. True runs a model in training mode as it stands, frozen
            parts included, and one in evaluation mode wholly in training mode. None leaves the modes alone.

    Raises:
        ModelError: a lazy module has not seen its first batch, so running it would create its parameters.
    """
    _refuse_uninitialized(model)
    everything = list(unwrapped(model).modules())
    modules = [module for module in everything if not isinstance(module, torch.jit.ScriptModule)]
    scripted = [module for module in everything if isinstance(module, torch.jit.ScriptModule)]
    kept = [(content, _held(content)) for module in modules for content in _contents(module)]
    caching = torch.is_autocast_cache_enabled()
    with _random_states_kept(modules), _scripted_kept(scripted), _eagerly(), _uncached():
        try:
            # A weight cast without gradients must not be found in autocast's cache by the training step.
            torch.set_autocast_cache_enabled(False)
            _exchange_tensors(modules)
            _set_mode(everything, training)
            yield
        finally:
            for content, before in kept:
                _put_back(content, before)
            torch.set_autocast_cache_enabled(caching)


@contextmanager
def _uncached() -> Iterator[None]:
    """Inside, parametrized weights are computed anew; none of these is found in the caller's `parametrize.cached`."""
    then = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = then


def _contents(module: nn.Module) -> Iterator[Container]:
    yield from (module._buffers, module._parameters, module._modules)
    yield from _attributes(module)


def _attributes(module: nn.Module) -> Iterator[Container]:
    """The attributes of a module, and what contains something among them."""
    yield module.__dict__
    yield from _containers(_own(module))


def _own(module: nn.Module) -> list[Any]:
    """The attributes that the user gave a module."""
    return [value for name, value in module.__dict__.items() if name not in OF_TORCH]


def _containers(values: Iterable[Any], depth: int = 3) -> Iterator[Container]:
    for value in values:
        if isinstance(value, dict | list | set | deque | tuple) and len(value) <= LARGEST:
            if not isinstance(value, tuple):
                yield value
            if depth:
                yield from _containers(list(value.values() if isinstance(value, dict) else value), depth - 1)


def _held(content: Container) -> dict[Any, Any] | list[Any]:
    return dict(content) if isinstance(content, dict) else list(content)


def _put_back(content: Container, before: dict[Any, Any] | list[Any]) -> None:
    """Make `content` hold what it held, in place, for others point at it; what did not change is not touched."""
    if isinstance(content, dict) and isinstance(before, dict):
        for name in [name for name in content if name not in before]:
            del content[name]
        for name, value in before.items():
            if name not in content or content[name] is not value:
                content[name] = value
    elif len(content) != len(before) or any(now is not then for now, then in zip(content, before)):
        content.clear()
        if isinstance(content, set | dict):
            content.update(before)
        else:
            content.extend(before)


def _exchange_tensors(modules: list[nn.Module]) -> None:
    clones: dict[int, Tensor] = {}

    def cloned(tensor: Tensor) -> Tensor:
        if id(tensor) not in clones:
            clones[id(tensor)] = tensor.detach().clone()
        return clones[id(tensor)]

    for module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = cloned(buffer)
        for content in _attributes(module):
            if not isinstance(content, set):
                places = list(content.items() if isinstance(content, dict) else enumerate(content))
                for place, value in places:
                    if _is_plain_tensor(value):
                        content[place] = cloned(value)


def _is_plain_tensor(value: Any) -> bool:
    """Whether a forward pass may write into `value`, and it is no parameter."""
    return _is_tensor(value) and not value.requires_grad and not isinstance(value, Parameter)


def _is_tensor(value: Any) -> bool:
    """As `isinstance` says, over which torch takes its time."""
    return type(value) not in _NO_TENSORS and isinstance(value, Tensor)


def computed(model: nn.Module) -> dict[int, Tensor]:
    """The numbers of tensors that a forward pass left in the model's attributes, by identity.

    `copy.deepcopy` refuses a tensor that autograd made; as its memo this hands it what to take instead.
    """
    held = (
        value
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for content in _contents(module)
        for value in (content.values() if isinstance(content, dict) else content)
    )
    return {id(value): value.detach().clone() for value in held if _is_tensor(value) and not value.is_leaf}


def _set_mode(modules: list[nn.Module], training: bool | None) -> None:
    # The flag itself, not .train(): a module may do more there, such as merging low-rank weights.
    if training is None or (training and modules[0].training):
        return
    for module in modules:
        module.training = training


def _refuse_uninitialized(model: nn.Module) -> None:
    for path, module in model.named_modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(tensor is not None and is_lazy(tensor) for tensor in tensors):
            raise ModelError(
                "A model was to be run before it has its parameters.",
                found=f"{type(module).__name__} without shapes at `{path or '(model)'}`",
                because="a lazy module makes its parameters in its first forward pass, and that must be yours",
                do="run one batch through the model first",
            )


def _eagerly() -> AbstractContextManager[Any]:
    # Where nothing was compiled yet the compiler is not loaded, and loading it takes a second.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _scripted_kept(modules: list[torch.jit.ScriptModule]) -> Iterator[None]:
    """A scripted module gives no access to its dictionaries: its buffers are written back instead of exchanged."""
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers(recurse=False)]
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _random_states_kept(modules: list[nn.Module]) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python, numpy, other = random.getstate(), np.random.get_state(), _other_accelerator()
    accelerator = other.get_rng_state() if other is not None else None
    held = [value for module in modules for value in _own(module) if isinstance(value, torch.Generator)]
    states = [generator.get_state() for generator in held]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            if other is not None:
                other.set_rng_state(accelerator)
            for generator, state in zip(held, states):
                generator.set_state(state)


def _other_accelerator() -> Any:
    """The module of the accelerator at hand when it is not CUDA (``torch.mps``, ``torch.xpu``); else None."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if accelerator is None or accelerator.type == "cuda" else torch.get_device_module(accelerator)
