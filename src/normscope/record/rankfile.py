"""What one rank's file holds, asked in SQL. Rows that a later segment superseded are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normscope.record.columns import Columns
from normscope.record.database import Database
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

# The steps that have summaries, one seek each: the index begins with the step.
_STEPS = """
    WITH RECURSIVE at (step) AS (
        SELECT min(step) FROM summary
        UNION ALL
        SELECT (SELECT min(step) FROM summary WHERE step > at.step) FROM at WHERE at.step IS NOT NULL
    )
"""
_AT = """
    FROM summary AS row JOIN segment ON segment.id = row.segment
    WHERE row.step = at.step AND row.step < segment.until_step
"""
_CHOSEN = "WITH at (step) AS (SELECT DISTINCT value FROM json_each(?))"
_OF_SITE = """
    FROM at CROSS JOIN summary AS row JOIN segment ON segment.id = row.segment
    WHERE row.step = at.step AND row.source = ? AND row.site = (SELECT id FROM site WHERE key = ?)
        AND row.step < segment.until_step
    ORDER BY row.step
"""
_OF_ALL = """
    FROM at CROSS JOIN summary AS row JOIN segment ON segment.id = row.segment
    WHERE row.step = at.step AND row.source = ? AND row.step < segment.until_step
"""
# A stepless row counts unless its whole segment was superseded.
_COUNTS = "coalesce(row.step, segment.first_step, 0) < segment.until_step"


class RankFile:
    """One rank's part of a record."""

    def __init__(self, file: Path, rank: int) -> None:
        self.rank = rank
        self._database = Database(file)
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
        where = "true" if key is None else "row.site = 0" if key == "" else "site.key = ?"
        rows = self.query(
            f"""
            SELECT DISTINCT row.quantity, row.source
            FROM contents AS row JOIN segment ON segment.id = row.segment LEFT JOIN site ON site.id = row.site
            WHERE row.first_step < segment.until_step AND {where}
            """,
            (key,) if key else (),
        )
        return [(str(quantity), str(source)) for quantity, source in rows]

    def catalog(self) -> list[tuple[str, str, str]]:
        """Key, quantity and source of what there is of each site."""
        return self.query(
            """
            SELECT DISTINCT site.key, row.quantity, row.source
            FROM contents AS row JOIN segment ON segment.id = row.segment JOIN site ON site.id = row.site
            WHERE row.first_step < segment.until_step
            """
        )

    def steps(self) -> np.ndarray:
        """The steps that have summaries, int64, ascending."""
        rows = self.query(f"{_STEPS} SELECT step FROM at WHERE EXISTS (SELECT 1 {_AT})")
        return np.array([step for (step,) in rows], dtype=np.int64)

    def steps_with(self, source: str) -> list[int]:
        """The steps that have summaries of a source, ascending."""
        rows = self.query(f"{_STEPS} SELECT step FROM at WHERE EXISTS (SELECT 1 {_AT} AND row.source = ?)", (source,))
        return [step for (step,) in rows]

    def keys(self) -> dict[int, str]:
        """The key of each site, by the number under which other tables have it."""
        return dict(self.query("SELECT id, key FROM site"))

    def grid(self, source: str, steps: Sequence[int]) -> tuple[np.ndarray, Columns]:
        """The numbers of every site's summaries at `steps`: the numbers of the sites, and a row for each."""
        rows = self.query(f"{_CHOSEN} SELECT {Columns.SQL}, row.site {_OF_ALL}", (json.dumps(steps), source))
        return np.array([row[-1] for row in rows], dtype=np.int64), Columns.of([row[:-1] for row in rows])

    def excerpt(self, source: str, steps: Sequence[int]) -> list[tuple[Any, ...]]:
        """Every site's summaries at `steps` as they are stored: the site's number, the step, the columns `SUMMARY`."""
        return self.query(f"{_CHOSEN} SELECT row.site, row.step, {SUMMARY} {_OF_ALL}", (json.dumps(steps), source))

    def columns(self, key: str, source: str) -> Columns:
        """The numbers of a site's summaries, without their arrays."""
        return Columns.of(self.query(f"{_STEPS} SELECT {Columns.SQL} {_OF_SITE}", (source, key)))

    def steps_of(self, key: str, source: str) -> list[int]:
        """The steps at which a site has a summary, ascending."""
        return [step for (step,) in self.query(f"{_STEPS} SELECT row.step {_OF_SITE}", (source, key))]

    def summaries(self, key: str, source: str, steps: Sequence[int] | None = None) -> list[tuple[int, Summary]]:
        """A site's summaries, by step: all, or those of `steps`."""
        at, asked = (_STEPS, ()) if steps is None else (_CHOSEN, (json.dumps([int(step) for step in steps]),))
        rows = self.query(f"{at} SELECT row.step, {SUMMARY} {_OF_SITE}", (*asked, source, key))
        return [(step, read_summary(*columns)) for step, *columns in rows]

    def summary(self, key: str, step: int, source: str) -> Summary | None:
        """A site's summary at one step."""
        rows = self.query(
            f"WITH at (step) AS (SELECT ?) SELECT {SUMMARY} {_OF_SITE}",
            (step, source, key),
        )
        return read_summary(*rows[0]) if rows else None

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

    def nonfinite(self) -> list[tuple[str, int, str, int, int, int]]:
        """Every summary of a tensor with NaN or infinity: key, step, source, how many NaN and infinite, of how many."""
        return self.query(
            """
            SELECT site.key, row.step, row.source, row.nan + row.pos_inf, row.neg_inf,
                row.count + row.nan + row.pos_inf + row.neg_inf
            FROM summary AS row JOIN site ON site.id = row.site JOIN segment ON segment.id = row.segment
            WHERE row.nan + row.pos_inf + row.neg_inf > 0 AND row.step < segment.until_step
            """
        )

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
        rows = self.query(
            "SELECT count(*) FROM summary AS row JOIN segment ON segment.id = row.segment "
            "WHERE row.step < segment.until_step"
        )
        return int(rows[0][0])
