"""The contract of a claim, over all that are found by place."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from normscope.claims.bench import Bench
from normscope.claims.decision import Decision
from normscope.claims.outcomes import Outcome, Outcomes
from normscope.claims.registry import claim, claims, explain
from normscope.claims.search import SEARCHES, searched
from normscope.diagnose.engine import rules
from normscope.report import charts
from normscope.report.parts import Chart
from normscope.terms.datum import plain
from normscope.terms.errors import UnknownNameError
from normscope.terms.verdict import Effect

IDS = [one.id for one in claims()]
EXACT = [one.id for one in claims() if one.kind == "exact"]
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(params=IDS)
def one(request):
    return claim(request.param)


def test_ids_are_unique_and_in_order():
    assert len(set(IDS)) == len(IDS)
    assert sorted(IDS, key=lambda id: tuple(map(int, id.split(".")))) == IDS


def test_every_file_is_a_claim_of_its_own_article(one):
    article, name = one.module.split(".")[-2:]
    assert article == f"a00{one.id[0]}" and one.source.startswith(f"00{one.id[0]}")
    assert one.name == name.replace("_", " ")


def test_sentences_stand_in_both_languages(one):
    assert CHINESE.search(one.zh) and not CHINESE.search(one.en)
    assert one.en.endswith(".") and one.zh.endswith("。")
    assert one.protocol.endswith((".", ")"))


def test_links_lead_to_rules_and_norms_that_exist(one):
    norms = {page.stem for page in (Path(__file__).parents[2] / "docs/norms").glob("*.md")}
    assert one.see and set(one.see) <= norms | {rule.code for rule in rules()}


def test_the_decision_is_fixed_and_says_why(one):
    assert isinstance(one.decision, Decision) and one.decision.unit and one.decision.reason


def test_cases_are_flat_json_and_all_different(one):
    for size in ("quick", "full"):
        told = [json.dumps(case, sort_keys=True) for case in one.cases_of(size)]
        assert told and len(set(told)) == len(told)
        assert all(not isinstance(value, dict | list | tuple) for case in one.cases_of(size) for value in case.values())
    assert len(one.cases_of("full")) >= len(one.cases_of("quick"))


def test_trainings_have_five_paired_seeds(one):
    if one.kind == "training":
        assert len({case["seed"] for case in one.cases_of("quick")}) >= 5


def test_explain_tells_the_sentence_and_the_rule(one):
    told = explain(one.id)
    assert one.en in told and one.zh in told and "DECISION" in told and f"claims run {one.id}" in told


def test_a_claim_reads_like_a_lab_note(one):
    lines = Path(__import__(one.module, fromlist=["x"]).__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140


@pytest.mark.parametrize("id", EXACT)
def test_exact_claims_run_weigh_and_draw(id):
    one = claim(id)
    cases = [case for case in one.cases_of("quick") if case.get("seed", 0) < 2]
    outcomes = Outcomes(Outcome(case, plain(dict(one.run(case, Bench())))) for case in cases)
    again = plain(dict(one.run(cases[-1], Bench())))
    assert outcomes[-1].values == again  # a pure function of its case
    effects = one.weigh(outcomes)
    assert all(isinstance(effect, Effect) and effect.low <= effect.value <= effect.high for effect in effects.values())
    ruling = one.decision.judge(effects)
    assert set(ruling.by_condition) == set(effects)
    chart = one.draw(outcomes)
    assert isinstance(chart, Chart) and chart.title.endswith(".")
    told = charts.spec(chart)
    assert any(rows for rows in told["datasets"].values())
    charts.vl_convert.vegalite_to_vega(told)


@pytest.mark.parametrize("id", ["0.3", "1.3", "2.5", "2.6"])
def test_a_handful_of_quick_claims_run_weigh_and_draw(id):
    one = claim(id)
    cases = [case for case in one.cases_of("quick") if case["seed"] < 2]
    outcomes = Outcomes(Outcome(case, plain(dict(one.run(case, Bench())))) for case in cases)
    ruling = one.decision.judge(one.weigh(outcomes))
    assert all(math.isfinite(effect.value) for effect in one.weigh(outcomes).values()) and ruling.by_condition
    assert any(rows for rows in charts.spec(one.draw(outcomes))["datasets"].values())


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_finds_the_bottom_of_a_bowl(search):
    start, bottom = torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 3.0])

    def losses(weights):
        return (weights - bottom).square().sum(1)

    found = searched(search, start, losses, seed=0, evaluations=1200)
    assert torch.equal(found, searched(search, start, losses, seed=0, evaluations=1200))
    assert losses(found[None]) < 0.3


def test_an_unknown_claim_is_an_error_that_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        claim("0.70")
    asked, found, because, do = str(caught.value).splitlines()
    assert asked == "A claim was asked for as '0.70'."
    assert "0.7" in found and because.endswith("0.1 to 4.7") and do.startswith("  do       choose one of 0.1, ")
