"""Whatever stands in a file, the reader tells it, or says in four lines why it cannot."""

import json
import os
import sqlite3
import zlib
from contextlib import closing

import numpy as np
import pytest

from normscope.record import schema
from normscope.record.blob import pack
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.terms.errors import RecordError, UnknownNameError
from normscope.terms.site import Site


@pytest.fixture
def small(run, summary):
    """A record of one layer over two steps."""
    with Writer(run) as writer:
        for step in (0, 1):
            writer.summary(
                Site("fc", "output", role="producer", depth=1, aliases=("head",)), step, "live", summary(step)
            )
            writer.summary(Site("in", "output", role="producer", depth=0), step, "live", summary(step))
            writer.scalar(None, step, "loss", step)
        writer.event("note", "hello")
    return run


def change(run, sql, *arguments):
    """What a stranger may have done to the file."""
    with closing(sqlite3.connect(run / "rank0.sqlite")) as file:
        file.execute(sql, arguments)
        file.commit()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda place: None, "nothing at `{place}`"),
        (lambda place: place.mkdir(), "a directory without any rank<N>.sqlite at `{place}`"),
        (
            lambda place: (place / "rank0.sqlite").mkdir(parents=True),
            "a file that cannot be opened (unable to open database file) at `{place}/rank0.sqlite`",
        ),
        (lambda place: place.touch(), "a file of zero bytes at `{place}`"),
        (
            lambda place: place.write_bytes(b"junk" * 1000),
            "a file that SQLite cannot read (file is not a database) at `{place}`",
        ),
        (
            lambda place: sqlite3.connect(place).execute("CREATE TABLE mine (x)"),
            "an SQLite file of another program at `{place}`",
        ),
        (lambda place: sqlite3.connect(place).execute("PRAGMA user_version = 1"), "an empty database at `{place}`"),
    ],
)
def test_what_is_no_record_is_told_apart(tmp_path, make, found):
    place = tmp_path / "a"
    connection = make(place)
    if isinstance(connection, sqlite3.Cursor):
        connection.connection.close()
    with pytest.raises(RecordError) as error:
        Record(place)
    assert str(error.value) == (
        "A record was asked for where there is none.\n"
        f"  found    {found.format(place=place)}\n"
        "  because  a record is an SQLite file rank<N>.sqlite that normscope.watch wrote\n"
        "  do       give the run directory that watch was given, such as `runs/a`"
    )


def test_a_newer_schema_is_refused_on_both_sides(small):
    change(small, f"PRAGMA user_version = {schema.VERSION + 1}")
    for opened in (Record, Writer):
        with pytest.raises(RecordError) as error:
            opened(small)
        assert str(error.value) == (
            "A record was opened that a newer Normscope wrote.\n"
            f"  found    schema={schema.VERSION + 1}, file=`{small / 'rank0.sqlite'}`\n"
            f"  because  this Normscope reads schemas up to {schema.VERSION}, and cannot know what a later one means\n"
            "  do       pip install --upgrade normscope"
        )


def test_the_directory_its_file_and_a_record_are_the_same_record(small):
    whole = Record(small)
    for path in (str(small), small / "rank0.sqlite", whole):
        assert list(Record(path).steps) == [0, 1]
    assert Record(whole).path == small


def test_reading_leaves_nothing_behind(small):
    before = {file: (small / file).read_bytes() for file in os.listdir(small)}
    with Record(small) as record:
        record.describe()
        record.series("fc", "quantiles")
    assert {file: (small / file).read_bytes() for file in os.listdir(small)} == before


def test_a_truncated_file_is_damaged(small):
    file = small / "rank0.sqlite"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(RecordError):
        Record(small).series("fc", "mean")


