"""`Account`: the seconds that watching has cost so far, by kind of look, from which the schedule decides."""

from __future__ import annotations

from time import perf_counter

from normscope.watch.guard import Guard
from normscope.watch.schedule import Cost, Due, Spending


class Account:
    """What the `guard` has spent since watching `started`, in a run whose first step is `first`."""

    def __init__(self, guard: Guard, started: float, first: int) -> None:
        self._guard, self._started = guard, started
        self._first = self._last = first
        self._setup = 0.0
        self._base = self._before = (0.0, 0.0, 0.0)  # after the first step, before the latest sample
        self._live = self._probe = self._experiment = Spending()

    @property
    def cost(self) -> Cost:
        """What watching has cost when a step is about to begin."""
        elapsed = perf_counter() - self._started
        return Cost(elapsed, self._setup, self._live, self._probe, self._last, self._experiment)

    def begin(self) -> None:
        """A sampled step begins."""
        self._before = self._spent()

    def end(self, step: int, due: Due, passes_to_come: int) -> None:
        """What was `due` at `step` has been done; the next experiments take so many passes of the fixed batch."""
        spent = self._spent()
        if step == self._first:
            self._setup, self._base = self._guard.spent, spent
        took = [now - then for now, then in zip(spent, self._before)]
        total = [now - then for now, then in zip(spent, self._base)]
        self._live = Spending(total[0], took[0] if due else self._live.latest)
        self._probe = Spending(total[1], took[1] or self._probe.latest)
        # A probe takes two passes, and looks at every tensor of them; an experiment's passes cost no more.
        self._experiment = Spending(total[2], passes_to_come * self._probe.latest / 2)
        self._last = step if due else self._last

    def _spent(self) -> tuple[float, float, float]:
        """Seconds spent so far on the training, set-up included, on running the fixed batch, and on experiments."""
        probe, experiments = (self._guard.parts[part] for part in ("fixed batch", "experiments"))
        return self._guard.spent - probe - experiments, probe, experiments
