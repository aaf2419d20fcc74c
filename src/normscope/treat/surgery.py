"""Replacing, inserting and removing modules, at every path under which they are registered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from normscope.terms.errors import UnknownNameError
from normscope.terms.site import Site

# What a module knows of its hooks. The dictionaries are shared, so the handles of the hooks go on working.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module that `path` names; ``""`` is the model.

    Raises:
        UnknownNameError: there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnknownNameError(
            f"A treatment was asked for at `{path}`.",
            found=f"{type(model).__name__} has no module there: {error}",
            because="a site of a treatment is the path of a module, as model.named_modules() gives it",
            do="choose a path from normscope.sites(model)",
        ) from None


def within(model: nn.Module, sites: Iterable[str]) -> frozenset[nn.Module]:
    """The modules that `sites` (module paths or site keys) name, with all they hold; every module for no sites.

    Raises:
        UnknownNameError: a site names no module.
    """
    roots = [module_at(model, Site.parse(site).path) for site in sites] or [model]
    return frozenset(module for root in roots for module in root.modules())


def path_of(model: nn.Module, module: nn.Module) -> str:
    """The first path of `module` in `model`."""
    return next(path for path, found in model.named_modules() if found is module)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` wherever `old` is registered, and return the model: `new` when `old` was the root itself.

    `new` takes over the training flag and the hooks of `old`.
    """
    wear(new, old)
    return _exchange(model, old, new)


def remove(model: nn.Module, old: nn.Module) -> nn.Module:
    """Put an identity wherever `old` is registered; its place in a Sequential and its name stay."""
    return replace(model, old, nn.Identity())


def before(model: nn.Module, activation: nn.Module, norm: nn.Module) -> nn.Module:
    """Let `norm` run before `activation`, wherever that is registered."""
    return _in_sequence(model, activation, {"norm": norm, "activation": activation})


def after(model: nn.Module, activation: nn.Module, norm: nn.Module) -> nn.Module:
    """Let `norm` run after `activation`, wherever that is registered."""
    return _in_sequence(model, activation, {"activation": activation, "norm": norm})


def follow(model: nn.Module, producer: nn.Module, norm: nn.Module) -> nn.Module:
    """Let `norm` run on the output of `producer`, wherever that is registered, as a `Followed`."""
    norm.train(producer.training)
    return _exchange(model, producer, Followed(producer, norm))


def wear(new: nn.Module, old: nn.Module) -> None:
    """Give `new` the training flag and the hooks of `old`."""
    new.train(old.training)
    for name in _HOOKS:
        if name in vars(old):
            vars(new)[name] = vars(old)[name]


def unregistered(model: nn.Module, module: nn.Module) -> str | None:
    """The attribute that holds `module` outside of the registered modules, as ``path.attribute``, or None.

    What is held in a plain list, dictionary or attribute would go on calling the old module after a replacement.
    """
    own = vars(nn.Module())
    for path, holder in model.named_modules():
        for name, value in vars(holder).items():
            if name not in own and _holds(value, module):
                return f"{path}.{name}" if path else name
    return None


class Followed(nn.Module):
    """A producer and the norm of its output, where the producer stood.

    What is asked of the producer (``self.fc.weight``) is answered by it, and a checkpoint of the model before the
    insertion finds its keys.
    """

    producer: nn.Module
    norm: nn.Module

    def __init__(self, producer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.producer = producer
        self.norm = norm
        self.training = producer.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The producer's output, normalized."""
        return self.norm(self.producer(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            producer = vars(self).get("_modules", {}).get("producer")
            if producer is None or name.startswith("__"):
                raise
            return getattr(producer, name)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *rest: Any
    ) -> None:
        for key in self.producer.state_dict():
            if prefix + key in state_dict:
                state_dict.setdefault(f"{prefix}producer.{key}", state_dict.pop(prefix + key))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _in_sequence(model: nn.Module, activation: nn.Module, parts: dict[str, nn.Module]) -> nn.Module:
    return _exchange(model, activation, nn.Sequential(OrderedDict(parts)).train(activation.training))


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new`, which may hold `old`, wherever `old` is registered; the model."""
    for owner, name in list(_owners(model, old)):
        owner._modules[name] = new
        if isinstance(owner, nn.TransformerEncoderLayer):
            # Its fused path reads the parameters past the modules and would go on computing a LayerNorm.
            owner.activation_relu_or_gelu = 0
    return new if model is old else model


def _owners(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for owner in model.modules():
        for name, child in owner._modules.items():
            if child is module:
                yield owner, name


def _holds(value: Any, module: nn.Module, depth: int = 3) -> bool:
    if value is module or getattr(value, "__self__", None) is module:
        return True
    if depth and isinstance(value, list | tuple):
        return any(_holds(item, module, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return any(_holds(item, module, depth - 1) for item in value.values())
    return False
