"""The tables of a record, in one place, with what a reader of another tool needs to know.

A run directory holds one SQLite file per process of the run, ``rank0.sqlite``, ``rank1.sqlite``, …, each in
write-ahead-log mode, recognizable by its ``application_id`` and versioned by its ``user_version``.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from normscope.terms.errors import RecordError

VERSION = 2  # 1 had no blocks
APPLICATION_ID = 0x4E534350  # "NSCP"
_FILE = re.compile(r"^rank(\d+)\.sqlite$")

DDL = """
-- A segment is one stretch of writing by one process. A resumed run adds a segment. What a later segment recorded
-- from its first step on supersedes what earlier segments hold from that step on: a row counts while
-- step < segment.until_step. Superseded rows stay in the file.
CREATE TABLE IF NOT EXISTS segment (
    id         INTEGER PRIMARY KEY,                  -- 1, 2, … in the order of writing
    token      TEXT NOT NULL UNIQUE,                 -- of the writer, random
    version    TEXT NOT NULL,                        -- of Normscope
    host       TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    started    REAL NOT NULL,                        -- seconds since 1970, UTC, as every time here
    ended      REAL,                                 -- NULL: still being written, or the process died
    first_step INTEGER,                              -- the lowest step it recorded
    until_step INTEGER NOT NULL DEFAULT 9223372036854775807
);

-- What is known of the run as a whole; value is JSON.
CREATE TABLE IF NOT EXISTS meta (
    segment INTEGER NOT NULL REFERENCES segment (id),
    key     TEXT PRIMARY KEY,
    value   TEXT NOT NULL
);

