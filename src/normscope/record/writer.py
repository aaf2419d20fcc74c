"""The writing side of a record: the training thread puts into a queue, a thread behind it writes to the disk."""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from normscope.record import schema
from normscope.record.block import Block, block_of
from normscope.record.drops import Drops
from normscope.record.rows import Row, event_row, meta_row, scalar_row, summary_row, trial_row
from normscope.record.sink import Sink
from normscope.record.surroundings import surroundings
from normscope.stats.digest import Digests
from normscope.stats.summary import Summary
from normscope.terms.errors import NormscopeWarning, RecordError
from normscope.terms.site import Site
from normscope.terms.verdict import Trial

# How many entries of a kind may wait, in units of `queue_limit`: samples go first, what happened stays longest.
_SHARE = {"summary": 1, "scalar": 16, "event": 4, "trial": 4, "meta": 4}
_SAMPLES = ("summary", "scalar")
_FAULTS = 100  # different faults that are kept


class Writer:
    """Writes one rank's part of a record. Thread-safe; after construction nothing raises and nothing blocks for long.

    Entries wait in a bounded queue until the writing thread takes them, every `flush_every` seconds and when half a
    queue waits. When the queue is full, or the disk refuses for longer than the queue lasts, entries are dropped,
    counted, and noted in the record as soon as it takes anything. Faults warn once (`NormscopeWarning`), stand in
    `faults`, and the writing is tried again. In a forked child a writer does nothing.

    Args:
        path: the run directory; made when missing. An existing record is continued in a new segment, which supersedes
            from its own first step on what was recorded before.
        rank: the process of a distributed run: one file each.
        meta: what is known of the run, JSON values; versions, machine and command line are added.
        flush_every: seconds between two flushes; what was put in before the last one survives any end.
        queue_limit: how many summaries may wait; sixteen times as many scalars, four times as many events.

    Raises:
        RecordError: `path` is a file, the file there is no record or of a newer schema, or another writer holds it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rank: int = 0,
        meta: Mapping[str, Any] | None = None,
        flush_every: float = 2.0,
        queue_limit: int = 16384,
    ) -> None:
        self.path = Path(path).absolute()  # a script may change its directory
        self.rank = rank
        self._pid = os.getpid()
        self._sink = Sink(_directory(self.path) / schema.file_name(rank))
        self._flush_every = flush_every
        self._limits = {kind: share * queue_limit for kind, share in _SHARE.items()}
        self._haste = max(1, queue_limit // 2)

        self._changed = threading.Condition()  # guards these, of which both sides know
        self._queue: list[tuple[str, int, Callable[..., Row | Block], tuple[Any, ...]]] = []
        self._queued = 0
        self._waiting: Counter[str] = Counter()  # by kind: put in, and not yet on the disk
        self._drops = Drops()
        self._dropped = 0
        self._asked = self._answered = 0  # flushes
        self._closing = self._closed = False

        self._rows: list[Row | Block] = []  # these belong to the side that writes: encoded, and not yet on the disk
        self._taken: Counter[str] = Counter()  # entries that became those rows
        self._outage: tuple[float, str] | None = None  # since when the disk refuses, and why
        self._faults: list[str] = []
        self._warned = self._parted = False

        self.meta(**{**surroundings(), **(meta or {})})
        self._write(first=True)
        self._thread = threading.Thread(target=self._run, name=f"normscope-record-{rank}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def summary(self, site: Site, step: int, source: str, summary: Summary) -> None:
        """Put in the summary of one tensor; `source` is "live", "probe" or "probe_eval"."""
        self._put("summary", step, summary_row, site, step, source, summary)

    def block(self, step: int, source: str, sites: Sequence[Site], told: Digests) -> None:
        """Put in the summaries of many tensors at one step at once, each tensor once."""
        if sites:
            self._put("summary", step, block_of, step, source, sites, told, count=len(sites))

    def scalar(self, site: Site | None, step: int, quantity: str, value: float) -> None:
        """Put in one number of a site, or of the whole run (None)."""
        self._put("scalar", step, scalar_row, site, step, quantity, value)

    def event(self, kind: str, text: str, *, step: int | None = None, data: Mapping[str, Any] | None = None) -> None:
        """Put in something that happened; the kinds are those of `Event`."""
        self._put("event", step, event_row, kind, text, step, data, time.time())

    def trial(self, trial: Trial) -> None:
        """Put in a controlled comparison."""
        self._put("trial", None, trial_row, trial)

    def meta(self, **values: Any) -> None:
        """Put in what is known of the whole run; a later value of the same name replaces the earlier one."""
        for key, value in values.items():
            self._put("meta", None, meta_row, key, value)

    @property
    def dropped(self) -> int:
        """How many entries were dropped so far."""
        return self._dropped

    @property
    def faults(self) -> tuple[str, ...]:
        """What went wrong while writing, oldest first, each once."""
        return tuple(self._faults)

    def flush(self, timeout: float = 10.0) -> bool:
        """Write what was put in so far; whether all of it is on the disk within `timeout` seconds."""
        if os.getpid() != self._pid:
            return False
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            answered = self._changed.wait_for(lambda: self._closed or self._answered >= ticket, timeout)
        return answered and self._outage is None

    def close(self, timeout: float = 10.0) -> None:
        """Write what waits, mark the record complete and let the file go, within about `timeout` seconds."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        atexit.unregister(self.close)
        if (missing := self._waiting.total()) and not self._parted:
            self._parted = True
            self._warn(f"the record {self.path} was closed without its last {missing} entries")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(
        self, kind: str, step: int | None, encode: Callable[..., Row | Block], *arguments: Any, count: int = 1
    ) -> None:
        """Put in one entry, which stands for `count`, if there is room for the first of them."""
        if os.getpid() != self._pid:  # asked before the lock, which a fork may have copied while it was held
            return
        with self._changed:
            if self._closing or self._waiting[kind] >= self._limits[kind]:
                self._dropped += count
                self._drops.add(kind, step, count)
                return
            self._queue.append((kind, count, encode, arguments))
            self._waiting[kind] += count
            self._queued += count
            if self._queued >= self._haste:
                self._changed.notify_all()

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                self._changed.wait_for(self._is_wanted, self._flush_every)
                asked, closing = self._asked, self._closing
            self._write(end=closing)
            with self._changed:
                self._answered, self._closed = asked, closing
                self._changed.notify_all()
        self._sink.release()

    def _is_wanted(self) -> bool:
        return self._closing or self._asked > self._answered or self._queued >= self._haste

    def _write(self, *, first: bool = False, end: bool = False) -> None:
        """Put what waits on the disk, or keep it for the next time."""
        with self._changed:
            queue, self._queue, self._queued = self._queue, [], 0
            drops, self._drops = self._drops, Drops()
        self._encode(queue)
        try:
            refused = self._sink.write([*self._rows, *self._excuses(drops)], end=end)
        except Exception as error:  # the disk's, as a rule
            if first and isinstance(error, RecordError):
                self._sink.release()
                raise
            with self._changed:
                self._drops.merge(drops)
            self._outage = self._outage or (time.time(), str(error))
            self._fault(f"the record {self.path} could not be written: {error}", noted=False)
            if end:
                self._say_what_is_missing(drops)
            return
        self._rows, self._outage = [], None
        with self._changed:
            self._waiting.subtract(self._taken)
            self._taken.clear()
        for reason in refused:
            self._fault(reason, noted=False)

    def _say_what_is_missing(self, drops: Drops) -> None:
        """At the end, where the disk has no room for all that waits: what happened, without what was measured."""
        kept, lost = [], Drops()
        lost.merge(drops)
        for row in self._rows:
            if isinstance(row, Block):
                lost.add(row.table, row.step, len(row.sites))
            elif row.table in _SAMPLES:
                lost.add(row.table, row.values[0])
            else:
                kept.append(row)
        try:
            self._sink.write([*kept, *self._excuses(lost)])
        except Exception:  # there is no room for that either; closing warns of it
            return
        with self._changed:
            self._waiting.subtract({kind: count for kind, count in self._taken.items() if kind not in _SAMPLES})

    def _encode(self, queue: list[tuple[str, int, Callable[..., Row | Block], tuple[Any, ...]]]) -> None:
        for kind, count, encode, arguments in queue:
            self._taken[kind] += count
            try:
                self._rows.append(encode(*arguments))
            except Exception as error:  # whatever was put in, the rest is written
                self._fault(f"a {kind} could not be written: {error!r}")

    def _excuses(self, drops: Drops) -> list[Row]:
        """What the record has to say of what it lacks."""
        rows = [event_row("dropped", drops.text, data=drops.to_dict())] if drops else []
        if self._outage:
            since, why = self._outage
            text = f"for {time.time() - since:.1f} s the record could not be written: {why}"
            rows.append(event_row("fault", text, when=since))
        return rows

    def _fault(self, text: str, *, noted: bool = True) -> None:
        if text in self._faults or len(self._faults) >= _FAULTS:
            return
        self._faults.append(text)
        if noted:
            self._rows.append(event_row("fault", text))
        if not self._warned:
            self._warned = True
            self._warn(text)

    def _warn(self, text: str) -> None:
        with suppress(NormscopeWarning):  # where warnings are errors, this one still is none
            warnings.warn(f"{text}; the training goes on", NormscopeWarning, stacklevel=2)


def _directory(path: Path) -> Path:
    """`path`, when a run directory can be there."""
    file = next((place for place in (path, *path.parents) if os.path.isfile(place)), None)
    if file is None:
        return path
    raise RecordError(
        "A record was to be written where a file is.",
        found=f"`{file}` is a file",
        because="a record is a directory, with one file for each process of the run",
        do="give a directory, such as `runs/a`; it is made when it is missing",
    )
