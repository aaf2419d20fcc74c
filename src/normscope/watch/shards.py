"""Models that are split over processes (`fully_shard`, tensor parallelism): all of them gather, or none does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from normscope.terms.errors import ModelError

PATIENCE = 30.0
"""Seconds to wait for the other processes, once: where one does not come, none runs the fixed batch again."""

LIMIT = 2 << 30
"""Bytes of the whole parameters up to which each process gathers them: a copy beside the training, for two passes."""

_numbers = count()


class NobodyCame(ModelError):
    """A process that is needed for the whole model does not take part."""


def is_sharded(tensor: Any) -> bool:
    """Whether `tensor` is this process's part of a distributed one."""
    return hasattr(tensor, "full_tensor")


def whole(parameter: Any) -> Tensor:
    """All of a distributed tensor: every process of its mesh must ask for it. Any other tensor as it is."""
    with torch.no_grad():
        return parameter.full_tensor() if is_sharded(parameter) else parameter.detach()


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that the user wrote: `fully_shard` puts one of its own in its place."""
    kind = type(module)
    at = getattr(kind, "_orig_cls_mro_index", 2)
    is_wrapped = kind.__name__.startswith("FSDP") and hasattr(kind, "unshard") and len(kind.__mro__) > at
    return kind.__mro__[at] if is_wrapped else kind


def lower_precision(model: nn.Module) -> torch.dtype | None:
    """In which precision `fully_shard` has the passes run, where it is not that of the parameters."""
    sharded: list[Any] = [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    kinds = (module._get_fsdp_state()._mp_policy.param_dtype for module in sharded)
    return next((kind for kind in kinds if kind is not None), None)


class Meeting:
    """Where the processes of a mesh agree, through the store by which they found each other, that all are there.

    A gather of which one process stays away would stop the training for ever. The store can be asked with patience,
    and who has lost it says so to all: the first word counts.

    Attributes:
        is_first: whether this process is the first of the mesh.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        from torch.distributed import PrefixStore, get_rank
        from torch.distributed.distributed_c10d import _get_default_store

        name = f"normscope/{next(_numbers)}/{ranks[0]}-{ranks[-1]}-{len(ranks)}"
        self._store = PrefixStore(name, _get_default_store())
        self._size, self._times, self._over = len(ranks), 0, False
        self.is_first = get_rank() == ranks[0]

    @classmethod
    def of(cls, model: nn.Module) -> Meeting | None:
        """That of the processes that hold parts of `model`; None where this process holds all of it."""
        parts: list[Any] = [parameter for parameter in model.parameters() if is_sharded(parameter)]
        mesh = parts[0].device_mesh if parts else None
        return None if mesh is None else cls(mesh.mesh.flatten().tolist())

    def agree(self) -> None:
        """Return when all are there. Raises NobodyCame when one is not, from then on at once."""
        if not self._over:
            self._times += 1
            self._over = self._said(str(self._times)) != b"yes"
        if self._over:
            raise NobodyCame(
                "A model that is split over processes was to be gathered for the fixed batch, and one stayed away.",
                found=f"fewer than {self._size} processes that watch it after {PATIENCE:.0f} seconds",
                because="a part alone cannot compute what the whole model computes",
                do="call watch(…) in every process, with the same settings",
            )

    def _said(self, time: str) -> bytes:
        word = f"{time}/word"
        if self._store.add(f"{time}/come", 1) == self._size:
            return self._store.compare_set(word, "", "yes")
        try:
            self._store.wait([word], timedelta(seconds=PATIENCE))
            return self._store.get(word)
        except RuntimeError:  # nobody said it in time
            return self._store.compare_set(word, "", "no")
