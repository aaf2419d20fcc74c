"""A layer that torch.fx keeps whole, as it does those of torch.nn."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy

__all__ = ["Proxy", "leaf"]


def leaf(module: nn.Module, *args: Any, **options: Any) -> Any:
    """The call of `module` as one node of the graph that is being traced; missing arguments at the end are left out.

    A tracer that looks inside meets decisions about shapes, which a symbol cannot answer.
    """
    given = [value for value in args if value is not None]
    tracer = args[0].tracer
    options = {name: value for name, value in options.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), tuple(given), options)
