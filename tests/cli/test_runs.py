"""`export`, `live` and `compare`, on two small runs."""

import csv
import importlib
import json
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from normscope.cli.app import app
from normscope.record.export import export
from normscope.record.reader import Record
from normscope.report import compare, live
from normscope.terms.errors import DataError, MissingExtraError, RecordError
from normscope.terms.finding import Diagnosis, Evidence, Finding
from normscope.terms.site import Site
from normscope.watch.session import watch

QUANTITIES = ("std", "gradient_norm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for name, rate in (("calm", 0.05), ("wild", 3.0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        with watch(model, optimizer, place / name, every=5) as watcher:
            for _ in range(30):
                x = torch.randn(16, 4)
                optimizer.zero_grad()
                loss = (model(x) - x[:, :1]).square().mean()
                loss.backward()
                optimizer.step()
                watcher.loss(loss)
    return place


def told(*args):
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


# export


def test_every_form_holds_the_same_numbers(runs, tmp_path):
    record = Record(runs / "calm")
    columns = record.to_numpy(quantities=QUANTITIES)
    assert len(columns["value"]) > 50
    path = told("export", runs / "calm", "--to", "csv", "-o", tmp_path / "a.csv", *_options(QUANTITIES)).strip()
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == columns["value"].tolist()
    assert [(row["site"], int(row["step"])) for row in rows] == list(zip(columns["site"], columns["step"].tolist()))

    import pyarrow.parquet as parquet

    table = parquet.read_table(export(record, "parquet", tmp_path / "deep" / "a.parquet", quantities=QUANTITIES))
    assert table["value"].to_pylist() == columns["value"].tolist()
    assert table["quantity"].to_pylist() == columns["quantity"].tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_is_exported(runs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "board"
    for _ in range(2):  # what is there is replaced
        export(Record(runs / "calm"), "tensorboard", folder, quantities=["std", "loss"])
    assert len(list(folder.iterdir())) == 1 and [path.name for path in tmp_path.iterdir()] == ["board"]
    board = EventAccumulator(str(folder)).Reload()
    series = Record(runs / "calm").series("0:output", "std", source="live")
    found = board.Scalars("std/0:output/live")
    assert [event.step for event in found] == series.steps.tolist()
    assert [event.value for event in found] == pytest.approx(series.values.tolist())
    assert len(board.Scalars("loss")) == 30


def test_an_export_without_its_extra_or_its_place_says_so(runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("text")
    with pytest.raises(DataError, match="where it cannot be written"):
        export(Record(runs / "calm"), "csv", tmp_path / "file" / "a.csv")
    for package, form, extra in (("pyarrow", "parquet", "data"), ("tensorboard", "tensorboard", "tensorboard")):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"normscope\[{extra}\]"):
            export(Record(runs / "calm"), form, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    done = CliRunner().invoke(app, ["export", str(tmp_path / "nothing")])
    assert isinstance(done.exception, RecordError)


def _options(quantities):
    return [word for name in quantities for word in ("--quantity", name)]


# live


def test_a_frame_shows_layers_with_their_curves_and_what_is_wrong(runs):
    finding = Finding("NS999", "made_up", "warning", ("1:output",), "One thing is wrong.", Evidence("std", 2.0, 1.0))
    now = live.frame(Record(runs / "calm"), Diagnosis((finding,)))
    assert (now.step, now.sampled, now.complete, now.layers) == (25, 6, True, 4)
    assert [path for path, _ in now.rows] == ["0", "1", "2", "3"]
    series = Record(runs / "calm").series("0", "std")
    (cell,) = [cell for cell in now.rows[0][1] if cell.quantity == "std"]
    assert cell.steps == tuple(series.steps) and cell.last == pytest.approx(series.last, rel=1e-3)
    for width in (60, 80, 200):
        text = live.paint(now, width=width, height=20)
        assert max(map(len, text.splitlines())) <= width and len(text.splitlines()) <= 20
        assert "NS999 made_up at 1:output" in text and "std" in text
    assert live.paint(live.frame(Record(runs / "calm"), Diagnosis(), rows=2), width=80).count("more layers") == 1


def test_small_numbers_are_told_whole_in_a_cell(tmp_path):
    from normscope.record.writer import Writer

    with Writer(tmp_path) as writer:
        for step in range(3):
            writer.scalar(Site("0", role="norm", depth=0), step, "update_ratio", 2.08e-5)
    assert "2.1e-05" in live.paint(live.frame(Record(tmp_path), Diagnosis()), width=80)


def test_live_prints_one_frame_where_nobody_looks_and_json_on_request(runs):
    assert "step 25" in told("live", runs / "calm") and "\x1b" not in told("live", runs / "calm", "--once")
    found = json.loads(told("live", runs / "wild", "--json", "--quantity", "gradient_norm"))
    assert found["quantities"] == ["gradient_norm"] and found["step"] == 25


def test_live_follows_a_run_until_it_ends(runs, monkeypatch):
    from normscope.cli import live as command

    states = iter(["in progress", "in progress", "broken off"])
    monkeypatch.setattr(Record, "state", property(lambda self: next(states)))
    monkeypatch.setattr(command, "_size", lambda terminal: (80, 24))
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    written = []
    monkeypatch.setattr(command.typer, "echo", lambda text, nl=True: written.append(text))
    monkeypatch.setattr(command.sys, "stdout", type("Terminal", (), {"isatty": staticmethod(lambda: True)}))
    command.command(runs / "calm", None, 1.0, False, False, True)
    assert [text.startswith(command._CLEAR) for text in written] == [False, True, True, True, False]
    assert written[0] == command._HIDE and written[-1] == command._SHOW


def test_a_record_without_steps_is_a_frame_too(tmp_path):
    from normscope.record.writer import Writer

    with Writer(tmp_path):
        assert "Nothing was sampled yet." in told("live", tmp_path)


# compare


def test_differences_are_of_what_both_have_the_greatest_first(runs):
    first, second = Record(runs / "calm"), Record(runs / "wild")
    found = compare.differences(first, second)
    sizes = [one.size for one in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1
    (one,) = [one for one in found if (one.site, one.quantity) == ("0", "std")]
    assert one.values[0] == pytest.approx(first.series("0", "std").values[-1], rel=1e-3)  # a quarter of six is one
    assert one.ratio == pytest.approx(one.values[1] / one.values[0])
    assert {one.size for one in compare.differences(first, first)} == {0.0}


def test_compare_prints_a_table_and_writes_a_page(runs, tmp_path):
    text = told("compare", runs / "calm", runs / "wild", "-o", tmp_path / "c.html")
    assert "Where they differ most" in text and "calm" in text and str(tmp_path / "c.html") in text
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<html" in page and "Where they differ most" in page
    found = json.loads(told("compare", runs / "calm", runs / "wild", "--json"))
    assert [run["path"] for run in found["runs"]] == [str(runs / "calm"), str(runs / "wild")]
    assert found["differences"][0].keys() == {"site", "quantity", "values", "ratio"}
    assert "do not differ" in told("compare", runs / "calm", runs / "calm")
    assert told("compare", runs / "calm", runs / "wild", "--quiet") == ""


# demo


@pytest.mark.parametrize("begun", [True, False])
def test_a_demo_that_is_interrupted_says_where_its_record_is(begun, tmp_path, monkeypatch):
    def interrupted(out, **_):
        if begun:
            (out / "untreated").mkdir(parents=True)
            (out / "untreated" / "rank0.sqlite").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("normscope.demo"), "demo", interrupted)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "a demo")])
    assert done.exit_code == 130
    said = f"normscope diagnose '{tmp_path / 'a demo' / 'untreated'}'" if begun else "nothing was recorded yet"
    assert said in done.stderr.replace("\n", "") and "Traceback" not in done.output
