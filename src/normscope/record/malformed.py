"""A record from a stranger is data: whatever in it cannot be read is a RecordError, and nothing else."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from normscope.terms.errors import RecordError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SIGNS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError, zlib.error)


def malformed(what: str, found: str, error: BaseException) -> RecordError:
    """The error for something in a record that cannot be read."""
    return RecordError(
        f"{what} in a record cannot be read.",
        found=f"{found}: {error}",
        because="the file is damaged, or was not written by Normscope",
        do="restore the file from a copy; what else the record holds can still be read",
    )


def reading(what: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorates a function that makes a `what` of what stands in the file: its failures become RecordError."""

    def guard(read: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(read)
        def guarded(*stored: _P.args, **named: _P.kwargs) -> _T:
            try:
                return read(*stored, **named)
            except _SIGNS as error:
                raise malformed(what, f"{stored!r:.80}", error) from error

        return guarded

    return guard
