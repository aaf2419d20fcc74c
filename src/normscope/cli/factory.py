"""``package.module:function`` → the model that it builds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from normscope.terms.errors import ModelError, UnknownNameError


def build(name: str) -> nn.Module:
    """The model at `name`: a module, or what a function or class without arguments returns.

    Raises:
        UnknownNameError: there is no such module or name, or it gives no model.
        ModelError: the function raised.
    """
    model = _made(name, found(name))
    if not isinstance(model, nn.Module):
        raise _unknown(name, f"{name.rpartition(':')[2]!r} gives a {type(model).__name__}")
    return model


def parts(name: str) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """``(build, train_step, data)`` of a trial, which `name`, or what it gives when it is called, holds; data or None.

    Raises:
        UnknownNameError: there is no such module or name, or it gives neither two parts nor three.
        ModelError: the function raised.
    """
    given = _made(name, found(name))
    match given:
        case (build, train_step, *data) if callable(build) and callable(train_step) and len(data) < 2:
            return build, train_step, data[0] if data else None
    raise UnknownNameError(
        f"The parts of a trial were asked for as `{name}`.",
        found=f"it gives a {type(given).__name__}",
        because="a trial needs a function that builds a model and one that makes a training step",
        do="let it return (build, train_step) or (build, train_step, data), as normscope.trial takes them",
    )


def found(name: str) -> Any:
    """The object that `name` stands for.

    Raises:
        UnknownNameError: there is no such module or name.
    """
    module_name, colon, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        owner = importlib.import_module(module_name) if colon else None
    except ModuleNotFoundError as error:
        raise _unknown(name, f"there is no module {error.name!r} on the path") from error
    finally:
        sys.path.remove("")
    if owner is None or not attribute:
        raise _unknown(name, "there is no colon between the module and the name")
    for part in attribute.split("."):
        if not hasattr(owner, part):
            raise _unknown(name, f"{module_name!r} has no {attribute!r}")
        owner = getattr(owner, part)
    return owner


def _made(name: str, found: object) -> object:
    """What `found` gives when it is called, where it is no model itself."""
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except Exception as error:
        raise ModelError(
            f"A model was to be built by `{name}`, which raised.",
            found=f"{type(error).__name__}: {error}",
            because="it is called without arguments, and has to give a torch.nn.Module",
            do=f"see that `{name.rpartition(':')[2]}()` works in Python, or wrap it in a function without arguments",
        ) from error


def _unknown(name: str, found: str) -> UnknownNameError:
    return UnknownNameError(
        f"A model was asked for as `{name}`.",
        found=found,
        because="a model is named package.module:function, and the function gives a torch.nn.Module",
        do="write it like `mypackage.models:build`, from the folder in which `import mypackage.models` works",
    )
