"""The verbs that need two floors at once. Everything else that `normscope` offers lives on one floor alone."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import nn

from normscope.diagnose.counterfactual import Experiment
from normscope.diagnose.engine import diagnose, lint, rules
from normscope.diagnose.symptoms import SYMPTOMS
from normscope.record.reader import Record
from normscope.report import page
from normscope.terms.finding import Diagnosis, Finding
from normscope.treat import treatment
from normscope.treat.batches import first
from normscope.treat.course import Symptom, course


def report(
    record_or_path: Record | str | PathLike[str],
    out: str | PathLike[str] = "report.html",
    *,
    lang: Literal["en", "zh"] = "en",
    diagnosis: Diagnosis | None = None,
) -> Path:
    """Write the page of a run: one HTML file that opens anywhere and asks nothing of the network.

    Args:
        record_or_path: a run directory, or its `Record`; it may still be growing.
        out: where to write the page; folders are made.
        lang: the language of the page's own words.
        diagnosis: the findings to show; made from the record when left out.

    Returns:
        The path of the page.

    Raises:
        RecordError: the path holds no readable record.
        MissingExtraError: the ``report`` extra is not installed.
    """
    record = record_or_path if isinstance(record_or_path, Record) else Record(record_or_path)
    return page.write(record, diagnose(record) if diagnosis is None else diagnosis, out, lang=lang)


def treat(
    model: nn.Module,
    diagnosis_or_prescriptions: Any,
    *,
    data: Any = None,
    loss_fn: Any = None,
    inplace: bool = False,
) -> treatment.Treated:
    """Apply what was prescribed; with a diagnosis and data, keep only what is seen to help.

    Args:
        model: the network to treat.
        diagnosis_or_prescriptions: a `Diagnosis` with `data` is a course of treatment: finding by finding, causes
            first, the prescriptions are tried in order, the symptom is measured again on the first batch after each,
            and what does not take away a tenth of it is undone. A finding, or a diagnosis without data, stands for its
            first prescription that a treatment can execute; several prescriptions are applied in order, unmeasured.
        data: a batch as the loader yields it, or an iterable of batches; which treatments need it, they say.
        loss_fn: ``(output, target) → loss``, for symptoms that show in the gradient; without it ``output.loss`` is.
        inplace: treat `model` itself instead of a copy.

    Returns:
        What was done, what was undone or skipped with the reason, and what is preserved. With ``inplace=False`` the
        original stays as it is, bit for bit, whatever happens.

    Raises:
        UnknownNameError: there is no such treatment, or the model has no such site.
        DataError: a treatment needs data and got none it can use.
        TreatmentRefused: a treatment could not keep its word. The model is as it was, in place or not.
    """
    if not isinstance(diagnosis_or_prescriptions, Diagnosis) or data is None:
        return treatment.treat(model, diagnosis_or_prescriptions, data=data, inplace=inplace)
    if isinstance(data, Iterator):
        data = list(data)
    symptom = _on(first(data, model), loss_fn)
    return course(model, diagnosis_or_prescriptions, symptom, data=data, inplace=inplace)


def _on(probe: Any, loss_fn: Any) -> Symptom:
    """How bad a finding is, as one batch shows it: its rule's symptom, or the sites that a rule for models names."""
    known = {rule.code: rule for rule in rules()}

    def symptom(model: nn.Module, finding: Finding) -> float | None:
        rule = known.get(finding.code)
        if rule is not None and rule.symptom is not None:
            value = Experiment(model, probe, loss_fn).measured(rule.symptom)
            return 0.0 if value < SYMPTOMS[rule.symptom].least else value
        if rule is not None and rule.reads == "model":
            return float(sum(len(found.sites) or 1 for found in lint(model, example=probe, select=[rule.code])))
        return None

    return symptom
