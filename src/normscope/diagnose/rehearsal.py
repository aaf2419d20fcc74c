"""Short trainings of a copy on the fixed batch, one thing changed each: what a run that learned nothing could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isfinite

import torch
from torch import nn

from normscope.anatomy.batch import Probe
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.diagnose.case import Case
from normscope.treat.optimizer import over

STEPS = 40
"""Steps of a rehearsal: enough to learn a batch by heart at a rate that suits, and twenty of them cost a second."""

SECONDS = 1.5
"""A rehearsal ends after this long, wherever it stands."""

LEARNT, STUCK = 0.5, 0.2
"""Of its first loss a rehearsal has lost half, as in every rule here, or a fifth at most."""

Start = Callable[[nn.Module], None]


def rehearsed(case: Case, rate: float = 1.0, *, anew: bool = True, change: Start | None = None) -> float | None:
    """The share of the loss of the fixed batch that a short training takes away; None where it cannot be had.

    Args:
        case: the run, with the model, the loss and the optimizer at hand.
        rate: a multiple of the learning rate that was usual in the run.
        anew: whether to begin with weights as their modules draw them, or where the run has ended.
        change: made to the copy before it begins; a function of a module, known by its name.
    """
    key = f"rehearsal {rate:g} {anew} {change.__qualname__ if change else ''}"
    tried = case.experiment
    if tried is None or tried.optimizer is None:
        return None
    if key not in tried.kept:
        try:
            tried.kept[key] = _trained(case, rate, anew, change)
        except Exception:  # a model that cannot be copied or trained outside its loop
            tried.kept[key] = None
    return tried.kept[key]


def _trained(case: Case, rate: float, anew: bool, change: Start | None) -> float | None:
    tried = case.experiment
    assert tried is not None and tried.optimizer is not None
    model, batch = tried.copied(), Probe.of(tried.probe)
    theirs = dict(unwrapped(tried.model).named_parameters(remove_duplicate=False))
    ours = dict(model.named_parameters(remove_duplicate=False))
    optimizer = over(tried.optimizer, model, theirs.values(), {theirs[name]: ours[name] for name in theirs})
    optimizer.state.clear()
    usual = case.scalar(None, "learning_rate")
    now = float(tried.optimizer.param_groups[0]["lr"])
    if len(usual) and now > 0:
        rate *= max(usual.values.tolist()) / now
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * rate
    with isolated(model, training=True), torch.enable_grad():
        torch.manual_seed(tried.seed)
        if anew:
            for module in model.modules():
                if callable(draw := getattr(module, "reset_parameters", None)):
                    draw()
        if change is not None:
            change(model)
        losses, began = [], time.process_time()
        for _ in range(STEPS + 1):
            loss = tried.loss(batch.detached().run(model), batch.target)
            losses.append(float(loss.detach()))
            if not isfinite(losses[-1]) or time.process_time() - began > SECONDS:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    first, last = losses[0], sorted(losses[-3:])[len(losses[-3:]) // 2]
    if not isfinite(first) or not first > 0:
        return None
    return (first - last) / first if isfinite(last) else -float("inf")
