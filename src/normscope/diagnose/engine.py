"""The engine: finds the rules, runs those that were asked for, and puts causes before symptoms."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import metadata
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, Any

from normscope.diagnose import rules as _place
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment, Watched, explains, tried
from normscope.diagnose.relations import causes_first, related
from normscope.diagnose.rule import Check, Rule
from normscope.record.reader import Record
from normscope.terms.errors import RecordError, UnknownNameError
from normscope.terms.finding import SEVERITIES, Diagnosis, Fault, Finding, Severity

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from normscope.watch.fixed_batch import LossFn

ENTRY_POINTS = "normscope.rules"
_BASIS = {
    False: "the record alone; with `normscope.diagnose(record, model=…, probe=…)` causes are also tried on a copy",
    True: "the record, and causes taken out of a copy of the model",
}
Selectors = str | Iterable[str] | None


def diagnose(
    record_or_path: Record | str | PathLike[str] | Watched,
    *,
    model: nn.Module | None = None,
    probe: Any = None,
    loss_fn: LossFn | None = None,
    optimizer: Optimizer | None = None,
    select: Selectors = None,
    ignore: Selectors = None,
    per_site: Mapping[str, Selectors] | None = None,
    fail_on: Severity = "error",
) -> Diagnosis:
    """What is wrong with a run, from its record; also of a run in progress.

    With the model and a batch, each cause is taken out of a copy before it is named, and the finding says by how much
    the symptom went away (`Finding.removals`). Without them the findings rest on the record alone (`Diagnosis.basis`).
    Of a record that holds trials and no step, no rule that reads records has anything to say.

    Args:
        record_or_path: a record, the path of one, or the `Watcher` of the run, which has all of the following.
        model: the model that was trained; with it the rules for a model at rest run too.
        probe: a batch as the loader yields it, to try causes on: a tensor, an ``(inputs, target)`` pair, a dict, or a
            `Probe`.
        loss_fn: ``(output, target) → loss``, for causes that show in the gradient.
        optimizer: the optimizer that trains the model, for causes that show in its steps.
        select: only these rules: codes (``"NS201"``), prefixes of codes (``"NS2"``) or names.
        ignore: not these rules.
        per_site: pattern of module paths (as in `fnmatch`) → rules that are silent there.
        fail_on: the severity from which `Diagnosis.exit_code` is 1.

    Raises:
        RecordError: the path is no record, or the record holds neither a step nor a trial.
        UnknownNameError: `select` or `ignore` fits no rule, or `fail_on` is no severity.
    """
    found, faults = _find()
    chosen = _choose(found, select, ignore)
    silent = {pattern: _matching(found, codes or ()) for pattern, codes in (per_site or {}).items()}
    _check_severity(fail_on)
    if isinstance(record_or_path, Watched):
        watched, record_or_path = record_or_path, record_or_path.record
        model, probe = model or watched.model, watched.probe if probe is None else probe
        loss_fn, optimizer = loss_fn or watched.loss_fn, optimizer or watched.optimizer
    record = record_or_path if isinstance(record_or_path, Record) else Record(record_or_path)
    stepless = not len(record.steps)
    if stepless and not record.trials:
        raise _without_steps(record)
    experiment = Experiment(model, probe, loss_fn, optimizer) if model is not None and probe is not None else None
    case = Case(record, experiment)
    subjects: dict[str, Any] = {} if stepless else {"record": case}
    if model is not None:
        subjects["model"] = Blueprint(model, batch_size=case.batch_size, optimizer=optimizer, trained=True)
    return _examine(subjects, chosen, found, faults, silent=silent, subject=str(record.path), fail_on=fail_on)


def lint(
    model: nn.Module,
    *,
    example: Any = None,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    select: Selectors = None,
    ignore: Selectors = None,
    per_site: Mapping[str, Selectors] | None = None,
    fail_on: Severity = "error",
) -> Diagnosis:
    """What is wrong with a model at rest.

    Args:
        model: the model; it is read, and run once in evaluation mode on a copy when there is an `example`.
        example: a batch as the loader yields it: a tensor, an ``(inputs, target)`` pair, a dict, or a `Probe`.
            Without it the data flow is read symbolically, where torch.fx can.
        optimizer: the optimizer that will train it.
        batch_size: the batch size per device that training will use; the example's when left out.
        select: only these rules: codes, prefixes of codes or names.
        ignore: not these rules.
        per_site: pattern of module paths (as in `fnmatch`) → rules that are silent there.
        fail_on: the severity from which `Diagnosis.exit_code` is 1.

    Raises:
        UnknownNameError: `select` or `ignore` fits no rule, or `fail_on` is no severity.
        DataError: `example` is nothing that a model can be called with, or does not fit this one.
        ModelError: the model raised on the example.
    """
    found, faults = _find()
    chosen = _choose(found, select, ignore)
    silent = {pattern: _matching(found, codes or ()) for pattern, codes in (per_site or {}).items()}
    _check_severity(fail_on)
    blueprint = Blueprint(model, example, optimizer, batch_size)
    if example is not None:
        _ = blueprint.flow  # run it before the rules, whose errors become faults
    subject = type(model).__name__
    return _examine({"model": blueprint}, chosen, found, faults, silent=silent, subject=subject, fail_on=fail_on)


def rules() -> tuple[Rule, ...]:
    """Every rule, by code: the files under ``diagnose/rules``, then entry points of the group ``normscope.rules``."""
    return _find()[0]


def rule(name: str) -> Rule:
    """The rule with this code or name.

    Raises:
        UnknownNameError: there is none; the error names the nearest.
    """
    found = rules()
    for candidate in found:
        if name in (candidate.code, candidate.name):
            return candidate
    raise _unknown(name, found)


def explain(name: str) -> str:
    """The page of a rule as text: its sections and its thresholds with their sources.

    Raises:
        UnknownNameError: there is no rule of this code or name.
    """
    asked = rule(name)
    lines = [f"{asked.code} {asked.name} ({asked.severity})", "", asked.title]
    for heading, body in asked.sections.items():
        lines += ["", heading.upper(), *("  " + line if line else "" for line in body.splitlines())]
    if asked.thresholds:
        lines += ["", "THRESHOLDS"]
        for name, one in asked.thresholds.items():
            lines += [f"  {name} = {one.value:.3g} {one.unit}".rstrip()]
            lines += textwrap.wrap(one.source, 116, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _check_severity(fail_on: str) -> None:
    if fail_on not in SEVERITIES:
        raise UnknownNameError(
            f"A severity was asked for as {fail_on!r}.",
            found="no severity has that name",
            because="`fail_on` is the severity from which the exit code is 1",
            do=f"choose one of {', '.join(SEVERITIES)}",
        )


def _without_steps(record: Record) -> RecordError:
    told = [event.text for event in record.events if event.kind != "end"]
    parts = [f"`{part}`" for part in record.parts]
    return RecordError(
        "A run was to be diagnosed that has no step in its record.",
        found=f"0 sampled steps, {len(record.events)} events" + (f"; the last: {told[-1]}" if told else ""),
        because="every rule compares what was measured while the network ran",
        do=f"give the record of one model: {', '.join(parts)}"
        if parts
        else "let the run make at least one optimizer step under watch",
    )


def _examine(
    subjects: dict[str, Any],
    chosen: Sequence[Rule],
    found: Sequence[Rule],
    faults: Sequence[Fault],
    *,
    silent: Mapping[str, set[str]],
    subject: str,
    fail_on: Severity,
) -> Diagnosis:
    broken = list(faults)
    asked = [one for one in chosen if one.reads in subjects]
    case: Case | None = subjects.get("record")
    experiment = case.experiment if case else None

    def seen(one: Rule, look: Check) -> list[Finding]:
        try:
            found_here = [kept for told in look(subjects[one.reads]) for kept in _heard(told, silent)]
        except Exception as error:  # a rule that fails must not silence the others
            broken.append(Fault(one.code, f"{type(error).__name__}: {error}"))
            return []
        missed = experiment.missed() if experiment is not None else ""
        return [replace(told, message=told.message + missed) for told in found_here]

    findings = [told for one in asked for told in seen(one, one.check)]
    if case is not None and experiment is not None:
        findings = tried(findings, found, experiment)
        if case.hardly_learns and all(told.severity == "note" for told in findings):
            findings += [told for one in asked if one.second is not None for told in seen(one, one.second)]
    linked = related(
        findings,
        found,
        depth_of=case.depth_of if case else None,
        explains=lambda cause, effect: explains(cause, effect, experiment),
    )
    basis = "" if case is None else _BASIS[experiment is not None]
    ran = tuple(one.code for one in asked)
    learns = None if case is None else case.learns
    return Diagnosis(causes_first(linked, found), ran, tuple(broken), subject, fail_on, basis, learns)


def _heard(finding: Finding, silent: Mapping[str, set[str]]) -> Iterator[Finding]:
    """The finding without the sites at which its rule is to be silent; nothing when none is left."""
    patterns = [pattern for pattern, codes in silent.items() if finding.code in codes]
    sites = tuple(site for site in finding.sites if not any(fnmatchcase(site, pattern) for pattern in patterns))
    if sites or not finding.sites:
        yield finding if sites == finding.sites else replace(finding, sites=sites)


def _find() -> tuple[tuple[Rule, ...], tuple[Fault, ...]]:
    found: dict[str, Rule] = {}
    for leaf in pkgutil.iter_modules(_place.__path__, _place.__name__ + "."):
        own: Rule = importlib.import_module(leaf.name).RULE
        found[own.code] = own
    faults = []
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        loaded = _foreign(entry, found.values())
        if isinstance(loaded, Fault):
            faults.append(loaded)
        else:
            found[loaded.code] = loaded
    return tuple(found[code] for code in sorted(found)), tuple(faults)


def _foreign(entry: metadata.EntryPoint, known: Iterable[Rule]) -> Rule | Fault:
    try:
        loaded = entry.load()
        one = loaded.RULE if isinstance(loaded, ModuleType) else loaded
        if not isinstance(one, Rule):
            raise TypeError(f"gives a {type(one).__name__}, not a Rule")
        if any(one.code == other.code or one.name == other.name for other in known):
            raise ValueError(f"{one.code} {one.name} is already taken")
    except Exception as error:  # a foreign package must not take ours down
        return Fault(entry.name, f"{type(error).__name__}: {error}")
    return one


def _choose(found: Sequence[Rule], select: Selectors, ignore: Selectors) -> tuple[Rule, ...]:
    chosen = _matching(found, select) if select is not None else {one.code for one in found}
    refused = _matching(found, ignore) if ignore is not None else set()
    return tuple(one for one in found if one.code in chosen - refused)


def _matching(found: Sequence[Rule], selectors: str | Iterable[str]) -> set[str]:
    codes = set()
    for selector in [selectors] if isinstance(selectors, str) else selectors:
        matched = {one.code for one in found if selector == one.name or (selector and one.code.startswith(selector))}
        if not matched:
            raise _unknown(selector, found)
        codes |= matched
    return codes


def _unknown(name: str, found: Sequence[Rule]) -> UnknownNameError:
    words = [word for one in found for word in (one.code, one.name)]
    near = difflib.get_close_matches(name, words, n=3, cutoff=0.5)
    told = f"did you mean {' or '.join(f'`{one}`' for one in near)}? " if near else ""
    return UnknownNameError(
        f"A rule was asked for as {name!r}.",
        found="no rule has that code or name",
        because="rules go by their code (NS201), the start of a code (NS2) or their name",
        do=f"{told}`normscope rules` lists all {len(found)} of them",
    )
