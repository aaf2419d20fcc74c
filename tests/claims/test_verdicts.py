"""What the numbers of the articles really are: the verdicts that mathematics fixes, whatever the seeds."""

import pytest

from normscope.claims.bench import Bench
from normscope.claims.outcomes import Outcome, Outcomes
from normscope.claims.registry import claim
from normscope.terms.verdict import Verdict


def judged(id):
    one = claim(id)
    cases = [case for case in one.cases_of("quick") if case.get("seed", 0) < 2]
    return one.decision.judge(one.weigh(Outcomes(Outcome(case, one.run(case, Bench())) for case in cases)))


@pytest.mark.parametrize("id", ["1.9", "2.12", "2.13"])
def test_identities_hold_everywhere(id):
    assert judged(id).verdict is Verdict.HOLDS


def test_the_variance_of_one_two_three_is_one_with_bessels_correction_only():
    ruling = judged("0.7")
    assert ruling.verdict is Verdict.CONDITIONAL
    assert ruling.under(Verdict.FAILS) == (
        "[1, 2, 3] has variance 1, divided by m",
        "[0, 2, 4] normalized with ε = 0 has variance 1, divided by m − 1",
        "[0, 2, 4] normalized with ε = 10⁻⁵ has variance 1, divided by m",
    )


def test_the_articles_weight_standardization_runs_only_when_mended():
    failed = judged("3.4").under(Verdict.FAILS)
    assert failed == (
        "the article's code as printed",
        "the article's code, closed at the end",
        "the article's code, closed before ε",
    )


def test_centred_inputs_keep_the_mean_of_the_next_layer():
    assert judged("0.1").under(Verdict.FAILS) == ("mean, inputs centred",)


def test_only_statistics_of_the_batch_can_be_undone():
    assert judged("0.8").under(Verdict.HOLDS) == (
        "BatchNorm, one batch",
        "BatchNorm, two unlike batches at inference",
    )


def test_only_a_normal_shift_is_removed_whole():
    assert judged("2.8").under(Verdict.FAILS) == ("normal, mean 3, deviation 10",)


def test_merged_moments_lack_nothing_and_averaged_variances_do():
    ruling = judged("1.5")
    assert ruling.by_condition["merged moments, one pass of sorted batches"] is Verdict.HOLDS
    assert ruling.by_condition["unbiased variance, one pass of sorted batches"] is Verdict.FAILS
