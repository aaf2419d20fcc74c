"""The essay says what the ledger says: while it is written, and as it stands in docs."""

import re
from pathlib import Path

import pytest

from normscope.claims import runner
from normscope.claims.essay import NAME, filled
from normscope.claims.ledger import ledger
from normscope.claims.registry import claim
from normscope.terms.errors import DataError

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\(\.\./CLAIMS\.md#(?P<anchor>[^)]*)\)")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    runner.run([claim("0.7")], cache=cache)
    return ledger([claim("0.7"), claim("2.9")], cache=cache)


def test_slots_become_links_with_the_ledgers_words(rows):
    told = filled("So {{0.7}}: {{0.7 [1, 2, 3] has variance 1, divided by m = fails}}.", rows)
    link = "](../CLAIMS.md#07-one-two-three-has-variance-one)"
    assert told == f"So [holds under a condition{link}: [−0.333{link}."
    assert filled("{{0.7 = holds under a condition}}", rows, "zh") == f"[有条件地成立{link}"


@pytest.mark.parametrize(
    ("slot", "found"),
    [
        ("{{0.7 [1, 2, 3] has mean 2 = fails}}", "the verdict holds"),
        ("{{0.7 = holds}}", "the verdict holds under a condition"),
        ("{{0.7 a condition of nobody}}", "conditions [1, 2, 3] has mean 2, "),
        ("{{2.9}}", "no verdict of this claim in the ledger"),
        ("{{9.9}}", "no verdict of this claim in the ledger"),
    ],
)
def test_prose_that_the_ledger_contradicts_is_not_written(rows, slot, found):
    with pytest.raises(DataError) as caught:
        filled(slot, rows)
    asked, second, because, do = str(caught.value).splitlines()
    assert slot in asked and found in second and "the ledger's" in because and do.startswith("  do ")


@pytest.mark.parametrize("ending", [".md", ".zh.md"])
def test_the_essay_in_docs_agrees_with_the_ledger(ending):
    sections = {}
    for part in (ROOT / "CLAIMS.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        head, _, body = part.partition("\n")
        sections[head.lower().replace(".", "").replace(" ", "-")] = body
    essay = (ROOT / "docs" / (NAME + ending)).read_text(encoding="utf-8")
    assert all((ROOT / "docs" / image).is_file() for image in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", essay))
    links = list(LINK.finditer(essay))
    assert len(links) > 40
    words = {"成立": "holds", "不成立": "fails", "有条件地成立": "holds under a condition", "不能判定": "unclear"}
    for link in links:
        text, section = link["text"], sections[link["anchor"]]
        if "(" in text or text[0] in "−0123456789":
            value, _, bounds = text.rstrip(")").partition(" (")
            assert f"| {value} |" in section and bounds.replace(" 至 ", " to ") in section, text
        else:
            assert f"verdict: **{words.get(text, text)}**" in section, text
