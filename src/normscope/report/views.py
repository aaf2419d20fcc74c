"""The views of a run: loss, layers over steps, distributions, internal and external shift, gradient by depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from normscope.record.quantities import QUANTILES, saturating
from normscope.report.numbers import amount, count, number
from normscope.report.parts import (
    Axis,
    Bands,
    Choice,
    Column,
    Curve,
    Curves,
    HeatMap,
    Paragraph,
    Profile,
    Rule,
    Section,
    Values,
)
from normscope.report.quantities import axis, look, ordered, reaches_far, spans_decades, zeros
from normscope.report.quantities import title as heading
from normscope.report.snapshot import Reading, Snapshot, label
from normscope.report.thin import LAYERS, SITES, STEPS, finite, thin
from normscope.report.words import Words
from normscope.stats.summary import Summary
from normscope.terms.finding import Diagnosis
from normscope.terms.site import Site


def loss(run: Snapshot, diagnosis: Diagnosis, words: Words) -> Section:
    """The loss over the steps."""
    read = run.reading(None, "loss").thinned(4 * STEPS)
    if not read.known:
        return _missing("loss", words)
    (_, start), (last, end) = read.known[0], read.known[-1]
    title = words("loss.title", first=number(start), last=number(end), step=count(last))
    y = Axis(words("loss.axis"), log=spans_decades([read.values]))
    return Section(
        "loss", words("loss"), (Curves(title, Axis(words("step")), y, (Curve("loss", read.steps, read.values),)),)
    )


def over_steps(run: Snapshot, diagnosis: Diagnosis, words: Words) -> Section:
    """Depth against steps for any quantity; the one of the first finding is shown first."""
    found = run.carriers
    maps = {
        quantity: chart
        for quantity in ordered(name for name in found if name != "quantiles" and ":" not in name)
        if (chart := _heat_map(run, diagnosis, quantity, words))
    }
    if not maps:
        return _missing("layers", words)
    wanted = diagnosis.primary.evidence.quantity if diagnosis.primary else ""
    options = sorted(maps.items(), key=lambda item: item[0] != wanted)
    choice = Choice(words("layers.choose"), tuple((heading(quantity, words), chart) for quantity, chart in options))
    return Section("layers", words("layers"), (choice,))


def distributions(run: Snapshot, diagnosis: Diagnosis, words: Words) -> Section:
    """The quantiles of one tensor over the steps: those of the first finding, then the output of every layer."""
    primary = diagnosis.primary
    wanted = [site for key in (primary.sites if primary else ()) if (site := run.at(key)) is not None]
    sites = tuple(dict.fromkeys((*(site for site in wanted if site not in run.layers), *run.layers)))
    shown = thin(sites, LAYERS, keep=wanted.__contains__)
    charts = {site: chart for site in shown if (chart := _bands(run, site, words))}
    if not charts:
        return _missing("distribution", words)
    first = next((site for site in wanted if site in charts), None)
    options = sorted(charts.items(), key=lambda item: (item[0] != first, run.sites.index(item[0])))
    named = tuple((_tensor(site, words), chart) for site, chart in options)
    told = words.left_out(shown, sites)
    note = (Paragraph(told, quiet=True),) if told else ()
    return Section("distribution", words("distribution"), (Choice(words("distribution.choose"), named), *note))


def shifts(run: Snapshot, diagnosis: Diagnosis, words: Words) -> Section:
    """What the parameters moved against what the data moved, down the depth."""
    found = run.carriers
    sites = found.get("internal_shift") or found.get("external_shift", ())
    shown = _shown(sites, run, diagnosis)
    internal, external = (
        finite(_typical(run.reading(site, quantity)) for site in shown)
        for quantity in ("internal_shift", "external_shift")
    )
    known = [(value, place) for place, value in enumerate(internal) if value is not None]
    if not known:
        return _missing("shift", words)
    most, place = max(known)
    title = words("shift.title", place=label(shown[place]), internal=number(most), external=number(external[place]))
    columns = (Column(words("quantity.internal_shift"), internal), Column(words("quantity.external_shift"), external))
    x = Axis(words("shift.axis"), log=spans_decades((internal, external)))
    note = words.joined(words("shift.note"), words("profile.note"), words.left_out(shown, sites))
    return Section("shift", words("shift"), (Profile(title, _names(shown), _roles(shown), x, columns, note=note),))


def gradients(run: Snapshot, diagnosis: Diagnosis, words: Words) -> Section:
    """The gradient down the depth at the first, the middle and the last step."""
    sites = run.carriers.get("gradient_norm", ())
    shown = _shown(sites, run, diagnosis)
    by_site = [dict(run.reading(site, "gradient_norm").known) for site in shown]
    steps = _fullest(by_site)
    if not steps:
        return _missing("gradient", words)
    chosen = list(dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])))
    columns = [
        Column(words("at_step", step=count(step)), tuple(values.get(step) for values in by_site)) for step in chosen
    ]
    ends = sorted((value, at) for at, value in enumerate(columns[-1].values) if value is not None)
    (least, low), (most, high) = ends[0], ends[-1]
    title = words(
        "gradient.title",
        step=count(chosen[-1]),
        high=label(shown[high]),
        most=number(most),
        low=label(shown[low]),
        least=number(least),
    )
    values = [column.values for column in columns]
    x = Axis(words("gradient.axis"), log=any(value is not None and value > 0 for row in values for value in row))
    note = words.joined(words("profile.note"), zeros(values, x, words), words.left_out(shown, sites))
    chart = Profile(title, _names(shown), _roles(shown), x, tuple(columns), ordered=True, note=note)
    return Section("gradient", words("gradient"), (chart,))


SECTIONS: tuple[Callable[[Snapshot, Diagnosis, Words], Section], ...] = (
    loss,
    over_steps,
    distributions,
    shifts,
    gradients,
)


def _shown(sites: Sequence[Site], run: Snapshot, diagnosis: Diagnosis) -> tuple[Site, ...]:
    """As many of the sites as a chart can show; first those that a finding names."""
    named = {run.label(site) for finding in diagnosis for site in finding.sites}
    return thin(sites, SITES, keep=lambda site: label(site) in named)


def _heat_map(run: Snapshot, diagnosis: Diagnosis, quantity: str, words: Words) -> HeatMap | Paragraph | None:
    sites = run.carriers[quantity]
    shown = _shown(sites, run, diagnosis)
    read = [run.reading(site, quantity) for site in shown]
    rows = [dict(one.known) for one in read]
    there = sorted({step for row in rows for step in row})
    if not there:
        return None
    steps, every = thin(there, STEPS), range(max(len(there), *(one.every for one in read)))
    values = tuple(tuple(row.get(step) for step in steps) for row in rows)
    if len({value for row in rows for value in row.values()}) == 1:
        only = amount(next(value for row in rows for value in row.values()), share=look(quantity).share)
        return Paragraph(words("layers.same", quantity=heading(quantity, words), value=only))
    color = axis(quantity, values, words)
    cells = [
        (value, place, step)
        for place, row in zip(shown, values)
        for step, value in zip(steps, row)
        if value is not None
    ]
    (low, low_at, low_step), (high, high_at, high_step) = min(cells, key=_value), max(cells, key=_value)
    title = words(
        "layers.title",
        quantity=heading(quantity, words),
        low=amount(low, share=color.share),
        low_at=label(low_at),
        low_step=count(low_step),
        high=amount(high, share=color.share),
        high_at=label(high_at),
        high_step=count(high_step),
    )
    note = words.joined(
        zeros(values, color, words), words.left_out(shown, sites), words.left_out(steps, every, "thinned.steps")
    )
    return HeatMap(title, _names(shown), steps, values, Axis(words("step")), color, note=note)


def _bands(run: Snapshot, site: Site, words: Words) -> Bands | None:
    told = [(step, _quantiles(summary)) for step, summary in run.summaries(site) if summary.moments.count]
    if not told:
        return None
    rows = tuple(zip(*(row for _, row in told)))
    quarter, three = QUANTILES.index(0.25), QUANTILES.index(0.75)
    (first, start), (last, end) = told[0], told[-1]
    title = words(
        "distribution.title" if last > first else "distribution.once",
        tensor=_tensor(site, words, code="`"),
        first=count(first),
        low=number(start[quarter]),
        high=number(start[three]),
        last=count(last),
        last_low=number(end[quarter]),
        last_high=number(end[three]),
    )
    rules = _saturation(site, words)
    y = Axis(words("distribution.axis"), log=_far_tails(rows, rules), signed=True)
    note = words.joined(
        words("distribution.note"), words.left_out(told, range(run.reading(site, "mean").every), "thinned.steps")
    )
    return Bands(title, tuple(step for step, _ in told), QUANTILES, rows, Axis(words("step")), y, rules, note)


def _quantiles(summary: Summary) -> Values:
    """Quantiles within the range of the tensor, which a bin of the sketch can reach beyond."""
    return finite(np.clip(summary.sketch.quantile(QUANTILES), summary.low, summary.high).tolist())


def _saturation(site: Site, words: Words) -> tuple[Rule, ...]:
    """Where the function that reads this output saturates."""
    function = saturating(site)
    ends = {"below": function.low, "above": function.high} if function else {}
    return tuple(
        Rule(end, words(f"saturates.{side}", function=function.name, value=number(end)))
        for side, end in ends.items()
        if function and end is not None
    )


def _far_tails(rows: Sequence[Values], rules: Sequence[Rule]) -> bool:
    """Whether the outer quantiles reach so far that a linear axis would hide the inner ones, or the rules."""
    outer = max(abs(value) for row in (rows[0], rows[-1]) for value in row if value is not None)
    inner = median(abs(value) for value in rows[len(rows) // 4] if value is not None)
    return reaches_far(outer, min([inner, *(2 * abs(rule.value) for rule in rules)]))


def _fullest(rows: Sequence[Mapping[int, float]]) -> list[int]:
    """The steps at which most of the rows have a value."""
    known = Counter(step for row in rows for step in row)
    most = max(known.values(), default=0)
    return sorted(step for step, n in known.items() if n == most)


def _tensor(site: Site, words: Words, code: str = "") -> str:
    """A tensor in words: the output of a layer, its input."""
    return words(f"tensor.{site.what}", place=f"{code}{label(site)}{code}")


def _typical(read: Reading) -> float:
    """The median over the steps."""
    return median(value for _, value in read.known) if read.known else float("nan")


def _value(cell: tuple[float, Site, int]) -> float:
    return cell[0]


def _names(sites: Iterable[Site]) -> tuple[str, ...]:
    return tuple(label(site) for site in sites)


def _roles(sites: Iterable[Site]) -> tuple[str, ...]:
    return tuple(site.role for site in sites)


def _missing(what: str, words: Words) -> Section:
    return Section(what, words(what), (Paragraph(words(f"missing.{what}"), quiet=True),))
