"""What every rule owes: sick and healthy examples that it tells apart, a full text, thresholds with a source.

Rules are found by place, so a new file is under test at once.
"""

import re

import pytest

from normscope.diagnose.case import Case
from normscope.diagnose.engine import diagnose, explain, rules
from normscope.diagnose.rule import HEADINGS, Rule
from normscope.diagnose.specimen import Specimen
from normscope.terms.errors import SpecError
from normscope.terms.finding import SEVERITIES
from normscope.treat.treatment import treatments

RULES = rules()
SICK = [(rule, example) for rule in RULES for example in rule.sick]
HEALTHY = [(rule, example) for rule in RULES for example in rule.healthy]


def named(examples):
    return [f"{rule.name}-{number}" for number, (rule, _) in enumerate(examples)]


def diagnosed(case):
    """By all rules, with what of the training is at hand."""
    tried = case.experiment
    if tried is None:
        return diagnose(case.record)
    given = {"model": tried.model, "probe": tried.probe, "loss_fn": tried.loss_fn, "optimizer": tried.optimizer}
    return diagnose(case.record, **given)


@pytest.mark.parametrize(("rule", "example"), SICK, ids=named(SICK))
def test_a_sick_example_is_found_with_its_sites_numbers_and_cures(rule, example, tmp_path):
    subject = example.subject(tmp_path)
    (finding, *_) = found = list(rule.check(subject))
    assert {one.code for one in found} == {rule.code}
    assert {one.name for one in found} == {rule.name}
    assert set(example.sites) <= set(finding.sites)
    assert finding.severity in SEVERITIES
    assert re.search(r"\d", finding.message), "a message says its numbers"
    assert finding.why
    assert finding.evidence.source
    assert finding.evidence.value == pytest.approx(finding.evidence.value), "the value is a number"
    assert finding.prescriptions, "a rule that has no advice is of no use"
    for prescription in finding.prescriptions:
        assert prescription.words
        assert prescription.treatment in ("", *treatments())
    if isinstance(subject, Case):
        assert finding.since_step is not None
        assert rule.code in {one.code for one in diagnosed(subject)}


@pytest.mark.parametrize(("rule", "example"), HEALTHY, ids=named(HEALTHY))
def test_a_healthy_example_is_left_alone_by_its_rule_and_unalarmed_by_the_others(rule, example, tmp_path):
    subject = example.subject(tmp_path)
    assert not list(rule.check(subject))
    if isinstance(subject, Case):
        assert not [one for one in diagnosed(subject) if one.severity != "note"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_complete(rule):
    assert re.fullmatch(r"NS[123]\d\d", rule.code)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", rule.name)
    assert tuple(rule.sections) == HEADINGS
    assert all(len(body) > 40 for body in rule.sections.values())
    assert rule.title.endswith(".")
    assert rule.severity in SEVERITIES
    assert rule.sick
    assert rule.healthy
    assert rule.thresholds
    for threshold in rule.thresholds.values():
        assert len(threshold.source) > 20, "a threshold says who says so"
    assert rule.reads == ("model" if isinstance(rule.sick[0], Specimen) else "record")
    assert rule.code.startswith("NS1") == (rule.reads == "model")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_explains_itself_by_code_and_by_name(rule):
    page = explain(rule.code)
    assert page == explain(rule.name)
    assert page.startswith(f"{rule.code} {rule.name}")
    for heading in HEADINGS:
        assert heading.upper() in page
    for threshold in rule.thresholds.values():
        assert threshold.source in " ".join(page.split())


def test_codes_and_names_are_unique_and_every_cause_is_a_rule():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert len({rule.code for rule in RULES}) == len(RULES)
    assert [rule.code for rule in RULES] == sorted(rule.code for rule in RULES)
    assert {cause for rule in RULES for cause in rule.causes} <= set(names)


def test_no_ailment_brings_itself_about():
    brings = {rule.name: rule.causes for rule in RULES}

    def reach(name: str, seen: tuple[str, ...] = ()) -> None:
        assert name not in seen, f"{' → '.join((*seen, name))} goes in a circle"
        for effect in brings[name]:
            reach(effect, (*seen, name))

    for name in brings:
        reach(name)


def test_a_rule_with_other_headings_is_refused():
    with pytest.raises(SpecError) as caught:
        Rule("NS999", "odd", "note", "record", lambda case: (), "Odd.\n\n## What it finds\nNothing.\n")
    assert str(caught.value) == (
        "The rule NS999 odd was written with other headings than the fixed ones.\n"
        "  found    What it finds\n"
        "  because  the page, the command line and the report print these sections by name\n"
        "  do       write `## ` headings in this order: What it finds, Why it hurts, Evidence, Prescription, "
        "When to ignore, References"
    )
