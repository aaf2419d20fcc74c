"""What a treatment is and what it returns; `treat` applies what a diagnosis prescribes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from normscope.terms.datum import Datum
from normscope.terms.errors import DataError, NormscopeError, TreatmentRefused, UnknownNameError
from normscope.terms.finding import Diagnosis, Finding, Prescription
from normscope.treat.optimizer import over
from normscope.treat.snapshot import Snapshot, working_copy

Preserves = Literal["exact", "approximate", "nothing"]


@dataclass(frozen=True, repr=False)
class Change(Datum):
    """What stood at a site (a module path, ``""`` for the whole model) and what stands there now, in words."""

    site: str
    before: str
    after: str


@dataclass(frozen=True, repr=False)
class Treated(Datum):
    """A treated model, and the word on what was kept of it.

    Attributes:
        model: the treated model: the given one when treated in place, else a copy. It is another object than the
            given one even in place when the root module itself had to be replaced.
        changes: what was changed, site by site.
        preserves: what is kept of the function the model computes: ``"exact"`` to rounding, ``"approximate"`` with
            the measured `error`, or ``"nothing"``.
        error: the measured difference, in the unit that the treatment's documentation states; None when there was
            nothing to measure it on.
        skipped: sites left as they were, with the reason. Advice that no treatment can execute stands under ``""``.
        parameters: for each parameter of the untreated model, by name, the name of the same parameter in the treated
            one; None for one that is gone. A parameter of the treated model that is not named here is new.
    """

    model: nn.Module = field(repr=False)
    changes: tuple[Change, ...] = ()
    preserves: Preserves = "exact"
    error: float | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    parameters: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    def carry(self, optimizer: Optimizer, original: nn.Module | Mapping[str, nn.Parameter]) -> Optimizer:
        """An optimizer like `optimizer` over the treated model, with its state for every parameter that is still there.

        Args:
            optimizer: the optimizer of the untreated model; it stays as it is.
            original: the untreated model; after a treatment in place, ``dict(model.named_parameters())`` from before.

        Raises:
            ModelError: the optimizer cannot be made again from its class and its defaults.
        """
        before = dict(original.named_parameters()) if isinstance(original, nn.Module) else original
        now = dict(self.model.named_parameters(remove_duplicate=False))
        kept = {parameter: now[name] for old, parameter in before.items() if (name := self.parameters.get(old))}
        return over(optimizer, self.model, before.values(), kept)


@dataclass(frozen=True)
class Treatment:
    """A treatment: the name of its file, what it preserves at best, and the function that does it.

    ``apply(model, sites, *, data=None, **arguments) -> Treated`` works on `model` itself and may leave it in any
    state when it raises: whoever calls it through `perform` gets the model back as it was.
    """

    name: str
    preserves: Preserves
    apply: Callable[..., Treated]


@cache
def treatments() -> Mapping[str, Treatment]:
    """Every treatment by name, as the files under ``treat/treatments`` give them."""
    place = importlib.import_module("normscope.treat.treatments")
    modules = (
        importlib.import_module(f"{place.__name__}.{found.name}") for found in pkgutil.iter_modules(place.__path__)
    )
    return {module.TREATMENT.name: module.TREATMENT for module in modules}


def treat(
    model: nn.Module,
    diagnosis_or_prescriptions: Diagnosis | Finding | Prescription | Iterable[Prescription],
    *,
    data: Any = None,
    inplace: bool = False,
) -> Treated:
    """Apply what was prescribed.

    Args:
        model: the network to treat.
        diagnosis_or_prescriptions: a diagnosis or a finding stand for the first prescription that a treatment can
            execute (of the diagnosis' primary finding); several prescriptions are applied in order.
        data: a batch as the loader yields it, or an iterable of batches; which treatments need it, they say.
        inplace: treat `model` itself instead of a copy.

    Returns:
        What was done. With ``inplace=False`` the original stays as it is, bit for bit, whatever happens.

    Raises:
        UnknownNameError: there is no such treatment, or the model has no such site.
        DataError: a treatment needs data and got none it can use.
        TreatmentRefused: a treatment could not keep its word. The model is as it was, in place or not.
    """
    prescriptions = prescribed(diagnosis_or_prescriptions)
    acts = [(prescription, _named(prescription.treatment)) for prescription in prescriptions]

    def all_in_order(patient: nn.Module) -> Treated:
        done = Treated(patient)
        for prescription, treatment in acts:
            done = then(done, _apply(treatment, done.model, prescription, data))
        return done

    return perform(model, all_in_order, inplace=inplace)


def prescribed(what: Diagnosis | Finding | Prescription | Iterable[Prescription]) -> tuple[Prescription, ...]:
    """The prescriptions that `what` stands for, as `treat` reads it."""
    if isinstance(what, Prescription):
        return (what,)
    if isinstance(what, Diagnosis | Finding):
        executable = [prescription for prescription in what.prescriptions if prescription.treatment]
        return tuple(executable[:1]) or tuple(what.prescriptions)
    found = tuple(what)
    wrong = next((item for item in found if not isinstance(item, Prescription)), None)
    if wrong is not None:
        raise DataError(
            "Something else than prescriptions was given to treat.",
            found=f"{type(wrong).__name__} {wrong!r}"[:120],
            because="treat applies what a diagnosis, a finding or a prescription says, or an iterable of prescriptions",
            do="give diagnosis.prescriptions, or normscope.Prescription(treatment, sites, arguments)",
        )
    return found


def perform(model: nn.Module, act: Callable[[nn.Module], Treated], *, inplace: bool) -> Treated:
    """``act(model)`` on the model itself or on a copy of it; when `act` fails, the model is as it was.

    Raises:
        TreatmentRefused: `act` raised something that is no `NormscopeError`.
    """
    before = Snapshot(model) if inplace else None
    try:
        patient = model if inplace else working_copy(model)
        named = dict(patient.named_parameters())
        treated = act(patient)
        now = {parameter: name for name, parameter in treated.model.named_parameters()}
        return replace(treated, parameters={name: now.get(parameter) for name, parameter in named.items()})
    except BaseException as error:
        if before is not None:
            before.restore()
        if isinstance(error, NormscopeError) or not isinstance(error, Exception):
            raise
        raise TreatmentRefused(
            f"A treatment of {type(model).__name__} broke off.",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            because="it could not be carried to its end; the model is as it was",
            do="see the error above; with a prescription, check its sites and arguments",
        ) from error


def _named(name: str) -> Treatment | None:
    """The treatment of that name; None for words alone."""
    known = treatments()
    if not name or name in known:
        return known.get(name)
    close = get_close_matches(name, known, 1)
    raise UnknownNameError(
        "A treatment was prescribed that does not exist.",
        found=f"`{name}`",
        because="a treatment is a file under normscope/treat/treatments",
        do=(f"did you mean `{close[0]}`? " if close else "") + "choose one of " + ", ".join(sorted(known)),
    )


def _apply(treatment: Treatment | None, model: nn.Module, prescription: Prescription, data: Any) -> Treated:
    if treatment is None:
        return Treated(model, skipped=(("", prescription.words or prescription.reason),))
    return treatment.apply(model, prescription.sites, data=data, **prescription.arguments)


def then(first: Treated, second: Treated) -> Treated:
    """Both as one: the weaker promise, the larger error."""
    errors = [error for error in (first.error, second.error) if error is not None]
    return Treated(
        second.model,
        first.changes + second.changes,
        weakest(first.preserves, second.preserves),
        max(errors, default=None),
        first.skipped + second.skipped,
    )


def weakest(*promises: Preserves) -> Preserves:
    """The promise that all of them together can keep."""
    if "nothing" in promises:
        return "nothing"
    return "approximate" if "approximate" in promises else "exact"
