"""Short trainings of a copy on the fixed batch, one thing changed each: what a run that learned nothing could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite

import torch
from torch import nn
from torch.optim import Optimizer

from normscope.anatomy.batch import Probe, mapped, tensors
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment
from normscope.treat.optimizer import over

STEPS = 40
"""Steps of a rehearsal: enough to learn a batch by heart at a rate that suits, and twenty of them cost a second."""

SECONDS, ALTOGETHER = 1.0, 5.0
"""A rehearsal ends after so much processor time, wherever it stands; when all have taken so much, no other begins."""

SPENT = "seconds of rehearsals"

FEWEST, EACH = 16, 4
"""Samples of a batch that has halves to learn from; the other half's loss is asked at each so many steps."""

PLAIN = 3e-3
"""The rate of Adam at which `Experiment.by_heart` learns a batch."""

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
    return _asked(tried, key, lambda: _trained(case, rate, anew, change))


def _asked(tried: Experiment, key: str, make: Callable[[], float | None]) -> float | None:
    """What was kept under the key, or is made now; None where that fails, or all the time for rehearsals is spent."""
    if key not in tried.kept:
        began = time.process_time()
        try:
            tried.kept[key] = make() if tried.kept.get(SPENT, 0.0) < ALTOGETHER else None
        except Exception:  # a model that cannot be copied or trained outside its loop, a batch that has no halves
            tried.kept[key] = None
        tried.kept[SPENT] = tried.kept.get(SPENT, 0.0) + time.process_time() - began
    return tried.kept[key]


def carried_over(case: Case, rate: float = 1.0, *, plain: bool = False) -> float | None:
    """The share of the loss of one half of the fixed batch that learning the other half takes away, at its best.

    Begun anew, with this optimizer, at a multiple of its rate; of the loss of chance, where it begins above that: what
    any constant answer gains is not learned. None where the batch has no halves or cannot be learned from.

    Args:
        case: the run, with the model, the loss and the optimizer at hand.
        rate: a multiple of the learning rate that was usual in the run.
        plain: by Adam without decay at `PLAIN` instead, which learns where the run's optimizer itself is the fault.
    """
    tried = case.experiment
    if tried is None or tried.optimizer is None:
        return None
    return _asked(tried, f"carried over {rate:g} {plain}", lambda: _carried_over(case, rate, plain))


def _carried_over(case: Case, rate: float, plain: bool) -> float | None:
    tried = case.experiment
    assert tried is not None
    batch = Probe.of(tried.probe)
    size = batch.batch_size or 0
    given = tensors((batch.args, dict(batch.kwargs), batch.target))
    if size < FEWEST or not given or any(not one.ndim or len(one) != size for one in given):
        return None
    order = torch.randperm(size, generator=torch.Generator().manual_seed(tried.seed))  # batches may stand in some order
    seen, unseen = _part(batch, order[: size // 2]), _part(batch, order[size // 2 :])
    model, optimizer = _copied(case, rate)
    if plain:
        optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], PLAIN)
    losses, began = [], time.process_time()
    with isolated(model, training=True):
        _begin(model, tried.seed, anew=True)
        for step in range(STEPS + 1):
            if step % EACH == 0:
                with torch.no_grad():
                    losses.append(float(tried.loss(unseen.detached().run(model), unseen.target)))
            if time.process_time() - began > SECONDS:
                break
            with torch.enable_grad():
                optimizer.zero_grad()
                tried.loss(seen.detached().run(model), seen.target).backward()
                optimizer.step()
    first = min(losses[0], case.chance or losses[0])
    return (first - min(first, *losses)) / first if isfinite(losses[0]) and first > 0 else None


def _part(batch: Probe, chosen: torch.Tensor) -> Probe:
    def part(one: torch.Tensor) -> torch.Tensor:
        return one[chosen.to(one.device)]

    return replace(
        batch,
        args=mapped(batch.args, part),
        kwargs=mapped(dict(batch.kwargs), part),
        target=mapped(batch.target, part),
    )


def _copied(case: Case, rate: float) -> tuple[nn.Module, Optimizer]:
    """A copy of the model and of its optimizer, without a state, at a multiple of the highest rate of the run."""
    tried = case.experiment
    assert tried is not None and tried.optimizer is not None
    model = tried.copied()
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
    return model, optimizer


def _begin(model: nn.Module, seed: int, *, anew: bool) -> None:
    torch.manual_seed(seed)
    for module in model.modules() if anew else ():
        if callable(draw := getattr(module, "reset_parameters", None)):
            draw()


def _trained(case: Case, rate: float, anew: bool, change: Start | None) -> float | None:
    tried = case.experiment
    assert tried is not None and tried.optimizer is not None
    batch = Probe.of(tried.probe)
    model, optimizer = _copied(case, rate)
    with isolated(model, training=True), torch.enable_grad():
        _begin(model, tried.seed, anew=anew)
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
