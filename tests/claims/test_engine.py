"""Outcomes, intervals and decisions against closed forms; the runner's cache, its resuming and its failures."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from scipy import stats

from normscope.claims import runner
from normscope.claims.bench import Bench
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap, exact, paired
from normscope.claims.ledger import ledger, markdown
from normscope.claims.outcomes import Outcome, Outcomes
from normscope.claims.page import tree, write
from normscope.claims.registry import claim
from normscope.terms.errors import MissingExtraError, SpecError
from normscope.terms.verdict import Effect, Verdict

RULE = Decision(1.0, -1.0, "units", "because")


def between(low, high):
    return Effect((low + high) / 2, low, high)


# decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.1, 3, Verdict.HOLDS),
        (1.0, 3, Verdict.UNCLEAR),
        (-0.5, 0.5, Verdict.UNCLEAR),
        (-3, -1.0, Verdict.UNCLEAR),
        (-3, -1.1, Verdict.FAILS),
        (-math.inf, math.inf, Verdict.UNCLEAR),
        (math.nan, math.nan, Verdict.UNCLEAR),
    ],
)
def test_an_effect_is_judged_by_its_whole_interval(low, high, verdict):
    assert RULE.of(between(low, high)) is verdict


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((2, 3), Verdict.HOLDS),
        ((-2, -3), Verdict.FAILS),
        ((2, -3), Verdict.CONDITIONAL),
        ((2, 0), Verdict.CONDITIONAL),
        ((0, -3), Verdict.UNCLEAR),
        ((0, 0), Verdict.UNCLEAR),
    ],
)
def test_conditions_together(effects, verdict):
    ruling = RULE.judge({str(at): exact(value) for at, value in enumerate(effects)})
    assert ruling.verdict is verdict
    assert ruling.under(Verdict.HOLDS) == tuple(str(at) for at, value in enumerate(effects) if value > 1)


def test_a_decision_cannot_say_two_things_of_one_effect():
    with pytest.raises(SpecError, match="two things"):
        Decision(0.0, 1.0, "units", "because")


def test_a_claim_must_be_complete():
    with pytest.raises(SpecError, match=r"no zh, id='7'"):
        dataclasses.replace(claim("0.7"), zh=" ", id="7")


# intervals -----------------------------------------------------------------------------------------------------------


def test_paired_is_students_t():
    values = np.random.default_rng(1).normal(size=7)
    effect = paired(values.tolist())
    low, high = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    assert (effect.low, effect.high) == pytest.approx((low, high), rel=1e-9)


def test_bootstrap_of_the_mean_is_near_the_normal_interval_and_the_same_each_time():
    values = np.random.default_rng(2).normal(3, 2, size=400)
    effect = bootstrap(values, np.mean)
    reach = 1.96 * values.std() / 20
    assert effect == bootstrap(values, np.mean)
    assert (effect.low, effect.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.02)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_too_little_bounds_nothing(values):
    effect = bootstrap(values, np.mean) if values else bootstrap([1.0], np.mean)
    assert (effect.low, effect.high) == (-math.inf, math.inf)


# outcomes ------------------------------------------------------------------------------------------------------------


def test_pairs_match_everything_but_the_arm():
    rows = [
        Outcome({"arm": arm, "rate": rate, "seed": seed}, {"loss": (arm == "b") + 10 * rate + 100 * seed})
        for seed in (1, 0)
        for arm in "ab"
        for rate in (2, 1)
    ]
    pairs = Outcomes(rows).pairs("loss", {"arm": "b"}, {"arm": "a"})
    assert len(pairs) == 4 and {one - other for one, other in pairs} == {1}
    with pytest.raises(KeyError):
        Outcomes(rows[:3]).pairs("loss", {"arm": "b"}, {"arm": "c"})


# the runner ----------------------------------------------------------------------------------------------------------


def run(cache, **options):
    told = []
    runner.run(
        [claim("0.7")], cache=cache, progress=lambda job, failure, done, of: told.append((job, failure)), **options
    )
    return told


def test_runs_are_kept_and_only_missing_ones_run_again(tmp_path):
    told = run(tmp_path)
    assert len(told) == len(claim("0.7").cases_of("quick")) and not any(failure for _, failure in told)
    assert run(tmp_path) == []
    told[0][0].file(tmp_path).unlink()
    told[1][0].file(tmp_path).write_text("{", encoding="utf-8")  # cut short by a full disk
    assert {job.key for job, _ in run(tmp_path)} == {told[0][0].key, told[1][0].key}


def test_a_changed_text_or_bench_is_another_run(monkeypatch):
    job = runner.jobs(claim("0.7"), "quick", Bench())[0]
    before = job.key
    assert dataclasses.replace(job, bench=Bench("elsewhere")).key != before
    assert dataclasses.replace(job, case={**job.case, "seed": -1}).key != before
    monkeypatch.setattr(runner, "_text", lambda module: ["another text"])
    assert dataclasses.replace(job).key != before
    assert job.key == before


def test_a_run_depends_on_the_shared_files_that_it_imports():
    own, *shared = runner._text(claim("0.3").run.__module__)
    assert "shift accumulates" in own and [text.split('"""')[1].split(":")[0][:14] for text in shared] == [
        "The bench",
        "Real and made ",
        "The networks o",
        "What claims re",
    ]
    assert len(runner._text(claim("0.7").run.__module__)) == 3


