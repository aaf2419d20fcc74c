"""`observe`: one run of a model with every call of a module or a torch function told as it happens.

Module hooks say which module runs; a `TorchFunctionMode` sees the functions in between; a tensor is recognized again by
its identity. So it works on any model: control flow, keyword arguments, dataclass outputs, in-place functions.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.anatomy.batch import TAKES, Probe, tensors
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.anatomy.makers import Makers
from normscope.anatomy.recognize import activation_of, kind_of, role_of
from normscope.terms.activations import ACTIVATIONS, Activation, activation_named
from normscope.terms.datum import Datum
from normscope.terms.errors import DataError, ModelError
from normscope.terms.site import Role

# Indices of no call, in `Call.inputs`.
INPUT = -1  # the value came in with the batch
CONSTANT = -2  # a parameter, a buffer, a number, or a value whose making was not seen

_PRODUCING = {
    *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("embedding", "embedding_bag", "multi_head_attention_forward", "scaled_dot_product_attention"),
}
_SPELLED = {"log_sigmoid": "logsigmoid", "expit": "sigmoid", "iadd": "add", "imul": "mul", "isub": "sub"}


@dataclass(frozen=True, repr=False)
class Call(Datum):
    """One call within a run: of a module, or of a torch function between modules that takes a value of the run.

    Attributes:
        index: the place in the order of the run, from 0.
        path: the module's path; for a function ``<path of the calling module>/<function>``, as in `Site.path`.
        kind: the class of the module, or the name of the function without underscores (``x.add_(y)`` and ``x += y``
            are ``add``); activations by torch's functional name.
        call: which call of this path within the run, from 0.
        inputs: for each tensor argument in order, the index of the call that made its value, or `INPUT` (-1) for a
            value of the batch, or `CONSTANT` (-2) for a parameter and anything else that no call made.
        role: what it does.
        module: the module, or None for a function.
    """

    index: int
    path: str
    kind: str
    call: int = 0
    inputs: tuple[int, ...] = ()
    role: Role = "other"
    module: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def activation(self) -> Activation | None:
        """What is known of the activation function that this call computes; None for other calls."""
        if self.role != "activation":
            return None
        return activation_of(self.module) if self.module is not None else activation_named(self.kind)


OnCall = Callable[[Call, tuple[Tensor, ...], Any], None]
Before = Callable[[Call, tuple[Tensor, ...]], None]


def observe(
    model: nn.Module,
    on_call: OnCall,
    probe: Any,
    *,
    before: Before | None = None,
    training: bool | None = None,
    grad: bool = False,
) -> Any:
    """Run `model` on `probe` once, telling every call; the model's output.

    The model, its modes, buffers, hooks and all random states are afterwards what they were (see `isolate.isolated`;
    open that context around this call to take gradients, so that checkpointed parts run again inside it).

    Args:
        model: any module; `torch.compile` and data-parallel wrappers are passed through.
        on_call: told ``(call, inputs, output)`` after each call, the tensors of the arguments and the output as it
            came. An in-place function has by then overwritten its input, and may later overwrite this output:
            summarize at once, and keep `torch.autograd.graph.get_gradient_edge(output)` to ask for its gradient.
        probe: a batch by the convention of `Probe.of`.
        before: told ``(call, inputs)`` before each norm, producer and activation runs.
        training: the mode to run in, as in `isolated`; None as the model stands.
        grad: whether gradients are recorded.

    Raises:
        ModelError: the model raised; the place is told, the model's own error is the cause.
        DataError: the probe does not fit the model.
    """
    model = unwrapped(model)
    probe = Probe.of(probe)
    with ExitStack() as stack:
        stack.enter_context(isolated(model, training=training))
        stack.enter_context(torch.set_grad_enabled(grad))
        observer = _Observer(on_call, before)
        stack.callback(observer.unhook)
        observer.hook(model)
        stack.enter_context(observer)
        return observer.run(probe, model)


class _Observer(TorchFunctionMode):
    """Follows one run: where it is, which call made which tensor, and whom to tell."""

    def __init__(self, on_call: OnCall, before: Before | None) -> None:
        super().__init__()
        self._on_call = on_call
        self._before = before
        self._maker = Makers()  # tensor → index of the call that made its value
        self._counts: Counter[str] = Counter()
        self._index = 0
        self._places: list[str] = []  # paths of the modules that are running, outermost first
        self._opaque: tuple[nn.Module, Call, tuple[Tensor, ...]] | None = None  # a module told as one call
        self._hooks: list[Any] = []
        self._fault: Exception | None = None  # raised by those whom we tell, not by the model
        self._broken: tuple[BaseException, str] | None = None  # what the model raised, and in which module

    def hook(self, model: nn.Module) -> None:
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            self._hooks += self._hooked(path, module)

    def unhook(self) -> None:
        for handle in self._hooks:
            handle.remove()

    def run(self, probe: Probe, model: nn.Module) -> Any:
        self._maker.note(tensors((probe.args, probe.kwargs)), INPUT)
        try:
            return probe.run(model)
        except DataError:
            raise
        except Exception as error:
            if error is self._fault:
                raise
            raise ModelError(
                f"{type(model).__name__} was run on a batch and raised.",
                found=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''} "
                f"at `{self._broken_at(error) or '(model)'}`",
                because="the model and the batch do not fit each other, or the model's forward has a fault",
                do=f"give {TAKES} with which model(…) runs",
            ) from error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._opaque is not None:
            return func(*args, **kwargs)
        kind = function_name(func)
        given = tensors((args, kwargs))
        if not any(tensor in self._maker for tensor in given):  # made of constants alone, it is one
            return func(*args, **kwargs)
        place = self._places[-1] if self._places else ""
        call = self._call(f"{place}/{kind}", kind, given, function_role(kind))
        self._tell_before(call, given)
        output = func(*args, **kwargs)
        self._tell(call, given, args[0] if kind == "setitem" else output)
        return output

    def _hooked(self, path: str, module: nn.Module) -> tuple[Any, Any]:
        kind, role = kind_of(module), role_of(module)
        opaque = role != "other" or _is_leaf_of_torch(module)

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            if self._opaque is not None:
                return
            self._places.append(path)
            if opaque:
                given = tensors((args, kwargs))
                call = self._call(path, kind, given, role, module)
                self._opaque = module, call, given
                self._tell_before(call, given)

        def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            error = sys.exc_info()[1] if output is None else None  # hooks that are always called run while it flies
            if error is not None and (self._broken is None or self._broken[0] is not error):
                self._broken = error, path
            if self._opaque is None:
                self._bridge(path, module, tensors((args, kwargs)), output)
            elif self._opaque[0] is module:
                _, call, given = self._opaque
                self._opaque = None
                self._tell(call, given, output)
            else:
                return
            self._places.pop()

        return (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True, always_call=True),
        )

    def _broken_at(self, error: BaseException) -> str:
        return self._broken[1] if self._broken is not None and self._broken[0] is error else ""

    def _bridge(self, path: str, module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        """Tell a module whose parts were not seen to make its output (a custom autograd function) as one call."""
        unseen = [tensor for tensor in tensors(output) if tensor not in self._maker]
        unseen = [tensor for tensor in unseen if not isinstance(tensor, nn.Parameter)]
        if unseen and any(tensor in self._maker for tensor in given):
            self._tell(self._call(path, kind_of(module), given, "other", module), given, output, tuple(unseen))

    def _call(
        self, path: str, kind: str, given: tuple[Tensor, ...], role: Role, module: nn.Module | None = None
    ) -> Call:
        inputs = tuple(self._maker.get(tensor, CONSTANT) for tensor in given)
        return Call(self._index, path, kind, self._counts[path], inputs, role, module)

    def _tell_before(self, call: Call, given: tuple[Tensor, ...]) -> None:
        if self._before is not None and call.role != "other":
            self._guarded(self._before, call, given)

    def _tell(self, call: Call, given: tuple[Tensor, ...], output: Any, made: tuple[Tensor, ...] = ()) -> None:
        made = made or tensors(output)
        if not made:
            return
        self._index += 1
        self._counts[call.path] += 1
        self._guarded(self._on_call, call, given, output)
        self._maker.note(made, call.index)

    def _guarded(self, told: Callable[..., None], *what: Any) -> None:
        with torch._C.DisableTorchFunction():
            try:
                told(*what)
            except Exception as error:
                self._fault = error
                raise


def is_opaque(module: nn.Module) -> bool:
    """Whether a run tells `module` as one call and not by its parts: norms, producers, activations, torch's leaves."""
    return role_of(module) != "other" or _is_leaf_of_torch(module)


def _is_leaf_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "torch" and not module._modules


def function_name(func: Any) -> str:
    """The name of a torch function, method, operator or property, alike however it was called."""
    name = func if isinstance(func, str) else getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # a property of the tensor, such as .T
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    name = name.strip("_").removeprefix("special_")
    name = _SPELLED.get(name, name)
    row = activation_named(name)
    return row.name if row is not None else name


def function_role(kind: str) -> Role:
    """What the function of that name does."""
    if kind in _PRODUCING:
        return "producer"
    return "activation" if kind in ACTIVATIONS else "other"
