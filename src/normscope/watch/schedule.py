"""When to look: functions of the step and of what looking has cost so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from typing import Any, Literal, Protocol

from normscope.terms.datum import Datum
from normscope.terms.errors import UnknownNameError

PROBE_SPACING = 10
"""With a fixed interval below this, the fixed batch is run at every so many steps only: it costs several passes."""

RESOLUTION = 512
"""Samples per doubling of the run's length, at most: a picture has no more columns, and a record no end otherwise."""


GOLDEN = (5**0.5 - 1) / 2
"""Of all numbers the one whose multiples, modulo 1, are spread most evenly however few of them are taken."""

ON_BEAT = 32
"""Samples that a fixed interval takes at its multiples: a short run is seen where it was asked for, to the step."""

LOAN = 1.0
"""Seconds that may be borrowed at the start. Loading torch takes longer; a run that never pays it back was short."""

PROBES = 4
"""Runs of the fixed batch that may be borrowed, at most: with that of the first step, five of a run of a thousand."""


@dataclass(frozen=True, repr=False)
class Due(Datum):
    """What is to be done at a step: look at the training batch, run the fixed batch, experiment with it, or nothing."""

    live: bool = False
    probe: bool = False
    experiment: bool = False

    def __bool__(self) -> bool:
        return self.live or self.probe or self.experiment


@dataclass(frozen=True, repr=False)
class Spending(Datum):
    """Seconds spent on one kind of look after the first step, and on the latest of them (the first step's included)."""

    total: float = 0.0
    latest: float = 0.0


@dataclass(frozen=True, repr=False)
class Cost(Datum):
    """What watching has cost when a step is about to begin.

    Attributes:
        elapsed: seconds since watching began.
        setup: seconds spent up to the end of the first step.
        live: spent on looking at the training.
        probe: spent on running the fixed batch.
        last: the latest sampled step.
        experiment: spent on running the fixed batch at other parameters; `latest` is what the next will cost, 0 where
            there is none to come.
    """

    elapsed: float
    setup: float = 0.0
    live: Spending = Spending()
    probe: Spending = Spending()
    last: int = 0
    experiment: Spending = Spending()


class Schedule(Protocol):
    """Says what is due at a step. At the first step of a run everything is due, and no schedule is asked."""

    def due(self, step: int, cost: Cost) -> Due:
        """What is to be done at optimizer step `step`, which has not begun."""
        ...


@dataclass(frozen=True, repr=False)
class Interval(Datum):
    """Once in each `every` steps; the fixed batch each time, or in about each tenth step when they are dense.

    The first samples lie at the multiples of `every`. After them the place within a stretch follows the multiples of
    the golden ratio, which no loader keeps time with: at the multiples of ten alone, a run whose batches take turns
    would show one kind of them for ever.
    """

    every: int

    def due(self, step: int, cost: Cost) -> Due:
        """Due at the multiples of `every` at first, and then once in the first half of each `every` steps."""
        stretch, place = divmod(step, self.every)
        if place != (int(stretch * GOLDEN % 1 * (self.every // 2 + 1)) if stretch >= ON_BEAT else 0):
            return Due()
        probe = stretch % -(-PROBE_SPACING // self.every) == 0
        return Due(True, probe, probe)


@dataclass(frozen=True, repr=False)
class Chosen(Datum):
    """At the steps that a function of the caller's chooses."""

    choose: Callable[[int], Any]

    def due(self, step: int, cost: Cost) -> Due:
        """Due where ``choose(step)`` is true."""
        chosen = bool(self.choose(step))
        return Due(chosen, chosen, chosen)


@dataclass(frozen=True, repr=False)
class Budgeted(Datum):
    """As often as a share of the run's time allows: half of it for the training, half for the fixed batch.

    The cost of the first step, the set-up, is given. After it a look is due once what was spent on its kind and what it
    costs fit into its half of ``budget × elapsed``. The steps 1, 2, 4, 8, …, where a network changes fastest and no
    budget has grown yet, may borrow: together as much as the set-up took, or a second, and for the fixed batch what
    `PROBES` runs of it take; the later steps pay it back.
    Experiments take at most half of the fixed batch's half.
    """

    budget: float

    def due(self, step: int, cost: Cost) -> Due:
        """Due when it is affordable and the last sample is not too near for the length of the run."""
        if (step - cost.last) * RESOLUTION < step:
            return Due()
        loan = max(cost.setup, LOAN) if step & (step - 1) == 0 else 0.0
        own = self.budget * cost.elapsed / 2
        allowed, next_probe = own + loan / 2, cost.probe.total + cost.probe.latest
        few = next_probe <= own + PROBES * cost.probe.latest
        probe = few and next_probe + cost.experiment.total <= allowed
        live = probe or cost.live.total + cost.live.latest <= allowed
        return Due(live, probe, live and 0 < cost.experiment.latest <= allowed / 2 - cost.experiment.total)


@dataclass(frozen=True, repr=False)
class Geometric(Datum):
    """As many samples in each doubling of the run's length: what several processes reckon alike without a word.

    Their clocks differ, so a budget would have them sample at different steps, and one that runs the fixed batch alone
    waits for ever where the model's forward pass talks to the others. The share of time goes to zero as the run grows.
    """

    per_doubling: int = 16

    def due(self, step: int, cost: Cost) -> Due:
        """Due when `step` is the first in its sixteenth of a doubling."""
        due = step < 2 or int(self.per_doubling * log2(step)) != int(self.per_doubling * log2(step - 1))
        return Due(due, due, due)


def schedule_of(every: int | Literal["auto"] | Callable[[int], Any], budget: float, *, processes: int = 1) -> Schedule:
    """The schedule that `every` and `budget` ask for, in a run of so many processes.

    Raises:
        UnknownNameError: `every` is neither a positive whole number, "auto", nor a function of the step; or `budget`
            is no share of the time.
    """
    if not (isinstance(budget, int | float) and 0 < budget <= 1):
        raise UnknownNameError(
            "A run was to be watched within a budget that is no share.",
            found={"budget": repr(budget)},
            because="the budget is the share of the run's time that watching may take",
            do="give a number above 0 and up to 1; 0.01 is one percent",
        )
    if every == "auto":
        return Budgeted(float(budget)) if processes == 1 else Geometric()
    if callable(every):
        return Chosen(every)
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return Interval(every)
    raise UnknownNameError(
        "A run was to be watched at steps that cannot be told.",
        found={"every": repr(every)},
        because="samples are taken each so many steps, as the budget allows, or where a function says so",
        do='give a whole number from 1, "auto", or a function of the step that returns true or false',
    )
