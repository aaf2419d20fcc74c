"""``normscope claims`` and ``normscope explain`` of a claim."""

import json

import pytest
from typer.testing import CliRunner

from normscope.cli.app import app
from normscope.terms.errors import UnknownNameError


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_list_names_every_claim(tmp_path):
    rows = json.loads(call("claims", "list", "--json", "--cache", tmp_path).stdout)
    assert len(rows) == 54
    (row,) = (row for row in rows if row["id"] == "0.7")
    assert row["kind"] == "exact" and row["name"] == "one two three has variance one" and row["verdict"] == "not run"
    assert "方差为 1" in call("claims", "list", "0.7", "--lang", "zh").stdout


def test_list_tells_the_last_verdict_and_effect(tmp_path):
    assert call("claims", "run", "1.9", "--quick", "--cache", tmp_path, "-q").exit_code == 0
    told = call("claims", "list", "1.9", "--cache", tmp_path).stdout.splitlines()
    assert (
        told[0].startswith("1.9   For a convolution of 64 kernels")
        and told[1] == "      holds: 4 conditions: 4 × holds"
    )


def test_run_tells_how_far_it_is(tmp_path):
    told = call("claims", "run", "2.14", "--cache", tmp_path).stderr.splitlines()
    assert [line.split()[0] for line in told] == ["[1/3]", "[2/3]", "[3/3]"] and "s to go  2.14 {" in told[0]
    assert call("claims", "run", "2.14", "--cache", tmp_path).stderr == ""
    assert call("claims", "run", "2.14", "--all").exit_code == 2


def test_help_holds_an_example():
    assert "Example: normscope claims run 0.11 3.5 --workers 2" in call("claims", "--help").stdout


def test_run_then_report(tmp_path):
    cache = ("--cache", tmp_path / "cache")
    ran = call("claims", "run", "0.7", "2.14", *cache, "-q")
    assert ran.exit_code == 0 and "0.7   holds under a condition" in ran.stdout
    row = json.loads(call("claims", "run", "0.7", *cache, "-q", "--json").stdout)[0]
    assert row["ruling"]["verdict"] == "holds under a condition"
    page, ledger = tmp_path / "claims.html", tmp_path / "CLAIMS.md"
    assert call("claims", "report", "0.7", "-o", page, *cache).stdout.strip() == str(page)
    assert call("claims", "report", "0", "--markdown", ledger, *cache, "-q").stdout == ""
    assert "<figure>" in page.read_text(encoding="utf-8")
    assert "| not run |" in ledger.read_text(encoding="utf-8")


def test_an_article_is_all_of_its_claims():
    rows = json.loads(call("claims", "list", "--json").stdout)
    from normscope.cli.claims import _chosen

    assert [one.id for one in _chosen(["1"])] == [row["id"] for row in rows if row["id"].startswith("1.")]
    with pytest.raises(UnknownNameError):
        _chosen(["7"])


def test_explain_prints_a_claim():
    told = call("explain", "0.7").stdout
    assert told.startswith("0.7 one two three has variance one (exact)") and "normscope claims run 0.7" in told
