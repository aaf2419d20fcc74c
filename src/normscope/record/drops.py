"""What a record lacks: entries that were dropped because the writing could not keep up, counted."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from operator import index
from typing import Any


class Drops:
    """How many entries of each kind were dropped, and between which steps."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._steps: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, kind: str, step: int | None = None, count: int = 1) -> None:
        """So many more entries of `kind`, of `step`."""
        self._counts[kind] += count
        self._reach(step)

    def merge(self, other: Drops) -> None:
        """Take the `other` drops in."""
        self._counts.update(other._counts)
        for step in other._steps or ():
            self._reach(step)

    @property
    def text(self) -> str:
        """The drops in a sentence."""
        told = ", ".join(f"{count} of {kind}" for kind, count in self._counts.items())
        between = f", between steps {self._steps[0]} and {self._steps[1]}" if self._steps else ""
        return f"the record lacks {self._counts.total()} entries: {told}{between}"

    def to_dict(self) -> dict[str, Any]:
        """The counts by kind, with the first and the last step."""
        first, last = self._steps or (None, None)
        return {**self._counts, "first_step": first, "last_step": last}

    def _reach(self, step: int | None) -> None:
        with suppress(TypeError):  # whatever was given for a step, the count stands
            place = index(step)  # pyright: ignore[reportArgumentType]
            low, high = self._steps or (place, place)
            self._steps = min(low, place), max(high, place)
