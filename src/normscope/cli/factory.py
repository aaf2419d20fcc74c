"""``package.module:function`` → the model that it builds."""

from __future__ import annotations

import importlib
import sys

from torch import nn

from normscope.terms.errors import ModelError, UnknownNameError


def build(name: str) -> nn.Module:
    """The model at `name`: a module, or what a function or class without arguments returns.

    Raises:
        UnknownNameError: there is no such module or name, or it gives no model.
        ModelError: the function raised.
    """
    module_name, colon, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module_name) if colon else None
    except ModuleNotFoundError as error:
        raise _unknown(name, f"there is no module {error.name!r} on the path") from error
    finally:
        sys.path.remove("")
    if found is None or not attribute:
        raise _unknown(name, "there is no colon between the module and the name")
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise _unknown(name, f"{module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    model = _made(name, found)
    if not isinstance(model, nn.Module):
        raise _unknown(name, f"{attribute!r} gives a {type(model).__name__}")
    return model


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
