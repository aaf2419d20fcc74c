"""`Observer`: what is done at a sampled step, from before its forward pass to after its update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf, nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from normscope.anatomy.batch import Probe, tensors
from normscope.anatomy.walk import sites
from normscope.stats.digest import Digest
from normscope.stats.values import exact
from normscope.terms.errors import NormscopeError
from normscope.terms.site import Site
from normscope.watch.bench import Bench, Experiment, Values
from normscope.watch.fixed_batch import FixedBatch, LossFn, loss_of
from normscope.watch.guard import Guard
from normscope.watch.journal import Journal
from normscope.watch.measure import Measure
from normscope.watch.optimizers import owned
from normscope.watch.plan import Plan
from normscope.watch.sample import Row, Told, digests, merged, readable, row_of
from normscope.watch.schedule import Due
from normscope.watch.shards import NobodyCame, lower_precision
from normscope.watch.taps import Taps
from normscope.watch.update import Update


class Observer:
    """Runs the fixed batch; looks at one forward pass, its backward pass and the update; writes what it saw.

    Attributes:
        probe: the fixed batch; None until one was seen.
        loss_fn: the loss of the fixed batch, where it was given.
        live: whether the training is looked at, and not the fixed batch alone.
        step: the step that is being observed, or None between sampled steps.
        stepping: whether the optimizer is in its step, with a closure that runs the passes.
    """

    def __init__(
        self,
        model: nn.Module,
        journal: Journal,
        guard: Guard,
        *,
        probe: Probe | None,
        loss_fn: LossFn | None,
        measures: Sequence[Measure],
        seed: int,
        live: bool,
        in_turn: bool = False,
        replicated: bool = False,
    ) -> None:
        self._model, self._journal, self._guard = model, journal, guard
        self.probe, self.loss_fn, self._measures, self._seed = probe, loss_fn, measures, seed
        self._experiments = [measure for measure in measures if isinstance(measure, Experiment)]
        self._in_turn, self._turn = in_turn, 0
        self._replicated = replicated  # another process writes the same parameters
        self._batch_size: int | None = None  # of the first batch: the last of an epoch is often smaller
        self._begun: tuple[int, list[Experiment], Values] | None = None  # at a step, from its parameters
        self._began: Counter[Experiment] = Counter()
        self._told: set[Experiment] = set()
        self._plan: Plan | None = None
        self._fixed: FixedBatch | None = None
        self._standing: Taps | None = None  # with its hooks on the model
        self._taps: Taps | None = None  # the same, at a sampled step
        self._update: Update | None = None
        self._late: Update | None = None  # of an optimizer that did not step in a sampled step
        self._held: Tensor | None = None
        self._tried = self._looked_for_unseen = self._owed = False
        self.live = live
        self._scale = 1.0
        self.step: int | None = None
        self.stepping = False

    def begin(self, step: int, due: Due, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A sampled step begins, with a forward pass on `args` and `kwargs` if they are given."""
        self.step = step
        if self._begun is not None:
            self._guard("experiments", self._with_all, self._conclude, *self._begun, step=step)
        batch = Probe(args, kwargs) if args or kwargs else None
        if batch is not None and self._batch_size is None and (size := batch.batch_size):
            self._batch_size = size
            self._journal.know(batch_size=size)
        if self.probe is None and batch is not None:
            self._keep_probe(step, batch)
            batch = None  # held or not, there is no second one to compare it with
        self._guard("plan", self._prepare, step=step)
        self._owed |= due.probe and bool(self._measures)  # until there is a batch to run
        if self._owed and self._fixed is not None:
            self._owed = False
            self._guard("fixed batch", self._with_all, self._run_fixed, step, self._fixed, batch, step=step)
        if due.experiment and self._fixed is not None and self._experiments:
            self._guard("experiments", self._with_all, self._begin_experiments, step, self._fixed, step=step)
        if due.live and self._plan is not None:
            self._update = self._guard("update", Update, self._plan, step=step)

    def _with_all(self, act: Callable[..., None], *args: Any) -> None:
        """``act(*args)``, which runs the fixed batch: for the last time, where a process stays away that has a part."""
        try:
            act(*args)
        except NobodyCame as error:
            self._fixed = self._begun = None
            self._journal.say(f"There is no fixed batch from here on. {error}", step=self.step, warn=True)
        finally:
            if self._fixed is not None:
                self._fixed.rest()

    @property
    def owes(self) -> bool:
        """Whether an experiment has begun that the next step is to end."""
        return self._begun is not None

    @property
    def passes_to_come(self) -> int:
        """How many passes of the fixed batch the next experiments take at most."""
        return sum(experiment.passes for experiment in self._next_experiments())

    def tap(self, compiled: bool) -> None:
        """Look at the forward and backward pass of the step as well; inside a compiled model no hook is called."""
        if self._update is not None and self._plan is not None:
            self._taps = self._guard("taps", self._attached, self._plan, compiled, step=self.step)

    def forward_begins(self, given: Any) -> None:
        """A training forward pass of the step begins on the arguments `given`, the first or a later one."""
        taps, update = self._taps, self._update
        if taps is None or self.step is None:
            return
        if taps.reached:
            if self.stepping or update is None:
                return  # an optimizer's closure
            if update.cleared:
                if taps.overflowed:
                    why = "a gradient overflowed, was thrown away, and the step was begun again"
                    self._journal.skipped(self.step, why)
                else:
                    self._journal.say("Gradients were cleared without an update; the last forward pass is taken.")
                taps.forget()
        taps.begin(given)

    def forward_ends(self, output: Any) -> None:
        """That forward pass is over."""
        if self._taps is not None and self._taps.running:
            self._taps.end(output, loss_of(output))

    def before_update(self, optimizer: Optimizer | None, elsewhere: Collection[int] = ()) -> None:
        """An optimizer is about to step, one that does not own the parameters `elsewhere`."""
        if self._update is not None:
            self._update.begin(optimizer, elsewhere)

    def after_update(self, optimizer: Optimizer | None, elsewhere: Collection[int] = ()) -> None:
        """That optimizer has stepped."""
        if self.step is not None and self._update is not None:
            self._guard("update", self._update.end, optimizer, elsewhere, step=self.step)

    def end(self, waiting: Iterable[Optimizer] = ()) -> None:
        """The sampled step is over, and is written; the optimizers that are `waiting` have not stepped in it."""
        step, taps, update = self.step, self._taps, self._update
        if step is not None and update is not None:
            self._scale = update.scale
            self._guard("record", self._write, step, taps, update, step=step)
            for optimizer in waiting:
                if update.overflowed(optimizer):
                    why = f"{type(optimizer).__name__} left its parameters alone, since a gradient had overflowed"
                    self._journal.skipped(step, why)
        self.leave()

    def before_late(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step that did not in the sampled step: its parameters alone are looked at."""
        if self._plan is not None:
            self._late = Update(self._plan, owned([optimizer]))
            self._late.begin(optimizer)

    def after_late(self, optimizer: Optimizer, step: int) -> None:
        """That optimizer has stepped, at `step`."""
        update, self._late = self._late, None
        if update is not None:
            update.end(optimizer)
            self._tell_update(step, update, digests([*update.parameters, *update.gradients, *update.changes]))

    def tell_rates(self, step: int, rates: Mapping[int, float]) -> None:
        """Write the learning rates of single parameters, by their identity."""
        places = () if self._plan is None or self._replicated or not rates else self._plan.places
        for place in places:
            if id(place.parameter) in rates:
                self._journal.writer.scalar(place.value, step, "learning_rate", rates[id(place.parameter)])

    def tell_missing(self) -> None:
        """The run is over: note which experiments it is without, and why."""
        if self._fixed is None:  # which was told
            return
        for experiment in self._experiments:
            name, begun = type(experiment).__module__.rpartition(".")[2], self._began[experiment]
            if experiment in self._told or self._plan is None or not self._plan.places:
                continue
            if begun == 0:
                why = f"the run was too short, or its budget too small, for up to {experiment.passes} passes"
            elif begun == 1 and self._begun is not None and experiment in self._begun[1]:
                why = "the run ended before the step after it, with which it ends"
            else:
                why = "it failed, no update was made, or there was neither a loss nor a gradient to follow"
            self._journal.say(f"There is no {name} of this run: {why}.")

    def leave(self) -> None:
        """The sampled step is over; what was seen and not written is forgotten."""
        if self._taps is not None:
            self._taps.rest()
        self.step = self._taps = self._update = None

    def withdraw(self) -> None:
        """Take the hooks off the modules, which stand there as long as step after step is sampled."""
        if self._standing is not None:
            self._standing.detach()
        self._standing = None

    def _next_experiments(self) -> list[Experiment]:
        """All, or the one whose turn it is."""
        if not self._in_turn or not self._experiments:
            return self._experiments
        return [self._experiments[self._turn % len(self._experiments)]]

    def _begin_experiments(self, step: int, fixed: FixedBatch) -> None:
        """Keep the parameters as they are before the update of this step."""
        self._begun = step, self._next_experiments(), fixed.kept()
        self._began.update(self._begun[1])
        self._turn += 1

    def _conclude(self, step: int, experiments: list[Experiment], before: Values) -> None:
        """Experiment with the update that was made at `step`; what is found belongs to that step."""
        self._begun = None
        if self._fixed is None or not self._fixed.fits:
            return
        bench = self._fixed.bench(before, held=self._held, scale=self._scale if _in_half() else 1.0)
        for experiment in experiments:
            self._guard(type(experiment).__name__, self._experiment, step, experiment, bench, step=step)

    def _experiment(self, step: int, experiment: Experiment, bench: Bench) -> None:
        readings = list(experiment.run(bench))
        if readings:
            self._told.add(experiment)
        self._journal.readings(step, readings)

    def _keep_probe(self, step: int, batch: Probe) -> None:
        """Hold `batch` for the rest of the run, unless it could never show anything but what is wrong with itself."""
        numbers = (exact(values) for values in map(readable, tensors(batch)) if values is not None)
        if all(bool(values.isfinite().all()) for values in numbers):
            self.probe = batch.detached()
        else:
            self._journal.say("A batch that is not finite is not held as the fixed batch; a later one is.", step=step)

    def _prepare(self) -> None:
        """Find out where to look, at the first sampled step and when the model has been rebuilt."""
        fits = self._fixed.fits if self._fixed is not None else self._tried or self.probe is None
        if self._plan is not None and fits:
            return
        lazy = any(is_lazy(parameter) for parameter in self._model.parameters())
        self._fixed, self._tried = None, self.probe is not None and not lazy
        if lazy:
            self._journal.say("The parameters have no values yet; the fixed batch begins with the next sample.")
        try:
            if self._tried and self.probe is not None:
                self._fixed = FixedBatch(self._model, self.probe, self._measures, loss_fn=self.loss_fn, seed=self._seed)
        except NormscopeError as error:
            self._journal.say(f"There is no fixed batch; only the training is watched. {error}", warn=True)
        found = sites(self._model) if self._fixed is None else self._fixed.sites
        self._plan = Plan.of(self._model, found)
        self._tell(self._plan, self._fixed)

    def _tell(self, plan: Plan, fixed: FixedBatch | None) -> None:
        say = self._journal.say
        if plan.compiled:
            say(f"Compiled parts call no hooks; these are watched on the fixed batch alone: {', '.join(plan.compiled)}")
        if not plan.places:
            say("The model has no trainable parameters.")
        precision = None if fixed is None else lower_precision(self._model)
        if precision is not None:
            say(f"fully_shard trains in {precision}; the fixed batch runs in the precision of the parameters.")
        if fixed is not None and fixed.hooks_left_out:
            say(f"The fixed batch runs without the {fixed.hooks_left_out} hooks that stand on the model.")

    def _run_fixed(self, step: int, fixed: FixedBatch, batch: Probe | None) -> None:
        readings = fixed.run(step, held=self._held, scale=self._scale if _in_half() else 1.0, batch=batch)
        self.probe = fixed.probe
        if self._replicated or fixed.is_one_of_many:  # of parameters the first process tells
            readings = [reading for reading in readings if reading.site is None or not reading.site.name]
        self._journal.readings(step, readings)
        self._journal.know(probe_gradient=fixed.gradient)
        if fixed.trouble is not None:
            self._journal.say(f"The loss of the fixed batch could not be differentiated: {fixed.trouble!r}", step=step)

    def _attached(self, plan: Plan, compiled: bool) -> Taps:
        if self._standing is not None and self._standing.plan is plan and self._standing.attached is not compiled:
            return self._standing
        self.withdraw()
        taps = Taps(self._model, plan, self._guard, hold=self._worth_holding, cleared=self._is_cleared)
        if compiled:
            self._journal.say("The model is compiled: inside, it is watched on the fixed batch alone.")
        else:
            taps.attach()
        self._standing = taps
        return taps

    def _is_cleared(self) -> bool:
        """Whether the gradients of the step were thrown away before its update."""
        return self._update is not None and self._update.cleared

    def _worth_holding(self, gradient: Tensor) -> bool:
        """Whether the fixed batch may need the gradient of the output, and it is no larger than the model itself."""
        if not self._measures or self._plan is None or self._fixed is None:
            return False
        sizes = (place.parameter.numel() for place in self._plan.places if place.parameter is not None)
        wanted = self._fixed.gradient in ("none", "held")
        return wanted and any(size >= gradient.numel() for size in accumulate(sizes))

    def _write(self, step: int, taps: Taps | None, update: Update) -> None:
        """Bring all that was read to the CPU, in one transfer a device, and write it."""
        rows = [*update.parameters, *update.gradients, *update.changes]
        rounds = self._rounds_of(step, taps, update)
        loss = row_of(Site(""), taps.loss, 1) if rounds and taps is not None else None
        sizes = [len(rows), *(len(each) for each in rounds)]
        told = digests([*rows, *(row for each in rounds for row in each), *([] if loss is None else [loss])])
        own, *passes = (told[end - size : end] for size, end in zip(sizes, accumulate(sizes)))
        sound = passes
        if told.digests.broken and own and not _overflowed(own):
            sound = [each for each in passes if not _overflowed(each)]
        if taps is not None and (len(sound) < len(passes) or taps.wasted):
            why = "an overflowed gradient was thrown away, and the update came from another batch"
            self._journal.skipped(step, why)
            loss = loss if len(sound) == len(passes) else None
        if taps is not None and not taps.running and sound:
            self._tell_unseen(step, taps)
            if taps.root_gradient is not None:
                self._held = taps.root_gradient / update.scale
        seen = sound[0] if len(sound) == 1 else merged(sound)
        self._tell_update(step, update, own, seen)
        if seen and loss is not None:
            self._journal.found_loss(step, _value(told[-1][1]) / update.scale)

    def _tell_update(self, step: int, update: Update, own: Told, seen: Told | None = None) -> None:
        """Write what was `seen` of the passes, and of the parameters what is our `own`, unless another process does."""
        own = own[:0] if self._replicated else own
        self._journal.live(step, own if seen is None else seen + own)
        if update.skipped:
            self._journal.skipped(step, "the optimizer left the parameters alone, since a gradient had overflowed")

    def _rounds_of(self, step: int, taps: Taps | None, update: Update) -> list[list[Row]]:
        """What the taps saw, round by round."""
        if taps is None or taps.running:
            why = "a model that torch.compile returned is to be watched itself, not what is inside"
            self._journal.say(
                f"A step came without a forward pass of the model itself in training mode; {why}.", step=step
            )
            return []
        scale = update.scale
        return [[*forward, *(row.over(scale) for row in backward)] for forward, backward in taps.rounds]

    def _tell_unseen(self, step: int, taps: Taps) -> None:
        """Note, of the first pass that is written, the modules of which nothing was seen."""
        if self._plan is None or self._looked_for_unseen:
            return
        self._looked_for_unseen = True
        unseen = taps.unseen
        if unseen:
            why = "they were not called, or their tensors hold no values (empty, or on the meta device)"
            self._journal.say(f"Nothing was seen of {', '.join(unseen)} at step {step}: {why}.", step=step)


def _overflowed(told: Told) -> bool:
    """Whether a gradient is not finite."""
    return any(site.what == "gradient" for site in told.broken)


def _value(digest: Digest) -> float:
    """The number that a tensor of one element holds."""
    if digest.seen:
        return float(digest.mean)
    return inf if digest.pos_inf else -inf if digest.neg_inf else nan


def _in_half() -> bool:
    """Whether float16 autocast is on: small gradients need the scaler's scale to survive there."""
    return any(
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16 for kind in ("cpu", "cuda")
    )
