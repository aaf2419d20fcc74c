"""`watch`: follow a training. `Watcher` counts its steps and opens the `Observer` at those that are sampled."""

from __future__ import annotations

import atexit
import html
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from normscope.anatomy.batch import Probe
from normscope.anatomy.isolate import unwrapped
from normscope.record.writer import Writer
from normscope.watch.account import Account
from normscope.watch.bench import Experiment
from normscope.watch.fixed_batch import LossFn
from normscope.watch.guard import Guard
from normscope.watch.hooks import RootHook, after_forward, before_forward, in_backward, in_transform
from normscope.watch.journal import Journal
from normscope.watch.measure import measures_named
from normscope.watch.observer import Observer
from normscope.watch.optimizers import Optimizers
from normscope.watch.schedule import Budgeted, Due, Schedule, schedule_of
from normscope.watch.subject import called, check, described, fresh_path, is_replicated, place_among_processes

if TYPE_CHECKING:
    from typing_extensions import Self

    from normscope.record.reader import Record

Every = int | Literal["auto"] | Callable[[int], Any]


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    probe: Any = None,
    loss_fn: LossFn | None = None,
    every: Every = "auto",
    budget: float = 0.01,
    live: bool = True,
    probes: Iterable[str] | None = None,
    seed: int = 0,
    start: int = 0,
    meta: Mapping[str, Any] | None = None,
) -> Watcher:
    """Watch `model` while it learns, into a record at `path`. Nothing in the training changes.

    At a sampled step t the inputs, outputs and output gradients of every norm, producer and activation, the parameters
    θ_t, their gradients and their updates are summarized ("live"); and the fixed batch goes through a replica with the
    same θ_t, in training mode ("probe") and in evaluation mode ("probe_eval"). What ``forward`` does besides computing
    (writing files, changing globals) it does on the fixed batch too; what it prints is printed once.

    Args:
        model: what is trained; `torch.compile` and data-parallel wrappers are passed through.
        optimizer: what trains it; its steps are counted. Of several a step ends when all have made theirs, when one
            begins another, or with the next forward pass in training. Without one, call `Watcher.step` after each
            update.
        path: the run directory; ``runs/<model>-<time>`` when left out. A record that is there is continued.
        probe: the fixed batch as the loader yields it (`Probe.of`); the first training batch when left out.
        loss_fn: ``(output, target) → loss`` for the gradients of the fixed batch. Without it ``output.loss`` is used
            where the model gives one, else the gradient that reached the model's output in the last live step.
        every: sample each so many steps (the fixed batch at each tenth step when they are denser), "auto" to stay
            within `budget` (with several processes, sixteen samples in each doubling of the run's length, since they
            must sample together), or a function of the step.
        budget: for "auto", the share of the run's time that watching may take, beside the set-up at step 0.
        live: whether the training itself is looked at; False leaves the fixed batch alone.
        probes: names of the measures of the fixed batch (files under ``watch/probes``); with ``()`` it is not run, and
            the training alone is looked at. When left out, all that cost
            little; and with "auto", in turn and as the budget affords, the experiments: ``gradient_shift``,
            ``landscape`` and ``amplification`` run the fixed batch at other parameters, up to nine passes each, and
            keep a copy of the parameters for one step. Where they are named they run with each fixed batch. The record
            says which a run is without, and why.
        seed: of the random states in which the fixed batch runs, the same at every step.
        start: the number of steps already taken, in a run that is resumed: counting goes on from there, and a record
            at `path` keeps what it holds of earlier steps. The step with this number is always sampled.
        meta: JSON values to keep with the record.

    Raises:
        ModelError: `model` is no module, or `optimizer` no optimizer.
        DataError: `probe` is nothing that a model can be called with.
        UnknownNameError: a measure of `probes` does not exist; `every` or `budget` is not to be used.
        RecordError: `path` is a file, or holds something that is no record.
    """
    started = perf_counter()
    optimizers = check(model, optimizer)
    rank, processes = place_among_processes()
    schedule = schedule_of(every, budget, processes=processes)
    in_turn = isinstance(schedule, Budgeted)
    measures = measures_named(probes)
    if probes is None and not in_turn:
        measures = {name: measure for name, measure in measures.items() if not isinstance(measure, Experiment)}
    held = None if probe is None else Probe.of(probe).detached()
    wrapped, root, model = model, called(model), unwrapped(model)
    place = Path(path) if path is not None else fresh_path(model)
    told = described(model, every=every, budget=budget, live=live, seed=seed, probes=tuple(measures))
    if not any(isinstance(measure, Experiment) for measure in measures.values()):
        told["experiments"] = 'none asked for: `probes=` names them, or with every="auto" they take turns'
    journal = Journal(Writer(place, rank=rank, meta={**told, **(meta or {})}))
    guard = Guard(journal.writer.event)
    guard("compiled loops", journal.prepare, model)
    observer = Observer(
        model,
        journal,
        guard,
        probe=held,
        loss_fn=loss_fn,
        measures=list(measures.values()),
        seed=seed,
        live=live,
        in_turn=in_turn,
        replicated=rank > 0 and is_replicated(wrapped),
    )
    watcher = Watcher(model, root, observer, journal, guard, schedule, started, start)
    if optimizers:
        watcher.adopt(*optimizers)
    return watcher


