"""A controlled comparison: the same start, the same data order, the same seeds, with and without the treatment."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from normscope.record.writer import Writer
from normscope.terms.errors import DataError, ModelError
from normscope.terms.finding import Diagnosis, Finding, Prescription
from normscope.terms.verdict import Arm, Effect, Trial, Verdict
from normscope.treat.interval import mean_interval
from normscope.treat.optimizer import over
from normscope.treat.ranks import mean_over_ranks, parallel, rank_and_size
from normscope.treat.treatment import Treated, prescribed, treat

CONFIDENCE = 0.95
APART = 1_000_003  # between the seeds of two ranks: a prime, so that they meet no other run's
BROKEN_RULE = "a run that broke off counts as the highest loss with which any run of the trial started or ended"

Progress = Callable[[str, int, int], object]


def trial(
    build: Callable[..., Any],
    train_step: Callable[..., Any],
    prescriptions: Diagnosis | Finding | Prescription | Iterable[Prescription],
    *,
    steps: int,
    seeds: Sequence[int],
    path: str | PathLike[str] | None = None,
    data: Any = None,
    stop_early: bool = False,
    progress: Progress | None = None,
) -> Trial:
    """Train a model untreated and treated, once a seed, and say whether the treatment lowers the final loss.

    Both arms of a seed start from the parameters that `build` makes under that seed, and training begins with the
    same random state (Python, numpy, torch), so a `train_step` that draws its batch from them, or chooses it by the
    step, sees the same data in the same order in both.

    Under ``torchrun``, where a process group is initialized, every rank calls `trial` alike: the model is wrapped for
    data parallel training after the treatment, each rank's random state is its own, the loss of a step is the mean over
    the ranks, all of them get the same trial, and rank 0 saves it.

    Args:
        build: ``build(seed)`` or ``build()``; returns a model or ``(model, optimizer)``.
        train_step: ``train_step(model, step)`` or ``train_step(model, optimizer, step)``; makes one step and returns
            the loss, a float or a tensor of one element.
        prescriptions: the treatment, as `normscope.treat` reads it.
        steps: steps of each run.
        seeds: one pair of runs each; an interval needs two or more.
        path: a run directory in whose record the trial is saved.
        data: what the treatment needs to see (`normscope.treat`).
        stop_early: whether to leave out the seeds that are left once the interval excludes zero. It is then looked at
            after every seed from the second on, each time at the confidence that keeps all looks together at 95%
            (Bonferroni: 1 − 0.05/(seeds − 1)).
        progress: told ``(arm, seed, step)`` after each step.

    Returns:
        The trial. Its effect is the mean over seeds of log(treated final loss / untreated final loss), final being
        the mean of the last tenth of the steps, at least five, with the paired t interval at 95%; where a final loss
        is not positive, the difference of the losses takes the place of the log ratio. The verdict is HOLDS when the
        interval lies below zero, FAILS when it lies above, else UNCLEAR; so is a single seed.

    Raises:
        DataError: there are no steps or no seeds, or `train_step` returned no loss.
        ModelError: `build` or `train_step` cannot be called so, or `train_step` raises at its very first step.
        NormscopeError: the treatment cannot be applied (see `normscope.treat`).
    """
    what = prescribed(prescriptions)
    if steps < 1 or not seeds:
        raise DataError(
            "A trial of nothing was asked for.",
            found={"steps": steps, "seeds": list(seeds)},
            because="both arms need at least one step and one seed, and an interval needs two seeds",
            do="give steps=200, seeds=(0, 1, 2) or more",
        )
    if isinstance(data, Iterator):
        data = list(data)
    course = _Course(build, train_step, what, steps, data, progress or (lambda arm, seed, step: None))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(seeds) - 1) if stop_early else CONFIDENCE
    untreated, treated = [], []
    for seed in seeds:
        untreated.append(course.run("untreated", seed))
        treated.append(course.run("treated", seed))
        if stop_early and _effect(untreated, treated, steps, confidence).excludes(0.0):
            break
    result = _judged(course, tuple(seeds), untreated, treated, confidence)
    if path is not None and rank_and_size()[0] == 0:
        writer = Writer(path)
        writer.trial(result)
        writer.close()
    return result


class _Run(NamedTuple):
    seed: int
    curve: tuple[float, ...]
    broke: str | None
    treated: Treated | None


class _Course(NamedTuple):
    """What both arms share."""

    build: Callable[..., Any]
    train_step: Callable[..., Any]
    prescriptions: tuple[Prescription, ...]
    steps: int
    data: Any
    progress: Progress

    def run(self, arm: str, seed: int) -> _Run:
        """One run of one arm, from its own fresh model."""
        with seeded(seed):
            model, optimizer = self._built(seed)
            treated = None
            if arm == "treated":
                before = list(model.parameters())
                treated = treat(model, self.prescriptions, data=self.data, inplace=True)
                model = treated.model
                optimizer = optimizer and over(optimizer, model, before)
            _seed(seed + APART * rank_and_size()[0])
            curve, broke = self._trained(arm, seed, parallel(model), optimizer)
        return _Run(seed, curve, broke, treated)

    def _built(self, seed: int) -> tuple[nn.Module, Optimizer | None]:
        made = self.build(seed) if _positional(self.build) else self.build()
        model, optimizer = made if isinstance(made, tuple | list) and len(made) == 2 else (made, None)
        if isinstance(model, nn.Module) and (optimizer is None or isinstance(optimizer, Optimizer)):
            return model, optimizer
        raise ModelError(
            "A trial was asked for with a build that makes no model.",
            found=f"build returned {type(made).__name__}",
            because="each run starts from the model that build makes under the run's seed",
            do="let build return an nn.Module, or (nn.Module, torch.optim.Optimizer)",
        )

    def _trained(
        self, arm: str, seed: int, model: nn.Module, optimizer: Optimizer | None
    ) -> tuple[tuple[float, ...], str | None]:
        """The loss at each step, NaN after a break, and why it broke off."""
        arguments = _arguments(self.train_step, model, optimizer)
        curve: list[float] = []
        why = None
        for step in range(self.steps):
            try:
                value = self.train_step(*arguments, step)
            except Exception as error:
                why = f"step {step}: {type(error).__name__}: {error}".splitlines()[0]
                mean_over_ranks(math.nan)
                if step == 0 and arm == "untreated":
                    raise _not_runnable(error) from error
                break
            curve.append(mean_over_ranks(_loss(value)))
            if not math.isfinite(curve[-1]):
                why = f"step {step}: the loss is {curve[-1]}"
                break
            self.progress(arm, seed, step)
        return tuple(curve + [math.nan] * (self.steps - len(curve))), why


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The random state of Python, numpy and torch that `seed` gives, and the caller's own afterwards."""
    ours, numpys = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        _seed(seed)
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _judged(
    course: _Course, asked: tuple[int, ...], untreated: list[_Run], treated: list[_Run], confidence: float
) -> Trial:
    effect = _effect(untreated, treated, course.steps, confidence)
    seeds = tuple(run.seed for run in treated)
    if effect.high < 0:
        verdict = Verdict.HOLDS
    elif effect.low > 0:
        verdict = Verdict.FAILS
    else:
        verdict = Verdict.UNCLEAR
    return Trial(
        treatment="; ".join(item.words or item.treatment for item in course.prescriptions) or "none",
        seeds=seeds,
        steps=course.steps,
        arms=(_arm("untreated", untreated), _arm("treated", treated)),
        effect=effect,
        verdict=verdict,
        notes=_notes(untreated, treated, asked[len(seeds) :]),
        settings={
            "final_steps": _final_steps(course.steps),
            "torch": torch.__version__,
            **({"ranks": ranks} if (ranks := rank_and_size()[1]) > 1 else {}),
        },
    )


