"""A database that is read: also while it is written, also where nothing may be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normscope.record import schema
from normscope.record.malformed import malformed
from normscope.terms.errors import RecordError

Rows = list[tuple[Any, ...]]


class Database:
    """The answers of one file. Each query sees what was last flushed. Any thread may ask, and a forked child.

    Raises RecordError when the file is no record, is of a newer schema, or is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._log = file.with_name(file.name + "-wal")
        self._lock = threading.Lock()
        self._opened: tuple[Any, sqlite3.Connection] | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None

    def query(self, sql: str, arguments: Iterable[Any] = ()) -> Rows:
        """All rows of a SELECT."""
        with self._lock:
            try:
                return self._connection().execute(sql, tuple(arguments)).fetchall()
            except (sqlite3.Error, OverflowError) as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Let the file go until the next query."""
        with self._lock:
            self._close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the process even `os` may be gone
            self._close()

    def _connection(self) -> sqlite3.Connection:
        now = self._state()
        if self._opened is None or self._opened[0] != now:
            self._close()
            connection = self._open()
            # SQLite itself may have laid an empty log beside the file, which is no change.
            self._opened = (*now[:2], *self._state()[2:]), connection
        return self._opened[1]

    def _state(self) -> tuple[Any, ...]:
        """What a connection is good for: this process, and these very files."""
        try:
            told = [self.file.stat()]
        except OSError as error:
            raise schema.not_a_record(self.file, f"nothing that can be read ({error.strerror})") from error
        if told[0].st_size == 0:
            raise schema.not_a_record(self.file, "a file of zero bytes")
        with suppress(OSError):
            told.append(self._log.stat())
        return os.getpid(), *((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in told)

    def _close(self) -> None:
        if self._opened is not None and self._opened[0][0] == os.getpid():
            self._opened[1].close()
        self._opened = None
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _open(self) -> sqlite3.Connection:
        # Not mode=ro: such a connection leaves the files of the write-ahead log behind, for it may not remove them.
        try:
            return self._checked(self.file, "mode=rw")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise self._failed(error) from error
        except sqlite3.DatabaseError as error:
            raise schema.not_a_record(self.file, f"a file that SQLite cannot read ({error})") from error
        try:
            return self._as_it_lies()
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, RecordError):
                raise
            raise schema.not_a_record(self.file, f"a file that cannot be opened ({error})") from error

    def _as_it_lies(self) -> sqlite3.Connection:
        """Where the disk is full or may not be written: SQLite cannot put the index of its log beside the file."""
        if not self._log.exists() or self._log.stat().st_size == 0:
            return self._checked(self.file, "immutable=1")
        self._copy = tempfile.TemporaryDirectory(prefix="normscope-")
        for file in (self.file, self._log):
            shutil.copy(file, self._copy.name)
        return self._checked(Path(self._copy.name) / self.file.name, "mode=rw")

    def _checked(self, file: Path, how: str) -> sqlite3.Connection:
        uri = f"file:{quote(str(file.absolute()))}?{how}"
        connection = sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA query_only = ON")
            schema.check(connection, self.file)
        except (sqlite3.Error, RecordError):
            connection.close()
            raise
        return connection

    def _failed(self, error: Exception) -> RecordError:
        if "locked" not in str(error):
            return malformed("A table", f"`{self.file}`", error)
        return RecordError(
            "A record was to be read that another program keeps to itself.",
            found=f"{error}: `{self.file}`",
            because="a program holds the file for writing alone, which Normscope does not do",
            do="close that program, or ask again",
        )
