"""What a run was done with, kept so that activation checkpointing can do it again.

A checkpoint runs a layer a second time inside the backward pass, when the statistics of earlier batches have moved on.
The first run therefore leaves a note: what it is known again by (the statistics of its batch), and what of the past it
used. A note lives as long as the graph of the run, so there are as many as there are runs that may still come back;
runs without a graph (in reentrant checkpoints) leave the last `WITHOUT_GRAPH`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from normscope.terms.errors import ModelError

WITHOUT_GRAPH = 64  # notes of a few numbers a channel: micro-batches times calls of a shared layer, and some


@dataclass(eq=False)
class _Note:
    mark: Sequence[Tensor]
    past: tuple[Tensor, ...]
    used: bool = False


@dataclass
class _Notes:
    """The notes of one layer, oldest first; a graph holds those that are weak."""

    all: list[ReferenceType[_Note]] = field(default_factory=list)
    without_graph: deque[_Note] = field(default_factory=lambda: deque(maxlen=WITHOUT_GRAPH))


_OF_LAYER: MutableMapping[Tensor, _Notes] = WeakTensorKeyDictionary()


def keep(buffer: Tensor, mark: Sequence[Tensor], past: tuple[Tensor, ...], y: Tensor) -> None:
    """Note that the layer of `buffer` made `y` by means of `past`, in a run that is known again by `mark`."""
    if torch.compiler.is_compiling() or not _may_run_again():  # the compiler runs again what it likes, by itself
        return
    notes = _OF_LAYER.setdefault(buffer, _Notes())
    note = _Note([value.detach() for value in mark], past)
    notes.all = [old for old in notes.all if old() is not None] + [ref(note)]
    if y.grad_fn is not None:
        y.grad_fn.metadata["normscope"] = note  # pyright: ignore[reportIndexIssue]: torch declares a method
    else:
        notes.without_graph.append(note)


def _may_run_again() -> bool:
    """Whether this may be the first run of a checkpoint: one without gradients, or one whose tensors are not saved."""
    autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    hooks = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or not torch.is_grad_enabled() or hooks(True) is not None


def again(buffer: Tensor | None, mark: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The `past` of the first run with this mark. Runs with equal marks come back as backward passes go, last first.

    Raises:
        ModelError: no such run is known.
    """
    notes = None if buffer is None else _OF_LAYER.get(buffer)
    known = [note for old in reversed(notes.all if notes else []) if (note := old()) and _same(note.mark, mark)]
    if known:
        note = next((note for note in known if not note.used), known[0])
        note.used = True
        return note.past
    raise ModelError(
        "A normalization that depends on earlier batches was run on a new batch inside a backward pass.",
        found="no earlier run of this layer whose batch had the same statistics",
        because="activation checkpointing runs a batch again, which is normalized as it was the first time; the input "
        "of this run is not what it was then",
        do="let the checkpoint restore the random state (preserve_rng_state=True), or leave this layer outside of it",
    )


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(a.shape == b.shape and torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in zip(one, other))
