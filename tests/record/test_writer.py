"""The writer takes anything at once, from anywhere, and the record says what it lacks."""

import os
import signal
import sqlite3
import threading
import warnings
from contextlib import closing, contextmanager
from unittest.mock import Mock

import pytest
import torch

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.terms.errors import NormscopeWarning, RecordError
from normscope.terms.site import Site


@contextmanager
def locked(run, rank=0):
    """Another program keeps the file to itself."""
    with closing(sqlite3.connect(run / f"rank{rank}.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def quick(monkeypatch):
    """A locked file is given up at once."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0.01}))


def values(run, site, quantity):
    series = Record(run).series(site, quantity)
    return dict(zip(series.steps.tolist(), series.values.tolist()))


def test_a_record_of_one_step(run, summary):
    with Writer(run, meta={"model": "MLP"}) as writer:
        writer.summary(Site("fc"), 0, "live", summary())
        writer.scalar(None, 0, "loss", 2.5)
    record = Record(run)
    assert record.complete and record.meta["model"] == "MLP"
    assert torch.__version__.startswith(record.meta["torch"]) and isinstance(record.meta["argv"], list)
    record.close()
    assert os.listdir(run) == ["rank0.sqlite"]


def test_what_the_run_tells_replaces_what_was_found_out(run):
    Writer(run, meta={"argv": ["train.py"]}).close()
    assert Record(run).meta["argv"] == ["train.py"]


def test_a_flush_puts_all_that_was_put_in_on_the_disk(run, summary):
    writer = Writer(run, flush_every=1e6)
    for step in range(300):
        writer.summary(Site("fc"), step, "live", summary())
    assert writer.flush()
    assert len(Record(run).steps) == 300 and not Record(run).complete
    writer.close()


def test_it_flushes_by_itself(run, summary):
    writer = Writer(run, flush_every=0.01)
    writer.summary(Site("fc"), 7, "live", summary())
    for _ in range(1000):
        if len(Record(run).steps):
            break
        threading.Event().wait(0.01)
    assert list(Record(run).steps) == [7]
    writer.close()


def test_half_a_queue_does_not_wait_for_the_time(run, summary):
    with Writer(run, flush_every=1e6, queue_limit=100) as writer:
        for step in range(50):
            writer.summary(Site("fc"), step, "live", summary())
        for _ in range(1000):
            if len(Record(run).steps):
                break
            threading.Event().wait(0.01)
        assert len(Record(run).steps) == 50


def test_nonsense_costs_only_itself(run, summary, recwarn):
    with Writer(run) as writer:
        writer.summary("fc:output", 0, "live", summary())  # pyright: ignore
        writer.summary(Site("fc"), 0, "elsewhere", summary())
        writer.summary(Site("fc"), "zero", "live", summary())  # pyright: ignore
        writer.summary(Site("fc"), 0, "live", None)  # pyright: ignore
        writer.scalar(None, 2**70, "loss", 1.0)
        writer.scalar(None, 0, "loss", "low")  # pyright: ignore
        writer.scalar(None, 0, "\ud800", 1.0)
        writer.event("note", "\ud800")
        writer.trial({})  # pyright: ignore
        writer.summary(Site("fc"), 1, "live", summary())
        writer.scalar(None, 1, "loss", torch.tensor(3.0))  # pyright: ignore
    assert [warning.category for warning in recwarn] == [NormscopeWarning]
    record = Record(run)
    assert list(record.steps) == [1] and values(run, None, "loss") == {1: 3.0}
    assert len(writer.faults) == len([event for event in record.events if event.kind == "fault"]) == 9
    assert record.complete


def test_a_full_queue_drops_samples_first_and_says_so(run, summary, quick, recwarn):
    writer = Writer(run, flush_every=1e6, queue_limit=10)
    with locked(run):
        for step in range(50):
            writer.summary(Site("fc"), step, "live", summary())
            writer.scalar(None, step, "loss", step)
        writer.event("crash", "the script raised")
        assert not writer.flush() and not writer.flush()
    assert [str(warning.message) for warning in recwarn] == [
        f"the record {run} could not be written: database is locked; the training goes on"
    ]
    assert writer.dropped == 40
    writer.close()
    record = Record(run)
    assert len(record.steps) == 10 and len(record.series(None, "loss")) == 50 and record.complete
    (dropped,) = (event for event in record.events if event.kind == "dropped")
    assert dropped.data == {"summary": 40, "first_step": 10, "last_step": 49}
    assert dropped.text == "the record lacks 40 entries: 40 of summary, between steps 10 and 49"
    (fault,) = (event for event in record.events if event.kind == "fault")
    assert "could not be written: database is locked" in fault.text
    assert "crash" in {event.kind for event in record.events}


def test_a_full_queue_takes_nonsense_too(run, summary, quick, recwarn):
    writer = Writer(run, flush_every=1e6, queue_limit=4)
    with locked(run):
        for step in (0, 1, 2, 3, "zero", None, object(), 5, 4):
            writer.summary(Site("fc"), step, "live", summary())  # pyright: ignore
    writer.close()
    dropped = [event.data for event in Record(run).events if event.kind == "dropped"]
    assert sum(data["summary"] for data in dropped) == writer.dropped == 5
    steps = {data[name] for data in dropped for name in ("first_step", "last_step")} - {None}
    assert (min(steps), max(steps)) == (4, 5)


def test_a_number_may_have_any_name(run):
    with Writer(run) as writer:
        for name in ("summary", "mean", "live"):
            writer.scalar(Site("fc"), 0, name, 1.0)
            writer.scalar(None, 0, name, 2.0)
    record = Record(run)
    assert record.quantities(None) == record.quantities("fc") == ("live", "mean", "summary")
    assert record.series("fc", "summary").last == 1.0 and record.series(None, "mean").last == 2.0


def test_what_was_refused_supersedes_nothing(run, recwarn):
    with Writer(run) as writer:
        writer.scalar(None, 3, "loss", 1.0)
    with Writer(run) as writer:
        writer.scalar("fc", 0, "loss", 2.0)  # pyright: ignore
    assert values(run, None, "loss") == {3: 1.0}


def test_closing_does_not_wait_for_a_disk_that_refuses(run, summary, quick, recwarn):
    writer = Writer(run, flush_every=1e6)
    with locked(run):
        writer.summary(Site("fc"), 0, "live", summary())
        writer.close()
    assert [str(warning.message).split(f"{run} ")[1] for warning in recwarn] == [
        "could not be written: database is locked; the training goes on",
        "was closed without its last 1 entries; the training goes on",
    ]
    assert not Record(run).complete


def test_closing_is_bounded_even_when_the_disk_hangs(run, summary, monkeypatch):
    writer, stuck = Writer(run, flush_every=1e6), threading.Event()
    monkeypatch.setattr(writer._sink, "write", lambda *args, **kwargs: stuck.wait(60) and [])
    writer.summary(Site("fc"), 0, "live", summary())
    with pytest.warns(NormscopeWarning, match="without its last 1 entries"):
        writer.close(timeout=0.1)
    stuck.set()
    writer.close()


def test_a_fault_of_its_own_does_not_end_the_writing(run, summary, monkeypatch, recwarn):
    writer = Writer(run, flush_every=1e6)
    with monkeypatch.context() as broken:
        broken.setattr(writer._sink, "write", Mock(side_effect=RuntimeError("no such luck")))
        writer.summary(Site("fc"), 0, "live", summary())
        assert not writer.flush()
    assert "no such luck" in str(recwarn.pop(NormscopeWarning).message)
    assert writer.flush()
    writer.close()
    assert list(Record(run).steps) == [0]


def test_warnings_as_errors_do_not_end_the_writing(run, quick):
    writer = Writer(run, flush_every=1e6)
    with locked(run), warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.scalar(None, 0, "loss", 1.0)
        assert not writer.flush()
    writer.close()
    assert values(run, None, "loss") == {0: 1.0}


def test_after_closing_nothing_is_taken_and_nothing_raises(run):
    writer = Writer(run)
    writer.close()
    writer.scalar(None, 0, "loss", 1.0)
    writer.close()
    assert writer.dropped == 1 and writer.flush()


def test_many_threads_write_at_once(run, summary):
    one = summary()

    def work(number):
        for step in range(100):
            writer.summary(Site(f"fc{number}"), step, "live", one)
            writer.scalar(Site(f"fc{number}"), step, "dead", number)

    with Writer(run, flush_every=0.01) as writer:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    record = Record(run)
    assert writer.dropped == 0 and len(record.sites) == 8
    for number in range(8):
        assert list(record.series(f"fc{number}", "mean").steps) == list(range(100))
        assert set(values(run, f"fc{number}", "dead").values()) == {float(number)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_writes_nor_hangs(run, summary):
    writer = Writer(run, flush_every=1e6)
    held, go = threading.Event(), threading.Event()

    def hold():
        with writer._changed:  # as the copy of a lock may be that nobody will ever release
            held.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads and fork, which is the very point
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # so that a hanging child is a failure
        writer.summary(Site("worker"), 1, "live", summary())
        writer.event("note", "from the worker")
        writer.close()
        os._exit(7 if not writer.flush() else 8)
    go.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    writer.scalar(None, 0, "loss", 1.0)
    writer.close()
    record = Record(run)
    assert record.complete and record.sites == () and record.events == ()


def test_a_process_that_forgets_to_close_is_closed_at_its_end(run, child):
    script = """
import sys
from normscope.record.writer import Writer
writer = Writer(sys.argv[1], flush_every=1e6)
writer.scalar(None, 5, "loss", 1.5)
"""
    process = child(script, run)
    assert process.wait() == 0, process.stdout.read()
    assert values(run, None, "loss") == {5: 1.5} and Record(run).complete


def test_a_script_that_changes_its_directory_keeps_its_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Writer("run", flush_every=1e6) as writer:
        record = Record("run")
        monkeypatch.chdir("/")
        writer.scalar(None, 0, "loss", 1.0)
    assert record.complete and len(record.series(None, "loss")) == 1
    assert writer.path == tmp_path / "run"


def test_a_resumed_run_continues_its_record(run, summary):
    for start, steps in ((0, (0, 50, 100, 120)), (100, (100, 150, 200))):
        with Writer(run) as writer:
            for step in steps:
                writer.summary(Site("fc"), step, "live", summary(start + step))
                writer.scalar(None, step, "loss", start)
                writer.event("note", f"at {step}", step=step)
            writer.event("note", f"from {start}")
    record = Record(run)
    assert list(record.steps) == [0, 50, 100, 150, 200]
    assert values(run, None, "loss") == {0: 0.0, 50: 0.0, 100: 100.0, 150: 100.0, 200: 100.0}
    assert [step for step, _ in record.summaries("fc")] == list(record.series("fc", "mean").steps) == list(record.steps)
    assert record.series("fc", "mean").values[2] == summary(200).mean and record.summary("fc", 120) is None
    assert "with 5 summaries" in record.describe()
    assert [event.text for event in record.events] == [
        "at 0",
        "at 50",
        "from 0",
        "segment 2 continues a record that was closed",
        "at 100",
        "at 150",
        "at 200",
        "from 100",
    ]
    with closing(sqlite3.connect(run / "rank0.sqlite")) as file:
        assert file.execute("SELECT count(*) FROM summary").fetchone() == (7,)


def test_a_run_that_starts_again_supersedes_the_one_before(run, summary):
    for path in ("old", "new"):
        with Writer(run) as writer:
            writer.summary(Site(path), 3, "live", summary())
            writer.scalar(None, 3, path, 1.0)
            writer.event("crash", path)
    record = Record(run)
    assert [site.path for site in record.sites] == ["new"] and record.quantities(None) == ("new",)
    assert [event.text for event in record.events] == ["segment 2 continues a record that was closed", "new"]


def test_adding_to_a_closed_record_without_a_step_supersedes_nothing(run):
    with Writer(run) as writer:
        writer.scalar(None, 3, "loss", 1.0)
    with Writer(run) as writer:
        writer.meta(seen=True)
    assert values(run, None, "loss") == {3: 1.0} and Record(run).meta["seen"] is True


def test_one_writer_at_a_time(run, child):
    writer = Writer(run)
    with pytest.raises(RecordError) as error:
        Writer(run)
    assert str(error.value) == (
        "A record was to be written that is being written already.\n"
        f"  found    this process writes `{run / 'rank0.sqlite'}`\n"
        "  because  two writers would mix their steps into one run that never was\n"
        "  do       give each run its own path, and each process of one run its own rank; "
        "or close the other writer first"
    )
    script = "import sys; from normscope.record.writer import Writer; Writer(sys.argv[1])"
    process = child(script, run)
    assert process.wait() == 1 and "found    another process writes" in process.stdout.read()
    Writer(run, rank=1).close()
    writer.close()
    Writer(run).close()


def test_a_file_is_no_place_for_a_record(tmp_path):
    (tmp_path / "a").write_text("mine")
    for path in (tmp_path / "a", tmp_path / "a" / "run"):
        with pytest.raises(RecordError) as error:
            Writer(path)
        assert str(error.value) == (
            "A record was to be written where a file is.\n"
            f"  found    `{tmp_path / 'a'}` is a file\n"
            "  because  a record is a directory, with one file for each process of the run\n"
            "  do       give a directory, such as `runs/a`; it is made when it is missing"
        )
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("content", [b"no database at all, and longer than a header" * 99, "CREATE TABLE mine (x)"])
def test_a_foreign_file_is_left_as_it_is(run, content):
    run.mkdir(parents=True)
    file = run / "rank0.sqlite"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with closing(sqlite3.connect(file)) as foreign:
            foreign.execute(content)
    before = file.read_bytes()
    with pytest.raises(RecordError, match="asked for where there is none"):
        Writer(run)
    assert file.read_bytes() == before and os.listdir(run) == ["rank0.sqlite"]


def test_other_files_in_the_directory_do_not_matter(run):
    run.mkdir(parents=True)
    (run / "checkpoint.pt").write_bytes(b"weights")
    (run / "rank1.sqlite.bak").write_bytes(b"old")
    (run / "rank0.sqlite").touch()
    Writer(run).close()
    assert Record(run).complete
