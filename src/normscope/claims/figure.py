"""What a figure is: a well-known picture, redrawn from the outcomes of a claim, in one panel or several."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from normscope.claims import figures as _place
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Chart
from normscope.terms.datum import Datum


@dataclass(frozen=True, repr=False)
class Figure(Datum):
    """A picture of what a claim's runs gave.

    Attributes:
        of: the claim's id.
        en: what one sees, in English.
        zh: what one sees, in Chinese.
        known_from: where readers have seen its like.
        draw: panels by name; the name ``""`` where there is only one.
    """

    of: str
    en: str
    zh: str
    known_from: str
    draw: Callable[[Outcomes], Mapping[str, Chart]] = field(repr=False)

    @property
    def name(self) -> str:
        """The figure in a few words: the name of its file."""
        return self.draw.__module__.rpartition(".")[2]


@cache
def figures() -> tuple[Figure, ...]:
    """All of them, in the order of their claims."""
    found: list[Figure] = [
        importlib.import_module(leaf.name).FIGURE
        for leaf in pkgutil.iter_modules(_place.__path__, f"{_place.__name__}.")
    ]
    return tuple(sorted(found, key=lambda figure: tuple(map(int, figure.of.split(".")))))