-- A place in the network where one tensor is observed; key is path[#call][@name]:what.
CREATE TABLE IF NOT EXISTS site (
    segment      INTEGER NOT NULL REFERENCES segment (id),  -- the last that described it
    id           INTEGER PRIMARY KEY,
    key          TEXT NOT NULL UNIQUE,
    path         TEXT NOT NULL,
    what         TEXT NOT NULL,                      -- input, output, gradient, parameter, update, statistic
    call         INTEGER NOT NULL,
    name         TEXT NOT NULL,
    role         TEXT NOT NULL,                      -- norm, producer, activation, other
    kind         TEXT NOT NULL,                      -- class of the module or name of the function
    depth        INTEGER NOT NULL,                   -- execution order, -1 unknown
    channel_axis INTEGER,
    spec         TEXT,                               -- JSON of the normalization, NULL for what is none
    feeds        TEXT,                               -- the activation that consumes this output
    aliases      TEXT NOT NULL                       -- JSON list of further paths
);

CREATE INDEX IF NOT EXISTS site_of ON site (path, call);

-- The distribution of one tensor at one step, told alone. The columns are of the finite elements that were looked at;
-- variance = m2 / count. A NULL in a REAL column is NaN. The arrays are a byte 0 and the filled bins of the sketch as
-- stats/code.py describes; where there are moments per channel as well, a blob as in blob.py of both.
CREATE TABLE IF NOT EXISTS summary (
    segment INTEGER NOT NULL REFERENCES segment (id),
    site    INTEGER NOT NULL REFERENCES site (id),
    step    INTEGER NOT NULL,                        -- optimizer steps taken before
    source  TEXT NOT NULL,                           -- live, probe, probe_eval
    size    INTEGER NOT NULL,                        -- elements of the tensor
    count   INTEGER NOT NULL,                        -- finite elements looked at
    mean    REAL,
    m2      REAL,                                    -- sum of squared deviations from the mean
    low     REAL,
    high    REAL,
    zeros   INTEGER NOT NULL,
    nan     INTEGER NOT NULL,
    pos_inf INTEGER NOT NULL,
    neg_inf INTEGER NOT NULL,
    arrays  BLOB NOT NULL                            -- the sketch, and moments per channel
);
-- Steps lead, so that a step is appended to the end of the index and does not touch a page per site.
CREATE UNIQUE INDEX IF NOT EXISTS summary_at ON summary (step, source, site, segment);

-- Which sites a block tells of, in their order: their numbers, little-endian int32.
CREATE TABLE IF NOT EXISTS layout (
    id    INTEGER PRIMARY KEY,
    sites BLOB NOT NULL UNIQUE
);

-- The distributions of many tensors at one step, without channels: what `summary` would hold in a row for each.
-- numbers: for each site eleven float64, little-endian: count, mean, m2, low, high, zeros, nan, pos_inf, neg_inf, size
-- as in `summary`, and where its sketch ends in `codes`: sketches as in stats/code.py, one after the other.
CREATE TABLE IF NOT EXISTS block (
    segment   INTEGER NOT NULL REFERENCES segment (id),
    layout    INTEGER NOT NULL REFERENCES layout (id),
    step      INTEGER NOT NULL,
    source    TEXT NOT NULL,
    nonfinite INTEGER NOT NULL,                      -- elements that are not finite, of all its tensors
    numbers   BLOB NOT NULL,
    codes     BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS block_at ON block (step, source, layout, segment);

-- One number. site 0 is the whole run.
CREATE TABLE IF NOT EXISTS scalar (
    segment  INTEGER NOT NULL REFERENCES segment (id),
    site     INTEGER NOT NULL,
    step     INTEGER NOT NULL,
    quantity TEXT NOT NULL,
    value    REAL,                                   -- NULL is NaN
    PRIMARY KEY (site, quantity, step, segment)
) WITHOUT ROWID;

-- What there is: one row for every series of scalars, and for every run of summaries (quantity '').
CREATE TABLE IF NOT EXISTS contents (
    segment    INTEGER NOT NULL REFERENCES segment (id),
    site       INTEGER NOT NULL,
    quantity   TEXT NOT NULL,
    source     TEXT NOT NULL,                        -- '' for scalars
    first_step INTEGER NOT NULL,
    PRIMARY KEY (site, quantity, source, segment)
) WITHOUT ROWID;

-- Something that happened: fault, crash, nonfinite, skipped, dropped, note, end.
CREATE TABLE IF NOT EXISTS event (
    segment INTEGER NOT NULL REFERENCES segment (id),
    time    REAL NOT NULL,
    step    INTEGER,
    kind    TEXT NOT NULL,
    text    TEXT NOT NULL,
    data    TEXT NOT NULL                            -- JSON
);

-- A controlled comparison of treated and untreated; data is JSON.
CREATE TABLE IF NOT EXISTS trial (
    segment INTEGER NOT NULL REFERENCES segment (id),
    time    REAL NOT NULL,
    data    TEXT NOT NULL
);
"""


def file_name(rank: int) -> str:
    """The name of a rank's file in the run directory."""
    return f"rank{rank}.sqlite"


def rank_of(name: str) -> int | None:
    """The rank whose file has this name, or None for any other file."""
    match = _FILE.match(name)
    return int(match[1]) if match else None


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty database, or those that an older schema lacks, inside the caller's transaction."""
    for statement in _statements(DDL):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the database has no tables yet."""
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def is_current(connection: sqlite3.Connection) -> bool:
    """Whether the database has all tables."""
    return connection.execute("PRAGMA user_version").fetchone()[0] == VERSION


def check(connection: sqlite3.Connection, file: Path) -> None:
    """Refuse a database that is no record, or of a schema newer than this version knows (RecordError)."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID and is_empty(connection):
        raise not_a_record(file, "an empty database")
    if application != APPLICATION_ID:
        raise not_a_record(file, "an SQLite file of another program")
    if version > VERSION:
        raise RecordError(
            "A record was opened that a newer Normscope wrote.",
            found={"schema": version, "file": f"`{file}`"},
            because=f"this Normscope reads schemas up to {VERSION}, and cannot know what a later one means",
            do="pip install --upgrade normscope",
        )


def not_a_record(file: Path, found: str) -> RecordError:
    """The error for `file`, which is `found`."""
    return RecordError(
        "A record was asked for where there is none.",
        found=f"{found} at `{file}`",
        because="a record is an SQLite file rank<N>.sqlite that normscope.watch wrote",
        do="give the run directory that watch was given, such as `runs/a`",
    )


def _statements(script: str) -> list[str]:
    bare = re.sub(r"--[^\n]*", "", script)
    return [statement.strip() for statement in bare.split(";") if statement.strip()]
