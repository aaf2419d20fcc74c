"""The report as text: the same tree, in lines that fit, without anything that drives a terminal."""

import re
import unicodedata

import pytest

from normscope.report import terminal
from normscope.report.parts import Axis, Code, Column, Curve, Curves, HeatMap, Paragraph, Part, Profile, Table
from normscope.report.terminal import Brush
from normscope.report.words import load
from normscope.terms.finding import Diagnosis, Evidence, Finding


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)


def painted(part: Part, width: int = 80) -> list[str]:
    return [line.rstrip() for line in terminal._part(part, Brush(width, load("en"), color=False))]


def test_it_says_what_the_page_says(sick):
    told = terminal.show(sick.record, sick.diagnosis, width=80)
    lines = told.splitlines()
    assert lines[:2] == ["untreated", "1 error, 1 warning, 1 note. Treat first: saturated activation (NS202)."]
    assert lines[2].startswith("Watched for ") and lines[2].endswith("16 sampled steps, 13 layers.")
    for heading in ("Findings", "Trial", "Loss", "Layers over steps", "Distribution of a layer", "Run"):
        assert f"\n{heading}\n{'─' * len(heading)}\n" in told
    assert "Error  Saturated activation  NS202" in told
    assert "  brings about vanishing gradient (NS201)" in told
    assert "        nn.init.xavier_normal_(layer.weight, gain=5 / 3)" in told
    assert re.search(r"\n  1 Tanh +[▁▂▃▄▅▆▇█]+  [\d.]+% → [\d.]+%\n", told)
    assert re.search(r"\n4 Linear +█+ +\S+ +█+ +\S+", told)
    assert "more in the page: Gradient norm," in told
    assert "\x1b" not in told and told.endswith("\n")


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 57, 80, 132])
def test_every_line_fits(sick, width, lang):
    code = {line.strip() for card in sick.diagnosis for cure in card.prescriptions for line in cure.words.splitlines()}
    for line in terminal.show(sick.record, sick.diagnosis, width=width, lang=lang).splitlines():
        assert columns(line) <= width or line.strip() in code, line


def test_it_is_as_wide_as_the_terminal(sick, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert max(map(columns, terminal.show(sick.record, sick.diagnosis).splitlines())) > 80


def test_colors_only_when_asked(sick):
    colored = terminal.show(sick.record, sick.diagnosis, width=80, color=True)
    assert "\x1b[31mError\x1b[0m" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == terminal.show(sick.record, sick.diagnosis, width=80)


def test_nothing_in_a_record_drives_the_terminal(hostile):
    told = terminal.show(hostile.record, hostile.diagnosis, width=80)
    assert "alert(1)" in told
    assert not [sign for sign in told if unicodedata.category(sign) in ("Cc", "Cf", "Cs") and sign != "\n"]


def test_a_model_at_rest_has_findings_alone():
    bias = Finding("NS104", "bias_before_norm", "warning", ("fc",), "A bias.", Evidence("cancelled_bias", 1, 0))
    assert terminal.show(None, Diagnosis((bias,), ("NS104",), subject="Net"), width=60) == (
        "Net\n"
        "1 warning. Treat first: bias before a norm (NS104).\n"
        "A model at rest: read, not trained.\n"
        "\n"
        "Findings\n"
        "────────\n"
        "Warning  Bias before a norm  NS104\n"
        "  1 place\n"
        "  A bias.\n"
        "  Layers with a cancelled bias 1 against a threshold of 0.\n"
        "  Where: fc\n"
    )


def test_a_unit_that_says_what_the_quantity_says_is_said_once():
    gain = Finding("NS206", "poor_initialization", "error", ("fc",), "Off.", Evidence("gain", 8.1, 4, unit="gain"))
    told = terminal.show(None, Diagnosis((gain,), ("NS206",), subject="Net"), width=60)
    assert "  Gain 8.1 against a threshold of 4.\n" in told


def test_a_curve_becomes_a_row_of_blocks():
    curves = Curve("a", (0, 1, 2, 3), (0.0, 1.0, None, 7.0)), Curve("b", (0,), (None,))
    chart = Curves("T", Axis("step"), Axis("y"), curves)
    assert painted(chart) == ["T", "a  ▁▂·█  0 → 7", "b  ·  –"]
    decades = Curves("T", Axis("step"), Axis("y", log=True), (Curve("a", (0, 1, 2), (1.0, 0.0, 1e7)),))
    assert painted(decades) == ["T", "a  ▁▁█  1 → 1\u00a0×\u00a010⁷"]


def test_rows_that_do_not_fit_are_told():
    places = tuple(f"l{at}" for at in range(100))
    lines = painted(HeatMap("T", places, (0, 1), ((0.0, 1.0),) * 100, Axis("step"), Axis("y", share=True)))
    assert lines[1] == "l0   ▁█  0% → 100%" and lines[12] == "l99  ▁█  0% → 100%"
    assert lines[13] == "(12 of 100 rows shown.)"


def test_depth_becomes_bars_on_one_scale():
    chart = Profile("T", ("encoder.very.long.name.of.a.layer", "b"), ("", ""), Axis("x"), (Column("now", (1.0, 0.5)),))
    first, second = painted(chart, 60)[1:]
    assert first.startswith("…me.of.a.layer"[-12:]) or "of.a.layer" in first
    assert first.count("█") == 2 * second.count("█") and second.startswith("b ")
    nothing = Profile("T", ("a",), ("",), Axis("x", log=True), (Column("now", (0.0,)),))
    assert painted(nothing)[1].split() == ["a", "·", "0"]


def test_a_table_gives_way_in_its_widest_column():
    table = Table(("step", "text"), (("1", "x" * 100), ("1,000", "短" * 50)), numeric=(0,))
    lines = painted(table, 40)
    assert lines[0] == " step  text" and lines[1] == "─" * 40
    assert lines[2] == "    1  " + "x" * 32 + "…" and lines[3] == "1,000  " + "短" * 16 + "…"


def test_chinese_wraps_by_its_width():
    lines = painted(Paragraph("内部偏移由参数引起：固定探测批次 abcdef 与上一次探测相比。" * 3), 40)
    assert len(lines) > 3 and all(columns(line) <= 41 for line in lines)
    assert not [line for line in lines if line[0] in "，。：；"]
    assert painted(Code("a\n  b")) == ["    a", "      b"]
