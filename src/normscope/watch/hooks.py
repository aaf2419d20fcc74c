"""Hooks that leave no trace: a copy or a pickle of a hooked model carries none of them, and compilers see through them.

A model is copied (for an average of its weights) or saved whole at any time between two steps; a hook that stands on it
then must not drag the watcher along.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle


class Hook:
    """A module hook that calls ``act(*told)`` and returns nothing.

    Under `torch.compile` it is traced to nothing, so it neither breaks a graph nor causes a second one.
    """

    def __init__(self, act: Callable[..., None]) -> None:
        self._act = act

    def __call__(self, *told: Any) -> None:
        if torch.compiler.is_compiling() or callable(_compiler()):
            return
        if torch._C._len_torch_dispatch_stack():
            out_of_sight(self._act, *told)
        else:
            self._act(*told)

    def __reduce__(self) -> tuple[Any, ...]:
        # From the standard library, takes any arguments, does nothing: a saved model loads where Normscope is not.
        return getattr, (nullcontext(), "__exit__")


class RootHook(Hook):
    """The hook of the watched model itself: calls ``act(compiled, *told)``.

    `torch.compile` runs the hooks of the module it was given eagerly, while its compiler waits for the next frame; then
    `compiled` is true, the hooks of inner modules will not be called, and `act` runs out of the compiler's sight.
    """

    def __init__(self, act: Callable[..., None]) -> None:
        super().__init__(_dynamo().disable(lambda *told: out_of_sight(act, *told)))

    def __call__(self, *told: Any) -> None:
        if not torch.compiler.is_compiling():
            self._act(callable(_compiler()), *told)


def before_forward(module: nn.Module, hook: Hook, *, first: bool = False) -> RemovableHandle:
    """Have `hook` told ``(module, args, kwargs)`` before each forward of `module`, and `first`, before other hooks."""
    _hide_from_compiler()
    return module.register_forward_pre_hook(hook, with_kwargs=True, prepend=first)


def after_forward(module: nn.Module, hook: Hook) -> RemovableHandle:
    """Have `hook` told ``(module, args, kwargs, output)`` after each forward of `module` that did not raise."""
    _hide_from_compiler()
    return module.register_forward_hook(hook, with_kwargs=True)


def out_of_sight(act: Callable[..., None], *told: Any) -> None:
    """``act(*told)``, unseen by dispatch modes: selective checkpointing keeps what runs under its mode, in order."""
    if torch._C._len_torch_dispatch_stack():
        with _disable_current_modes():
            act(*told)
    else:
        act(*told)


@contextmanager
def saving_privately() -> Iterator[None]:
    """Inside, what autograd saves is not given to hooks of the caller's: checkpointing counts what is saved."""
    try:
        hooks = torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _unchanged)
        hooks.__enter__()
    except RuntimeError:  # such hooks are forbidden here, so there are none
        yield
        return
    try:
        yield
    finally:
        hooks.__exit__()


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def in_transform() -> bool:
    """Whether a `torch.func` transform (vmap, grad, …) or a trace is running, whose tensors hold no values."""
    level = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return level is not None or torch.jit.is_tracing()


def in_backward() -> bool:
    """Whether a backward pass is running, so that a forward is activation checkpointing's second."""
    return torch._C._current_graph_task_id() != -1


_compiler: Callable[[], Any] = torch._C._dynamo.eval_frame.get_eval_frame_callback  # pyright: ignore
if torch.__version__ < "2.8":  # which gives away a reference that it does not own
    _borrowed = _compiler

    def _compiler() -> Any:
        callback = _borrowed()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(callback))
        return callback


def _dynamo() -> Any:
    import torch._dynamo  # every optimizer has loaded it by now

    return torch._dynamo


@cache
def _hide_from_compiler() -> None:
    # Called from within a compiled call, the frame of a hook would be compiled like the user's own.
    _dynamo()
    from torch._dynamo.eval_frame import skip_code

    skip_code(Hook.__call__.__code__)
    skip_code(RootHook.__call__.__code__)
