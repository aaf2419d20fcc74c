"""What is about to be watched: whether it can be, what its calls run, how it is described, where its record lies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from time import strftime
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from normscope.anatomy.isolate import unwrapped
from normscope.terms.errors import ModelError


def check(model: Any, optimizer: Any) -> tuple[Optimizer, ...]:
    """The optimizers of `optimizer`: one, several, or None. Raises `ModelError` when they or `model` are none."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            "A training was to be watched without a model.",
            found=f"{type(model).__name__} where the model should be",
            because="a model is a torch.nn.Module; only a module has the hooks that watching needs",
            do="call watch(model, optimizer, path)",
        )
    given = () if optimizer is None else optimizer if isinstance(optimizer, Sequence) else (optimizer,)
    for one in given:
        if not isinstance(one, Optimizer):
            raise ModelError(
                "A training was to be watched with an optimizer that is none.",
                found=f"{type(one).__name__} where the optimizer should be",
                because="steps are counted by the hooks of torch.optim.Optimizer",
                do="give the torch optimizer, a list of them, or none and call Watcher.step() after each update",
            )
    return tuple(given)


def called(model: nn.Module) -> nn.Module:
    """The module whose hooks a call of `model` is sure to run: a compiled wrapper, or what is inside the others."""
    while not isinstance(getattr(model, "_orig_mod", None), nn.Module) and unwrapped(model) is not model:
        model = model.module  # pyright: ignore[reportAssignmentType]
    return model


def is_replicated(model: nn.Module) -> bool:
    """Whether every process holds the same parameters and gradients: inside `DistributedDataParallel`."""
    while not isinstance(model, nn.parallel.DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return False
        model = inner
    return True


def fresh_path(model: nn.Module) -> Path:
    """A place under ``runs`` where nothing is yet."""
    name = f"{type(model).__name__.lower()}-{strftime('%Y%m%d-%H%M%S')}"
    places = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(place for place in places if not place.exists())


def described(model: nn.Module, **settings: Any) -> dict[str, Any]:
    """What the record says of the model and of how it is watched."""
    settings["every"] = settings["every"] if isinstance(settings["every"], int | str) else "function"
    parameters = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    return {"model": type(model).__name__, "parameters": parameters, **settings}


def place_among_processes() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
