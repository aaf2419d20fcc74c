"""Where statistics come from: `SOURCES`, one small class a source, and `run`, which puts two of them to work.

A layer has two: the one of `train_from` normalizes while training, and what it measures teaches the one of
`infer_from`, which normalizes at inference. Any two go together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from normscope.kernels.reference import Statistics
from normscope.norms.sources.averaged import Cumulative, Population, Running
from normscope.norms.sources.ghost import Ghost
from normscope.norms.sources.given import Given
from normscope.norms.sources.measured import Measured, Nothing
from normscope.norms.sources.online import Online
from normscope.norms.sources.renormalized import Renormalized
from normscope.norms.sources.source import Call, Source
from normscope.norms.sources.synchronized import Synchronized
from normscope.terms.spec import NormSpec

SOURCES: Mapping[str, Source] = {  # no proxy of a mapping: torch.compile before 2.7 looks nothing up in one
    "input": Measured(),
    "batch": Measured(),
    "running": Running(),
    "cumulative": Cumulative(),
    "population": Population(),
    "renormalized": Renormalized(),
    "ghost": Ghost(),
    "synchronized": Synchronized(),
    "online": Online(),
    "given": Given(),
    "none": Nothing(),
}

__all__ = ["SOURCES", "Call", "Source", "initial_state", "run", "teach"]


def initial_state(spec: NormSpec, width: int) -> dict[str, Tensor]:
    """The buffers that `spec` needs for `width` channels (or groups), in the dtype and on the device of the moment."""
    return {
        **SOURCES[spec.train_from].initial(spec, width),
        **SOURCES[spec.infer_from].initial(spec, width),
    }


def run(call: Call, training: bool) -> Tensor:
    """The output; while training, the buffers in `call.state` learn from the batch in place."""
    infer = SOURCES[call.spec.infer_from]
    if not training:
        return infer.normalize(call)
    train = SOURCES[call.spec.train_from]
    if not infer.learns or not call.state:
        return train.normalize(call)
    if recomputing():
        return train.repeat(call)
    if (y := infer.at_once(call)) is not None:
        return y
    y, seen = train.measure(call)
    teach(call.state, call.spec, *seen)
    return y


def teach(state: Mapping[str, Tensor], spec: NormSpec, *seen: Statistics) -> None:
    """Let the source of inference learn, in place, from what was measured; a batch run again teaches nothing."""
    if not recomputing():
        with torch.no_grad():
            for statistics in seen:
                SOURCES[spec.infer_from].learn(state, spec, statistics)


def recomputing() -> bool:
    """Whether a backward pass is under way: activation checkpointing then runs a batch again that was learned from."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