def _effect(untreated: Sequence[_Run], treated: Sequence[_Run], steps: int, confidence: float) -> Effect:
    """Treated minus untreated, paired by seed."""
    pairs = [(one.curve, other.curve) for one, other in zip(untreated, treated)]
    tail = _final_steps(steps)
    finals = [[math.fsum(curve[-tail:]) / tail for curve in pair] for pair in pairs]
    known = [value for pair in finals for value in pair] + [curve[0] for pair in pairs for curve in pair]
    worst = max((value for value in known if math.isfinite(value)), default=math.nan)
    finals = [[value if math.isfinite(value) else worst for value in pair] for pair in finals]
    if all(value > 0 for pair in finals for value in pair):
        unit, differences = "log ratio of final loss", [math.log(after / before) for before, after in finals]
    else:
        unit, differences = "difference of final loss", [after - before for before, after in finals]
    value, low, high = mean_interval(differences, confidence)
    return Effect(value, low, high, confidence, unit, f"paired t, {len(pairs)} seeds, last {tail} steps")


def _final_steps(steps: int) -> int:
    return min(steps, max(5, math.ceil(steps / 10)))


def _arm(name: str, runs: Sequence[_Run]) -> Arm:
    broke = tuple((run.seed, run.broke) for run in runs if run.broke is not None)
    return Arm(name, tuple(run.curve for run in runs), broke)


