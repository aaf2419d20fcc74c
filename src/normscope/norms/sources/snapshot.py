"""Reading a buffer that the same call changes."""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.terms.errors import ModelError


def snapshot(buffer: Tensor) -> Tensor:
    """The values of `buffer` now, also for a compiled backward pass.

    The compiler recomputes cheap values in the backward pass rather than keep them, and would read the buffer again
    after the forward pass has changed it: the gradient would be wrong in silence. What an operator of ours returns is
    never recomputed, but in an activation checkpoint, which is therefore refused.
    """
    return torch.ops.normscope.snapshot(buffer) if torch.compiler.is_compiling() else buffer.clone()


@torch.library.custom_op("normscope::snapshot", mutates_args=())
def _snapshot(buffer: Tensor) -> Tensor:
    if torch._C._current_graph_task_id() != -1:
        raise ModelError(
            "A compiled normalization that depends on earlier batches was run again inside a backward pass.",
            found="activation checkpointing together with torch.compile",
            because="compiled code reads the statistics again after they have moved on, and knows no first run",
            do='leave this layer outside of the checkpoint, do not compile it, or describe it with train_from="batch"',
        )
    return buffer.clone()


@_snapshot.register_fake
def _(buffer: Tensor) -> Tensor:
    return torch.empty_like(buffer)
