"""The demo proves what it says: the right cause, and a treated arm that learns."""

import math

import pytest

from normscope.demo import demo
from normscope.terms.verdict import Verdict


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("demo"), steps=120, seeds=(0, 1, 2))


def test_the_cause_that_is_named_is_the_one_that_was_planted(shown):
    assert shown.before.primary.name in {"saturated_activation", "poor_initialization"}
    assert "vanishing_gradient" in {finding.name for finding in shown.before} or shown.before.primary.cause_of


def test_the_treated_arm_learns_and_the_untreated_does_not(shown):
    chance = math.log(10)
    for untreated, treated in zip(shown.trial.untreated.curves, shown.trial.treated.curves, strict=True):
        assert sum(untreated[-10:]) / 10 > 0.9 * chance
        assert sum(treated[-10:]) / 10 < 0.5 * chance
    assert shown.trial.verdict is Verdict.HOLDS


def test_after_the_treatment_the_ailment_is_gone(shown):
    assert not {finding.code for finding in shown.after} & {shown.before.primary.code}


def test_the_page_is_written(shown):
    assert shown.page.stat().st_size > 100_000


def test_the_demo_twice_into_one_folder_starts_afresh(shown, tmp_path):
    first = demo(tmp_path, steps=20, seeds=(0, 1))
    again = demo(tmp_path, steps=20, seeds=(0, 1))
    assert again.before == first.before
