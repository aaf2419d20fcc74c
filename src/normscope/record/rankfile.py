"""What one rank's file holds, asked in SQL. Rows that a later segment superseded are left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normscope.record.block import BYTES, read_layout, read_numbers, read_one, read_summaries
from normscope.record.columns import Columns
from normscope.record.database import Database, Rows
from normscope.record.malformed import reading
from normscope.record.rows import (
    SUMMARY,
    Event,
    read_event,
    read_meta,
    read_scalars,
    read_site,
    read_summary,
    read_trial,
)
from normscope.stats.summary import Summary
from normscope.terms.site import Site
from normscope.terms.verdict import Trial

_TABLES = ("summary", "block")


def _steps_of(table: str) -> str:
    """The steps that have rows in a table, one seek each: its index begins with the step."""
    return f"""
    WITH RECURSIVE at (step) AS (
        SELECT min(step) FROM {table}
        UNION ALL
        SELECT (SELECT min(step) FROM {table} WHERE step > at.step) FROM at WHERE at.step IS NOT NULL
    )
    """


def _at(table: str) -> str:
    return f"""
    FROM {table} AS row JOIN segment ON segment.id = row.segment
    WHERE row.step = at.step AND row.step < segment.until_step
    """


def _of_all(table: str) -> str:
    return f"""
    FROM at CROSS JOIN {table} AS row JOIN segment ON segment.id = row.segment
    WHERE row.step = at.step AND row.source = ? AND row.step < segment.until_step
    """


_CHOSEN = "WITH at (step) AS (SELECT DISTINCT value FROM json_each(?))"
_OF_SITE = f"{_of_all('summary')} AND row.site = (SELECT id FROM site WHERE key = ?) ORDER BY row.step"
_OF_LAYOUT = f"{_of_all('block')} AND row.layout = ? ORDER BY row.step"
_HELD = """
    FROM contents AS row JOIN segment ON segment.id = row.segment LEFT JOIN site ON site.id = row.site
    WHERE row.first_step < segment.until_step
