"""The pages of the rules are those that the rules write."""

from pathlib import Path

from normscope.diagnose import pages
from normscope.diagnose.engine import rules

DOCS = Path(__file__).parents[2] / "docs" / "rules"


def test_the_pages_in_the_docs_are_fresh():
    held = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    assert held == pages.pages(), "run: python -m normscope.diagnose.pages docs/rules"


def test_a_page_has_the_rules_sections_thresholds_and_links():
    told = pages.pages()
    assert len(told) == len(rules()) + 1
    for rule in rules():
        page = told[f"{rule.code}.md"]
        assert page.startswith(f"# {rule.code} {rule.name}\n\n{rule.title}\n")
        assert all(body in page for body in rule.sections.values())
        assert all(one.source in page for one in rule.thresholds.values())
        assert f"[{rule.code} {rule.name}]({rule.code}.md)" in told["README.md"]


def test_pages_of_rules_that_are_no_more_go(tmp_path):
    (tmp_path / "NS999.md").write_text("old")
    pages.write(tmp_path)
    assert not (tmp_path / "NS999.md").exists()
    assert (tmp_path / "README.md").exists()
