"""Every chart part becomes a specification that Vega-Lite's own schema accepts, with its data in it."""

import json
import math
import re

import pytest
import vl_convert

from normscope.report import charts
from normscope.report.parts import (
    Axis,
    Bands,
    Chart,
    Column,
    Curve,
    Curves,
    HeatMap,
    Interval,
    Intervals,
    Profile,
    Rule,
)

STEPS = Axis("step")
CURVES = Curves(
    "Loss", STEPS, Axis("loss", log=True), rules=(Rule(2.0, "threshold"),),
    curves=(Curve("a", (0, 1), (1.0, 0.0)), Curve("b", (0, 1), (None, 3.0), faint=True)),
)  # fmt: skip
PROFILE = Profile("Gradient", ("a", "b"), ("norm", "producer"), Axis("norm"), (Column("now", (1.0, None)),))
HEAT_MAP = HeatMap("Deviation", ("a", "b"), (0, 1, 5), ((1.0, 2.0, None), (1.0, 3.0, 4.0)), STEPS, Axis("std"))
BANDS = Bands(
    "Output",
    (0, 1),
    (0.1, 0.5, 0.9),
    ((-4.0, -5e3), (0.0, 0.0), (4.0, 5e3)),
    STEPS,
    Axis("value", log=True, signed=True),
)
INTERVALS = Intervals("Effect", (Interval("all", 0.5, 0.4, 0.6),), Axis("ratio", share=True), (Rule(1.0, "same"),))
CHARTS = [CURVES, PROFILE, HEAT_MAP, BANDS, INTERVALS]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: type(chart).__name__)
def test_vega_lite_compiles_it(chart):
    told = charts.spec(chart)
    assert told["description"] == chart.title and told["width"] == "container"
    compiled = vl_convert.vegalite_to_vega(json.dumps({**told, "width": 300}))
    assert compiled["marks"]
    assert "http" not in json.dumps(told)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: type(chart).__name__)
def test_two_charts_of_a_kind_share_nothing(chart):
    one, other = charts.spec(chart), charts.spec(chart)
    assert one == other
    one["datasets"].clear()
    next(iter(one.get("layer", [one])))["encoding"].clear()
    assert charts.spec(chart) == other


def test_every_chart_has_a_specification():
    assert {type(chart) for chart in CHARTS} == set(Chart.__subclasses__())
    with pytest.raises(TypeError, match="str is no chart"):
        charts.spec("chart")  # pyright: ignore


def test_a_logarithmic_axis_gets_no_zero():
    assert [row["y"] for row in charts.spec(CURVES)["datasets"]["points"]] == [1.0, None, None, 3.0]


def test_cells_end_where_the_next_begin():
    params = {param["name"]: param["value"] for param in charts.spec(HEAT_MAP)["params"]}
    assert params["steps"] == (0, 1, 5) and params["ends"] == (1, 5, 9)
    assert charts.spec(HEAT_MAP)["datasets"]["rows"][0] == {"place": "a", "value": (1.0, 2.0, None)}


def test_a_cell_without_a_value_is_left_blank():
    drawn = vl_convert.vegalite_to_svg(json.dumps({**charts.spec(HEAT_MAP), "width": 300}))
    cells = re.search(r'<g class="mark-rect role-mark.*?</g>', drawn, re.S)
    assert cells and cells[0].count("<path") == 5


def test_a_distribution_over_decades_has_ticks_at_powers_of_ten():
    values = charts.spec(BANDS)["layer"][0]["encoding"]["y"]["axis"]["values"]
    assert values == [-1000.0, -100.0, -10.0, 0.0, 10.0, 100.0, 1000.0]
    assert all(value == 0 or math.log10(abs(value)).is_integer() for value in values)


def test_the_bands_of_a_distribution_are_pairs_of_quantiles():
    told = charts.spec(BANDS)["datasets"]
    assert told["bands"] == [{"low": (-4.0, -5e3), "high": (4.0, 5e3), "band": "10–90%"}]
    assert told["median"] == [{"value": (0.0, 0.0)}]
