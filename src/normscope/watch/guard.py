"""`Guard`: the one door through which Normscope enters a training loop. It keeps time, and lets no exception out."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

from normscope.terms.errors import NormscopeWarning

PATIENCE = 3
"""A part that has failed this often is switched off: the same fault is likely to come again at every step."""


class Guard:
    """Runs Normscope's own code inside somebody else's loop.

    An exception is told to `tell` as an event "fault", warned about once, and goes no further; a part that keeps
    failing is switched off. `KeyboardInterrupt` and `SystemExit` pass. The time spent inside is counted.

    Attributes:
        spent: seconds spent in guarded code so far.
        parts: the same by part; a part that runs inside another counts in both.
    """

    def __init__(self, tell: Callable[..., None]) -> None:
        self.spent = 0.0
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._tell = tell
        self._faults: Counter[str] = Counter()
        self._inside = False
        self._warned = False

    def __call__(self, part: str, act: Callable[..., Any], *args: Any, step: int | None = None) -> Any:
        """What ``act(*args)`` returns; None when it raised or when `part` is switched off."""
        if self._faults and self._faults[part] >= PATIENCE:
            return None
        outermost, self._inside = not self._inside, True
        started = perf_counter()
        try:
            return act(*args)
        except Exception as error:
            self._record(part, error, step)
            return None
        finally:
            took = perf_counter() - started
            self.parts[part] += took
            if outermost:
                self._inside = False
                self.spent += took

    def is_off(self, part: str) -> bool:
        """Whether `part` has failed so often that it was switched off."""
        return self._faults[part] >= PATIENCE

    def _record(self, part: str, error: Exception, step: int | None) -> None:
        self._faults[part] += 1
        off = self.is_off(part)
        text = f"{part} failed: {type(error).__name__}: {error}" + ("; it is switched off" if off else "")
        try:
            self._tell(
                "fault",
                text,
                step=step,
                data={"part": part, "off": off, "traceback": "".join(traceback.format_exception(error))},
            )
        except Exception as second:  # the record itself is at fault: the warning still comes
            text += f"; and the record did not take it: {second}"
        self._warn(text)

    def _warn(self, text: str) -> None:
        if self._warned:
            return
        self._warned = True
        with suppress(NormscopeWarning):  # where warnings are errors, this one still must not reach the loop
            warnings.warn(f"{text}. The training goes on; the record says more.", NormscopeWarning, stacklevel=2)
