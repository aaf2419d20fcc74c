"""One writer to a file: the lock beside it, held while the file is written, gone with the process that held it."""

from __future__ import annotations

import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

from normscope.terms.errors import RecordError

try:
    import fcntl
except ImportError:  # no such locks on Windows, where two writers then only meet as two segments
    fcntl = None

_FLOCK = "hhqqi0q"  # struct flock of 64 bits: kind, whence, start, length, process

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

    @staticmethod
    def is_held(file: Path) -> bool | None:
        """Whether a process writes `file` now, without touching its lock; None where the system cannot tell."""
        path = file.with_suffix(".lock")
        if _held.get(os.path.realpath(path)) == os.getpid():
            return True
        if fcntl is None or not sys.platform.startswith("linux"):  # the layout below is Linux's
            return None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
            return struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK
        except OSError:
            return None
        finally:
            os.close(descriptor)

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