"""
_MOVES = "site.what = 'update' AND row.source = 'live'"  # beside its parameter: their ratio is known
# A stepless row counts unless its whole segment was superseded.
_COUNTS = "coalesce(row.step, segment.first_step, 0) < segment.until_step"


class RankFile:
    """One rank's part of a record."""

    def __init__(self, file: Path, rank: int) -> None:
        self.rank = rank
        self._database = Database(file)
        self._has_blocks = False
        self.query = self._database.query

    def close(self) -> None:
        """Let the file go until the next question."""
        self._database.close()

    def segments(self) -> list[tuple[float, float | None, int | None]]:
        """When each segment started and ended, and its first step."""
        return self.query("SELECT started, ended, first_step FROM segment ORDER BY id")

    def meta(self) -> dict[str, object]:
        """What is known of the run."""
        rows = self.query("SELECT key, value FROM meta ORDER BY rowid")
        return dict(read_meta(*row) for row in rows)

    def sites(self, where: str = "true", *arguments: object) -> dict[str, Site]:
        """Sites by key, in the order in which they were first seen."""
        rows = self.query(
            f"""
            SELECT key, path, what, call, name, role, kind, depth, channel_axis, spec, feeds, aliases
            FROM site AS row JOIN segment ON segment.id = row.segment
            WHERE coalesce(segment.first_step, 0) < segment.until_step AND ({where}) ORDER BY row.id
            """,
            arguments,
        )
        return {key: read_site(*columns) for key, *columns in rows}

    def contents(self, key: str | None = None) -> list[tuple[str, str]]:
        """Quantity and source of what there is: of the site `key`, of the whole run (""), or of anything (None)."""
        where = "true" if key is None else "row.site = 0" if key == "" else "site.key = ?1"
        rows = self.query(
            f"""
            SELECT row.quantity, row.source {_HELD} AND {where}
            UNION SELECT 'update_ratio', '' {_HELD} AND {_MOVES} AND {where}
            """,
            (key,) if key else (),
        )
        return [(str(quantity), str(source)) for quantity, source in rows]

    def catalog(self) -> list[tuple[str, str, str]]:
        """Key, quantity and source of what there is of each site."""
        return self.query(
            f"""
            SELECT site.key, row.quantity, row.source {_HELD} AND site.id > 0
            UNION SELECT site.key, 'update_ratio', '' {_HELD} AND {_MOVES}
            """
        )

    def steps(self) -> np.ndarray:
        """The steps that have summaries, int64, ascending."""
        return np.array(self._steps_where("true"), dtype=np.int64)

    def steps_with(self, source: str) -> list[int]:
        """The steps that have summaries of a source, ascending."""
        return self._steps_where("row.source = ?", source)

    def _steps_where(self, where: str, *asked: str) -> list[int]:
        found: set[int] = set()
        for table in self._tables():
            rows = self.query(
                f"{_steps_of(table)} SELECT step FROM at WHERE EXISTS (SELECT 1 {_at(table)} AND {where})", asked
            )
            found.update(step for (step,) in rows)
        return sorted(found)

    def _tables(self) -> tuple[str, ...]:
        """Where summaries stand: records of the first schema have no blocks."""
        if not self._has_blocks:
            self._has_blocks = bool(self.query("SELECT 1 FROM sqlite_master WHERE name = 'block'"))
        return _TABLES if self._has_blocks else _TABLES[:1]

    def keys(self) -> dict[int, str]:
        """The key of each site, by the number under which other tables have it."""
        return dict(self.query("SELECT id, key FROM site"))

    def grid(self, source: str, steps: Sequence[int]) -> tuple[np.ndarray, Columns]:
        """The numbers of every site's summaries at `steps`: the numbers of the sites, and a row for each."""
        rows = self.query(f"{_CHOSEN} SELECT {Columns.SQL}, row.site {_of_all('summary')}", (json.dumps(steps), source))
        sites, parts = [np.array([row[-1] for row in rows], dtype=np.int64)], [Columns.of([row[:-1] for row in rows])]
        layouts = self._layouts()
        for step, layout, numbers in self._blocks("row.step, row.layout, row.numbers", source, steps):
            sites.append(layouts[layout])
            parts.append(Columns.of_block(np.full(len(layouts[layout]), step), read_numbers(numbers)))
        return np.concatenate(sites), Columns.joined(parts)

    @reading("A block of summaries")
    def excerpt(self, source: str, steps: Sequence[int]) -> dict[tuple[int, int], tuple[Any, ...]]:
        """Every site's summaries at `steps` as stored, columns `SUMMARY`: by the site's number and the step."""
        rows = self.query(
            f"{_CHOSEN} SELECT row.site, row.step, {SUMMARY} {_of_all('summary')}", (json.dumps(steps), source)
        )
        found: dict[tuple[int, int], tuple[Any, ...]] = {(site, step): tuple(told) for site, step, *told in rows}
        layouts = self._layouts()
        for step, layout, *stored in self._blocks("row.step, row.layout, row.numbers, row.codes", source, steps):
            found.update(((site, step), told) for site, told in read_summaries(layouts[layout], *stored))
        return found

    def _blocks(self, columns: str, source: str, steps: Sequence[int]) -> Rows:
        if "block" not in self._tables():
            return []
        return self.query(f"{_CHOSEN} SELECT {columns} {_of_all('block')}", (json.dumps(steps), source))

    def _layouts(self) -> dict[int, np.ndarray]:
        """Which sites a block tells of, by its layout."""
        if "block" not in self._tables():
            return {}
        return {number: read_layout(sites) for number, sites in self.query("SELECT id, sites FROM layout")}

    def _of_site(self, columns: str, key: str, source: str, steps: Sequence[int] | None) -> Iterator[tuple[int, Rows]]:
        """Of each layout with the site: which of its places that is, and `columns` of its blocks, by step."""
        number = self.query("SELECT id FROM site WHERE key = ?", (key,))
        for layout, sites in self._layouts().items() if number else ():
            at, asked = (_steps_of("block"), ()) if steps is None else (_CHOSEN, (json.dumps(list(steps)),))
            for place in np.flatnonzero(sites == number[0][0]).tolist():
                yield place, self.query(f"{at} SELECT {columns} {_OF_LAYOUT}", (*asked, source, layout))

    @reading("A block of summaries")
    def columns(self, key: str, source: str) -> Columns:
        """The numbers of a site's summaries, without their arrays."""
        parts = [Columns.of(self.query(f"{_steps_of('summary')} SELECT {Columns.SQL} {_OF_SITE}", (source, key)))]
        for place, rows in self._of_site("row.step, row.numbers", key, source, None):
            steps, own = [step for step, _ in rows], slice(BYTES * place, BYTES * (place + 1))
            told = read_numbers(b"".join(numbers[own] for _, numbers in rows))
            parts.append(Columns.of_block(np.array(steps, dtype=np.int64), told))
        return Columns.joined(parts, by_step=True)

    def steps_of(self, key: str, source: str) -> list[int]:
        """The steps at which a site has a summary, ascending."""
        rows = self.query(f"{_steps_of('summary')} SELECT row.step {_OF_SITE}", (source, key))
        for _, more in self._of_site("row.step", key, source, None):
            rows = rows + more
        return sorted({step for (step,) in rows})

    def summaries(self, key: str, source: str, steps: Sequence[int] | None = None) -> list[tuple[int, Summary]]:
        """A site's summaries, by step: all, or those of `steps`."""
        chosen = None if steps is None else [int(step) for step in steps]
        at, asked = (_steps_of("summary"), ()) if chosen is None else (_CHOSEN, (json.dumps(chosen),))
        rows = self.query(f"{at} SELECT row.step, {SUMMARY} {_OF_SITE}", (*asked, source, key))
        found: dict[int, tuple[Any, ...]] = {step: tuple(told) for step, *told in rows}
        for place, blocks in self._of_site("row.step, row.numbers, row.codes", key, source, chosen):
            found.update((step, read_one(place, *stored)) for step, *stored in blocks)
        return [(step, read_summary(*found[step])) for step in sorted(found)]

    def summary(self, key: str, step: int, source: str) -> Summary | None:
        """A site's summary at one step."""
        found = self.summaries(key, source, [step])
        return found[0][1] if found else None

    def scalars(self, key: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a number of the site `key`, or of the whole run ("")."""
        rows = self.query(
            f"""
            SELECT row.step, row.value FROM scalar AS row JOIN segment ON segment.id = row.segment
            WHERE row.site = {"(SELECT id FROM site WHERE key = ?)" if key else "0"} AND row.quantity = ?
                AND row.step < segment.until_step
            ORDER BY row.step
            """,
            (key, quantity) if key else (quantity,),
        )
        return read_scalars(rows)

    def scalars_by_site(self, quantity: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps and values of a number of every site that has it, by the site's key."""
        rows = self.query(
            """
            SELECT row.step, row.value, row.site
            FROM site CROSS JOIN scalar AS row ON row.site = site.id JOIN segment ON segment.id = row.segment
            WHERE row.quantity = ? AND row.step < segment.until_step
            ORDER BY row.site, row.step
            """,
            (quantity,),
        )
        steps, values = read_scalars(rows)
        sites, starts = np.unique(np.array([row[2] for row in rows], dtype=np.int64), return_index=True)
        parts = zip(sites.tolist(), np.split(steps, starts[1:]), np.split(values, starts[1:]))
        keys = self.keys()
        return {keys[number]: (at, told) for number, at, told in parts}

    def nonfinite(self) -> list[tuple[str, int, str, float, float, float]]:
        """Every summary of a tensor with NaN or infinity: key, step, source, how many NaN and infinite, of how many."""
        found = self.query(
            """
            SELECT site.key, row.step, row.source, row.nan + row.pos_inf, row.neg_inf,
                row.count + row.nan + row.pos_inf + row.neg_inf
            FROM summary AS row JOIN site ON site.id = row.site JOIN segment ON segment.id = row.segment
            WHERE row.nan + row.pos_inf + row.neg_inf > 0 AND row.step < segment.until_step
            """
        )
        return found if "block" not in self._tables() else found + self._nonfinite_of_blocks()

    @reading("A block of summaries")
    def _nonfinite_of_blocks(self) -> list[tuple[str, int, str, float, float, float]]:
        found, keys, layouts = [], self.keys(), self._layouts()
        blocks = self.query(
            """
            SELECT row.layout, row.step, row.source, row.numbers
            FROM block AS row JOIN segment ON segment.id = row.segment
            WHERE row.nonfinite > 0 AND row.step < segment.until_step
            """
        )
        for layout, step, source, numbers in blocks:
            told = read_numbers(numbers)
            for at in np.flatnonzero(told[:, 6:9].sum(1)).tolist():
                seen, nan, above, below = told[at, [0, 6, 7, 8]].tolist()
                key = keys.get(int(layouts[layout][at]), "")
                found.append((key, step, source, nan + above, below, seen + nan + above + below))
        return found

    def events(self) -> list[Event]:
        """What happened, in the order in which it was noted."""
        rows = self.query(
            f"""
            SELECT row.time, row.step, row.kind, row.text, row.data
            FROM event AS row JOIN segment ON segment.id = row.segment WHERE {_COUNTS} ORDER BY row.rowid
            """
        )
        return [read_event(self.rank, *columns) for columns in rows]

    def trials(self) -> list[Trial]:
        """The trials, oldest first."""
        return [read_trial(data) for (data,) in self.query("SELECT data FROM trial ORDER BY rowid")]

    def count(self) -> int:
        """How many summaries there are."""
        single = "SELECT count(*) FROM summary AS row JOIN segment ON segment.id = row.segment"
        in_blocks = f"""
            SELECT coalesce(sum(length(row.numbers)), 0) / {BYTES}
            FROM block AS row JOIN segment ON segment.id = row.segment
        """
        asked = (single, in_blocks)[: len(self._tables())]
        return sum(int(self.query(f"{sql} WHERE row.step < segment.until_step")[0][0]) for sql in asked)
