"""`Experiment`: a cause is taken out of a copy of the model, and the symptom measured again, before it is named.

One forward pass in each mode and one backward pass on the fixed batch, for each cause and symptom that some finding
asks about; each pair is tried once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from normscope.anatomy.batch import Probe, first_tensor, mapped, tensors
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.diagnose.removals import REMOVALS
from normscope.diagnose.rule import Rule
from normscope.diagnose.symptoms import SYMPTOMS, Look
from normscope.record.reader import Record
from normscope.terms.datum import Datum
from normscope.terms.finding import Finding, Removal
from normscope.treat.optimizer import over
from normscope.treat.treatment import treat
from normscope.watch.fixed_batch import FixedBatch, LossFn
from normscope.watch.measure import measures_named
from normscope.watch.replica import Replica

EXPLAINS = 0.5
"""A cause explains a symptom when at least half of it goes away with the cause: more than everything else together."""

NOTHING = 0.1
"""Less relief than a tenth of the symptom is nothing: the cause is not what brings it about."""

CURE = "scales"
"""The removal that takes an ailment away whatever its cause is."""

SIZES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""The step sizes that are tried, as multiples of the learning rate: half decades, like a search by hand."""

REACH = 20.0
"""Outputs without bound go as far, and twice as far as the targets: a sigmoid of twenty is one in float32."""

_DROPS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
Change = Callable[[torch.Tensor], torch.Tensor] | None

_ASKED = {"the loss": "loss_fn=…", "the optimizer": "optimizer=…"}
_MEASURES = ("activation", "gradient", "dead", "eval_gap", "running_stat_error", "running_statistics")


@runtime_checkable
class Watched(Protocol):
    """What has everything that an experiment needs: a `Watcher` has."""

    @property
    def record(self) -> Record: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> Optimizer | None: ...
    @property
    def probe(self) -> Probe | None: ...
    @property
    def loss_fn(self) -> LossFn | None: ...


class _Dropping(TorchFunctionMode):
    """Notes where a function of dropout is told to drop."""

    def __init__(self) -> None:
        super().__init__()
        self.within: list[str] = []
        self.found: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        drops = False
        if name == "scaled_dot_product_attention":
            drops = (args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) > 0
        elif name in _DROPS and func.__module__ == torch.nn.functional.__name__:
            told = dict(zip(("input", "p", "training"), args)) | kwargs
            drops = told.get("training", True) and told.get("p", 0.5) > 0
        if drops:
            self.found[self.within[-1] if self.within else ""] = None
        return func(*args, **kwargs)

    def leave(self) -> None:
        """A module has ended."""
        self.within.pop()


