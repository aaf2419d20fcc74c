"""Findings for code reviews: the shape that SARIF asks for, and lines that no message can break."""

import json

from normscope.report.annotations import github, sarif
from normscope.terms.finding import Diagnosis, Evidence, Fault, Finding, Prescription

FINDING = Finding(
    "NS202",
    "saturated_activation",
    "error",
    ("a:input", "b", "c", "d"),
    "100% of it,\nsaturated: all",
    Evidence("saturated", 1.0, 0.5),
    prescriptions=(Prescription("insert_norm", words="put a norm"),),
)
NOTE = Finding("NS101", "bias_before_norm", "note", (), "a bias", Evidence("bias", 1.0, 0.0))
DIAGNOSIS = Diagnosis((FINDING, NOTE), ("NS202", "NS101"), (Fault("NS999", "ValueError: no"),), "net")


def test_sarif_names_rules_results_and_faults():
    (run,) = json.loads(sarif(DIAGNOSIS))["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["NS202", "NS101"]
    first, second = run["results"]
    assert first["level"] == "error" and second["level"] == "note"
    assert first["message"]["text"].endswith("To do: put a norm")
    assert [place["logicalLocations"][0]["fullyQualifiedName"] for place in first["locations"]] == list(FINDING.sites)
    (invocation,) = run["invocations"]
    assert not invocation["executionSuccessful"]
    assert invocation["toolExecutionNotifications"][0]["descriptor"]["id"] == "NS999"


def test_github_writes_one_line_each_whatever_a_message_holds():
    first, second = github(DIAGNOSIS).splitlines()
    assert first.startswith("::error title=NS202 saturated_activation::100%25 of it,%0Asaturated: all")
    assert first.endswith("At: a:input, b, c and 1 more")
    assert second == "::notice title=NS101 bias_before_norm::a bias"


def test_nothing_found_is_nothing_said():
    assert github(Diagnosis()) == ""
    assert json.loads(sarif(Diagnosis()))["runs"][0]["results"] == []
