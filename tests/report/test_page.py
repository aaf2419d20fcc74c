"""The tree: what a report says of a run, of an odd one, of a hostile one; and the file it is written to."""

import dataclasses
import json
import math
import re
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.report import html, page
from normscope.report.parts import Bands, Card, Chart, Choice, Curves, HeatMap, Intervals, Paragraph, Part, Profile
from normscope.stats.summary import Summary
from normscope.terms.errors import DataError, MissingExtraError, UnknownNameError
from normscope.terms.finding import Diagnosis, Evidence, Finding, Prescription
from normscope.terms.site import Site
from normscope.terms.verdict import Arm, Effect, Trial, Verdict


def parts(tree: Part) -> Iterator[Part]:
    """Every part of a tree."""
    yield tree
    for field in dataclasses.fields(tree):  # pyright: ignore
        value = getattr(tree, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            for part in item if isinstance(item, tuple) else (item,):
                if isinstance(part, Part):
                    yield from parts(part)


def charts(tree: Part) -> list[Chart]:
    return [part for part in parts(tree) if isinstance(part, Chart)]


def choice(tree: Part, anchor: str) -> dict[str, Part]:
    """What a reader can choose from in a section."""
    return dict(next(part for part in parts(sections(tree)[anchor]) if isinstance(part, Choice)).options)


def texts(tree: Part) -> list[str]:
    return [part.text for part in parts(tree) if isinstance(part, Paragraph)]


def sections(tree) -> dict[str, Part]:
    return {section.anchor: section for section in tree.sections}


def finding(**changes) -> Finding:
    told = {
        "code": "NS202",
        "name": "x",
        "severity": "error",
        "sites": ("a",),
        "message": "m",
        "evidence": Evidence("q", 1, 0),
    }
    return Finding(**{**told, **changes})


# a run ----------------------------------------------------------------------------------------------------------------


def test_a_report_begins_with_what_ran_and_what_was_found(sick):
    tree = page.tree(sick.record, sick.diagnosis)
    assert tree.heading == "untreated"
    assert tree.severity == "error"
    assert tree.verdict == "1 error, 1 warning, 1 note. Treat first: saturated activation (NS202)."
    assert re.fullmatch(r"Watched for \S+ s, up to step 15: 16 sampled steps, 13 layers.", tree.run)
    assert list(sections(tree)) == ["findings", "trial", "loss", "layers", "distribution", "shift", "gradient", "run"]


def test_where_notes_alone_are_found_of_a_run_that_did_not_learn_nothing_is_treated_first(sick):
    notes = tuple(one for one in sick.diagnosis if one.severity == "note")
    for found, told in ((notes, "1 note"), ((), "No finding. 5 rules looked at this run")):
        tree = page.tree(sick.record, dataclasses.replace(sick.diagnosis, findings=found, learns=False))
        assert tree.verdict == f"{told}. Nothing found explains why the loss does not fall."
        assert "treat this first" not in " ".join(card.aside for card in parts(tree) if isinstance(card, Card))
    learned = page.tree(sick.record, dataclasses.replace(sick.diagnosis, findings=notes, learns=True))
    assert "Treat first" in learned.verdict


def test_the_finding_to_treat_first_stands_first_with_its_evidence_cure_and_reason(sick):
    late = dataclasses.replace(sick.diagnosis, findings=sick.diagnosis.findings[::-1])
    first = next(part for part in parts(page.tree(sick.record, late)) if isinstance(part, Card))
    assert first.code == late.primary.code == "NS104"  # the first in order that nothing brings about
    card = next(part for part in parts(page.tree(sick.record, sick.diagnosis)) if isinstance(part, Card))
    assert (card.code, card.heading) == ("NS202", "Saturated activation")
    assert card.aside == "treat this first · since step 0 · 6 places"
    assert card.links == (("brings about vanishing gradient (NS201)", "NS201"),)
    told = " ".join(texts(card))
    assert "against a threshold of 50%: the median pre-activation itself is saturated." in told
    assert "Put `nn.BatchNorm1d(64)` before each of the activations" in told
    assert "insert_norm(norm='BatchNorm1d')" in told
    assert "a gradient loses 95% of itself" in told


def test_evidence_is_drawn_over_steps_with_its_threshold(sick):
    chart = next(part for part in parts(page.tree(sick.record, sick.diagnosis)) if isinstance(part, Card)).chart
    assert isinstance(chart, Curves)
    assert [rule.value for rule in chart.rules] == [0.5] and chart.rules[0].label == "threshold 50%"
    assert [curve.group for curve in chart.curves] == [f"{depth} Tanh" for depth in (1, 3, 5, 7, 9, 11)]
    worst = sick.diagnosis[0].sites[0]
    truth = sick.record.series(worst, "saturated")
    drawn = next(curve for curve in chart.curves if curve.group == f"{Site.parse(worst).path} Tanh")
    assert drawn.x == tuple(truth.steps)
    np.testing.assert_allclose(drawn.y, truth.values, rtol=1e-3)
    assert chart.y.share and "share of values" in chart.y.title


def test_evidence_that_the_record_has_no_series_of_is_drawn_by_depth(sick):
    card = [part for part in parts(page.tree(sick.record, sick.diagnosis)) if isinstance(part, Card)][1]
    assert isinstance(card.chart, Profile)
    assert card.chart.places[:3] == ("0 Linear", "1 Tanh", "2 Linear") and len(card.chart.places) == 13
    assert card.chart.x.log and [rule.value for rule in card.chart.rules] == [math.exp(-6)]
    values = dict(sick.diagnosis[1].evidence.per_site)
    np.testing.assert_allclose(card.chart.columns[0].values[0], values["0:gradient"], rtol=1e-3)


def test_a_heat_map_holds_what_the_record_holds(sick):
    maps = choice(page.tree(sick.record, sick.diagnosis), "layers")
    names = list(maps)
    assert names[0] == "Saturated share"  # what the first finding measured
    assert {"Gradient norm", "Standard deviation", "Mean", "Internal shift", "Exact zeros"} <= set(names)
    chart = maps["Standard deviation"]
    assert isinstance(chart, HeatMap) and len(chart.places) == 13 and len(chart.steps) == 16
    truth = sick.record.series("4", "std").values
    np.testing.assert_allclose(chart.values[chart.places.index("4 Linear")], truth, rtol=1e-3)
    mean = maps["Mean"]
    assert isinstance(mean, HeatMap) and mean.color.signed


def test_a_distribution_stays_in_the_range_of_its_tensor_and_shows_where_the_function_is_flat(sick):
    bands = choice(page.tree(sick.record, sick.diagnosis), "distribution")
    name, chart = next(iter(bands.items()))
    assert name == f"input of {Site.parse(sick.diagnosis[0].sites[0]).path} Tanh"
    assert isinstance(chart, Bands) and [round(rule.value, 2) for rule in chart.rules] == [-2.18, 2.18]
    squashed = bands["output of 1 Tanh"]
    assert isinstance(squashed, Bands)
    assert all(-1 <= value <= 1 for row in squashed.values for value in row if value is not None)
    for below, above in zip(squashed.values, squashed.values[1:]):
        assert all(low <= high for low, high in zip(below, above))  # pyright: ignore


def test_shift_and_gradient_run_down_the_depth(sick):
    tree = sections(page.tree(sick.record, sick.diagnosis))
    (shift,), (gradient,) = charts(tree["shift"]), charts(tree["gradient"])
    assert isinstance(shift, Profile) and isinstance(gradient, Profile)
    assert [column.group for column in shift.columns] == ["internal shift", "external shift"]
    truth = np.median(sick.record.shift("4", kind="external").values)
    np.testing.assert_allclose(shift.columns[1].values[shift.places.index("4 Linear")], truth, rtol=1e-3)
    assert [column.group for column in gradient.columns] == ["step 0", "step 8", "step 15"]
    truth = sick.record.series("4", "gradient_norm").values[[0, 8, 15]]
    at = gradient.places.index("4 Linear")
    np.testing.assert_allclose([column.values[at] for column in gradient.columns], truth, rtol=1e-3)
    assert gradient.x.log


def test_a_trial_shows_both_arms_of_every_seed_and_the_effect(sick):
    section = sections(page.tree(sick.record, sick.diagnosis))["trial"]
    arms, effect = charts(section)
    assert isinstance(arms, Curves) and isinstance(effect, Intervals)
    expected = [(arm, faint) for arm in ("untreated", "treated") for faint in (True, True, True, False)]
    assert [(curve.group, curve.faint) for curve in arms.curves] == expected
    (trial,) = sick.record.trials
    told = effect.rows[0]
    np.testing.assert_allclose(
        (told.value, told.low, told.high), np.exp([trial.effect.value, trial.effect.low, trial.effect.high])
    )
    finals = np.array([[np.mean(curve[-5:]) for curve in arm.curves] for arm in trial.arms])
    np.testing.assert_allclose([row.value for row in effect.rows[1:]], finals[1] / finals[0])
    assert [rule.value for rule in effect.rules] == [1.0]
    text = next(part for part in parts(section) if isinstance(part, Paragraph)).text
    assert text.startswith("The treatment helps: the treated arm ends at ")


@pytest.mark.parametrize(
    ("verdict", "low", "high", "unit"),
    [("unclear", -math.inf, math.inf, "log ratio of final loss"), ("fails", 0.2, 0.4, "difference of final loss")],
)
def test_a_trial_without_an_interval_or_of_other_units_is_told(written, verdict, low, high, unit):
    trial = Trial(
        "t", (7,), 3,
        (Arm("untreated", ((1.0, 2.0, math.nan),), ((7, "step 2: nan"),)), Arm("treated", ((1.0, 1.0, 1.0),))),
        Effect(0.3, low, high, 0.95, unit, "paired t"), Verdict(verdict),
    )  # fmt: skip
    tree = page.tree(written(lambda writer: writer.trial(trial)), Diagnosis())
    told = " ".join(texts(sections(tree)["trial"]))
    assert "The untreated run of seed 7 broke off: step 2: nan" in told
    if verdict == "unclear":
        assert "The trial does not decide" in told and "without an interval" in told and "135%" in told
        assert not [chart for chart in charts(tree) if isinstance(chart, Intervals)]
    else:
        assert "The treatment does not help: 0.3 (difference of final loss), 95% interval 0.2 to 0.4." in told


# odd runs -------------------------------------------------------------------------------------------------------------


def empty(writer):
    pass


def one_step(writer):
    for depth, name in enumerate(("a", "b")):
        site = Site(name, "output", role="producer", kind="Linear", depth=depth)
        writer.summary(site, 0, "live", Summary.of(torch.randn(8, 4)))
        writer.summary(site.at("gradient"), 0, "live", Summary.of(torch.randn(8, 4)))
    writer.scalar(None, 0, "loss", 1.0)


def no_probe(writer):
    for step in range(4):
        writer.summary(Site("a", role="norm", depth=0), step, "live", Summary.of(torch.randn(8, 4)))


def all_nan(writer):
    for step in range(3):
        writer.scalar(None, step, "loss", math.nan)
        for name in ("a", "b"):
            site = Site(name, role="activation", kind="Tanh", depth=0)
            for what in ("input", "output", "gradient"):
                for source in ("live", "probe"):
                    writer.summary(site.at(what), step, source, Summary.of(torch.full((4, 4), math.nan)))
        writer.scalar(Site("a"), step, "eval_gap", math.inf)
    writer.event("nonfinite", "NaN everywhere", step=0)


def zeros(writer):
    for step in range(3):
        for name in ("a", "b"):
            site = Site(name, role="producer", depth=0)
            writer.summary(site, step, "live", Summary.of(torch.zeros(4, 4)))
            writer.summary(site.at("gradient"), step, "live", Summary.of(torch.zeros(4, 4)))
    writer.event("crash", "ValueError: oh no", step=2)


def scalars_only(writer):
    writer.scalar(None, 5, "loss", 2.0)
    writer.scalar(Site("a@b:c"), 5, "made_up", 2.0)


def extremes(writer):
    for step in range(3):
        site = Site("a", role="producer", depth=0)
        writer.summary(site, step, "live", Summary.of(torch.tensor([1e-38, -1e38, 3e38, 0.0, math.inf])))
        writer.summary(site.at("gradient"), step, "live", Summary.of(torch.tensor([1e-30 * 10**step])))


@pytest.mark.parametrize(
    "write", [empty, one_step, no_probe, all_nan, zeros, scalars_only, extremes], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_odd_record_still_makes_a_page(written, tmp_path, write, lang):
    record = written(write)
    tree = page.tree(record, Diagnosis(), lang=lang)
    assert len(tree.sections) == 7
    told = html.paint(tree)
    assert "NaN" not in "".join(re.findall(r'<script type="application/json">(.*?)</script>', told))
    assert told.count("<section") == 7


def test_a_page_says_what_is_not_there(written):
    tree = page.tree(written(empty), Diagnosis())
    told = {anchor: texts(section) for anchor, section in sections(tree).items()}
    assert told["loss"] == ["No loss was recorded. Give it to the watcher: watcher.loss(value)."]
    assert told["shift"][0].startswith("No two probes were recorded")
    assert told["gradient"] == ["No gradient was recorded, so its way through the depth is unknown."]
    assert told["findings"] == ["No finding. 0 rules looked at this run."]
    assert page.tree(written(empty, "other"), Diagnosis()).run == "The record holds no sampled step."


def test_gradients_that_are_exactly_zero_are_told(written):
    def write(writer):
        for depth, size in enumerate((0.0, 1.0)):
            site = Site(f"l{depth}", "gradient", role="producer", depth=depth)
            writer.summary(site, 0, "live", Summary.of(torch.full((4,), size)))

    (chart,) = charts(sections(page.tree(written(write), Diagnosis()))["gradient"])
    assert "One value is exactly zero" in chart.note


def test_a_record_that_is_still_written_is_told(tmp_path):
    from normscope.record.reader import Record
    from normscope.record.writer import Writer

    with Writer(tmp_path / "run") as writer:
        no_probe(writer)
        assert writer.flush()
        tree = page.tree(Record(tmp_path / "run"), Diagnosis())
        assert tree.run == (
            "Watched so far up to step 3: 4 sampled steps, 1 layer. "
            "The record was not closed: the run goes on, or it broke off."
        )


def test_a_finding_without_a_number_a_site_or_a_known_quantity_makes_a_card(written):
    odd = (
        finding(sites=(), evidence=Evidence("", math.nan, math.inf)),
        finding(
            sites=("no:such:site", "", "#@:"),
            evidence=Evidence("loss", 1, math.nan, per_site=(("gone", 1.0), ("", math.nan))),
        ),
        finding(name="odd_one", prescriptions=(Prescription(""), Prescription("convert", words="", reason="r"))),
    )
    tree = page.tree(written(one_step), Diagnosis(odd))
    cards = [part for part in parts(tree) if isinstance(part, Card)]
    assert [card.heading for card in cards] == ["X", "X", "Odd one"]
    html.paint(tree)


def test_a_model_at_rest_has_findings_alone():
    tree = page.tree(None, Diagnosis((finding(),), ("NS101",), subject="Net"))
    assert list(sections(tree)) == ["findings"]
    assert (tree.heading, tree.run) == ("Net", "A model at rest: read, not trained.")


# size -----------------------------------------------------------------------------------------------------------------


def large(path, n_sites: int, n_steps: int) -> Record:
    """The record of a large run: one step is written, and copied in the file."""
    told = [Summary.of(torch.randn(256)) for _ in range(16)]
    with Writer(path, queue_limit=4 * n_sites) as writer:
        for at in range(n_sites):
            site = Site(f"encoder.layers.{at}.mlp.fc", role="producer", kind="Linear", depth=at)
            writer.summary(site, 0, "live", told[at % 16])
    with closing(sqlite3.connect(path / "rank0.sqlite", isolation_level=None)) as file:
        columns = [name for _, name, *_ in file.execute("PRAGMA table_info(summary)")]
        moved = ", ".join({"step": "step + ?", "mean": "mean + 0.01 * ?"}.get(name, name) for name in columns)
        file.execute("BEGIN")
        for step in range(1, n_steps):
            file.execute(f"INSERT INTO summary SELECT {moved} FROM summary WHERE step = 0", (step, step))
        file.execute("COMMIT")
    return Record(path)


def test_a_thousand_sites_by_three_hundred_steps_make_a_small_page_that_says_so(tmp_path):
    named = Site("encoder.layers.501.mlp.fc").key
    told = Diagnosis((finding(sites=(named,), evidence=Evidence("mean", 1e4, 10, per_site=((named, 1e4),))),))
    tree = page.tree(large(tmp_path / "large", 1000, 300), told)
    size = len(html.paint(tree).encode())
    assert size < 3.5e6
    heat_map = next(chart for chart in charts(tree) if isinstance(chart, HeatMap))
    assert len(heat_map.places) == 60 and len(heat_map.steps) == 120
    assert heat_map.steps[0] == 0 and heat_map.steps[-1] == 299
    assert "encoder.layers.501.mlp.fc" in heat_map.places
    assert "Shown: 60 of 1,000" in heat_map.note and "Shown: 120 of 300 sampled steps" in heat_map.note
    bands = [chart for chart in charts(tree) if isinstance(chart, Bands)]
    assert len(bands) == 120
    assert "Shown: 60 of 300 sampled steps" in bands[0].note


# strangers ------------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The elements of a page, with what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def charts_script() -> str:
    """Vega's own script, which holds markup in its strings."""
    from normscope.report.charts import javascript

    return javascript()


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_whatever_a_record_holds_is_text(hostile, lang):
    told = html.paint(page.tree(hostile.record, hostile.diagnosis, lang=lang)).replace(charts_script(), "")
    assert told.count("alert(1)") > 30
    assert "<img" not in told and "\x1b" not in told and "\u202e" not in told
    found = Tags(told).tags
    assert not {tag for tag, _ in found} & {"img", "iframe", "object", "embed", "form", "input", "base", "link"}
    assert not {name for _, attributes in found for name in attributes if name.startswith("on")}
    assert not [attributes["href"] for _, attributes in found if not attributes.get("href", "#").startswith("#")]  # pyright: ignore
    assert not {name for _, attributes in found for name in attributes if name in ("src", "srcset", "action", "style")}
    for text in re.findall(r'<script type="application/json">(.*?)</script>', told, re.S):
        json.loads(text)


def test_the_page_refuses_every_other_script_and_source(sick):
    told = html.paint(page.tree(sick.record, sick.diagnosis))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', told)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy[1] and policy[1].count("unsafe-inline") == 1
    outside = re.sub(r"<script>.*?</script>", "", told, flags=re.S)
    assert "http:" not in outside and "https:" not in outside and "url(" not in outside and "@import" not in outside


# the file -------------------------------------------------------------------------------------------------------------


def test_a_page_is_written_whole_into_a_new_folder(sick, tmp_path):
    out = page.write(sick.record, sick.diagnosis, tmp_path / "a" / "b" / "report.html")
    assert out == tmp_path / "a" / "b" / "report.html"
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    text = out.read_text(encoding="utf-8")
    assert text.startswith('<!doctype html>\n<html lang="en">') and text.rstrip().endswith("</html>")
    assert stat.S_IMODE(out.stat().st_mode) & 0o044 == 0o044  # others may read it, as any file
    assert 0.9e6 < len(text) < 2e6


def test_a_page_that_fails_leaves_the_old_one(sick, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("old")
    monkeypatch.setattr(page.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises((OSError, DataError), match="no space"):
        page.write(sick.record, sick.diagnosis, out)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_a_directory_is_refused(sick, tmp_path):
    with pytest.raises(DataError) as error:
        page.write(sick.record, sick.diagnosis, tmp_path)
    assert str(error.value) == (
        "A report was to be written to a directory.\n"
        f"  found    `{tmp_path}` is a directory\n"
        "  because  the report is one HTML file\n"
        f"  do       give a file, such as `{tmp_path / 'report.html'}`"
    )


def test_an_unknown_language_is_refused(sick, tmp_path):
    with pytest.raises(UnknownNameError, match="does not speak"):
        page.write(sick.record, sick.diagnosis, tmp_path / "a.html", lang="xx")


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_without_its_extra_the_page_says_how_to_get_it(sick, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "normscope.report.charts", raising=False)
    monkeypatch.delattr(sys.modules["normscope.report"], "charts", raising=False)
    with pytest.raises(MissingExtraError) as error:
        page.write(sick.record, sick.diagnosis, tmp_path / "a.html")
    assert str(error.value) == (
        f"The report page needs {package}.\n"
        f"  found    {package} is not installed in this environment\n"
        "  because  Normscope's core needs torch and numpy alone; the rest is optional\n"
        "  do       pip install 'normscope[report]'"
    )
    assert not list(tmp_path.iterdir())
