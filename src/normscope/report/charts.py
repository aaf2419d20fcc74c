"""Charts as Vega-Lite: each chart part becomes a specification that carries its data and no colors.

Colors, fonts and line widths are the page's (``assets/page.css``); a mark only names its style (``threshold``), so one
specification serves light, dark and paper. Depth runs down, steps run to the right, in every chart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from functools import cache, singledispatch
from typing import Any

from normscope.report.parts import Axis, Bands, Chart, Curves, HeatMap, Intervals, Profile, Rule, Values
from normscope.terms.errors import MissingExtraError

try:
    import altair as alt
    import vl_convert
except ImportError as error:
    raise MissingExtraError.of("The report page", error.name or "altair", "report") from None

ROW = 17  # pixels for one place on a vertical axis
HEIGHT = 240  # pixels of a chart over steps
NAME_LENGTH = "name_length"  # the parameter that the page sets to what a screen has room for

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

# Vega expressions. The end of a path tells layers apart, so a long name loses its beginning.
_SHORT = f"length(datum.label) > {NAME_LENGTH} ? '…' + slice(datum.label, 1 - {NAME_LENGTH}) : datum.label"
_LOG = "(log(abs(datum.value)) / LN10)"
_EXPONENT = f"round({_LOG})"
_IS_POWER = f"abs({_LOG} - {_EXPONENT}) < 1e-6"
_SUPERSCRIPT = "'⁰¹²³⁴⁵⁶⁷⁸⁹'"
_POWER = (
    f"(datum.value < 0 ? '−' : '') + '10' + ({_EXPONENT} < 0 ? '⁻' : '')"
    f" + (abs({_EXPONENT}) > 9 ? {_SUPERSCRIPT}[floor(abs({_EXPONENT}) / 10)] : '')"
    f" + {_SUPERSCRIPT}[abs({_EXPONENT}) % 10]"
)
_NUMBER = (
    "datum.value == 0 || (abs(datum.value) >= 1e-3 && abs(datum.value) < 1e5) ? format(datum.value, ',.4~r')"
    f" : {_IS_POWER} ? {_POWER} : replace(format(datum.value, '.1~e'), '+', '')"
)
_DECADES = f"datum.label == '' ? '' : abs({_EXPONENT}) < 3 ? format(datum.value, '.2~r') : {_IS_POWER} ? {_POWER} : ''"


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that asks nothing of the network."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


@singledispatch
def spec(chart: Chart) -> Spec:
    """The Vega-Lite specification of a chart part."""
    raise TypeError(f"{type(chart).__name__} is no chart")


@spec.register
def _(chart: Curves) -> Spec:
    points = [
        {"x": x, "y": _shown(y, chart.y), "group": curve.group, "curve": at, "faint": curve.faint}
        for at, curve in enumerate(chart.curves)
        for x, y in zip(curve.x, curve.y)
    ]
    faint = any(curve.faint for curve in chart.curves)
    grammar = _curves(chart.x, chart.y, chart.ordered, faint, bool(chart.rules))
    groups = dict.fromkeys(curve.group for curve in chart.curves)
    return _filled(grammar, chart, {"points": points, "rules": _rules(chart.rules)}, height=HEIGHT, groups=groups)


@cache
def _curves(x: Axis, y: Axis, ordered: bool, faint: bool, ruled: bool) -> Spec:
    tooltip = [_tip("group:N", "title"), _tip("x:Q", x.title, ","), _tip("y:Q", y.title, _digits(y))]
    curves = alt.Chart(alt.NamedData("points")).encode(
        x=_steps("x:Q", x),
        y=alt.Y("y:Q").title(y.title).axis(_axis(y)).scale(_scale(y)),
        color=_color(ordered),
        detail="curve:N",
        tooltip=tooltip,
    )
    bold = curves.transform_filter("!datum.faint")
    layers = [
        *([curves.mark_line(style="faint", aria=False).transform_filter("datum.faint")] if faint else []),
        bold.mark_line(style="curve"),
        bold.mark_circle(style="dot", aria=False),
        *(_levels(y) if ruled else []),
    ]
    return _grammar(alt.layer(*layers))


@spec.register
def _(chart: Profile) -> Spec:
    points = [
        {"place": place, "role": role, "depth": depth, "value": _shown(value, chart.x), "group": column.group}
        for column in chart.columns
        for depth, (place, role, value) in enumerate(zip(chart.places, chart.roles, column.values))
    ]
    grammar = _profile(chart.x, chart.ordered, bool(chart.rules))
    data = {"points": points, "rules": _rules(chart.rules)}
    groups = [column.group for column in chart.columns]
    return _filled(grammar, chart, data, height=ROW * max(len(chart.places), 4), groups=groups, places=chart.places)


@cache
def _profile(x: Axis, ordered: bool, ruled: bool) -> Spec:
    tooltip = [_tip("place:N", "title"), _tip("value:Q", x.title, _digits(x))]
    columns = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X("value:Q").title(x.title).axis(_axis(x)).scale(_scale(x)),
        y=_places(),
        color=_color(ordered),
        order="depth:Q",
        detail="role:N",
        tooltip=tooltip,
    )
    rule = alt.Chart(alt.NamedData("rules")).encode(x=alt.X("value:Q").title(x.title), tooltip=_tip("label:N", "title"))
    layers = [columns.mark_line(style="join", aria=False), columns.mark_circle(style="point")]
    return _grammar(alt.layer(*([rule.mark_rule(style="threshold")] if ruled else []), *layers))


@spec.register
def _(chart: HeatMap) -> Spec:
    rows: Rows = [
        {"place": place, "value": tuple(_shown(value, chart.color) for value in values)}
        for place, values in zip(chart.places, chart.values)
    ]
    params = {"steps": chart.steps, "ends": _ends(chart.steps)}
    grammar = _heat_map(chart.x, chart.color)
    told = _filled(grammar, chart, {"rows": rows}, height=ROW * len(chart.places), places=chart.places, params=params)
    if chart.color.log and chart.color.signed:
        told["encoding"]["color"]["legend"]["values"] = _signed_decades(chart.values)
    return told


@cache
def _heat_map(x: Axis, color: Axis) -> Spec:
    scale = _scale(color).copy()
    scale.range = "diverging" if color.signed else "heatmap"
    if color.signed:
        scale.domainMid = 0
    tooltip = [_tip("place:N", "title"), _tip("step:Q", x.title, ","), _tip("value:Q", color.title, _digits(color))]
    legend = alt.Legend(orient="top", direction="horizontal", **_labels(color))
    cells = (
        alt.Chart(alt.NamedData("rows"))
        .transform_calculate(step="steps", until="ends")
        .transform_flatten(["value", "step", "until"])
        .mark_rect(style="flat", aria=False)
        .encode(
            x=_steps("step:Q", x, padding=0),
            x2="until:Q",
            y=_places(),
            color=alt.Color("value:Q").scale(scale).legend(legend).title(color.title),
            tooltip=tooltip,
        )
        .add_params(alt.param(name="steps", value=[]), alt.param(name="ends", value=[]))
    )
    return _grammar(cells)


@spec.register
def _(chart: Bands) -> Spec:
    half = len(chart.quantiles) // 2
    bands: Rows = [
        {"low": chart.values[at], "high": chart.values[-1 - at], "band": f"{100 * below:g}–{100 * above:g}%"}
        for at, (below, above) in enumerate(zip(chart.quantiles[:half], chart.quantiles[::-1]))
    ]
    data = {"bands": bands, "median": [{"value": chart.values[half]}], "rules": _rules(chart.rules)}
    params = {"steps": chart.steps}
    told = _filled(_bands(chart.x, chart.y, bool(chart.rules)), chart, data, height=HEIGHT, params=params)
    if chart.y.log:
        told["layer"][0]["encoding"]["y"]["axis"]["values"] = _signed_decades(chart.values)
    return told


@cache
def _bands(x: Axis, y: Axis, ruled: bool) -> Spec:
    step = _steps("step:Q", x)
    low = alt.Y("low:Q").title(y.title).axis(_axis(y)).scale(_scale(y))
    ends = [_tip("low:Q", "≥", _digits(y)), _tip("high:Q", "≤", _digits(y))]
    tooltip = [_tip("band:N", "title"), _tip("step:Q", x.title, ","), *ends]
    bands = alt.Chart(alt.NamedData("bands")).encode(x=step, y=low, y2="high:Q", detail="band:N", tooltip=tooltip)
    bands = bands.transform_calculate(step="steps").transform_flatten(["step", "low", "high"])
    median = alt.Chart(alt.NamedData("median")).encode(x=step, y=alt.Y("value:Q").title(y.title))
    median = median.transform_calculate(step="steps").transform_flatten(["step", "value"])
    layers = [bands.mark_area(style="band", aria=False), median.mark_line(style="median")]
    return _grammar(alt.layer(*layers, *(_levels(y) if ruled else [])))


@spec.register
def _(chart: Intervals) -> Spec:
    rows: Rows = [{"place": row.name, "value": row.value, "low": row.low, "high": row.high} for row in chart.rows]
    places = tuple(row.name for row in chart.rows)
    data = {"rows": rows, "rules": _rules(chart.rules)}
    return _filled(_intervals(chart.x), chart, data, height=30 * len(rows), places=places)


@cache
def _intervals(x: Axis) -> Spec:
    low = alt.X("low:Q").title(x.title).axis(_axis(x)).scale(alt.Scale(zero=True))
    value, y = alt.X("value:Q").title(x.title), _places()
    tooltip = [_tip("place:N", "title"), *(_tip(f"{name}:Q", name, _digits(x)) for name in ("value", "low", "high"))]
    rows = alt.Chart(alt.NamedData("rows")).encode(y=y, tooltip=tooltip)
    rule = alt.Chart(alt.NamedData("rules")).encode(x=value, tooltip=_tip("label:N", "title"))
    spans = rows.mark_rule(style="interval", aria=False).encode(x=low, x2="high:Q")
    values = rows.mark_circle(style="effect").encode(x=value)
    return _grammar(alt.layer(rule.mark_rule(style="threshold"), spans, values))


# pieces ---------------------------------------------------------------------------------------------------------------


def _grammar(chart: Any) -> Spec:
    """The specification without data, checked against Vega-Lite's schema by altair."""
    told = chart.properties(width="container").to_dict()
    for needless in ("$schema", "config"):
        told.pop(needless, None)
    return told