@dataclass(frozen=True, repr=False, eq=False)
class Experiment(Datum):
    """A model with a batch to try it on. Everything is done on copies.

    Attributes:
        model: the model as it stands.
        probe: a batch as the loader yields it.
        loss_fn: ``(output, target) → loss``; without it, what ``output.loss`` gives.
        optimizer: the optimizer that trains the model.
        seed: of the random states in which each run begins.
        kept: what was asked once and is asked again.
    """

    model: nn.Module = field(repr=False)
    probe: Any = field(repr=False)
    loss_fn: LossFn | None = field(default=None, repr=False)
    optimizer: Optimizer | None = field(default=None, repr=False)
    seed: int = 0
    _looks: dict[str, Look | None] = field(default_factory=dict, repr=False)
    _missed: set[str] = field(default_factory=set, repr=False)
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def missed(self) -> str:
        """What could not be tried since this was last asked, in a sentence; empty where everything could."""
        told = " and ".join(sorted(self._missed, reverse=True))
        self._missed.clear()
        asked = f"`normscope.diagnose(…, {', '.join(_ASKED[one] for one in _ASKED if one in told)})` tries them"
        return f" Steps of other sizes were not tried, for {told} is not known here: {asked}." if told else ""

    def measured(self, symptom: str, cause: str = "") -> float:
        """A symptom on the batch, as the model stands or with a cause taken out; NaN where it cannot be had.

        Args:
            symptom: a name of `symptoms.SYMPTOMS`.
            cause: a name of `removals.REMOVALS`, or nothing.
        """
        if cause not in self._looks:
            self._looks[cause] = self._look(REMOVALS[cause].make if cause else lambda model, probe: (model, probe))
        look = self._looks[cause]
        return SYMPTOMS[symptom].measure(look) if look is not None else float("nan")

    def removal(self, cause: str, symptom: str) -> Removal | None:
        """What taking out `cause` does to `symptom`; None where either cannot be had, or the symptom is not there.

        Args:
            cause: a name of `removals.REMOVALS`.
            symptom: a name of `symptoms.SYMPTOMS`.
        """
        before, after = (self.measured(symptom, one) for one in ("", cause))
        if not (before >= SYMPTOMS[symptom].least and isfinite(after)):
            return None
        return Removal(REMOVALS[cause].words, SYMPTOMS[symptom].words, before, after)

    def effect(self, finding: Finding, symptom: str) -> dict[str, float]:
        """Of each prescription that a treatment can execute: the share of the symptom that it takes away, by words."""
        before = self.measured(symptom)
        found = {}
        for prescription in finding.prescriptions:
            if prescription.treatment and before >= SYMPTOMS[symptom].least:
                key = repr(prescription)
                if key not in self._looks:
                    self._looks[key] = self._look(lambda model, probe, p=prescription: _treated(model, probe, p))
                look = self._looks[key]
                after = SYMPTOMS[symptom].measure(look) if look is not None else float("nan")
                if isfinite(after):
                    found[prescription.words] = 1 - after / before
        return found

    def losses(self, sizes: Sequence[float] = SIZES) -> dict[float, float]:
        """The loss on the fixed batch after one step of the optimizer at each multiple of its rate; 0.0 is before it.

        Each step is taken by a copy of the optimizer, state included, on a copy of the model, in training mode. Empty
        without a loss or an optimizer.
        """
        if self.optimizer is None:
            self._missed.add("the optimizer")
            return {}
        try:
            found = {size: self._loss_after(self.optimizer, size) for size in (0.0, *sizes)}
        except Exception:  # where it ran in training, the record tells more
            if self.loss_fn is None:
                self._missed.add("the loss")
            return {}
        return found if isfinite(found[0.0]) else {}

    def answer(self, change: Change = None, *, training: bool = False, seed: int = 0) -> torch.Tensor | None:
        """What the model gives for the fixed batch, its inputs changed; None where that fails or is no tensor.

        Args:
            change: made to every tensor of the inputs.
            training: whether in training mode, as it stands there, or in evaluation mode.
            seed: of the random state in which it begins.
        """
        return self.traced(change, training=training, seed=seed, inside=False).get("")

    def traced(
        self, change: Change = None, *, training: bool = False, seed: int = 0, inside: bool = True
    ) -> dict[str, torch.Tensor]:
        """The same for every module that gives a tensor, by path, in the order in which they end."""
        found: dict[str, torch.Tensor] = {}

        def note(path: str, output: Any) -> None:
            given = first_tensor(output)
            if given is not None and given.is_floating_point() and given.ndim:
                found.setdefault(path, given.detach().clone())

        probe = Probe.of(self.probe).detached()
        if change is not None:
            probe = replace(probe, args=mapped(probe.args, change), kwargs=mapped(dict(probe.kwargs), change))
        try:
            model = self.copied()
            named = [(path, module) for path, module in model.named_modules() if path and inside]
            for path, module in named:
                module.register_forward_hook(lambda _m, _i, output, path=path: note(path, output))
            with isolated(model, training=training), torch.no_grad():
                torch.manual_seed(seed)
                note("", probe.run(model))
        except Exception:  # what cannot be asked so has no answer
            return {}
        return found

    def dropping(self) -> tuple[str, ...]:
        """The paths of the modules in evaluation mode whose code calls a dropout that drops."""
        calls = _Dropping()
        try:
            model = self.copied()
            for path, module in model.named_modules():
                module.register_forward_pre_hook(lambda _m, _i, path=path: calls.within.append(path))
                module.register_forward_hook(lambda _m, _i, _o: calls.leave(), always_call=True)
            with isolated(model, training=False), torch.no_grad(), calls:
                Probe.of(self.probe).detached().run(model)
        except Exception:
            return ()
        return tuple(calls.found)

    def by_heart(self, steps: int, rate: float = 3e-3) -> tuple[float, float] | None:
        """The loss of the fixed batch before and after so many steps of Adam on it alone; None where it has none."""
        model = self.copied()
        batch = Probe.of(self.probe)
        try:
            with isolated(model, training=True), torch.enable_grad():
                torch.manual_seed(self.seed)
                optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], rate)
                first = last = float("inf")
                for step in range(steps + 1):
                    loss = self.loss(batch.detached().run(model), batch.target)
                    last = min(last, float(loss.detach()))
                    first = last if not step else first
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        except Exception:
            return None
        return (first, last) if isfinite(first) else None

    def least(self, low: float, high: float, steps: int = 100) -> float | None:
        """The least loss of the fixed batch that was found for outputs between two bounds; None without a loss."""
        target, given = Probe.of(self.probe).target, self.output()
        if self.loss_fn is None or not isinstance(given, torch.Tensor) or not given.is_floating_point():
            return None
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.manual_seed(self.seed)
                reach = max([REACH, *(2 * float(one.abs().max()) for one in tensors(target) if one.numel())])
                low, high = max(low, -reach), min(high, reach)
                output = given.detach().clone().clamp(low, high).requires_grad_()
                optimizer = torch.optim.Adam([output], (high - low) / 5)  # with all its steps, thrice the range
                best = float("inf")
                for _ in range(steps):
                    optimizer.param_groups[0]["lr"] *= 0.93  # to a thousandth in a hundred steps
                    loss = self.loss(output, target)
                    best = min(best, float(loss.detach()))
                    (output.grad,) = torch.autograd.grad(loss, output)
                    optimizer.step()
                    with torch.no_grad():
                        output.clamp_(low, high)
        except Exception:
            return None
        return best if isfinite(best) else None

    def loss_of_nothing(self) -> float | None:
        """The loss of the fixed batch for outputs that are all zero; None where it has none."""
        given = self.output()
        if self.loss_fn is None or not isinstance(given, torch.Tensor):
            return None
        try:
            told = float(self.loss(torch.zeros_like(given), Probe.of(self.probe).target))
        except Exception:
            return None
        return told if isfinite(told) else None

    def error_of_the_mean(self) -> float | None:
        """The loss of answering the mean of the targets to all, where the loss of answering the target is zero."""
        target = Probe.of(self.probe).target
        if self.loss_fn is None or not isinstance(target, torch.Tensor) or not target.is_floating_point():
            return None
        if target.ndim < 1 or len(target) < 2:
            return None
        try:
            mean, right = (
                float(self.loss(one, target)) for one in (target.mean(0, keepdim=True).expand_as(target), target)
            )
        except Exception:
            return None
        return mean if isfinite(mean) and mean > 0 and abs(right) < 1e-6 * mean else None

    def output(self) -> Any:
        """All that the model gives for the fixed batch in evaluation mode, asked once; None where it fails."""
        if "output" not in self.kept:
            try:
                model = self.copied()
                with isolated(model, training=False), torch.no_grad():
                    torch.manual_seed(self.seed)
                    self.kept["output"] = Probe.of(self.probe).detached().run(model)
            except Exception:
                self.kept["output"] = None
        return self.kept["output"]

    def _loss_after(self, taken: Optimizer, size: float) -> float:
        model = self.copied()
        batch = Probe.of(self.probe)
        theirs = dict(unwrapped(self.model).named_parameters(remove_duplicate=False))
        ours = dict(model.named_parameters(remove_duplicate=False))
        optimizer = over(taken, model, theirs.values(), {theirs[name]: ours[name] for name in theirs})
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * size
        with isolated(model, training=None), torch.enable_grad():
            torch.manual_seed(self.seed)
            loss = self.loss(batch.detached().run(model), batch.target)
            if not size:
                return float(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch.manual_seed(self.seed)
            return float(self.loss(batch.detached().run(model), batch.target).detach())

    def loss(self, output: Any, target: Any) -> torch.Tensor:
        return self.loss_fn(output, target) if self.loss_fn is not None else output.loss

    def _look(self, change: Any) -> Look | None:
        """Run the fixed batch on a changed copy; None where the change or the run fails."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model, probe = change(self.copied(), Probe.of(self.probe).detached())
                measures = measures_named(_MEASURES).values()
                fixed = FixedBatch(model, probe, measures, loss_fn=self.loss_fn, seed=self.seed)
                return Look.of(fixed.sites, fixed.run(0))
        except Exception:  # what cannot be changed so is not tried so
            return None

    def copied(self) -> nn.Module:
        """A copy with parameters of its own, without the hooks and compiled parts of the original."""
        replica = Replica(unwrapped(self.model))
        replica.refresh()
        return copy.deepcopy(replica.model)


def tried(findings: Sequence[Finding], rules: Sequence[Rule], experiment: Experiment) -> list[Finding]:
    """The findings with what taking out their cause did to their symptom: their evidence, their rank, their advice.

    A cause without which less than a tenth of its own symptom goes away is named as a note at most.
    """
    known = {rule.code: rule for rule in rules}
    return [_tested(finding, known[finding.code], experiment) for finding in findings]


def explains(cause: Rule, effect: Rule, experiment: Experiment | None) -> bool | None:
    """Whether the symptom of `effect` goes away with the cause that `cause` names; None where it cannot be tried."""
    if experiment is None or cause.removal is None or effect.symptom is None:
        return None
    found = experiment.removal(cause.removal, effect.symptom)
    return None if found is None else found.relief >= EXPLAINS


def spread(values: torch.Tensor) -> torch.Tensor:
    """The deviation between the samples of a batch: the root mean square over everything else, a scalar."""
    return rms(values - values.mean(0))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two answers to one batch lie apart, in deviations between its samples."""
    return float(rms(one - other)) / max(float(spread(one)), 1e-30)


def rms(values: torch.Tensor) -> torch.Tensor:
    """The root mean square, a scalar."""
    return values.square().mean().sqrt()


def _tested(finding: Finding, rule: Rule, experiment: Experiment) -> Finding:
    if rule.symptom is None or (rule.shown_by and finding.evidence.quantity not in rule.shown_by):
        return finding
    found = experiment.removal(rule.removal, rule.symptom) if rule.removal else None
    effects = experiment.effect(finding, rule.symptom)
    order = sorted(finding.prescriptions, key=lambda one: effects.get(one.words, 1.0) < NOTHING)
    finding = replace(finding, prescriptions=tuple(order))
    if found is None:
        return finding
    told = f" With {found.cause}, the {found.symptom} goes from {found.before:.3g} to {found.after:.3g}."
    named = rule.removal != CURE  # a norm is no cause that was taken out: without relief the ailment is still there
    severity = "note" if named and found.relief < NOTHING else finding.severity
    return replace(finding, message=finding.message + told, severity=severity, removals=(found,))


def _treated(model: nn.Module, probe: Probe, prescription: Any) -> tuple[nn.Module, Probe]:
    return treat(model, prescription, data=probe).model, probe