@pytest.mark.parametrize(
    ("sql", "asked"),
    [
        ("UPDATE summary SET arrays = x'80049525000000'", lambda record: record.summary("fc", 0)),
        ("UPDATE summary SET arrays = 'words'", lambda record: record.summaries("fc")),
        ("UPDATE summary SET mean = 'words'", lambda record: record.series("fc", "mean")),
        ("UPDATE site SET depth = 'deep'", lambda record: record.sites),
        ("UPDATE site SET aliases = '['", lambda record: record.sites),
        ("UPDATE site SET aliases = '1'", lambda record: record.sites),
        ('UPDATE site SET spec = \'{"over": "X"}\'', lambda record: record.sites),
        ("UPDATE site SET spec = '[]'", lambda record: record.sites),
        ("UPDATE event SET data = '{'", lambda record: record.events),
        ("UPDATE event SET time = 'now'", lambda record: record.events),
        ("UPDATE meta SET value = ''", lambda record: record.meta),
        ("UPDATE scalar SET value = 'low'", lambda record: record.series(None, "loss")),
        ("INSERT INTO trial VALUES (1, 0, '{}')", lambda record: record.trials),
        ("DROP TABLE event", lambda record: record.events),
        ("ALTER TABLE summary RENAME TO other", lambda record: record.series("fc", "mean")),
    ],
)
def test_what_a_stranger_wrote_is_data_or_a_record_error(small, sql, asked):
    change(small, sql)
    with Record(small) as record, pytest.raises(RecordError) as error:
        asked(record)
    assert len(str(error.value).splitlines()) == 4 and "cannot be read" in str(error.value)


CHANNELS = {f"channels.{name}": np.zeros(3) for name in ("count", "mean", "m2")}


@pytest.mark.parametrize(
    "arrays",
    [
        pack({}),
        pack(CHANNELS),
        pack({"code": np.array([0, 9], np.uint8), **CHANNELS}),
        pack({"code": np.array([], np.uint8)}),
        b"\0\x85",
        b"\0\xff\x7f\x01\x01",
    ],
)
def test_arrays_that_are_no_sketch_are_a_record_error(small, arrays):
    change(small, "UPDATE summary SET arrays = ?", arrays)
    with pytest.raises(RecordError, match="A summary in a record cannot be read"):
        Record(small).summary("fc", 0)


def test_numbers_do_not_need_the_arrays(small, summary):
    change(small, "UPDATE summary SET arrays = ?", zlib.compress(b"junk"))
    record = Record(small)
    for quantity in ("mean", "std", "min", "max", "zeros", "nonfinite"):
        assert len(record.series("fc", quantity)) == 2
    assert record.series("fc", "mean").values[0] == summary(0).mean
    with pytest.raises(RecordError):
        record.series("fc", "quantiles")


def test_a_record_on_a_disk_that_may_only_be_read(small_disk, summary):
    disk, remount = small_disk
    with Writer(disk / "run") as writer:
        writer.summary(Site("fc"), 0, "live", summary())
    remount("ro")
    record = Record(disk / "run")
    assert list(record.steps) == [0] and record.complete
    record.close()
    remount("rw")
    with Writer(disk / "run") as writer:
        writer.summary(Site("fc"), 1, "live", summary())
    assert list(record.steps) == [0, 1]
    record.close()


def test_a_write_ahead_log_on_a_disk_that_may_only_be_read_is_read_too(small_disk, small):
    disk, remount = small_disk
    with closing(sqlite3.connect(small / "rank0.sqlite", isolation_level=None)) as file:
        file.execute("PRAGMA wal_autocheckpoint = 0")
        file.execute("UPDATE scalar SET value = 5.0")
        (disk / "run").mkdir()
        for name in ("rank0.sqlite", "rank0.sqlite-wal"):
            (disk / "run" / name).write_bytes((small / name).read_bytes())
    remount("ro")
    with Record(disk / "run") as record:
        assert set(record.series(None, "loss").values) == {5.0} and list(record.steps) == [0, 1]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_that_may_only_be_read(small):
    os.chmod(small, 0o500)
    try:
        assert list(Record(small).steps) == [0, 1]
    finally:
        os.chmod(small, 0o700)


def test_each_question_sees_what_was_last_flushed(run, summary):
    with Writer(run, flush_every=1e6) as writer:
        record = Record(run)
        assert not len(record.steps) and record.sites == () and record.quantities(None) == ()
        with pytest.raises(UnknownNameError, match="nothing is recorded yet"):
            record.series("fc", "mean")
        for step in range(3):
            writer.summary(Site("fc"), step, "live", summary(step))
            assert writer.flush()
            assert list(record.series("fc", "mean").steps) == list(range(step + 1))
        assert not record.complete
    assert record.complete


def test_a_file_that_rests_is_opened_once(small, monkeypatch):
    opened = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: opened.append(args) or connect(*args, **kwargs))
    record = Record(small)
    for _ in range(5):
        record.series("fc", "mean")
    assert len(opened) == 1


def test_a_rank_that_begins_later_is_seen(run, summary):
    with Writer(run) as first:
        record = Record(run)
        first.summary(Site("fc"), 0, "live", summary(0))
        first.flush()
        (run / "rank1.sqlite").touch()
        assert len(record.series("fc", "mean")) == 1
        with Writer(run, rank=1) as second:
            second.summary(Site("fc"), 1, "live", summary(1))
        assert list(record.steps) == [0, 1] and not record.complete
    assert record.complete


