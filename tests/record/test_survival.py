"""Killed, out of space, without its directory: training goes on, and the record holds what it can and says the rest."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from normscope.record.lock import Lock
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.terms.errors import NormscopeWarning, RecordError
from normscope.terms.site import Site

ENDLESS = """
import itertools, sys
import numpy as np
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.site import Site

writer = Writer(sys.argv[1], flush_every=0.02)
one = Summary.of(np.linspace(-1, 1, 500))
for step in itertools.count():
    writer.summary(Site("fc"), step, "live", one)
    writer.scalar(None, step, "loss", step)
    if step % 50 == 0 and writer.flush():
        print(step, flush=True)
"""


def integrity(run):
    with closing(sqlite3.connect(run / "rank0.sqlite")) as file:
        return file.execute("PRAGMA integrity_check").fetchone()[0]


def kinds(record):
    return [event.kind for event in record.events]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("marks", [1, 20])
def test_after_a_kill_it_holds_all_up_to_the_last_flush(run, child, marks):
    process = child(ENDLESS, run)
    flushed = [int(process.stdout.readline()) for _ in range(marks)][-1]
    process.send_signal(signal.SIGKILL)
    process.wait()
    flushed = max([flushed, *map(int, process.stdout.read().split())])
    with Record(run) as record:
        assert list(record.steps[: flushed + 1]) == list(range(flushed + 1))
        assert list(record.series(None, "loss").values[: flushed + 1]) == list(range(flushed + 1))
        assert all(summary.size == 500 for _, summary in record.summaries("fc"))
        assert not record.complete
    assert integrity(run) == "ok"

    with Writer(run) as writer:
        writer.scalar(None, flushed + 1, "loss", -1.0)
    record = Record(run)
    assert (
        record.complete and record.series(None, "loss").last == -1.0 and len(record.series(None, "loss")) == flushed + 2
    )
    assert record.events[0].text == "segment 2 continues a record that broke off"


def fill(writer, summary, steps):
    for step in steps:
        writer.summary(Site("fc"), step, "live", summary)
        writer.scalar(None, step, "loss", step)


def test_a_full_disk_does_not_stop_training_and_the_record_says_what_is_missing(small_disk, summary, recwarn):
    disk, _ = small_disk
    (disk / "ballast").write_bytes(bytes(600_000))
    writer = Writer(disk / "run", flush_every=1e6, queue_limit=200)
    fill(writer, summary(), range(100))
    assert writer.flush()
    step = 100
    while writer.flush():
        fill(writer, summary(), range(step, step + 100))
        step += 100
    fill(writer, summary(), range(step, step + 1000))
    assert not writer.flush() and not writer.flush()
    assert ["the training goes on" in str(warning.message) for warning in recwarn] == [True]
    before = Record(disk / "run")
    held = list(before.steps)
    assert held == list(range(len(held))) and not before.complete and len(held) >= 100
    before.close()

    (disk / "ballast").unlink()
    assert writer.flush()
    fill(writer, summary(), [9999])
    writer.close()
    record = Record(disk / "run")
    (dropped,) = (event for event in record.events if event.kind == "dropped")
    (fault,) = (event for event in record.events if event.kind == "fault")
    assert "could not be written" in fault.text and "full" in fault.text
    assert dropped.data["summary"] == writer.dropped > 0 and dropped.data["last_step"] == step + 999
    missing = set(range(step + 1000)) - set(record.steps.tolist())
    assert len(missing) == writer.dropped and missing == set(range(dropped.data["first_step"], step + 1000))
    assert len(record.series(None, "loss")) == step + 1001
    assert record.complete and record.steps[-1] == 9999 and integrity(disk / "run") == "ok"


def test_closing_on_a_full_disk_leaves_a_record_that_opens(small_disk, summary, recwarn):
    disk, _ = small_disk
    writer = Writer(disk / "run", flush_every=1e6)
    fill(writer, summary(), range(10))
    assert writer.flush()
    (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
    fill(writer, summary(), range(10, 2000))
    writer.close()
    assert "was closed without its last" in str(recwarn.list[-1].message)
    record = Record(disk / "run")
    assert list(record.steps) == list(range(10)) and not record.complete
    (disk / "ballast").unlink()
    assert list(record.steps) == list(range(10)) and integrity(disk / "run") == "ok"


def test_closing_with_room_for_little_keeps_what_happened_and_says_what_is_missing(small_disk, summary, recwarn):
    disk, _ = small_disk
    writer = Writer(disk / "run", flush_every=1e6)
    fill(writer, summary(), range(10))
    assert writer.flush()
    (disk / "ballast").write_bytes(bytes((os.statvfs(disk).f_bavail - 16) * os.statvfs(disk).f_frsize))
    fill(writer, summary(), range(10, 2000))
    writer.event("crash", "the script raised", step=1999)
    writer.close()
    assert "was closed without its last 3980 entries" in str(recwarn.list[-1].message)
    record = Record(disk / "run")
    assert list(record.steps) == list(range(10)) and not record.complete
    crash, fault, dropped = sorted(record.events, key=lambda event: event.kind != "crash")
    assert (crash.kind, fault.kind, dropped.kind) == ("crash", "fault", "dropped")
    assert (dropped.data["summary"], dropped.data["scalar"]) == (1990, 1990)
    assert (dropped.data["first_step"], dropped.data["last_step"]) == (10, 1999)


LIMITED = """
import resource, sys, warnings
import numpy as np
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.site import Site

