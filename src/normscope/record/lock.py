"""One writer to a file: the lock beside it, held while the file is written, gone with the process that held it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from normscope.terms.errors import RecordError

try:
    import fcntl
except ImportError:  # no such locks on Windows, where two writers then only meet as two segments
    fcntl = None

_held: dict[str, int] = {}  # lock → the process that took it here; a process's own locks do not guard against itself


class Lock:
    """The right to write `file`. `acquire` raises RecordError while another writer has it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._path = file.with_suffix(".lock")
        self._key = os.path.realpath(self._path)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or take it again when its file was removed. Raises RecordError, or OSError from the disk."""
        if fcntl is None or self._is_mine():
            return
        self.release()
        if _held.get(self._key) == os.getpid():
            raise self._taken("this process")
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise self._taken("another process") from None
        except OSError:
            pass  # a file system without locks
        self._descriptor = descriptor
        _held[self._key] = os.getpid()

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._descriptor is None:
            return
        if self._is_mine():
            with suppress(OSError):
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None
        _held.pop(self._key, None)

    def _is_mine(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except OSError:
            return False

    def _taken(self, by: str) -> RecordError:
        return RecordError(
            "A record was to be written that is being written already.",
            found=f"{by} writes `{self._file}`",
            because="two writers would mix their steps into one run that never was",
            do="give each run its own path, and each process of one run its own rank; or close the other writer first",
        )
