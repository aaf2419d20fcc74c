"""One batch is counted more than once in the running statistics of a normalization.

## What it finds
Normalizations with running statistics that learn from several tensors in one training step: because the module stands
at several places in the network, because a loop calls it at every time step, or because activation checkpointing runs
its forward pass again. With an example a copy of the model is trained for one step and the updates are counted; without
one the calls are read off the code.

## Why it hurts
A module that stands at two depths sees two distributions and keeps one mean and variance between them: right at
neither place at inference, while training, which takes each batch's own statistics, shows nothing. Under checkpointing
the second pass counts the same batch again, so the average forgets twice as fast as its momentum says.

## Evidence
Updates of the running statistics in one step.

## Prescription
Give each place a normalization of its own (the layers around it may stay shared), or one that keeps no statistics
(layer, group or RMS normalization); in a recurrence, `normscope.nn.LSTM(norm="batch")` keeps statistics for every time
step. Under checkpointing use `normscope.nn.BatchNorm2d`, which counts a batch once, or leave the normalization outside.

## When to ignore
When the branches that share it see the same distribution (two views of one batch in contrastive learning).

## References
Cooijmans et al. 2017, *Recurrent Batch Normalization*, section 3 (statistics for every time step); Chen et al. 2016,
*Training Deep Nets with Sublinear Memory Cost*.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normscope.anatomy.batch import Probe, tensors
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.diagnose.blueprint import Blueprint, Norm
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Severity

ONCE = Threshold(1, "one batch, one update: what the momentum of a running average counts in", "updates a step")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding for norms that stand at several depths, one for those that stand side by side."""
    norms = {norm.path: norm for norm in blueprint.norms if _learns(norm)}
    calls = _calls(blueprint, norms)
    updates = _updates(blueprint, norms) or calls
    often = {path: count for path, count in updates.items() if count > ONCE.value}
    beside = {path for path in often if often[path] == calls.get(path, 0) and not _in_sequence(blueprint, path)}
    kinds: tuple[tuple[set[str], Severity], ...] = ((often.keys() - beside, "warning"), (beside, "note"))
    for paths, severity in kinds:
        sites = tuple(path for path in norms if path in paths)
        if not sites:
            continue
        most = max(often[path] for path in sites)
        yield RULE.finding(
            sites,
            f"The running statistics of {len(sites)} normalization{'s' if len(sites) > 1 else ''} learn {most} times "
            "from one batch.",
            Evidence("updates", most, ONCE.value, unit=ONCE.unit, source=ONCE.source),
            severity=severity,
            prescriptions=[
                advice(
                    f"give each place its own normalization ({few(sites)}), or one without kept statistics such as "
                    "`nn.GroupNorm` or `nn.LayerNorm`",
                    "one mean and variance cannot describe two distributions",
                ),
                advice("under activation checkpointing use `normscope.nn.BatchNorm2d`", "it counts a batch once"),
            ],
        )


def _learns(norm: Norm) -> bool:
    return "N" in norm.spec.over and "num_batches_tracked" in norm.module._buffers and norm.module.training


def _calls(blueprint: Blueprint, norms: dict[str, Norm]) -> dict[str, int]:
    return {} if blueprint.flow is None else {path: len(blueprint.flow.at(path)) for path in norms}


def _updates(blueprint: Blueprint, norms: dict[str, Norm]) -> dict[str, int]:
    """How often each norm learned in one training step of a copy; empty when that cannot be tried."""
    if blueprint.example is None or not norms:
        return {}
    try:
        model = copy.deepcopy(unwrapped(blueprint.model))
        counts = {path: model.get_submodule(path)._buffers["num_batches_tracked"] for path in norms}
        before = {path: int(count) for path, count in counts.items() if count is not None}
        with isolated(model), torch.enable_grad():
            outputs = tensors(Probe.of(blueprint.example).run(model))
            sum(one.float().sum() for one in outputs if one.requires_grad).backward()  # type: ignore[union-attr]
            counts = {path: model.get_submodule(path)._buffers["num_batches_tracked"] for path in norms}
            return {path: int(count) - before[path] for path, count in counts.items() if count is not None}
    except Exception:  # a model that cannot be copied, or a batch that it cannot train on: the calls have to do
        return {}


def _in_sequence(blueprint: Blueprint, path: str) -> bool:
    """Whether one call of the norm feeds another, however far behind."""
    flow = blueprint.flow
    assert flow is not None
    behind: set[int] = set()
    for call in flow.calls:
        reached = any(index in behind for index in call.inputs)
        if call.path == path and reached:
            return True
        if reached or call.path == path:
            behind.add(call.index)
    return False


class _Looped(nn.Module):
    """One norm at every turn of a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.norm(self.layer(x)).tanh()
        return x


class _Checkpointed(nn.Module):
    """One norm whose forward pass runs again for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.body, x, use_reentrant=False)
        assert isinstance(y, Tensor)
        return y


class _Views(nn.Module):
    """Two branches of one batch through one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.norm(-x)


SICK = (
    Specimen(_Looped, ("norm",)),
    Specimen(_Checkpointed, ("body.1",), {"example": torch.zeros(4, 4)}),
    Specimen(_Views, ("norm",), {"example": torch.zeros(4, 4)}),
)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), known={"example": torch.zeros(4, 4)}),
    Specimen(lambda: nn.Sequential(norm := nn.LayerNorm(4), nn.Linear(4, 4), norm)),
)

RULE = Rule(
    "NS105",
    "statistics_updated_twice",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"once": ONCE},
    causes=("train_eval_gap",),
    sick=SICK,
    healthy=HEALTHY,
)
