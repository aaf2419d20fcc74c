"""How a summary, a scalar, an event, a trial, a site and meta stand in their tables: both ways, side by side.

What reads raises RecordError where a row is malformed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from normscope.record.blob import pack, unpack
from normscope.record.malformed import reading
from normscope.stats.digest import Digest
from normscope.stats.moments import Moments
from normscope.stats.monoid import unprefixed
from normscope.stats.quantiles import Quantiles
from normscope.stats.summary import Summary
from normscope.terms.datum import Datum, plain
from normscope.terms.site import Site
from normscope.terms.spec import NormSpec
from normscope.terms.verdict import Trial

SOURCES = ("live", "probe", "probe_eval")
PLAIN = b"\0"  # begins the code of a sketch that comes without channels, and no zlib stream


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


def summary_row(site: Site, step: int, source: str, summary: Summary | Digest) -> Row:
    """The row of one tensor's summary. Raises ValueError for an unknown `source`."""
    source = known_source(source)
    if isinstance(summary, Digest):
        digest, arrays = summary, PLAIN + summary.code
    else:
        digest = Digest.of(summary)
        more = summary.by_channel()
        arrays = pack({"code": np.frombuffer(digest.code, np.uint8), **more}) if more else PLAIN + digest.code
    count, mean, m2, low, high, zeros, nan, pos_inf, neg_inf, _, size = digest
    numbers = int(zeros), int(nan), int(pos_inf), int(neg_inf)
    return Row("summary", (int(step), source, int(size), int(count), mean, m2, low, high, *numbers, arrays), site)


def known_source(source: str) -> str:
    """`source`, where it is one. Raises ValueError for an unknown one."""
    if source not in SOURCES:
        raise ValueError(f"a summary comes from one of {', '.join(SOURCES)}, not {source!r}")
    return source


SUMMARY = (
    "row.count, row.mean, row.m2, row.low, row.high, row.zeros, row.nan, row.pos_inf, row.neg_inf, row.arrays, row.size"
)
"""The columns of a summary, as `read_summary` takes them."""


@reading("A summary")
def read_summary(
    count: float,
    mean: float | None,
    m2: float | None,
    low: float | None,
    high: float | None,
    zeros: int,
    nan: int,
    pos_inf: int,
    neg_inf: int,
    arrays: bytes,
    size: int,
) -> Summary:
    """The summary in the columns `SUMMARY`; a NULL is NaN."""
    channels = quantiles = None
    if arrays[:1] == PLAIN:
        code = arrays[1:]
    else:
        told = unpack(arrays)
        code = np.asarray(told["code"], np.uint8).tobytes()
        moments, levels = (unprefixed(prefix, told) for prefix in ("channels.", "quantiles."))
        channels = Moments.from_arrays(moments)
        quantiles = Quantiles.from_arrays(levels) if levels else None
    bounds = (math.nan if number is None else float(number) for number in (mean, m2, low, high))
    apart = (int(number) for number in (zeros, nan, pos_inf, neg_inf))
    summary = Digest._make((int(count), *bounds, *apart, code, int(size))).summary
    return replace(summary, channels=channels, quantiles=quantiles) if arrays[:1] != PLAIN else summary


def scalar_row(site: Site | None, step: int, quantity: str, value: float) -> Row:
    """The row of one number of a site, or of the whole run."""
    return Row("scalar", (int(step), str(quantity), float(value)), site)


@reading("A number")
def read_scalars(rows: Sequence[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of rows (step, value); a NULL is NaN."""
    return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.float64)


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


@reading("An event")
def read_event(rank: int, when: float, step: int | None, kind: str, text: str, data: str) -> Event:
    """The event in a row."""
    return Event(None if step is None else int(step), str(kind), str(text), json.loads(data), float(when), rank)


def trial_row(trial: Trial) -> Row:
    """The row of a trial that ends now."""
    return Row("trial", (time.time(), _json(trial.to_dict())))


@reading("A trial")
def read_trial(data: str) -> Trial:
    """The trial in a row."""
    return Trial.from_dict(json.loads(data))


def meta_row(key: str, value: Any) -> Row:
    """The row of something known of the whole run."""
    return Row("meta", (str(key), _json(value)))


@reading("What is known of the run")
def read_meta(key: str, value: str) -> tuple[str, Any]:
    """The name and the value in a row."""
    return str(key), json.loads(value)


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


@reading("A site")
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
    """The site in a row, from the column `path` on."""
    return Site(
        str(path),
        what,
        int(call),
        str(name),
        role,
        str(kind),
        int(depth),
        None if channel_axis is None else int(channel_axis),
        None if spec is None else _spec(json.loads(spec)),
        None if feeds is None else str(feeds),
        tuple(str(alias) for alias in json.loads(aliases)),
    )


def _spec(told: dict[str, Any]) -> NormSpec:
    return NormSpec(**{name: _frozen(value) for name, value in {**told, "over": frozenset(told["over"])}.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
