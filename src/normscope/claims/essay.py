"""The essay: prose whose every number and verdict comes from the ledger, or it is not written.

In the text ``{{0.3}}`` stands for a claim's verdict, ``{{0.3 = holds}}`` for the same where the prose relies on it, and
``{{0.3 relu: shift of the mean = holds}}`` for the effect of one condition with its interval; each becomes a link into
CLAIMS.md. What the ledger contradicts, or does not hold, is an error: the prose must then be written anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from normscope.claims.ledger import Row, anchor
from normscope.report.numbers import amount
from normscope.terms.errors import DataError
from normscope.terms.verdict import Verdict

NAME = "what-batch-norm-does"
_ENDINGS = {"en": ".md", "zh": ".zh.md"}
_SLOT = re.compile(r"\{\{(?P<id>\d\.\d+)(?: (?!= )(?P<condition>[^{}]*?))?(?: = (?P<verdict>[^{}]*?))?\}\}")
_CHINESE: Mapping[Verdict, str] = {
    Verdict.HOLDS: "成立",
    Verdict.FAILS: "不成立",
    Verdict.CONDITIONAL: "有条件地成立",
    Verdict.UNCLEAR: "不能判定",
}


def essays(rows: Sequence[Row]) -> dict[str, str]:
    """File names with their texts, in both languages.

    Raises:
        DataError: the ledger says other than the prose, or has no verdict yet.
    """
    return {NAME + ending: filled(_template(NAME + ending), rows, lang) for lang, ending in _ENDINGS.items()}


def filled(template: str, rows: Sequence[Row], lang: str = "en") -> str:
    """The text with its slots filled. Raises DataError as `essays` does."""
    known = {row.claim.id: row for row in rows}
    return _SLOT.sub(lambda slot: _told(slot, known, lang), template)


def _told(slot: re.Match[str], known: Mapping[str, Row], lang: str) -> str:
    id, condition, wanted = slot["id"], slot["condition"], slot["verdict"]
    row = known.get(id)
    if row is None or row.ruling is None:
        raise _fault(slot, "no verdict of this claim in the ledger", f"run it: normscope claims run {id}")
    if condition is None:
        verdict = row.ruling.verdict
        text = _CHINESE[verdict] if lang == "zh" else str(verdict)
    elif condition in row.effects:
        verdict = row.ruling.by_condition[condition]
        effect = row.effects[condition]
        bounds = " to " if lang == "en" else " 至 "
        text = amount(effect.value)
        if effect.low != effect.high:
            text += f" ({amount(effect.low)}{bounds}{amount(effect.high)})"
    else:
        raise _fault(slot, f"conditions {', '.join(row.effects)}", "name one of them")
    if wanted is not None and wanted != str(verdict):
        raise _fault(slot, f"the verdict {verdict}", "write the sentence anew, as the runs have it")
    return f"[{text}](../CLAIMS.md#{anchor(row)})"


def _fault(slot: re.Match[str], found: str, do: str) -> DataError:
    return DataError(
        f"The essay was to be written with {slot[0]}.",
        found=found,
        because="every number and verdict in it is the ledger's",
        do=do,
    )


def _template(name: str) -> str:
    return (resources.files("normscope.claims") / "essays" / name).read_text(encoding="utf-8")