def _notes(untreated: Sequence[_Run], treated: Sequence[_Run], left: Sequence[int]) -> tuple[str, ...]:
    notes = ["both arms of a seed share the start, the random state and the optimizer's settings"]
    if left:
        notes.append(f"stopped early: the interval decided without seeds {', '.join(map(str, left))}")
    done = treated[0].treated
    if done is not None and not done.changes:
        notes.append("the treatment changed nothing")
    notes += [f"skipped {site or 'outside the model'}: {why}" for site, why in (done.skipped if done else ())]
    if any(run.broke for run in (*untreated, *treated)):
        notes.append(BROKEN_RULE)
    if len(treated) < 2:
        notes.append("one seed gives no interval")
    return tuple(notes)


def _arguments(train_step: Callable[..., Any], model: nn.Module, optimizer: Optimizer | None) -> tuple[Any, ...]:
    """What stands before the step in a call of `train_step`."""
    wanted = _positional(train_step)
    if wanted == 2:
        return (model,)
    if wanted == 3 and optimizer is not None:
        return model, optimizer
    raise ModelError(
        "A trial was asked for with a train_step that cannot be called.",
        found=f"train_step takes {wanted} arguments, build returned "
        + ("no" if optimizer is None else "an")
        + " optimizer",
        because="it is called as train_step(model, step) or train_step(model, optimizer, step)",
        do="write one of these two; for the second let build return (model, optimizer)",
    )


def _positional(function: Callable[..., Any]) -> int:
    """How many positional arguments a call should give: the required ones, or the one optional one."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [parameter for parameter in inspect.signature(function).parameters.values() if parameter.kind in kinds]
    required = sum(parameter.default is inspect.Parameter.empty for parameter in found)
    return required or min(len(found), 1)


def _loss(value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.detach().item()
    if isinstance(value, int | float | np.number):
        return float(value)
    raise DataError(
        "A trial was asked for with a train_step that returns no loss.",
        found=f"train_step returned {type(value).__name__}",
        because="the arms are compared by the loss of each step",
        do="return the loss, as a float or as a tensor of one element",
    )


def _not_runnable(error: Exception) -> ModelError:
    return ModelError(
        "A trial was asked for with a train_step that raises at its first step.",
        found=f"{type(error).__name__}: {error}".splitlines()[0],
        because="the untreated model must at least run for a treated one to be compared with it",
        do="try train_step on the model that build returns, outside of the trial",
    )
