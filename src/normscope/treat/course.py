"""A course of treatment: prescription after prescription, each kept only when the patient is better for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from torch import nn

from normscope.terms.errors import NormscopeError
from normscope.terms.finding import Diagnosis, Finding, Prescription
from normscope.treat.snapshot import Snapshot
from normscope.treat.treatment import Change, Treated, perform, then, treat

Symptom = Callable[[nn.Module, Finding], float | None]
HELPS = 0.1  # the least share of a symptom that has to go: less is what another batch would change


def course(model: nn.Module, diagnosis: Diagnosis, symptom: Symptom, *, data: Any, inplace: bool = False) -> Treated:
    """Treat the findings of `diagnosis`, causes before what they cause, and measure again after each prescription.

    Of each finding the prescriptions are tried in order until one takes away a tenth of the symptom or more; one that
    does not is undone. A finding whose symptom is gone with an earlier treatment needs none.

    Args:
        model: the network.
        diagnosis: what was found.
        symptom: how bad a finding is in a model, 0 for not at all; None where a batch does not show it. Such a finding
            gets its first prescription, and the change says that nothing was measured.
        data: what treatments need to see.
        inplace: treat `model` itself instead of a copy.

    Returns:
        What was kept, each with the symptom before and after (as a change of the whole model, ``""``); what was undone
        or not needed stands under `Treated.skipped`.
    """
    findings = sorted(diagnosis, key=lambda finding: bool(finding.caused_by))

    def act(patient: nn.Module) -> Treated:
        done = Treated(patient)
        for finding in findings:
            done = then(done, _treated(done.model, finding, symptom, data))
        return done

    return perform(model, act, inplace=inplace)


def _treated(patient: nn.Module, finding: Finding, symptom: Symptom, data: Any) -> Treated:
    """One finding, treated in place."""
    name = f"{finding.code} {finding.name}"
    possible = [prescription for prescription in finding.prescriptions if prescription.treatment]
    if not possible:
        advice = tuple(("", one.words or one.reason) for one in finding.prescriptions)
        return Treated(patient, skipped=advice or (("", f"{name}: nothing is prescribed"),))
    before = symptom(patient, finding)
    if before is None or not isfinite(before):
        done = treat(patient, possible[0], data=data, inplace=True)
        told = Change("", name, f"{_words(possible[0])}; not measured: a batch does not show it")
        return then(Treated(patient, (told,)), done) if done.changes else done
    if before <= 0:
        return Treated(patient, skipped=(("", f"{name} is not there any more"),))
    return _tried(patient, finding, possible, before, symptom, data)


def _tried(
    patient: nn.Module, finding: Finding, possible: Sequence[Prescription], before: float, symptom: Symptom, data: Any
) -> Treated:
    """The first of the `possible` prescriptions that helps; the others are undone."""
    undone: list[tuple[str, str]] = []
    for prescription in possible:
        untreated, words = Snapshot(patient), _words(prescription)
        try:
            done = treat(patient, prescription, data=data, inplace=True)
        except NormscopeError as error:
            undone.append(("", f"{words}: {str(error).splitlines()[0]}"))
            continue
        after = symptom(done.model, finding) if done.changes else before
        if after is not None and after <= (1 - HELPS) * before:
            told = Change("", f"{finding.code} {finding.name}: {before:.3g}", f"{words}: {after:.3g}")
            return then(Treated(patient, (told,), skipped=tuple(undone)), done)
        untreated.restore()
        why = f"{before:.3g} before, {after:.3g} after" if after is not None and done.changes else "it changed nothing"
        undone += [("", f"undone, for it did not help against {finding.name}: {words} ({why})"), *done.skipped]
    return Treated(patient, skipped=tuple(undone))


def _words(prescription: Prescription) -> str:
    return prescription.words or prescription.treatment
