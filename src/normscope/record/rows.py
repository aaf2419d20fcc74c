"""How a summary, a scalar, an event, a trial and a site stand in their table: both ways, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from normscope.record.blob import malformed, pack, unpack
from normscope.stats.summary import Summary
from normscope.terms.datum import Datum, plain
from normscope.terms.errors import NormscopeError
from normscope.terms.site import Site
from normscope.terms.spec import NormSpec
from normscope.terms.verdict import Trial

SOURCES = ("live", "probe", "probe_eval")


@dataclass(frozen=True, repr=False)
class Event(Datum):
    """Something that happened in a run.

    Attributes:
        step: the training step, or None when it belongs to none.
        kind: ``fault`` (inside Normscope), ``crash`` (the script raised), ``nonfinite``, ``skipped``, ``dropped``
            (the record lacks something), ``note`` or ``end``.
        text: what happened, in a sentence.
        data: its numbers, JSON values.
        time: seconds since 1970, UTC.
        rank: the process that recorded it.
    """

    step: int | None
    kind: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0
    rank: int = 0


class Row(NamedTuple):
    """What is to be inserted: `values` are the columns after `segment`, and after `site` in tables that have one."""

    table: str
    values: tuple[Any, ...]
    site: Site | None = None


def summary_row(site: Site, step: int, source: str, summary: Summary) -> Row:
    """The row of one tensor's summary. Raises ValueError for an unknown `source`."""
    if source not in SOURCES:
        raise ValueError(f"a summary comes from one of {', '.join(SOURCES)}, not {source!r}")
    moments, sketch = summary.moments, summary.sketch
    values = (
        int(step),
        source,
        int(summary.size),
        int(moments.count),
        float(moments.mean),
        float(moments.m2),
        float(summary.low),
        float(summary.high),
        int(sketch.zeros),
        int(sketch.nan),
        int(sketch.pos_inf),
        int(sketch.neg_inf),
        pack(summary.to_arrays()),
    )
    return Row("summary", values, site)


def read_summary(arrays: bytes) -> Summary:
    """The summary in the column `arrays`. Raises RecordError when it is malformed."""
    try:
        return Summary.from_arrays(unpack(arrays))
    except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise malformed("A summary", "its arrays", repr(error)) from error


def scalar_row(site: Site | None, step: int, quantity: str, value: float) -> Row:
    """The row of one number of a site, or of the whole run."""
    return Row("scalar", (int(step), str(quantity), float(value)), site)


def event_row(
    kind: str,
    text: str,
    step: int | None = None,
    data: Mapping[str, Any] | None = None,
    when: float | None = None,
) -> Row:
    """The row of an event that happened at the time `when`, now if None."""
    when = time.time() if when is None else when
    return Row("event", (when, None if step is None else int(step), str(kind), str(text), _json(data or {})))


def read_event(rank: int, when: float, step: int | None, kind: str, text: str, data: str) -> Event:
    """The event in a row. Raises RecordError when it is malformed."""
    return Event(step, kind, text, read_json("An event", data), when, rank)


def trial_row(trial: Trial) -> Row:
    """The row of a trial that ends now."""
    return Row("trial", (time.time(), _json(trial.to_dict())))


def read_trial(data: str) -> Trial:
    """The trial in a row. Raises RecordError when it is malformed."""
    try:
        return Trial.from_dict(read_json("A trial", data))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise malformed("A trial", "its data", repr(error)) from error


def meta_row(key: str, value: Any) -> Row:
    """The row of something known of the whole run."""
    return Row("meta", (str(key), _json(value)))


def site_values(site: Site) -> tuple[Any, ...]:
    """The columns of a site after `segment` and `id`."""
    return (
        site.key,
        site.path,
        site.what,
        site.call,
        site.name,
        site.role,
        site.kind,
        site.depth,
        site.channel_axis,
        None if site.spec is None else _json(site.spec),
        site.feeds,
        _json(site.aliases),
    )


def read_site(
    path: str,
    what: Any,
    call: int,
    name: str,
    role: Any,
    kind: str,
    depth: int,
    channel_axis: int | None,
    spec: str | None,
    feeds: str | None,
    aliases: str,
) -> Site:
    """The site in a row. Raises RecordError when it is malformed."""
    described = None if spec is None else _read_spec(spec)
    others = tuple(str(alias) for alias in read_json("A site", aliases))
    return Site(path, what, call, name, role, kind, depth, channel_axis, described, feeds, others)


def read_json(what: str, text: str) -> Any:
    """The JSON value in a column. Raises RecordError when it is malformed."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise malformed(what, f"{text!r:.80}", error) from error


def _read_spec(text: str) -> NormSpec:
    try:
        told = read_json("A normalization", text)
        return NormSpec(**{**told, "over": frozenset(told["over"])})
    except (KeyError, TypeError, NormscopeError) as error:
        raise malformed("A normalization", f"{text!r:.80}", repr(error)) from error


def _json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
