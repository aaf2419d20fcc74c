"""Two runs side by side: their losses, their findings, and where their layers differ most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from normscope import __version__
from normscope.record.reader import Record
from normscope.report.numbers import amount, number
from normscope.report.parts import Axis, Column, Curve, Curves, Page, Paragraph, Part, Profile, Section, Table
from normscope.report.quantities import look, spans_decades, title
from normscope.report.thin import SITES, STEPS, finite, thin
from normscope.report.words import Words, load
from normscope.terms.datum import Datum
from normscope.terms.errors import UnknownNameError
from normscope.terms.finding import SEVERITIES, Diagnosis

COMPARED = (
    *("std", "gradient_norm", "internal_shift", "update_ratio", "eval_gap", "running_stat_error"),
    *("saturated", "dead", "effective_rank", "batch_stat_noise", "gradient_shift"),
)
"""The quantities of layers that are compared, where both records have them."""
PROFILES = ("std", "gradient_norm", "internal_shift")  # shown down the depth
ROWS = 24  # of the table of differences


@dataclass(frozen=True, repr=False)
class Difference(Datum):
    """One quantity of one layer: in both runs the median of the last quarter of its series; `ratio`, second : first."""

    site: str
    quantity: str
    values: tuple[float, float]
    ratio: float

    @property
    def size(self) -> float:
        """How many times the larger is the smaller, as a logarithm; ∞ where one is zero."""
        return abs(math.log(self.ratio)) if 0 < self.ratio < math.inf else math.inf


def differences(first: Record, second: Record) -> list[Difference]:
    """Every compared quantity of every layer that both runs have, the greatest difference first."""
    sites = {site.path: site for site in first.sites if site.role != "other" and site.call == 0}
    common = [path for path in sites if path in {site.path for site in second.sites}]
    found = []
    for quantity in COMPARED:
        for path in common:
            ours, theirs = (settled(record, path, quantity) for record in (first, second))
            if ours is not None and theirs is not None:
                ratio = 1.0 if ours == theirs else math.inf if ours == 0 else theirs / ours
                found.append(Difference(path, quantity, (ours, theirs), ratio))
    return sorted(found, key=lambda one: -one.size)


def settled(record: Record, path: str, quantity: str) -> float | None:
    """The median of the last quarter of a series; None where nothing finite is known."""
    try:
        series = record.series(path or ":output", quantity, steps=STEPS)
    except UnknownNameError:
        return None
    known = [value for value in finite(series.values.tolist()) if value is not None] if series.values.ndim == 1 else []
    return median(known[-max(1, len(known) // 4) :]) if known else None


def tree(
    records: tuple[Record, Record],
    diagnoses: tuple[Diagnosis, Diagnosis],
    *,
    found: Sequence[Difference] | None = None,
    lang: str = "en",
) -> Page:
    """The comparison as a tree of parts. `found` are the `differences`, if they are known already.

    Raises:
        UnknownNameError: the report does not speak `lang`.
    """
    words = load(lang)
    found = differences(*records) if found is None else found
    names = _names(records)
    sections = [
        _loss(records, names, words),
        _findings(diagnoses, names, words),
        _table(found, names, words),
        *_profiles(found, [site.path for site in records[0].sites], names, words),
    ]
    return Page(
        lang=lang,
        heading=words("compare.heading", first=names[0], second=names[1]),
        run=words("compare.run", n=len({one.site for one in found})),
        verdict=_verdict(found, names, words),
        severity=next((name for name in SEVERITIES if any(f.severity == name for d in diagnoses for f in d)), None),
        sections=tuple(sections),
        foot=words("page.foot", version=__version__),
    )


def _names(records: tuple[Record, Record]) -> tuple[str, str]:
    first, second = (record.path.name or str(record.path) for record in records)
    return (first, second) if first != second else (str(records[0].path), str(records[1].path))


def _verdict(found: Sequence[Difference], names: tuple[str, str], words: Words) -> str:
    if not found or found[0].size == 0:
        return words("compare.alike")
    most = found[0]
    return words(
        "compare.most",
        quantity=title(most.quantity, words),
        site=most.site or "(model)",
        first=amount(most.values[0], share=look(most.quantity).share),
        second=amount(most.values[1], share=look(most.quantity).share),
    )


def _loss(records: tuple[Record, Record], names: tuple[str, str], words: Words) -> Section:
    curves = []
    for record, name in zip(records, names):
        series = record.series(None, "loss", steps=4 * STEPS)
        if len(series):
            curves.append(Curve(name, tuple(series.steps.tolist()), finite(series.values.tolist())))
    ends = [next((v for v in reversed(curve.y) if v is not None), None) for curve in curves]
    if not curves:
        return Section("loss", words("loss"), (Paragraph(words("compare.no_loss")),))
    told = words(
        "compare.loss", values=words("list.comma").join(f"{c.group} {number(v)}" for c, v in zip(curves, ends))
    )
    y = Axis(words("loss.axis"), log=spans_decades([curve.y for curve in curves]))
    return Section("loss", words("loss"), (Curves(told, Axis(words("step")), y, tuple(curves)),))


def _findings(diagnoses: tuple[Diagnosis, Diagnosis], names: tuple[str, str], words: Words) -> Section:
    rules = dict.fromkeys((finding.code, finding.name) for diagnosis in diagnoses for finding in diagnosis)
    severities = [{finding.code: finding.severity for finding in diagnosis} for diagnosis in diagnoses]
    rows = tuple(
        (f"{code} {name}", *(words(f"severity.{told[code]}") if code in told else "–" for told in severities))
        for code, name in sorted(rules)
    )
    parts: Part = Table((words("compare.finding"), *names), rows) if rows else Paragraph(words("compare.healthy"))
    return Section("findings", words("compare.findings"), (parts,))


def _table(found: Sequence[Difference], names: tuple[str, str], words: Words) -> Section:
    rows = tuple(
        (
            one.site or "(model)",
            title(one.quantity, words),
            *(amount(value, share=look(one.quantity).share) for value in one.values),
            number(one.ratio),
        )
        for one in found[:ROWS]
    )
    heads = (words("compare.layer"), words("compare.quantity"), *names, words("compare.ratio"))
    table = Table(heads, rows, numeric=(2, 3, 4))
    note = Paragraph(words("compare.settled"), quiet=True)
    return Section("differences", words("compare.differences"), (table, note) if rows else (note,))


def _profiles(found: Sequence[Difference], order: Sequence[str], names: tuple[str, str], words: Words) -> list[Section]:
    sections = []
    for quantity in PROFILES:
        told = {one.site: one.values for one in found if one.quantity == quantity}
        places = thin([path for path in dict.fromkeys(order) if path in told], SITES)
        if len(places) < 2:
            continue
        columns = tuple(
            Column(name, finite(np.array([told[place][at] for place in places]).tolist()))
            for at, name in enumerate(names)
        )
        heading = title(quantity, words)
        x = Axis(heading, share=look(quantity).share, log=spans_decades([column.values for column in columns]))
        chart = Profile(words("compare.profile", quantity=heading), places, ("",) * len(places), x, columns)
        sections.append(Section(f"profile-{quantity}", heading, (chart,)))
    return sections
