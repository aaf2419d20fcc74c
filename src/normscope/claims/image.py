"""A chart as an image for documents: the page's chart with its colors, its title and its legend inside."""

from __future__ import annotations

import textwrap
from typing import Any

from normscope.report.parts import Chart

WIDTH = 560  # pixels
_FONT = "Helvetica, Arial, sans-serif"
_SOFT, _LINE, _ACCENT, _WARM = "#59616b", "#dfe1de", "#0b67a8", "#b4530a"
_SERIES = ["#0b67a8", "#d1690e", "#12826a", "#a8457f", "#6a6f75", "#8c7a00"]
_LABEL = {"labelColor": _SOFT, "labelFont": _FONT, "titleColor": _SOFT, "titleFont": _FONT, "titleFontWeight": 400}
_PATH = {"fill": None, "strokeCap": "round", "strokeJoin": "round"}
_CONFIG: dict[str, Any] = {
    "background": "#ffffff",
    "font": _FONT,
    "padding": 14,
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 13, "fontWeight": 600, "color": "#1b1f24", "offset": 14},
    "axis": {**_LABEL, "gridColor": _LINE, "gridOpacity": 0.7, "domain": False, "ticks": False, "labelPadding": 6},
    "axisX": {"domain": True, "domainColor": _LINE, "titleAnchor": "end", "titlePadding": 8},
    "axisY": {"titlePadding": 10},
    "legend": {**_LABEL, "orient": "top", "title": None, "columns": 5, "labelLimit": 220, "symbolStrokeWidth": 2},
    "range": {"category": _SERIES, "ordinal": ["#9fc6df", "#4a97c4", "#24679e", "#173f6e", "#0b1f3f"]},
    "style": {
        "curve": {**_PATH, "strokeWidth": 1.75},
        "join": {**_PATH, "strokeWidth": 1.25, "strokeOpacity": 0.55},
        "faint": {**_PATH, "strokeWidth": 1, "strokeOpacity": 0.35},
        "dot": {"size": 18, "opacity": 1},
        "point": {"size": 30, "opacity": 1},
        "band": {"color": _ACCENT, "fillOpacity": 0.2, "stroke": None},
        "median": {**_PATH, "color": _ACCENT, "strokeWidth": 2},
        "threshold": {"color": _WARM, "strokeWidth": 1.25, "strokeDash": [5, 4]},
        "level": {"color": _WARM, "align": "right", "baseline": "bottom", "dy": -4},
        "interval": {"color": _ACCENT, "strokeWidth": 3},
        "effect": {"color": _ACCENT, "size": 80, "opacity": 1},
    },
}


def svg(chart: Chart) -> str:
    """The chart as SVG.

    Raises:
        MissingExtraError: altair or vl-convert is not installed.
    """
    from normscope.report import charts

    told = charts.spec(chart)
    for unit in told.get("layer", [told]):
        color = unit["encoding"].get("color")
        if color is not None:
            color.pop("legend", None)
            color["title"] = None
    titled = {**told, "width": WIDTH, "title": textwrap.wrap(chart.title, 78), "config": _CONFIG}
    return charts.vl_convert.vegalite_to_svg(titled)
