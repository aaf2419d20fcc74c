"""The optimizer of a treated model: the same class and settings over the parameters it has now."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim import Optimizer

from normscope.terms.errors import ModelError


def over(optimizer: Optimizer, model: nn.Module, before: Collection[nn.Parameter]) -> Optimizer:
    """A fresh optimizer like `optimizer` for the treated `model`, whose parameters were `before` the treatment.

    A parameter that the treatment left keeps its group. One that it made joins the first group. One that it removed
    is dropped; a parameter that never was the model's own (a loss with weights) stays. Frozen parameters of the
    untreated model that no group held stay out.

    Raises:
        ModelError: the optimizer cannot be made again from its class and its defaults.
    """
    now = list(model.parameters())
    old, kept = {id(parameter) for parameter in before}, {id(parameter) for parameter in now}
    groups: list[dict[str, Any]] = [
        {**group, "params": [p for p in group["params"] if id(p) in kept or id(p) not in old]}
        for group in optimizer.param_groups
    ]
    groups[0]["params"] += [parameter for parameter in now if id(parameter) not in old]
    accepted = inspect.signature(type(optimizer)).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    try:
        return type(optimizer)([group for group in groups if group["params"]], **defaults)
    except Exception as error:
        raise ModelError(
            f"A fresh {type(optimizer).__name__} was asked for, over the parameters of a treated model.",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            because="an optimizer is made again from its class, its defaults and the settings of its groups",
            do="let build return the model alone and make the optimizer inside train_step at step 0",
        ) from error
