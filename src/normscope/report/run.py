"""The facts of a run: how long, how much was sampled, on what machine, and what happened on the way."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from normscope.record.reader import Record
from normscope.record.rows import Event
from normscope.report.numbers import count, number, percent
from normscope.report.parts import Facts, Paragraph, Part, Section, Table
from normscope.report.snapshot import Snapshot
from normscope.report.thin import thin
from normscope.report.words import Words
from normscope.terms.finding import Diagnosis

EVENTS = 40  # rows of the list of events
TOLD = ("overhead",)  # of the meta data, what stands elsewhere


def sentence(run: Snapshot, words: Words) -> str:
    """How far the run came and what was looked at."""
    record = run.record
    if record is None:
        return words("run.model")
    steps = record.steps
    if not len(steps):
        told = words("run.no_steps")
    else:
        told = words(
            "run.sentence" if record.seconds else "run.so_far",
            last=count(int(steps[-1])),
            time=duration(record.seconds, words),
            sampled=count(len(steps)),
            layers=words.counted("layer", len(run.layers)),
        )
    return told if record.complete else words.joined(told, words("run.incomplete"))


def section(record: Record, diagnosis: Diagnosis, words: Words) -> Section:
    """Everything about the run that is no measurement of the network."""
    parts: list[Part] = [Facts(_figures(record, diagnosis, words), headline=True)]
    rows = [(words("meta.path"), str(record.path))]
    untold = {key: value for key, value in record.meta.items() if key not in TOLD and value not in (None, "", [], {})}
    rows += [(words.named("meta", key), _shown(value, words)) for key, value in untold.items()]
    parts.append(Facts(tuple(rows)))
    parts += _events(record, words)
    return Section("run", words("run"), tuple(parts))


def _figures(record: Record, diagnosis: Diagnosis, words: Words) -> tuple[tuple[str, str], ...]:
    steps = record.steps
    rows = [
        (words("figure.steps"), count(int(steps[-1])) if len(steps) else "0"),
        (words("figure.sampled"), count(len(steps))),
        (words("figure.sites"), count(len(record.sites))),
        (words("figure.rules"), count(len(diagnosis.rules))),
    ]
    overhead = record.series(None, "overhead").values
    if len(overhead):
        rows.append((words("figure.overhead"), percent(float(overhead[-1]))))
    rows.append((words("figure.dropped"), count(sum(_dropped(event) for event in record.events))))
    return tuple(rows)


def _dropped(event: Event) -> int:
    """How many entries the record lacks by this event."""
    told = event.data.items() if event.kind == "dropped" else ()
    return sum(n for what, n in told if isinstance(n, int) and what not in ("first_step", "last_step"))


def _events(record: Record, words: Words) -> list[Part]:
    events = record.events
    if not events:
        return [Paragraph(words("events.none"), quiet=True)]
    kinds = Counter(event.kind for event in events)
    told = words("list.comma").join(
        words("events.kind", kind=words.named("event", kind), n=count(n)) for kind, n in kinds.items()
    )
    shown = thin(events, EVENTS, keep=lambda event: event.kind in ("crash", "fault"))
    rows = tuple(
        ("" if event.step is None else count(event.step), words.named("event", event.kind), event.text)
        for event in shown
    )
    columns = (words("step"), words("events.what"), words("events.text"))
    more = words.left_out(shown, events, "thinned.events")
    table = Table(columns, rows, numeric=(0,))
    return [Paragraph(words("events", kinds=told)), table, *([Paragraph(more, quiet=True)] if more else [])]


def duration(seconds: float, words: Words) -> str:
    """A length of time with its two largest units."""
    if seconds < 60:
        return words("time.seconds", s=number(round(seconds, 1)))
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return words("time.minutes", m=minutes, s=rest)
    return words("time.hours", h=minutes // 60, m=minutes % 60)


def _shown(value: Any, words: Words) -> str:
    """A value of the record's meta data in one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return words("yes" if value else "no")
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item, words)}" for key, item in value.items())
    return json.dumps(value, ensure_ascii=False)
