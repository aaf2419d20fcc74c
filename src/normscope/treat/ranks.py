"""The processes of a distributed trial: what each is, and one loss for all of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normscope.terms.errors import ModelError


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) where no process group was initialized."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def mean_over_ranks(value: float) -> float:
    """The mean of every rank's `value`; NaN on all of them when it is NaN on one, so that all stop together."""
    if rank_and_size()[1] == 1:
        return value
    import torch.distributed as dist

    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def parallel(model: nn.Module) -> nn.Module:
    """`model`, averaging its gradients over the ranks where there are several; rank 0's numbers count at the start.

    Raises:
        ModelError: the model is wrapped already, and its reducer would go on with the untreated parameters.
    """
    if isinstance(model, DistributedDataParallel):
        raise ModelError(
            "A trial was asked for with a build that wraps its model.",
            found="build returned a DistributedDataParallel",
            because="the treatment changes parameters, which the wrapper has already registered",
            do="return the plain model; the trial wraps it after the treatment",
        )
    learned = any(parameter.requires_grad for parameter in model.parameters())
    return DistributedDataParallel(model) if rank_and_size()[1] > 1 and learned else model
