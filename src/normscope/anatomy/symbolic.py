"""Reading the flow of a model off its code with `torch.fx`."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

from torch import fx, nn

from normscope.anatomy.isolate import isolated, unwrapped
from normscope.anatomy.observe import CONSTANT, INPUT, Call, function_name, function_role, is_opaque
from normscope.anatomy.recognize import kind_of, role_of

# Functions that ask about a value (its size, its type, whether an optional argument has its default) and make none.
_ASKING = {
    *("size", "shape", "dim", "ndim", "numel", "stride", "getattr", "dtype", "device", "is_floating_point", "len"),
    *("eq", "assert", "assert_is_none"),
}


class Unreadable(Exception):
    """`torch.fx` cannot read the model."""


def read(model: nn.Module) -> tuple[tuple[Call, ...], tuple[int, ...]]:
    """The calls of `model` in order, and the indices of those whose values it returns.

    Raises:
        Unreadable: the root's forward depends on values, or on more than `torch.fx` follows.
    """
    model = unwrapped(model)
    if is_opaque(model):
        return (Call(0, "", kind_of(model), inputs=(INPUT,), role=role_of(model), module=model),), (0,)
    try:
        with isolated(model):
            graph = _Reader(model).trace(model, _defaults(model))
    except Exception as error:  # whatever the user's forward does with a proxy
        raise Unreadable(str(error)) from error
    return _calls(graph, model)


def _defaults(model: nn.Module) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


class _Reader(fx.Tracer):
    """Takes norms, producers and activations of any package as leaves, and parts that it cannot read as well."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Asked beforehand: while fx traces, reading a module's weight is taken for a part of the graph.
        self._opaque = {module for module in model.modules() if is_opaque(module)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._opaque or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        stack, last = self.module_stack.copy(), next(iter(reversed(self.graph.nodes)))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.module_stack = stack
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["place"] = self.scope.module_path
        return node


def _calls(graph: fx.Graph, model: nn.Module) -> tuple[tuple[Call, ...], tuple[int, ...]]:
    calls: list[Call] = []
    made: dict[fx.Node, int] = {}
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        inputs = _inputs(node, made)
        if node.op == "output":
            return tuple(calls), tuple(dict.fromkeys(index for index in inputs if index >= 0))
        made[node] = INPUT if node.op == "placeholder" else CONSTANT
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            path, kind, role = str(node.target), kind_of(module), role_of(module)
        elif node.op in ("call_function", "call_method"):
            module, kind = None, function_name(node.target)
            path, role = f"{node.meta['place']}/{kind}", function_role(kind)
            if kind in _ASKING or all(index == CONSTANT for index in inputs):
                continue
        else:
            continue
        made[node] = len(calls)
        calls.append(Call(len(calls), path, kind, counts[path], inputs, role, module))
        counts[path] += 1
    raise Unreadable("the graph has no output")


def _inputs(node: fx.Node, made: dict[fx.Node, int]) -> tuple[int, ...]:
    found: list[int] = []
    fx.map_arg((node.args, node.kwargs), lambda other: found.append(made[other]))
    return tuple(found)