def test_claims_that_share_a_run_share_its_outcomes():
    sweep = __import__(claim("3.5").run.__module__, fromlist=["x"])
    asked = {job.key for one in ("3.5", "4.1") for job in runner.jobs(claim(one), "quick", Bench())}
    assert len(asked) == len(sweep.cases(**sweep.SIZES["quick"]))
    assert claim("3.5").module != claim("4.1").module


def test_a_run_that_raises_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    module = __import__(claim("0.7").module, fromlist=["x"])
    working = module.run

    def broken(case, bench):
        if "mean 2" in case["condition"]:
            raise ValueError("no mean today")
        return working(case, bench)

    monkeypatch.setattr(module, "run", broken)
    failures = [failure for _, failure in run(tmp_path) if failure]
    assert failures == ["ValueError: no mean today"]
    (row,) = ledger([claim("0.7")], cache=tmp_path)
    assert row.ruling is None and row.verdict == "1 runs missing"


@pytest.mark.slow
def test_workers_give_what_one_process_gives(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "two", workers=2)
    one, two = (ledger([claim("0.7")], cache=tmp_path / name)[0] for name in ("one", "two"))
    assert one.effects == two.effects and two.ruling is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of ray's own
def test_a_local_ray_gives_what_one_process_gives(tmp_path):
    pytest.importorskip("ray")
    run(tmp_path / "one")
    assert not any(failure for _, failure in run(tmp_path / "ray", ray="local"))
    one, two = (ledger([claim("0.7")], cache=tmp_path / name)[0] for name in ("one", "ray"))
    assert one.effects == two.effects and two.ruling is not None


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"normscope\[ray\]"):
        run(tmp_path, ray="auto")


def test_numbers_that_json_has_no_word_for_come_back(tmp_path, monkeypatch):
    module = __import__(claim("0.7").module, fromlist=["x"])
    monkeypatch.setattr(module, "run", lambda case, bench: {"residual": math.inf, "curve": [math.nan, 1.0]})
    run(tmp_path)
    values = runner.load(claim("0.7"), cache=tmp_path).outcomes[0].values
    assert values["residual"] == math.inf and math.isnan(values["curve"][0])


# the ledger ----------------------------------------------------------------------------------------------------------


def test_the_ledger_says_what_the_effects_say(tmp_path):
    run(tmp_path)
    rows = ledger([claim("0.7"), claim("2.9")], cache=tmp_path)
    told = markdown(rows)
    assert "| [0.7](#07-one-two-three-has-variance-one) |" in told
    assert "verdict: **holds under a condition** (7 runs" in told
    assert "verdict: **not run**" in told
    assert "| [1, 2, 3] has variance 1, divided by m − 1 | holds |" in told
    json.dumps([row.to_dict() for row in rows])


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_shows_sentence_verdict_effects_and_chart(tmp_path, lang):
    run(tmp_path)
    rows = ledger([claim("0.7"), claim("2.9")], cache=tmp_path)
    page = write(rows, tmp_path / "claims.html", lang=lang).read_text(encoding="utf-8")
    assert rows[0].claim.sentence(lang)[:20] in page
    assert ("holds under a condition" if lang == "en" else "有条件地成立") in page
    assert page.count("<figure>") == 1 and "http-equiv" in page
    assert tree(rows, lang=lang).sections[0].anchor == "overview"