def _filled(
    grammar: Spec,
    chart: Chart,
    data: dict[str, Rows],
    *,
    height: int,
    groups: Iterable[str] = (),
    places: Sequence[str] = (),
    params: dict[str, Any] | None = None,
) -> Spec:
    """The grammar with the data of one chart: its numbers, its names and their order."""
    values = {NAME_LENGTH: 28, **(params or {})}
    told = copy.deepcopy(grammar)
    for unit in told.get("layer", [told]):
        for channel, names in (("color", list(groups)), ("y", list(places))):
            if names and channel in unit["encoding"]:
                unit["encoding"][channel]["scale"]["domain"] = names
    return {
        **told,
        "height": height,
        "description": chart.title,
        "params": [{"name": name, "value": value} for name, value in values.items()],
        "datasets": data,
    }


def _shown(value: float | None, axis: Axis) -> float | None:
    """A logarithmic axis has no place for zero."""
    return None if value is None or (axis.log and not axis.signed and value <= 0) else value


def _levels(y: Axis) -> list[Any]:
    """Rules across a chart over steps, with their words at the right end."""
    value = alt.Y("value:Q").title(y.title)
    rules = alt.Chart(alt.NamedData("rules")).encode(y=value, tooltip=_tip("label:N", "title"))
    words = rules.mark_text(style="level", aria=False).encode(x=alt.value("width"), text="label:N")
    return [rules.mark_rule(style="threshold"), words]


