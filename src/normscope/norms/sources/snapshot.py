"""Reading a buffer that the same call changes."""

from __future__ import annotations

import torch
from torch import Tensor


def snapshot(buffer: Tensor) -> Tensor:
    """The values of `buffer` now, also for a compiled backward pass.

    The compiler recomputes cheap values in the backward pass rather than keep them, and would read the buffer again
    after the forward pass has changed it: the gradient would be wrong in silence. What an operator of ours returns is
    never recomputed.
    """
    return torch.ops.normscope.snapshot(buffer) if torch.compiler.is_compiling() else buffer.clone()


@torch.library.custom_op("normscope::snapshot", mutates_args=())
def _snapshot(buffer: Tensor) -> Tensor:
    return buffer.clone()


@_snapshot.register_fake
def _(buffer: Tensor) -> Tensor:
    return torch.empty_like(buffer)
