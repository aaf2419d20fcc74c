"""Fuse norms with the activation, and the residual sum, that stand behind them.

A norm whose output goes to an activation alone, or to a sum of two values that goes to an activation alone, becomes one
layer that does all of it: each fresh tensor between them is traffic to memory and back. A norm that holds its
activation already, as timm's do, becomes one layer too. What feeds what is read off the code by `torch.fx`, and the
fused model is a graph of it, with the parameters and buffers of the original under their names. Parts without a norm,
and parts whose code asks in which mode they are, stay whole.

It keeps the layout in which the network stands. On the CPU convolutions are faster in channels_last, and fusing changes
none: `model.to(memory_format=torch.channels_last)` gains more there than fusing, and both add up
(docs/decisions/0025-a-fused-step.md).

It preserves the function exactly, to rounding, in training and in evaluation; a graph that answers otherwise than the
model, in either mode, is refused.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from normscope.anatomy.isolate import isolated
from normscope.anatomy.observe import is_opaque
from normscope.anatomy.recognize import role_of, spec_of
from normscope.norms.classes import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm
from normscope.norms.module import Norm
from normscope.terms.errors import DataError, ModelError
from normscope.terms.spec import NormSpec
from normscope.treat.batches import first
from normscope.treat.fused import unlike
from normscope.treat.measure import difference
from normscope.treat.snapshot import working_copy
from normscope.treat.surgery import replace, within
from normscope.treat.treatment import Change, Treated, Treatment, perform

_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm,
    Norm, BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm,
)  # fmt: skip
_RANKS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
_SUMS = (operator.add, operator.iadd, torch.add)
_FUNCTIONS = {
    torch.relu: "relu", F.relu: "relu", torch.relu_: "relu", F.relu_: "relu", F.leaky_relu: "leaky_relu",
    F.silu: "silu", F.gelu: "gelu",
}  # fmt: skip
_METHODS = {"relu": "relu", "relu_": "relu"}
ACTIVATIONS = frozenset(_FUNCTIONS.values())
ALIKE = 1e-3
"""Standard deviations by which outputs may differ; rounding gives 10⁻⁶ to 10⁻⁵, more where it is amplified."""


def fuse(model: nn.Module, example: Any, *, inplace: bool = False) -> Treated:
    """A copy of `model` in which norms are one layer with the activation and the residual sum behind them.

    Args:
        model: the network, in any mode.
        example: a batch as the loader yields it, on which the fused model is compared with the original.
        inplace: fuse with the parameters of `model` itself, so that both share them.

    Returns:
        The fused model, a `torch.fx.GraphModule` with the same parameters under the same names. The error is the
        difference of its output on the example, in training and in evaluation mode, in standard deviations of the
        original's. Norms that nothing could be fused with are skipped, with the reason.

    Raises:
        ModelError: `torch.fx` cannot read the code of the model, or reads something else in either mode.
        DataError: the example does not fit the model.
    """
    return perform(model, lambda patient: apply(patient, data=example), inplace=inplace)


def apply(model: nn.Module, sites: Sequence[str] = (), *, data: Any = None) -> Treated:
    """`fuse`, for the norms at `sites` (all when empty), on the model itself.

    Raises:
        DataError: there is no data.
    """
    if data is None:
        raise DataError(
            "Norms were to be fused without an example.",
            found="data=None",
            because="the fused model is compared with the original on one",
            do="pass data: a batch as the loader yields it",
        )
    chosen = within(model, sites)
    probe = first(data, model)
    original = working_copy(model)
    graph = _read(model)
    _skip_identities(graph)
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    ending = [(path, norm, _ends(norm)) for path, norm in graph.named_modules() if norm in chosen]
    changes, skipped = [_replaced(graph, path, norm, spec) for path, norm, spec in ending if spec is not None], []
    for node in calls:
        path = str(node.target)
        norm = graph.get_submodule(path)
        if norm not in chosen or type(norm) not in _NORMS:
            continue
        reason = _why_not(norm, [other for other in calls if other.target == path])
        behind = _behind(graph, node) if reason is None else None
        if reason is None and behind is None:
            reason = "no activation or sum takes its output alone"
        if behind is None or reason is not None:
            skipped.append((path, reason or ""))
            continue
        changes.append(_fused(graph, node, *behind))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    graph.train(model.training)
    error = max(_apart(original, graph, probe, training) for training in (True, False))
    if not error <= ALIKE:
        raise ModelError(
            f"{type(model).__name__} was to be made a graph with fused norms.",
            found=f"outputs that differ by {error:.3g} standard deviations from the model's, in one of the two modes",
            because="the model's code does something that torch.fx does not see",
            do="fuse the parts that hold norms, one by one",
        )
    return Treated(graph, tuple(changes), "exact", error, tuple(skipped))


class _Tracer(fx.Tracer):
    """Keeps whole what has no norm to fuse inside, and what asks in which mode it is: a graph holds one answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Asked beforehand: while fx traces, reading a module's weight is taken for a part of the graph.
        self._whole = {part for part in model.modules() if is_opaque(part) or not _holds_norm(part) or _asks_mode(part)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """As torch's tracer, and those."""
        return m in self._whole or super().is_leaf_module(m, module_qualified_name)


def _holds_norm(module: nn.Module) -> bool:
    return any(role_of(part) == "norm" for part in module.modules())


def _asks_mode(module: nn.Module) -> bool:
    try:
        return "self.training" in inspect.getsource(type(module).forward)
    except (OSError, TypeError):  # typed in by hand, or compiled
        return False


def _read(model: nn.Module) -> fx.GraphModule:
    name = type(model).__name__
    try:
        with isolated(model, training=False):
            other = str(_Tracer(model).trace(model))
        with isolated(model, training=True):
            graph = _Tracer(model).trace(model)
        made = fx.GraphModule(model, graph, name)
    except Exception as error:  # whatever the model's code does with a symbol
        raise ModelError(
            f"{name} was to be read by torch.fx.",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            because="which value feeds which is read off the code, and this code looks at values",
            do="fuse the parts whose forward does not branch on tensors",
        ) from error
    if str(graph) != other:
        raise ModelError(
            f"{name} was to be read by torch.fx.",
            found="one graph in training, and another in evaluation",
            because="its code asks in which mode it is, and a graph holds one answer",
            do="fuse the parts whose forward does not ask",
        )
    return made


def _skip_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            part = graph.get_submodule(str(node.target))
            if type(part) is nn.Identity and not _hooked(part):
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _ends(norm: nn.Module) -> NormSpec | None:
    """The description of a norm of another library that ends with an activation of its own, and nothing else."""
    if isinstance(norm, Norm) or next(norm.children(), None) is None or _hooked(norm):
        return None
    spec = spec_of(norm)
    return spec if spec is not None and spec.activation in ACTIVATIONS and unlike(norm, spec) is None else None


def _replaced(graph: fx.GraphModule, path: str, old: nn.Module, spec: NormSpec, *more: str) -> Change:
    """One layer that does what `spec` says, in the place of `old`, with its parameters and buffers."""
    replace(graph, old, _layer(old, spec))
    after = ["norm", *more, *([spec.activation] if spec.activation else [])]
    return Change(path, type(old).__name__, " + ".join(after))


def _why_not(norm: nn.Module, calls: Sequence[fx.Node]) -> str | None:
    spec = spec_of(norm)
    if spec is None or spec.activation is not None:
        return "it has an activation already" if spec else "it has no description"
    if len(calls) > 1:
        return "it is called more than once"
    if _hooked(norm):
        return "it has hooks, which would see something else"
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm) and len(norm.normalized_shape) > 1:
        return "it normalizes several axes"
    if any(node.kwargs or len(node.args) > 1 for node in calls):
        return "it is called with a mask or a residual already"
    return None


