"""What the running calls hold: the loss that is being differentiated, the scaler that calls the optimizer.

A training loop hands neither to a hook. Both stand, while the hook runs, in the frame of a call of torch's own further
up the stack, so they can be read there at a sampled step without patching anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator
from types import FrameType, FunctionType
from typing import Any

import torch

_MODULES = torch.nn.Module.__call__.__code__.co_filename
_OF_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(__file__) + os.sep


def loss_in_backward(thread: int) -> torch.Tensor | None:
    """The scalar whose backward pass runs in `thread` (an identifier of `threading`), detached; None without one.

    The engine runs hooks of a GPU's tensors in threads of its own while the calling thread waits, so that thread's
    frames are read. Of nested passes (reentrant checkpointing) the outermost counts.
    """
    roots = None
    for function, name in ((torch.autograd.grad, "outputs"), (torch.autograd.backward, "tensors")):
        for frame in _calls(function, sys._current_frames().get(thread)):
            roots = frame.f_locals.get(name)
    root = roots[0] if isinstance(roots, tuple | list) and len(roots) == 1 else roots
    return root.detach() if isinstance(root, torch.Tensor) and root.numel() == 1 else None


def is_inner_gradient(thread: int) -> bool:
    """Whether the running backward pass is a `torch.autograd.grad` that will itself be differentiated (a penalty)."""
    if not torch.is_grad_enabled():
        return False
    return next(_calls(torch.autograd.backward, sys._current_frames().get(thread)), None) is None


def calling_scaler() -> torch.amp.GradScaler | None:
    """The gradient scaler whose ``step`` is calling the optimizer in this thread; None without one."""
    frame = next(_calls(torch.amp.GradScaler.step, sys._getframe()), None)
    scaler = frame.f_locals.get("self") if frame is not None else None
    return scaler if isinstance(scaler, torch.amp.GradScaler) else None


def calling_place() -> Hashable:
    """Where in the program the call is made whose hook is running: alike at each turn of a loop, apart elsewhere."""
    found = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if not frame.f_code.co_filename.startswith((_OF_TORCH, _OURS)):
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def kwargs_of_call() -> dict[str, Any]:
    """The keyword arguments of the module call whose hook is running, which torch's global hooks are not told."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != _MODULES:
        frame = frame.f_back
    found = frame.f_locals.get("kwargs") if frame is not None else None
    return dict(found) if isinstance(found, dict) else {}


def _calls(function: Any, frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of running calls of `function`, innermost first."""
    code = function.__code__ if isinstance(function, FunctionType) else None
    while frame is not None and code is not None:
        if frame.f_code is code:
            yield frame
        frame = frame.f_back
