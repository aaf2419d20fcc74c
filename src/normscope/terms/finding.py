"""What a rule found, how it knows, and what to do: `Finding`, `Evidence`, `Prescription`, `Diagnosis`."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from normscope.terms.datum import Datum

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, repr=False)
class Evidence(Datum):
    """The measurement behind a finding.

    Attributes:
        quantity: what was measured, by its name in the record (``"saturated"``) or the rule's own word.
        value: the worst value that was measured.
        threshold: the value at which the rule speaks.
        steps: the training steps at which it was measured, or empty for a model at rest.
        unit: the unit of `value`: ``"share"``, ``"ratio"``, ``"deviations"``, or ``""``.
        source: where the threshold comes from.
        per_site: the value at each site, worst first.
    """

    quantity: str
    value: float
    threshold: float
    steps: tuple[int, ...] = ()
    unit: str = ""
    source: str = ""
    per_site: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, repr=False)
class Removal(Datum):
    """A counterfactual: one cause taken out of a copy of the model, and the symptom measured again on the same batch.

    Attributes:
        cause: what was taken out, in words (``"the input standardized"``).
        symptom: what was measured.
        before: the symptom as the model stands; larger is worse, 0 is none.
        after: the symptom without the cause.
    """

    cause: str
    symptom: str
    before: float
    after: float

    @property
    def relief(self) -> float:
        """The share of the symptom that went away: 1 is all of it, 0 nothing, below 0 it became worse."""
        return 1 - self.after / self.before if self.before > 0 else 0.0


@dataclass(frozen=True, repr=False)
class Prescription(Datum):
    """A treatment with its sites and arguments: what `normscope.treat` executes.

    Attributes:
        treatment: the name of a file under ``treat/treatments``.
        sites: module paths to treat; empty means wherever the treatment applies.
        arguments: keyword arguments of the treatment, JSON values.
        words: the change as one would type it into the code.
        reason: why this should help here.
    """

    treatment: str
    sites: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""
    reason: str = ""


@dataclass(frozen=True, repr=False)
class Finding(Datum):
    """One ailment, wherever it shows: twenty layers with the same ailment are one finding with twenty sites.

    Attributes:
        code: the rule's stable code: NS1xx of a model at rest, NS2xx of training, NS3xx of normalization.
        name: the ailment, as one word (``"saturated_activation"``).
        severity: ``error`` (training fails or numbers are wrong), ``warning`` (it costs), ``note``.
        sites: where, worst first, as site keys or module paths.
        message: what was found, in a sentence with its numbers.
        since_step: the first step at which it held, or None for a model at rest.
        evidence: the measurement against its threshold.
        why: why it hurts.
        cause_of: codes of the findings that this one brings about.
        caused_by: codes of the findings that bring this one about.
        prescriptions: what to do, best first.
        removals: what taking causes out of a copy of the model did to the symptom, the finding's own cause first;
            empty where the record alone was at hand.
    """

    code: str
    name: str
    severity: Severity
    sites: tuple[str, ...]
    message: str
    evidence: Evidence
    since_step: int | None = None
    why: str = ""
    cause_of: tuple[str, ...] = ()
    caused_by: tuple[str, ...] = ()
    prescriptions: tuple[Prescription, ...] = ()
    removals: tuple[Removal, ...] = ()

    @property
    def relief(self) -> float:
        """How much of the symptom went away without the cause that the finding names; 0 where it was not tried."""
        return self.removals[0].relief if self.removals else 0.0


@dataclass(frozen=True, repr=False)
class Fault(Datum):
    """A rule that could not finish, and why. The other rules went on."""

    code: str
    error: str


@dataclass(frozen=True, repr=False)
class Diagnosis(Datum):
    """The findings, most severe first, and the rules that ran.

    Iterating gives the findings; `primary` is the cause to treat first; `exit_code` is 1 when a finding reaches
    `fail_on`, else 0. `basis` says what the findings rest on, and `learns` whether the run's loss has fallen (None
    where that is not known, as of a model at rest).
    """

    findings: tuple[Finding, ...] = ()
    rules: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    subject: str = ""
    fail_on: Severity = "error"
    basis: str = ""
    learns: bool | None = None

    def __repr__(self) -> str:
        told = [f"{found.code} {found.name} ({found.severity}): {found.message}" for found in self.findings]
        told += [f"{fault.code} could not finish: {fault.error}" for fault in self.faults]
        subject = f" of {self.subject}" if self.subject else ""
        told += ["nothing found explains why the loss does not fall"] if self.unexplained else []
        told += [f"evidence: {self.basis}"] if self.basis and self.findings else []
        return "\n  ".join([f"Diagnosis{subject}: {self._verdict}", *told])

    def _repr_html_(self) -> str:
        rows = "".join(_html_row(found) for found in self.findings)
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("finding", "what", "what to do first"))
        caption = html.escape(f"{self.subject}: {self._verdict}" if self.subject else self._verdict)
        return f"<table><caption>{caption}</caption>" + (f"<tr>{head}</tr>{rows}" if rows else "") + "</table>"

    @property
    def _verdict(self) -> str:
        found, rules = len(self.findings), len(self.rules)
        told = f"{found or 'no'} finding{'' if found == 1 else 's'} by {rules} rule{'' if rules == 1 else 's'}"
        return told + (f", {len(self.faults)} of which could not finish" if self.faults else "")

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        return bool(self.findings)

    def __getitem__(self, index: int) -> Finding:
        return self.findings[index]

    @property
    def primary(self) -> Finding | None:
        """The finding to treat first: the most severe one that no other finding explains; None without any.

        Notes alone say nothing of why a run did not learn: where `learns` is False they are no primary finding.
        """
        told = [finding for finding in self.findings if self.learns is not False or finding.severity != "note"]
        return next((finding for finding in told if not finding.caused_by), told[0] if told else None)

    @property
    def unexplained(self) -> bool:
        """Whether the run did not learn, and no finding says why."""
        return self.learns is False and self.primary is None

    @property
    def prescriptions(self) -> tuple[Prescription, ...]:
        """What the primary finding prescribes."""
        return self.primary.prescriptions if self.primary else ()

    @property
    def exit_code(self) -> int:
        """What the command line answers: 1 when a finding is at least as severe as `fail_on`."""
        serious = SEVERITIES[: SEVERITIES.index(self.fail_on) + 1]
        return int(any(finding.severity in serious for finding in self.findings))

    def to_json(self, indent: int | None = 2) -> str:
        """The diagnosis as a JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Diagnosis:
        """The diagnosis that `to_dict` wrote."""
        return Diagnosis(
            findings=tuple(_finding(item) for item in data["findings"]),
            rules=tuple(data["rules"]),
            faults=tuple(Fault(**item) for item in data["faults"]),
            subject=data["subject"],
            fail_on=data["fail_on"],
            basis=data.get("basis", ""),
            learns=data.get("learns"),
        )


def _html_row(found: Finding) -> str:
    first = found.prescriptions[0].words if found.prescriptions else ""
    cells = (f"{found.code} {found.name} ({found.severity})", found.message, first)
    return "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _finding(data: Mapping[str, Any]) -> Finding:
    evidence = dict(data["evidence"])
    evidence["value"], evidence["threshold"] = float(evidence["value"]), float(evidence["threshold"])
    evidence["steps"] = tuple(evidence["steps"])
    evidence["per_site"] = tuple((site, float(value)) for site, value in evidence["per_site"])
    told = {**data, "evidence": Evidence(**evidence)}
    for name in ("sites", "cause_of", "caused_by"):
        told[name] = tuple(data[name])
    told["prescriptions"] = tuple(
        Prescription(**{**item, "sites": tuple(item["sites"])}) for item in data["prescriptions"]
    )
    told["removals"] = tuple(Removal(**item) for item in data.get("removals", ()))
    return Finding(**told)
