"""The verbs that need two floors at once. Everything else that `normscope` offers lives on one floor alone."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal

from normscope.diagnose.engine import diagnose
from normscope.record.reader import Record
from normscope.report import page
from normscope.terms.finding import Diagnosis


def report(
    record_or_path: Record | str | PathLike[str],
    out: str | PathLike[str] = "report.html",
    *,
    lang: Literal["en", "zh"] = "en",
    diagnosis: Diagnosis | None = None,
) -> Path:
    """Write the page of a run: one HTML file that opens anywhere and asks nothing of the network.

    Args:
        record_or_path: a run directory, or its `Record`; it may still be growing.
        out: where to write the page; folders are made.
        lang: the language of the page's own words.
        diagnosis: the findings to show; made from the record when left out.

    Returns:
        The path of the page.

    Raises:
        RecordError: the path holds no readable record.
        MissingExtraError: the ``report`` extra is not installed.
    """
    record = record_or_path if isinstance(record_or_path, Record) else Record(record_or_path)
    return page.write(record, diagnose(record) if diagnosis is None else diagnosis, out, lang=lang)
