"""Every claim, found by its place: the files under ``claims/a000`` to ``claims/a004``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

from normscope import claims as _place
from normscope.claims.claim import Claim
from normscope.terms.errors import UnknownNameError

ARTICLES = ("a000", "a001", "a002", "a003", "a004")


@cache
def claims() -> tuple[Claim, ...]:
    """All of them, in the order of articles and numbers."""
    packages = (importlib.import_module(f"{_place.__name__}.{article}") for article in ARTICLES)
    leaves = (leaf for one in packages for leaf in pkgutil.iter_modules(one.__path__, f"{one.__name__}."))
    found: list[Claim] = [importlib.import_module(leaf.name).CLAIM for leaf in leaves]
    return tuple(sorted(found, key=lambda claim: _order(claim.id)))


def claim(id: str) -> Claim:
    """The claim with this number.

    Raises:
        UnknownNameError: there is none; the error names the nearest.
    """
    known = {one.id: one for one in claims()}
    if id in known:
        return known[id]
    near = difflib.get_close_matches(id, known, n=3, cutoff=0.5)
    raise UnknownNameError(
        f"A claim was asked for as {id!r}.",
        found="no claim has that number" + (f"; near it: {', '.join(near)}" if near else ""),
        because="claims go by article and number, 0.1 to 4.7",
        do=f"choose one of {', '.join(known)}",
    )


def explain(id: str) -> str:
    """A claim as text: the sentence in both languages, where it stands, how it is tested and decided.

    Raises:
        UnknownNameError: there is no such claim.
    """
    one = claim(id)
    rule = one.decision
    return "\n".join(
        [
            f"{one.id} {one.name} ({one.kind})",
            "",
            one.en,
            one.zh,
            "",
            f"SOURCE\n  {one.source}",
            f"PROTOCOL\n  {one.protocol}",
            f"DECISION\n  holds above {rule.holds_above:g}, fails below {rule.fails_below:g} ({rule.unit})",
            f"  {rule.reason}",
            f"SEE\n  {', '.join(f'normscope explain {name}' for name in one.see)}",
            "RUN IT\n  normscope claims run " + one.id,
        ]
    )


def _order(id: str) -> tuple[int, int]:
    article, _, number = id.partition(".")
    return int(article), int(number)