def _behind(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, fx.Node, str | None] | None:
    """What follows `node` alone: the residual, the last node of the group, and the activation."""
    follower = _only(node)
    if follower is None:
        return None
    activation = _activation(graph, follower)
    if activation is not None:
        return None, follower, activation
    residual = _residual(follower, node)
    if residual is None:
        return None
    after = _only(follower)
    activation = _activation(graph, after) if after is not None else None
    return (residual, follower, None) if after is None or activation is None else (residual, after, activation)


def _only(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _residual(node: fx.Node, norm: fx.Node) -> fx.Node | None:
    """What `node` adds to the output of `norm`, where it is such a sum and nothing else sees a value it overwrites."""
    method = node.op == "call_method" and node.target in ("add", "add_")
    if not (method or (node.op == "call_function" and node.target in _SUMS)) or node.kwargs or len(node.args) != 2:
        return None
    one, other = node.args
    residual = other if one is norm else one
    if not isinstance(residual, fx.Node) or residual is norm:
        return None
    overwrites = node.target in (operator.iadd, "add_") and one is residual
    return None if overwrites and len(residual.users) > 1 else residual


def _activation(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """The activation that `node` computes with its default arguments, by torch's name, if kernels have it."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, nn.LeakyReLU) and module.negative_slope == 0.01:
            return "leaky_relu"
        if isinstance(module, nn.GELU) and module.approximate == "none":
            return "gelu"
        return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module))
    others = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    if others or len(node.args) != 1:
        return None
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    return _METHODS.get(str(node.target)) if node.op == "call_method" else None


def _fused(
    graph: fx.GraphModule, node: fx.Node, residual: fx.Node | None, last: fx.Node, activation: str | None
) -> Change:
    path = str(node.target)
    old = graph.get_submodule(path)
    spec = spec_of(old)
    assert spec is not None
    kwargs: dict[str, Any] = {} if residual is None else {"residual": residual}
    with graph.graph.inserting_before(last):
        made = graph.graph.call_module(path, node.args, kwargs)
    last.replace_all_uses_with(made)
    group: list[fx.Node] = [last, *node.users, node]  # from the end on, so that nothing erased is still used
    for gone in sorted(set(group), key=group.index):
        graph.graph.erase_node(gone)
    return _replaced(graph, path, old, spec.but(activation=activation), *["residual"] * (residual is not None))


def _layer(old: nn.Module, spec: NormSpec) -> Norm:
    """A layer described by `spec` that shares the parameters and the buffers of `old`."""
    weight = getattr(old, "weight", None)
    sizes = (getattr(old, name, None) for name in ("num_features", "num_channels", "normalized_shape", "channels"))
    size = next(size for size in sizes if size is not None)
    new = Norm(spec, size if isinstance(size, int) else tuple(size), ranks=getattr(old, "ranks", _RANKS.get(type(old))))
    new.to(weight.device if isinstance(weight, torch.Tensor) else None)
    for name in ("weight", "bias"):
        if name in new._parameters and isinstance(value := getattr(old, name, None), nn.Parameter):
            setattr(new, name, value)
    for name in new._buffers:
        if isinstance(value := getattr(old, name, None), torch.Tensor):
            setattr(new, name, value)
    return new


def _apart(original: nn.Module, fused: nn.Module, probe: Any, training: bool) -> float:
    """The difference of two copies' outputs in one mode."""
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        answers = []
        for model in (fused, original):
            torch.manual_seed(0)
            answers.append(probe.run(copy.deepcopy(model).train(training)))
    return difference(*answers)


TREATMENT = Treatment("fuse", "exact", apply)
