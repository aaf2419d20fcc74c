"""The optimizer of a treated model: the same class and settings over the parameters it has now."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from normscope.terms.errors import ModelError


def over(
    optimizer: Optimizer,
    model: nn.Module,
    before: Collection[nn.Parameter],
    kept: Mapping[nn.Parameter, nn.Parameter] | None = None,
) -> Optimizer:
    """A fresh optimizer like `optimizer` for the treated `model`, whose parameters were `before` the treatment.

    A parameter that the treatment left keeps its group. One that it made joins the first group. One that it removed
    is dropped; a parameter that never was the model's own (a loss with weights) stays. Frozen parameters of the
    untreated model that no group held stay out.

    Args:
        optimizer: of the untreated model; it stays as it is.
        model: the treated model.
        before: the parameters of the untreated model.
        kept: which of these is which of the treated model's; the state of the optimizer goes along with them. None
            finds them by identity and starts without a state.

    Raises:
        ModelError: the optimizer cannot be made again from its class and its defaults.
    """
    now = dict.fromkeys(model.parameters())
    same = {one: one for one in before if one in now} if kept is None else kept
    old, carried = set(before), set(same.values())
    groups: list[dict[str, Any]] = [
        {**group, "params": [same.get(p, p) for p in group["params"] if p in same or p not in old]}
        for group in optimizer.param_groups
    ]
    groups[0]["params"] += [parameter for parameter in now if parameter not in carried]
    accepted = inspect.signature(type(optimizer)).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    try:
        fresh = type(optimizer)([group for group in groups if group["params"]], **defaults)
    except Exception as error:
        raise ModelError(
            f"A fresh {type(optimizer).__name__} was asked for, over the parameters of a treated model.",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            because="an optimizer is made again from its class, its defaults and the settings of its groups",
            do="let build return the model alone and make the optimizer inside train_step at step 0",
        ) from error
    for parameter, state in dict[Any, Any](optimizer.state).items() if kept is not None else ():
        if parameter not in old or parameter in same:
            its: Any = same.get(parameter, parameter)
            fresh.state[its] = copy.deepcopy(state)
    return fresh