warnings.simplefilter("ignore")
one = Summary.of(np.random.default_rng(0).standard_normal(8192))
writer = Writer(sys.argv[1], flush_every=1e6, queue_limit=300)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, unlimited[1]))
for step in range(4000):
    writer.summary(Site(f"fc{step // 100}"), step, "live", one)
    if step % 100 == 99:
        writer.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
writer.close()
print(writer.dropped)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_file_that_may_not_grow_is_as_a_full_disk(run, child):
    process = child(LIMITED, run)
    told = process.stdout.read()
    assert process.wait() == 0, told
    record = Record(run)
    dropped = sum(event.data["summary"] for event in record.events if event.kind == "dropped")
    assert dropped == int(told) > 0 and len(record.steps) == 4000 - dropped
    assert sum(len(record.series(site, "mean")) for site in record.sites) == 4000 - dropped
    assert record.complete and "fault" in kinds(record) and integrity(run) == "ok"


def test_a_directory_that_is_removed_is_made_again(run, summary):
    writer = Writer(run, flush_every=1e6, meta={"model": "MLP"})
    fill(writer, summary(), range(10))
    assert writer.flush()
    shutil.rmtree(run)
    fill(writer, summary(), range(10, 20))
    assert writer.flush()
    fill(writer, summary(), range(20, 30))
    writer.close()
    record = Record(run)
    assert list(record.steps) == list(range(10, 30)) and record.meta["model"] == "MLP" and record.complete
    (fault,) = (event for event in record.events if event.kind == "fault")
    assert fault.text == "the file of the record was removed while it was written; what it held before is gone"


def test_a_path_that_is_blocked_for_a_while(run, summary, recwarn):
    writer = Writer(run, flush_every=1e6)
    fill(writer, summary(), range(10))
    assert writer.flush()
    run.rename(run.with_name("away"))
    run.write_text("in the way")
    fill(writer, summary(), range(10, 20))
    assert not writer.flush()
    run.unlink()
    run.with_name("away").rename(run)
    writer.close()
    record = Record(run)
    assert list(record.steps) == list(range(20)) and kinds(record) == ["fault"] and record.complete
    assert "could not be written" in str(recwarn.pop(NormscopeWarning).message)


def test_a_run_that_starts_where_nothing_may_be_written(small_disk, summary, recwarn):
    disk, remount = small_disk
    remount("ro")
    writer = Writer(disk / "run", flush_every=1e6)
    fill(writer, summary(), range(3))
    remount("rw")
    writer.close()
    record = Record(disk / "run")
    assert list(record.steps) == [0, 1, 2] and kinds(record) == ["fault"] and record.complete
    assert "could not be written" in str(recwarn.pop(NormscopeWarning).message)


def test_a_record_is_followed_while_it_is_written(run, child):
    process = child(ENDLESS, run)
    process.stdout.readline()
    kept, seen = Record(run), 0
    while seen < 1000:
        with Record(run) as record:
            steps = record.series("fc", "mean").steps
            assert list(steps) == list(range(len(steps))) and len(steps) >= seen
            seen = len(steps)
        assert len(kept.steps) >= seen and not kept.complete
    process.terminate()
    process.wait()
    assert integrity(run) == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="only there a lock can be seen without taking it")
def test_the_state_of_a_run_says_whether_somebody_still_writes_it(tmp_path, monkeypatch):
    code = f"""
import sys
from normscope.record.writer import Writer
Writer({str(tmp_path)!r}).flush()
print("written", flush=True)
sys.stdin.read()
"""
    writing = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writing.stdout.readline() == b"written\n"
    record = Record(tmp_path)
    assert record.state == "in progress" and "in progress" in repr(record)
    assert not Lock.is_held(tmp_path / "rank7.sqlite")
    writing.kill()
    writing.wait()
    writing.stdout.close(), writing.stdin.close()
    assert record.state == "broken off" and "broken off" in record.describe()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "another")
        assert record.state == "in progress, or broken off"
    with Writer(tmp_path):  # this process's own lock is not lost by asking
        assert record.state == Record(tmp_path).state == "in progress"
        with pytest.raises(RecordError, match="being written already"):
            Writer(tmp_path)
    assert record.state == "complete"
