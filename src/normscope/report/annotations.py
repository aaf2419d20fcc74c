"""The findings for machines that read code reviews: SARIF 2.1.0, and the annotations of GitHub's workflow log.

Both speak of files and lines. A finding stands at a place in a network, so SARIF is given *logical* locations (the
standard's section 3.33), and GitHub's lines name the place in their text.
"""

from __future__ import annotations

import json
from typing import Any

import normscope
from normscope.terms.finding import Diagnosis, Finding, Severity

_COMMAND: dict[Severity, str] = {"error": "error", "warning": "warning", "note": "notice"}


def sarif(diagnosis: Diagnosis) -> str:
    """The diagnosis as one SARIF run, a result each finding; rules that failed are notifications of the tool."""
    found = {finding.code: finding for finding in diagnosis}
    driver = {
        "name": "normscope",
        "version": normscope.__version__,
        "rules": [_rule(finding) for finding in found.values()],
    }
    faults = [
        {"level": "error", "descriptor": {"id": fault.code}, "message": {"text": fault.error}}
        for fault in diagnosis.faults
    ]
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": not faults, "toolExecutionNotifications": faults}],
        "results": [_result(finding) for finding in diagnosis],
    }
    told = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(told, indent=2, ensure_ascii=False)


def github(diagnosis: Diagnosis) -> str:
    """The diagnosis as workflow commands, a line each finding."""
    return "\n".join(
        f"::{_COMMAND[finding.severity]} title={_property(f'{finding.code} {finding.name}')}::{_message(finding)}"
        for finding in diagnosis
    )


def _rule(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.code,
        "name": finding.name,
        "shortDescription": {"text": finding.name.replace("_", " ")},
        "help": {"text": finding.why or finding.message},
    }


def _result(finding: Finding) -> dict[str, Any]:
    places = [{"logicalLocations": [{"fullyQualifiedName": site, "kind": "module"}]} for site in finding.sites]
    return {
        "ruleId": finding.code,
        "level": finding.severity,
        "message": {"text": _with_cure(finding)},
        "locations": places,
        "properties": {"evidence": finding.evidence.to_dict(), "since_step": finding.since_step},
    }


def _with_cure(finding: Finding) -> str:
    cure = next((prescription.words for prescription in finding.prescriptions if prescription.words), "")
    return f"{finding.message} To do: {cure}" if cure else finding.message


def _message(finding: Finding) -> str:
    where = ", ".join(finding.sites[:3]) + (f" and {len(finding.sites) - 3} more" if len(finding.sites) > 3 else "")
    return _escaped(f"{_with_cure(finding)} At: {where}" if where else _with_cure(finding))


def _escaped(text: str) -> str:
    """What a workflow command may carry: its own marks and line ends are written as codes."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
