"""The meeting of all ranks of a group for a sum, which does not wait for ever for one that stays away."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normscope.terms.errors import ModelError, NormscopeWarning

PATIENCE = 300.0  # seconds for the other ranks: one may be writing a checkpoint, or evaluating, before it comes
SIGNING = 1.0  # seconds after which a rank that waits signs for its presence, so that those who are absent have names
TOLD = 30.0  # seconds after which those who wait are told for whom

_met: Counter[str] = Counter()  # how many meetings of each group this rank has come to


class AllReduce(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of the ranks' gradients.

    Raises:
        ModelError: a rank did not come in time, or is gone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, patience: float) -> Tensor:
        ctx.group, ctx.patience = group, patience
        total = x.contiguous().clone()
        # The host can wait for gloo and give up; a device works on by itself, and its backend has its own watchdog.
        if torch.compiler.is_compiling() or dist.get_backend(group) != "gloo":
            dist.all_reduce(total, group=group)
        else:
            _meet(total, dist.group.WORLD if group is None else group, patience)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return AllReduce.apply(grad, ctx.group, ctx.patience), None, None


def _meet(total: Tensor, group: Any, patience: float) -> None:
    """Sum `total` over the ranks, in place."""
    _met[group.group_name] += 1
    place, start, signed = f"normscope/{group.group_name}/{_met[group.group_name]}", time.monotonic(), False
    store, cause, told = dist.distributed_c10d._get_default_store(), None, f"no sum in {patience:g} s"
    try:
        work: Any = dist.all_reduce(total, group=group, async_op=True)
        if _came(work, min(SIGNING, patience)):
            return
        store.set(f"{place}/{dist.get_rank()}", "here")
        signed = True
        if patience > TOLD:
            if _came(work, TOLD - SIGNING):
                return
            _warn(_absent(store, place, group))
        if _came(work, start + patience - time.monotonic()):
            return
    except RuntimeError as error:
        cause, told = error, str(error).strip().partition("\n")[0]
    if signed:
        time.sleep(SIGNING)  # those who came last sign too
    raise _left_alone(_absent(store, place, group) if signed else [], told) from cause


def _came(work: Any, seconds: float) -> bool:
    """Whether all came in that time; the error of a connection that broke is raised."""
    try:
        work.wait(timedelta(seconds=max(seconds, 0.001)))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # what it came to meanwhile
    return True


def _absent(store: Any, place: str, group: Any) -> list[int]:
    """The ranks of the whole job that did not sign for this meeting."""
    return [rank for rank in dist.get_process_group_ranks(group) if not store.check([f"{place}/{rank}"])]


def _warn(absent: list[int]) -> None:
    told = f"A synchronized batch normalization has waited {TOLD:g} s for the batch of {_named(absent)}."
    warnings.warn(told, NormscopeWarning, stacklevel=2)


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "some rank"


def _left_alone(absent: list[int], told: str) -> ModelError:
    return ModelError(
        "A synchronized batch normalization waited for the batches of all ranks of its group.",
        found={"absent": _named(absent), "rank": f"{dist.get_rank()} of {dist.get_world_size()}", "told": told},
        because="a rank made no call in this step, or is gone, and the statistics are those of all ranks",
        do="on a rank without data call the model on an empty batch, x[:0], and take its backward pass too; "
        "SyncBatchNorm(…, patience=seconds) sets how long to wait",
    )