def test_a_record_replaced_under_the_reader_is_read_anew(run, summary, tmp_path):
    for place, step in ((run, 1), (tmp_path / "other", 2)):
        with Writer(place) as writer:
            writer.summary(Site("fc"), step, "live", summary())
    record = Record(run)
    assert list(record.steps) == [1]
    os.replace(tmp_path / "other" / "rank0.sqlite", run / "rank0.sqlite")
    assert list(record.steps) == [2]
    os.unlink(run / "rank0.sqlite")
    with pytest.raises(RecordError, match="asked for where there is none"):
        _ = record.steps


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_reads_for_itself(small):
    record = Record(small)
    assert len(record.steps) == 2
    child = os.fork()
    if child == 0:
        os._exit(0 if len(record.steps) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(record.steps) == 2


def test_it_tells_for_how_long_it_was_recorded(small):
    change(small, "UPDATE segment SET started = 100, ended = 160")
    change(small, "INSERT INTO segment (token, version, host, pid, started, ended) VALUES ('', '', '', 0, 300, 330)")
    change(small, "INSERT INTO segment (token, version, host, pid, started) VALUES ('broke off', '', '', 0, 400)")
    assert Record(small).seconds == 90


def test_sites_stand_in_execution_order(small):
    assert [site.path for site in Record(small).sites] == ["in", "fc"]


@pytest.mark.parametrize(
    ("ask", "found", "do"),
    [
        (lambda r: r.series("fcc", "mean"), "`fcc`", "did you mean `fc`? choose from: fc, in"),
        (lambda r: r.series("fc:input", "mean"), "`fc:input`", "did you mean `fc:output`"),
        (lambda r: r.series(Site("fc", "update"), "mean"), "`fc:update`", "choose from: fc:output, in:output"),
        (lambda r: r.series("fc", "meen"), "`meen`", "did you mean `mean`"),
        (lambda r: r.series(None, "los"), "`los`", "did you mean `loss`"),
        (lambda r: r.series(None, "mean"), "`mean`", "learning_rate, loss, "),
        (lambda r: r.series("fc", "mean", source="alive"), "`alive`", "did you mean `live`? choose from: live, probe"),
        (lambda r: r.shift("fc", distance="wasserstein"), "`wasserstein`", "did you mean `wasserstein"),
        (lambda r: r.shift("fc", against="last"), "`last`", "choose from: previous, start"),
        (lambda r: r.shift("fc", kind="outer"), "`outer`", "choose from: external, internal"),
        (lambda r: r.quantities("nowhere"), "`nowhere`", "choose from: fc, in"),
        (lambda r: r.summary("nowhere", 0), "`nowhere`", "choose from: fc, in"),
        (lambda r: r.series("fc:nothing", "mean"), "`fc:nothing`", "write it like"),
    ],
)
def test_an_unknown_name_is_told_with_the_near_ones(small, ask, found, do):
    with pytest.raises(UnknownNameError) as error:
        ask(Record(small))
    assert error.value.found == found and do in error.value.do


def test_another_path_of_a_module_leads_to_its_first(small):
    with pytest.raises(UnknownNameError) as error:
        Record(small).series("head", "mean")
    assert error.value.do == "choose from: fc" and "recorded under its first one" in error.value.because


def test_it_describes_itself(small):
    record = Record(small)
    assert repr(record) == f"Record({str(small)!r}: 2 sites, 2 sampled steps, complete)"
    assert record.describe() == (
        f"record    {small}, complete\n"
        "steps     2 sampled steps, 0 to 1\n"
        "sites     2, with 4 summaries\n"
        "scalars   loss\n"
        "events    1 (note)\n"
        "ranks     0"
    )
    assert record._repr_html_().startswith("<pre>record    ") and "<script" not in record._repr_html_()


def test_a_series_is_a_value(small):
    series = Record(small).series(None, "loss")
    assert len(series) == 2 and series.last == 1.0
    assert json.loads(json.dumps(series.to_dict())) == {
        "site": None,
        "quantity": "loss",
        "source": "",
        "steps": [0, 1],
        "values": [0.0, 1.0],
    }
    assert repr(series) == "Series(loss of the run: 2 values, steps 0…1, last 1)"
    with pytest.raises(ValueError, match="read-only"):
        series.values[0] = 3.0
