"""The file that is written: opened for each flush, one transaction a flush, whole in between."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from normscope import __version__
from normscope.record import schema
from normscope.record.block import Block, layouts_of
from normscope.record.lock import Lock
from normscope.record.rows import Row, event_row, site_values
from normscope.terms.errors import RecordError
from normscope.terms.site import Site

_INSERT = {
    "summary": "INSERT OR REPLACE INTO summary VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "scalar": "INSERT OR REPLACE INTO scalar VALUES (?, ?, ?, ?, ?)",
    "event": "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)",
    "trial": "INSERT INTO trial VALUES (?, ?, ?)",
    "meta": "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)",
}
_AT_A_STEP = frozenset({"summary", "scalar"})  # their rows have a site, then the step
_BLOCK = "INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?, ?)"
_CONTENTS = "INSERT OR IGNORE INTO contents VALUES (?, ?, ?, ?, ?)"
_SITE = """
    INSERT INTO site VALUES (?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET segment = excluded.segment, role = excluded.role, kind = excluded.kind,
        depth = excluded.depth, channel_axis = excluded.channel_axis, spec = excluded.spec, feeds = excluded.feeds,
        aliases = excluded.aliases
"""
# What a row can be guilty of; everything else is the disk's fault.
_UNFIT = (
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)


class Sink:
    """One rank's file, from the side that writes. Not for several threads at once.

    Between two writes no connection is open: a process that forks carries none into its child, a directory that was
    removed is seen, and what stands on the disk is whole.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = Lock(file)
        self._token = uuid.uuid4().hex
        self._segment = 0
        self._first_step: int | None = None
        self._sites: dict[Site, int] = {}
        self._places: dict[tuple[Site | None, str, str], int] = {}  # whose contents are noted
        self._latest: dict[str, tuple[Sequence[Site], list[int]]] = {}  # by source: sites, and their layouts
        self._meta: dict[str, Row] = {}

    def write(self, rows: Sequence[Row | Block], *, end: bool = False) -> list[str]:
        """Put `rows` into the file in one transaction, and on the disk; `end` says that nothing will follow.

        Returns the reasons of rows that cannot stand in a table; the others are written.
        Raises RecordError when the file is not for this writer, OSError or sqlite3.Error when the disk refuses: then
        nothing was written.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        self._meta.update((row.values[0], row) for row in rows if isinstance(row, Row) and row.table == "meta")
        with closing(self._open()) as connection:
            before = self._segment, self._first_step, dict(self._sites), dict(self._places)
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._continue_segment(connection)
                refused = self._insert(connection, rows)
                if end:
                    connection.execute("UPDATE segment SET ended = ? WHERE id = ?", (time.time(), self._segment))
                connection.execute("COMMIT")
            except BaseException:
                self._segment, self._first_step, self._sites, self._places = before
                self._latest = {}
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            if end:
                with suppress(sqlite3.Error):  # what is in the write-ahead log is on the disk all the same
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return refused

    def release(self) -> None:
        """Let another writer have the file."""
        self._lock.release()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=1.0, isolation_level=None)
        try:
            if not schema.is_empty(connection):
                schema.check(connection, self.file)
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.DatabaseError as error:
            connection.close()
            if type(error) is sqlite3.DatabaseError:  # "file is not a database", and no trouble with the disk
                raise schema.not_a_record(self.file, f"a file that SQLite cannot read ({error})") from error
            raise
        except RecordError:
            connection.close()
            raise
        return connection

    def _continue_segment(self, connection: sqlite3.Connection) -> None:
        """Find this writer's segment in the file, or begin one."""
        if not schema.is_current(connection):
            schema.create(connection)
        if connection.execute("SELECT 1 FROM segment WHERE token = ?", (self._token,)).fetchone():
            return
        notes = list(self._meta.values())
        if self._segment:
            text = "the file of the record was removed while it was written; what it held before is gone"
            notes.append(event_row("fault", text))
        last = connection.execute("SELECT id, ended FROM segment ORDER BY id DESC LIMIT 1").fetchone()
        if last is not None:
            text = f"segment {last[0] + 1} continues a record that {'broke off' if last[1] is None else 'was closed'}"
            notes.append(event_row("note", text, data={"segment": last[0] + 1}))
        self._segment = last[0] + 1 if last else 1
        self._first_step, self._sites, self._places, self._latest = None, {}, {}, {}
        connection.execute(
            "INSERT INTO segment (id, token, version, host, pid, started) VALUES (?, ?, ?, ?, ?, ?)",
            (self._segment, self._token, __version__, socket.gethostname(), os.getpid(), time.time()),
        )
        self._insert(connection, notes)

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[Row | Block]) -> list[str]:
        refused: list[str] = []
        steps: list[int] = []
        for row in rows:
            try:
                steps += self._insert_one(connection, row)
            except _UNFIT as error:  # noqa: PERF203 (one bad row must not cost the others)
                refused.append(f"a {row.table} could not be written: {error!r}")
        for reason in dict.fromkeys(refused):
            connection.execute(_INSERT["event"], (self._segment, *event_row("fault", reason).values))
        self._supersede(connection, min(steps, default=None))
        return refused

    def _insert_one(self, connection: sqlite3.Connection, row: Row | Block) -> Sequence[int]:
        """Insert one row, or those of one step; at which step, if it belongs to one."""
        if isinstance(row, Block):
            for layout, columns in zip(self._layouts(connection, row), row.rows()):
                connection.execute(_BLOCK, (self._segment, layout, *columns))
            return (row.step,)
        if row.table not in _AT_A_STEP:
            connection.execute(_INSERT[row.table], (self._segment, *row.values))
            return ()
        step, name = row.values[:2]
        number = self._place(connection, row.site, step, row.table, name)
        connection.execute(_INSERT[row.table], (self._segment, number, *row.values))
        return (step,)

    def _layouts(self, connection: sqlite3.Connection, block: Block) -> list[int]:
        """The layouts of a block's rows: most often those of the step before."""
        sites, layouts = self._latest.get(block.source, ((), []))
        if sites != block.sites:
            numbers = [self._place(connection, site, block.step, "summary", block.source) for site in block.sites]
            layouts = [self._layout(connection, part) for part in layouts_of(numbers)]
            self._latest[block.source] = block.sites, layouts
        return layouts

    @staticmethod
    def _layout(connection: sqlite3.Connection, sites: bytes) -> int:
        connection.execute("INSERT OR IGNORE INTO layout (sites) VALUES (?)", (sites,))
        (number,) = connection.execute("SELECT id FROM layout WHERE sites = ?", (sites,)).fetchone()
        return number

    def _place(self, connection: sqlite3.Connection, site: Site | None, step: int, table: str, name: str) -> int:
        """The number of a site, which is noted, as is what the record now has of it."""
        known = self._places.get((site, table, name))
        if known is not None:
            return known
        number = 0 if site is None else self._sites.get(site) or self._site(connection, site)
        quantity, source = ("", name) if table == "summary" else (name, "")
        connection.execute(_CONTENTS, (self._segment, number, quantity, source, step))
        self._places[site, table, name] = number
        return number

    def _site(self, connection: sqlite3.Connection, site: Site) -> int:
        """The number of a site that is told for the first time."""
        connection.execute(_SITE, (self._segment, *site_values(site)))
        (self._sites[site],) = connection.execute("SELECT id FROM site WHERE key = ?", (site.key,)).fetchone()
        return self._sites[site]

    def _supersede(self, connection: sqlite3.Connection, first: int | None) -> None:
        """From the first step of this segment on, earlier segments no longer count."""
        if first is None or (self._first_step is not None and self._first_step <= first):
            return
        connection.execute("UPDATE segment SET first_step = ? WHERE id = ?", (first, self._segment))
        connection.execute("UPDATE segment SET until_step = min(until_step, ?) WHERE id < ?", (first, self._segment))
        self._first_step = first