class Watcher:
    """A training under watch: a context manager, or closed by `close`, or at the end of the process. See `watch`.

    Attributes:
        path: the run directory.
    """

    def __init__(
        self,
        model: nn.Module,
        root: nn.Module,
        observer: Observer,
        journal: Journal,
        guard: Guard,
        schedule: Schedule,
        started: float,
        first: int,
    ) -> None:
        self.path = journal.writer.path
        self._model, self._root = model, root
        self._observer, self._journal, self._guard = observer, journal, guard
        self._schedule = schedule
        # The hooks of `fully_shard` gather the parameters; ours stands before them and sees the shards.
        self._sharded = any(hasattr(parameter, "to_local") for parameter in model.parameters())
        self._started = started
        self._ended: float | None = None
        self._pid = os.getpid()
        self._first = self._step = first  # optimizer steps: at the start, so far
        self._account = Account(guard, started, first)
        self._due = Due()
        self._sampling = False
        self._evaluated = self._learns_in_evaluation_mode = False
        self._loss_lags: bool | None = None
        self._optimizers = Optimizers(model, self._before_step, self._after_step)
        self._late: set[int] = set()  # the identities of those that did not step in the latest sampled step
        self._at_begin, self._at_end = RootHook(self._forward_begins), RootHook(self._forward_ends)
        self._root_hooks: list[RemovableHandle] = []
        atexit.register(self.close)
        self._guard("schedule", self._arm, step=first)

    # What the user calls.

    def loss(self, value: float | Tensor) -> None:
        """Tell the loss of the step that is running, before the optimizer steps or right after it.

        A tensor on an accelerator is read later, with the next sample.
        """
        self._guard("loss", self._take_loss, value, step=self._step)

    def note(self, **scalars: Any) -> None:
        """Keep numbers of this step by name; what is no number is kept as a note."""
        self._guard("note", self._journal.notes, self._step, scalars, step=self._step)

    def step(self) -> None:
        """Say that an update was made, where no optimizer was given to count them."""
        if self._optimizers.first is None:
            self._end_step()

    def close(self) -> None:
        """Take every hook off and complete the record. Closing twice is closing once."""
        if self._ended is not None or os.getpid() != self._pid:
            return
        self._guard("closing", self._finish, step=self._step)
        self._ended = perf_counter()
        self._journal.writer.close()
        atexit.unregister(self.close)

    @property
    def overhead(self) -> float:
        """The share of the time since watching began that was spent inside Normscope, its writing thread aside."""
        elapsed = (self._ended or perf_counter()) - self._started
        return self._guard.spent / elapsed if elapsed > 0 else 0.0

    @property
    def record(self) -> Record:
        """The record, from the reading side; what was seen so far is written first."""
        from normscope.record.reader import Record

        if self._ended is None:
            self._journal.writer.flush()
        return Record(self.path)

    def adopt(self, *optimizers: Optimizer, late: bool = False) -> None:
        """Count the steps of `optimizers` as well; when `late`, from the one after that which is about to begin.

        Raises ModelError when one is none.
        """
        check(self._model, optimizers)
        for optimizer in optimizers:
            self._optimizers.adopt(optimizer, late=late)
        self._guard("note", self._tell_ownership)

    @property
    def model(self) -> nn.Module:
        """The model that is watched, without its wrappers."""
        return self._model

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer whose steps are counted; None where there are several, for each makes a part of the update."""
        return self._optimizers.only

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """All optimizers whose steps are counted."""
        return tuple(self._optimizers.known)

    @property
    def probe(self) -> Probe | None:
        """The fixed batch; None until one was seen."""
        return self._observer.probe

    @property
    def loss_fn(self) -> LossFn | None:
        """The loss of the fixed batch, as it was given."""
        return self._observer.loss_fn

    @property
    def has_optimizer(self) -> bool:
        """Whether an optimizer's steps are counted."""
        return self._optimizers.first is not None

    @property
    def parameters(self) -> set[int]:
        """The identities of the trainable parameters."""
        return {id(parameter) for parameter in self._model.parameters() if parameter.requires_grad}

    def joined(self, compiled: bool, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Say that `module` is being called now; if its hooks came too late for this call, it is seen all the same."""
        self._forward_begins(compiled, module, args, kwargs)

    def crashed(self, error: BaseException) -> None:
        """Keep what ended the training."""
        text = f"At step {self._step} the training ended with {type(error).__name__}: {error}"
        data = {"traceback": "".join(traceback.format_exception(error))}
        self._guard("closing", lambda: self._journal.writer.event("crash", text, step=self._step, data=data))

    def __repr__(self) -> str:
        state = "watching" if self._ended is None else "closed"
        return f"Watcher({type(self._model).__name__}, {str(self.path)!r}: {self._step} steps, {state})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.crashed(error)
        self.close()

    # What the hooks call.

    def _arm(self) -> None:
        """Stand before the next training forward pass, when something is due at this step."""
        first = self._step == self._first
        on_request = not isinstance(self._schedule, Budgeted)
        self._due = Due(True, True, on_request) if first else self._schedule.due(self._step, self._account.cost)
        if not self._observer.live:
            self._due = replace(self._due, live=False)
        if not self._due.live:
            self._observer.withdraw()
        if not (self._due or self._observer.owes) or self._guard.is_off("observer"):
            self._disarm()
            return
        self._account.begin()
        self._sampling = True
        if len(self._root_hooks) < 2:  # they stay from one sampled step to the next
            self._disarm()
            self._root_hooks = [self._stand_before(), after_forward(self._root, self._at_end)]

    def _stand_before(self) -> RemovableHandle:
        return before_forward(self._root, self._at_begin, first=self._sharded)

    def _forward_begins(self, compiled: bool, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_training(module):
            if self._optimizers.stepped and not self._optimizers.inside:
                self._end_step()
            if self._sampling:
                self._guard("observer", self._open, compiled, args, kwargs, step=self._step)

    def _open(self, compiled: bool, args: Any, kwargs: Any) -> None:
        if self._observer.step is None:
            self._observer.begin(self._step, self._due, args, kwargs)
            self._observer.tap(compiled or self._root is not self._model)
        self._observer.forward_begins((args, kwargs))

    def _forward_ends(self, compiled: bool, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._is_training(module):
            self._guard("observer", self._observer.forward_ends, output, step=self._step)

    def _is_training(self, module: nn.Module) -> bool:
        """Whether a forward pass of `module` now is one that learns from a batch."""
        if module is not self._root or not self._is_here() or in_backward() or in_transform():
            return False
        training = self._model.training
        self._evaluated |= not training and torch.is_grad_enabled()
        return torch.is_grad_enabled() and (training or self._learns_in_evaluation_mode)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_here():
            return
        if id(optimizer) in self._optimizers.stepped and not self._optimizers.inside:
            self._end_step()
        self._observer.stepping = any(value is not None for value in (*args[1:], *kwargs.values()))  # a closure
        to_come = self._observer.stepping and self._observer.step is None
        if self._sampling and not to_come:
            self._guard("observer", self._before_update, optimizer, step=self._step)
        elif not self._sampling and id(optimizer) in self._late:
            self._guard("observer", self._observer.before_late, optimizer, step=self._step)

    def _before_update(self, optimizer: Optimizer | None) -> None:
        if self._observer.step is None:  # no training forward pass was seen
            self._observer.begin(self._step, self._due, (), {})
            self._learns_in_evaluation_mode = self._evaluated
        self._observer.before_update(optimizer, self._optimizers.elsewhere(optimizer))

    def _after_step(self, optimizer: Optimizer) -> None:
        if not self._is_here():
            return
        if self._sampling:
            self._updated(optimizer)
        elif id(optimizer) in self._late:
            self._late.remove(id(optimizer))
            self._guard("observer", self._observer.after_late, optimizer, self._step, step=self._step)
        if self._optimizers.inside:
            return
        if self._optimizers.all_stepped:
            self._end_step()
        elif not self._root_hooks:
            self._root_hooks = [self._stand_before()]

    def _updated(self, optimizer: Optimizer | None) -> None:
        if self._observer.step is None:  # the optimizer's hook did not come: the update was told by `step`
            self._guard("observer", self._before_update, optimizer, step=self._step)
        elsewhere = self._optimizers.elsewhere(optimizer)
        self._guard("observer", self._observer.after_update, optimizer, elsewhere, step=self._step)

    def _end_step(self) -> None:
        """The training step is over: every optimizer has made its update, or the next step begins."""
        if not self._is_here():
            return
        if self._sampling:
            self._end_sample()
        self._optimizers.begin()
        self._step += 1
        self._guard("schedule", self._arm, step=self._step)

    def _end_sample(self) -> None:
        if self._optimizers.first is None:
            self._updated(None)
        waiting = self._optimizers.waiting
        self._late = {id(optimizer) for optimizer in waiting} if self._due.live else self._late
        self._guard("observer", self._observer.end, waiting, step=self._step)
        self._observer.leave()
        if self._due:
            self._guard("record", self._tell_state, step=self._step)
        self._account.end(self._step, self._due, self._observer.passes_to_come)
        self._sampling = False

    def _disarm(self) -> None:
        for handle in self._root_hooks:
            handle.remove()
        self._root_hooks = []

    def _is_here(self) -> bool:
        """Whether this is the process that is watched, and still is."""
        return self._ended is None and os.getpid() == self._pid

    # What is told to the record.

    def _take_loss(self, value: float | Tensor) -> None:
        stepped = bool(self._optimizers.stepped)
        if self._loss_lags is None:  # first told right after the first update: it is told after updates
            self._loss_lags = stepped or self._step == self._first + 1
        self._journal.loss(self._step - (self._loss_lags and not stepped), value)

    def _tell_state(self) -> None:
        self._journal.read_losses()
        for number, rate in enumerate(self._optimizers.rates, 1):
            name = "learning_rate" if number == 1 else f"learning_rate_{number}"
            self._journal.writer.scalar(None, self._step, name, rate)
        self._observer.tell_rates(self._step, self._optimizers.rates_apart())
        self._journal.writer.scalar(None, self._step, "overhead", self.overhead)

    def _tell_ownership(self) -> None:
        missing, ours = self._optimizers.missing()
        if missing:
            who = "The optimizer does" if len(self._optimizers.known) == 1 else "The optimizers do"
            self._journal.say(
                f"{who} not own {missing} of the model's {ours} trainable parameters; their updates are not watched.",
                warn=missing == ours,
            )

    def _finish(self) -> None:
        if self._optimizers.stepped:
            self._end_step()
        self._disarm()
        self._observer.leave()
        self._observer.withdraw()
        self._optimizers.release()
        self._journal.read_losses()
        self._observer.tell_missing()
        self._journal.settle()
        self._journal.writer.meta(overhead=self.overhead)
        self._journal.writer.event("end", f"Watching ended after {self._step} steps.", step=self._step)
