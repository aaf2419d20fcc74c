"""What runs gave: each value beside the case that it came from, and how to pick and to pair them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normscope.terms.datum import Datum

Case = Mapping[str, Any]  # flat, of JSON values


@dataclass(frozen=True, repr=False)
class Outcome(Datum):
    """One run: its case, and the numbers it gave. ``outcome["seed"]`` reads either."""

    case: Case
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name] if name in self.values else self.case[name]


class Outcomes(Sequence[Outcome]):
    """The runs of one claim, in the order of its cases."""

    def __init__(self, rows: Iterable[Outcome]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> Any:
        return self._rows[at] if isinstance(at, int) else Outcomes(self._rows[at])

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._rows)

    def where(self, **case: Any) -> Outcomes:
        """Those whose case has these values."""
        return Outcomes(row for row in self if all(row.case[name] == value for name, value in case.items()))

    def levels(self, name: str) -> list[Any]:
        """The different values of a field of the cases, in order of appearance."""
        return list(dict.fromkeys(row.case[name] for row in self))

    def column(self, name: str) -> list[Any]:
        """One value of each run."""
        return [row[name] for row in self]

    def pairs(self, name: str, one: Case, other: Case) -> list[tuple[Any, Any]]:
        """The value `name` of runs that differ in nothing but the fields of `one` and `other`, seed by seed.

        >>> rows = [({"bn": bn, "seed": seed}, {"loss": 10 * bn + seed}) for bn in (0, 1) for seed in (0, 1)]
        >>> Outcomes(Outcome(*row) for row in rows).pairs("loss", {"bn": 1}, {"bn": 0})
        [(10, 0), (11, 1)]
        """
        partner = {_rest(row, other): row[name] for row in self.where(**other)}
        return [(row[name], partner[_rest(row, one)]) for row in self.where(**one)]


def _rest(row: Outcome, told: Case) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in sorted(row.case.items()) if name not in told)
