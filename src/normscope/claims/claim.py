"""What a claim is: a sentence, where it stands, how it is tested, and the rule that decides, fixed before any run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from normscope.claims.decision import Decision
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Chart
from normscope.terms.datum import Datum
from normscope.terms.errors import SpecError
from normscope.terms.verdict import Effect

if TYPE_CHECKING:
    from normscope.claims.bench import Bench

Kind = Literal["exact", "measurement", "training", "figure"]
SIZES = ("quick", "full")
_ID = re.compile(r"[0-4]\.\d{1,2}")


@dataclass(frozen=True, repr=False)
class Claim(Datum):
    """One statement of an article as an experiment.

    Attributes:
        id: article and number, ``"0.7"``.
        kind: ``"exact"`` in float64 against a tolerance; a ``"measurement"`` of untrained networks or of time; a
            ``"training"``; a ``"figure"``.
        en: the sentence, in English.
        zh: the sentence, in Chinese.
        source: the passage it stands in.
        protocol: what is done, in words.
        decision: the rule that turns effects into a verdict.
        sizes: what ``cases`` is given for ``"quick"`` and for ``"full"``.
        cases: the independent runs of a size. A case is a flat dictionary of JSON values that says everything about
            its run: it is what is cached, resumed and done in parallel.
        run: one run: a pure function of its case and the bench's data, with JSON values.
        weigh: effects by condition, larger where the sentence is truer; one condition ``""`` where there is only one.
        draw: the chart that shows it.
        see: norms of the catalog and codes of rules that the sentence is about, the nearest first.
    """

    id: str
    kind: Kind
    en: str
    zh: str
    source: str
    protocol: str
    decision: Decision
    sizes: Mapping[str, Mapping[str, Any]]
    cases: Callable[..., Sequence[Case]] = field(repr=False)
    run: Callable[[Case, Bench], Mapping[str, Any]] = field(repr=False)
    weigh: Callable[[Outcomes], Mapping[str, Effect]] = field(repr=False)
    draw: Callable[[Outcomes], Chart] = field(repr=False)
    see: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = [f"no {name}" for name in ("en", "zh", "source", "protocol") if not getattr(self, name).strip()]
        if not _ID.fullmatch(self.id):
            faults.append(f"id={self.id!r}")
        if self.kind not in get_args(Kind):
            faults.append(f"kind={self.kind!r}")
        if tuple(self.sizes) != SIZES:
            faults.append(f"sizes={list(self.sizes)}")
        if faults:
            raise SpecError(
                f"The claim {self.id} was written incompletely.",
                found=", ".join(faults),
                because="the ledger prints every field, and runs every claim in two sizes",
                do='fill each field of Claim; ids read like "0.7", sizes are "quick" and "full"',
            )

    @property
    def module(self) -> str:
        """Where the claim is written: what it shares with others stands one folder up."""
        return max(self.run.__module__, self.weigh.__module__, key=lambda module: module.count("."))

    @property
    def name(self) -> str:
        """The sentence in a few words: the name of its file."""
        return self.module.rpartition(".")[2].replace("_", " ")

    def cases_of(self, size: str) -> tuple[Case, ...]:
        """The runs of a size."""
        return tuple(self.cases(**self.sizes[size]))

    def sentence(self, lang: str = "en") -> str:
        """The sentence in a language of the report."""
        return self.zh if lang == "zh" else self.en