def _rules(rules: Iterable[Rule]) -> Rows:
    return [{"value": rule.value, "label": rule.label} for rule in rules]


def _places() -> Any:
    axis = alt.Axis(labelExpr=_SHORT, labelOverlap=False, ticks=False, domain=False, grid=False)
    return alt.Y("place:N").title(None).axis(axis).sort(None).scale(alt.Scale(domain=[]))


def _color(ordered: bool) -> Any:
    scale = alt.Scale(domain=[], range="ordinal" if ordered else "category")
    return alt.Color("group:O" if ordered else "group:N").scale(scale).legend(None).sort(None)


def _scale(axis: Axis) -> Any:
    if axis.log:
        return alt.Scale(type="symlog", constant=1) if axis.signed else alt.Scale(type="log", nice=False)
    return alt.Scale(zero=axis.share, nice=True)


def _steps(field: str, x: Axis, **scale: Any) -> Any:
    axis = alt.Axis(format=",d", tickMinStep=1, grid=False, tickCount=6, labelFlush=True)
    return alt.X(field).title(x.title).axis(axis).scale(zero=False, nice=False, **scale)


def _axis(axis: Axis) -> Any:
    told = _labels(axis)
    if axis.log and not axis.signed:
        told["gridOpacity"] = {"condition": {"test": _IS_POWER, "value": 1}, "value": 0.3}
    return alt.Axis(tickCount=5, labelOverlap="greedy", **told)


def _labels(axis: Axis) -> dict[str, Any]:
    """How numbers stand on an axis or a legend."""
    if axis.share:
        return {"format": ".3~%"}
    return {"labelExpr": _DECADES if axis.log and not axis.signed else _NUMBER}


def _signed_decades(values: Iterable[Values]) -> list[float]:
    """Zero and the powers of ten from ten upwards, on both sides of it, at most three a side.

    >>> _signed_decades([(-30.0, None), (4.0, 4000.0)])
    [-10.0, 0.0, 10.0, 100.0, 1000.0]
    """
    known = [value for row in values for value in row if value is not None]
    tops = [math.floor(math.log10(end)) if end >= 1 else 0 for end in (-min(known), max(known))]
    stride = max(1, math.ceil(max(tops) / 3))
    below, above = ([10.0**power for power in range(1, top + 1, stride)] for top in tops)
    return [*(-tick for tick in reversed(below)), 0.0, *above]


def _digits(axis: Axis) -> str:
    return ".3~%" if axis.share else ".4~g"


def _tip(field: str, title: str, form: str | None = None) -> Any:
    tip = alt.Tooltip(field, title=title)
    return tip.format(form) if form else tip


def _ends(steps: tuple[int, ...]) -> tuple[int, ...]:
    """Where the cell of each step ends: at the next step; the last is as wide as the one before."""
    if len(steps) < 2:
        return tuple(step + 1 for step in steps)
    return (*steps[1:], 2 * steps[-1] - steps[-2])
