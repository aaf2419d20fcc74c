"""A page for each rule, written from its docstring and its thresholds.

``python -m normscope.diagnose.pages docs/rules`` writes them all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from normscope.diagnose.engine import rules
from normscope.diagnose.rule import Rule

_READS = {"record": "the record of a run", "model": "a model at rest"}
_KINDS = {
    "NS1": "Of a model at rest (`normscope lint`)",
    "NS2": "Of training",
    "NS3": "Of normalization in training",
}


def pages() -> Mapping[str, str]:
    """Name of the file → page, for every rule and the list of them."""
    found = rules()
    return {"README.md": _index(found), **{f"{rule.code}.md": page(rule, found) for rule in found}}


def page(rule: Rule, found: tuple[Rule, ...]) -> str:
    """The page of one rule, as Markdown; `found` are all of them, for the links between causes."""
    by_name = {one.name: one for one in found}
    causes = [by_name[name] for name in rule.causes if name in by_name]
    caused = [one for one in found if rule.name in one.causes]
    parts = [
        f"# {rule.code} {rule.name}",
        rule.title,
        f"Severity: {rule.severity}, unless the run says otherwise. Reads {_READS[rule.reads]}.",
        *(f"## {heading}\n{body}" for heading, body in rule.sections.items()),
        "## Thresholds\n" + "\n".join(_threshold(rule, name) for name in rule.thresholds),
    ]
    links = [("It can bring about", causes), ("It can come from", caused)]
    told = [f"{words} {', '.join(_link(one) for one in others)}." for words, others in links if others]
    if told:
        parts.append("## Cause and effect\n" + "\n".join(told))
    return "\n\n".join(parts) + "\n"


def write(folder: Path) -> None:
    """Write every page to `folder`, and take away those of rules that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    told = pages()
    for old in folder.glob("*.md"):
        if old.name not in told:
            old.unlink()
    for name, text in told.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _index(found: tuple[Rule, ...]) -> str:
    parts = ["# Rules", "Written from the rules by `python -m normscope.diagnose.pages docs/rules`."]
    for kind, words in _KINDS.items():
        rows = [f"| {_link(rule)} | {rule.severity} | {rule.title} |" for rule in found if rule.code.startswith(kind)]
        parts.append("\n".join([f"## {words}", "| rule | severity | what |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _link(rule: Rule) -> str:
    return f"[{rule.code} {rule.name}]({rule.code}.md)"


def _threshold(rule: Rule, name: str) -> str:
    one = rule.thresholds[name]
    return f"- **{name}** = {one.value:.3g} {one.unit}".rstrip() + f": {one.source}"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
