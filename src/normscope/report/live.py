"""One frame of a run in progress, for the terminal: layers × quantities as curves, and what is wrong now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normscope.record.reader import Record
from normscope.record.series import Series
from normscope.report.numbers import count, number, percent
from normscope.report.parts import visible
from normscope.report.quantities import look, ordered
from normscope.report.terminal import Brush, columns_of, fit, sparkline, tail
from normscope.report.thin import finite, thin
from normscope.report.words import load
from normscope.terms.datum import Datum
from normscope.terms.errors import UnknownNameError
from normscope.terms.finding import Diagnosis
from normscope.terms.site import Site

CURVE = 12  # steps of a curve
CELL = CURVE + 11  # columns of a curve with its last value and a gap
SHOWN = ("std", "gradient_norm", "update_ratio", "internal_shift", "saturated", "dead", "eval_gap")
"""What is shown while there is room, in this order, where the record has it."""


@dataclass(frozen=True, repr=False)
class Cell(Datum):
    """One quantity of one layer: its values over the steps, thinned; `last` is None where nothing finite is known."""

    quantity: str
    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    last: float | None


@dataclass(frozen=True, repr=False)
class Frame(Datum):
    """What a run looks like now.

    Attributes:
        step: the last sampled step; None before the first.
        complete: whether the run was closed.
        state: what became of it (`Record.state`).
        loss: of the run.
        quantities: the columns.
        rows: layers in execution order, each with one cell a column; as many as were asked for.
        layers: how many layers there are.
        findings: severity, code, name, places and message of each, most severe first.
    """

    path: str
    step: int | None
    sampled: int
    complete: bool
    state: str
    loss: Cell
    quantities: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    layers: int
    findings: tuple[tuple[str, str, str, tuple[str, ...], str], ...]


def frame(record: Record, diagnosis: Diagnosis, *, rows: int = 24, quantities: Sequence[str] | None = None) -> Frame:
    """The state of `record` with its findings: at most `rows` layers evenly over the depth, those of findings first.

    Raises:
        UnknownNameError: a quantity of `quantities` is not known.
    """
    steps = record.steps
    layers = {site.path: site for site in record.sites if site.role != "other" and site.call == 0 and site.depth >= 0}
    named = {Site.parse(site).path for finding in diagnosis for site in finding.sites if _is_site(site)}
    chosen = thin(list(layers.values()), rows, lambda site: site.path in named)
    cells = {
        quantity: [_cell(record, site, quantity, strict=quantities is not None) for site in chosen]
        for quantity in (SHOWN if quantities is None else quantities)
    }
    told = tuple(q for q, column in cells.items() if quantities is not None or any(c.last is not None for c in column))
    return Frame(
        path=str(record.path),
        step=int(steps[-1]) if len(steps) else None,
        sampled=len(steps),
        complete=record.complete,
        state=record.state,
        loss=_cell(record, None, "loss"),
        quantities=told,
        rows=tuple((site.path, tuple(cells[q][at] for q in told)) for at, site in enumerate(chosen)),
        layers=len(layers),
        findings=tuple((f.severity, f.code, f.name, tuple(f.sites), f.message) for f in diagnosis),
    )


def paint(now: Frame, *, width: int = 80, height: int | None = None, color: bool = False) -> str:
    """The frame as text of at most `width` columns and `height` lines, ending in a line break."""
    brush = Brush(width, load("en"), color)
    at = "no step yet" if now.step is None else f"step {count(now.step)} · {count(now.sampled)} sampled"
    head = [brush.lit(fit(f"{now.path} · {at} · {now.state}", width).rstrip(), "heading")]
    if now.loss.last is not None:
        head.append(fit(f"loss  {_curve(now.loss, width // 2)}  {number(now.loss.last)}", width).rstrip())
    found = _findings(now, brush)
    room = len(now.rows) if height is None else max(1, height - len(head) - len(found) - 4)
    return "\n".join([*head, "", *_table(now, brush, room), *found]) + "\n"


def _table(now: Frame, brush: Brush, room: int) -> list[str]:
    if not now.rows:
        return ["Nothing was sampled yet."]
    widest = max(columns_of(visible(path or "(model)")) for path, _ in now.rows)
    name_width = min(max(widest, len("layer")), max(12, brush.width // 3))
    fitting = max(1, (brush.width - name_width) // CELL)
    heads = "".join(f"  {fit(name.replace('_', ' '), CELL - 2)}" for name in now.quantities[:fitting])
    lines = [brush.lit(f"{fit('layer', name_width)}{heads}".rstrip(), "quiet")]
    shown = thin(now.rows, room)
    for path, cells in shown:
        told = "".join(
            f"  {fit(_curve(cell, CURVE), CURVE)} {fit(_amount(cell), CELL - CURVE - 3)}" for cell in cells[:fitting]
        )
        lines.append(f"{tail(path or '(model)', name_width)}{told}".rstrip())
    left = now.layers - len(shown)
    return [*lines, *([brush.lit(f"and {count(left)} more layers", "quiet")] if left else [])]


def _findings(now: Frame, brush: Brush) -> list[str]:
    if not now.findings:
        return ["", brush.lit("nothing wrong was found so far", "quiet")] if now.rows else []
    lines = [""]
    for severity, code, name, sites, message in now.findings:
        where = f" at {', '.join(sites[:2])}{' …' if len(sites) > 2 else ''}" if sites else ""
        told = f"{severity}  {code} {name}{where}: {message}"
        lines.append(brush.lit(fit(told, brush.width).rstrip(), severity))
    return lines


def _curve(cell: Cell, room: int) -> str:
    return sparkline(cell.values, room, share=look(cell.quantity).share)


def _amount(cell: Cell) -> str:
    if look(cell.quantity).share:
        return percent(cell.last)
    told = number(cell.last)
    return told if columns_of(told) <= CELL - CURVE - 3 else f"{cell.last:.1e}"  # powers of ten in their short form


def _cell(record: Record, site: Site | None, quantity: str, *, strict: bool = False) -> Cell:
    place = None if site is None else f"{site.path}:output" if not site.path else site.path
    try:
        series = record.series(place, quantity, steps=2 * CURVE)
    except UnknownNameError:
        if strict and quantity not in ordered([*SHOWN]):
            raise
        return Cell(quantity, (), (), None)
    if np.ndim(series.values) != 1:
        return Cell(quantity, (), (), None)
    return _told(quantity, series)


def _told(quantity: str, series: Series) -> Cell:
    values = finite(series.values.tolist())
    last = next((value for value in reversed(values) if value is not None), None)
    return Cell(quantity, tuple(series.steps.tolist()), values, last)


def _is_site(text: str) -> bool:
    try:
        Site.parse(text)
    except UnknownNameError:
        return False
    return True
