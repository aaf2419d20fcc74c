"""A record that is none, is of a newer schema, is being written, or holds no step: for every verb that opens one."""

import sqlite3

import pytest
import torch

import normscope as ns
from normscope.terms.errors import RecordError

OPENERS = {
    "Record": ns.Record,
    "diagnose": ns.diagnose,
    "report": lambda path: ns.report(path, path / "never.html"),
}


def _nothing(path):
    path.rmdir()


def _text(path):
    (path / "rank0.sqlite").write_text("step,loss\n0,1.0\n" * 100)


def _empty(path):
    (path / "rank0.sqlite").touch()


def _foreign(path):
    with sqlite3.connect(path / "rank0.sqlite") as database:
        database.execute("CREATE TABLE photos (name TEXT)")
    database.close()


def _folder(path):
    (path / "notes.txt").write_text("no record here")


@pytest.mark.parametrize("opened", OPENERS)
@pytest.mark.parametrize("make", [_nothing, _text, _empty, _foreign, _folder])
def test_what_is_no_record(make, opened, tmp_path, four_lines):
    path = tmp_path / "run"
    path.mkdir()
    make(path)
    with pytest.raises(RecordError, match="A record was asked for where there is none") as caught:
        OPENERS[opened](path)
    assert str(path) in four_lines(caught.value)[1]


@pytest.mark.parametrize("opened", [*OPENERS, "watch"])
def test_a_record_of_a_newer_schema_is_neither_read_nor_written(opened, train, net, four_lines):
    path = train(net()).path
    file = path / "rank0.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = file.read_bytes()
    act = OPENERS.get(opened, lambda path: ns.watch(net(), None, path))
    with pytest.raises(RecordError, match="a newer Normscope wrote") as caught:
        act(path)
    assert "schema=99" in four_lines(caught.value)[1] and file.read_bytes() == before


def test_a_damaged_record_says_which_file(train, net, four_lines):
    path = train(net()).path
    file = path / "rank0.sqlite"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RecordError) as caught:
        ns.diagnose(path)
    assert "rank0.sqlite" in four_lines(caught.value)[1]


def test_a_run_in_progress_is_read_diagnosed_and_reported(net, tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.watch(model, optimizer, tmp_path / "run", every=1) as watcher:
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            record = watcher.record
            assert record.steps.tolist() == list(range(step + 1)) and not record.complete
            ns.diagnose(record)
            ns.report(record, tmp_path / "report.html")
    assert ns.Record(tmp_path / "run").complete


def test_a_run_without_a_step_says_why(net, tmp_path, four_lines):
    with ns.watch(net(), None, tmp_path / "run") as watcher:
        watcher.note(plan="nothing yet")
    with pytest.raises(RecordError, match="no step in its record") as caught:
        ns.diagnose(tmp_path / "run")
    assert "nothing yet" in four_lines(caught.value)[1]
    assert ns.Record(tmp_path / "run").parts == ()
