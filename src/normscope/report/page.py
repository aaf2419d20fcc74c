"""The report of a run: the tree of its parts, and the page written from it."""

from __future__ import annotations

import os
from contextlib import suppress
from os import PathLike
from pathlib import Path

from normscope import __version__
from normscope.record.reader import Record
from normscope.report import findings, html, run, trials, views
from normscope.report.parts import Page
from normscope.report.snapshot import Snapshot
from normscope.report.words import Words, load
from normscope.terms.errors import DataError
from normscope.terms.finding import SEVERITIES, Diagnosis


def write(record: Record, diagnosis: Diagnosis, out: str | PathLike[str], *, lang: str = "en") -> Path:
    """Write the page of a run: one HTML file that asks nothing of the network. It appears whole or not at all.

    Args:
        record: the run, which may still be growing.
        diagnosis: its findings.
        out: the file to write; its folder is made.
        lang: ``"en"`` or ``"zh"``.

    Raises:
        DataError: `out` is a directory, or cannot be written.
        UnknownNameError: the report does not speak `lang`.
        MissingExtraError: altair or vl-convert is not installed.
    """
    return save(tree(record, diagnosis, lang=lang), out)


def save(told: Page, out: str | PathLike[str]) -> Path:
    """Write a tree of parts as one HTML file, as `write` does, with the same errors."""
    path = Path(out)
    if path.is_dir():
        raise DataError(
            "A report was to be written to a directory.",
            found=f"`{path}` is a directory",
            because="the report is one HTML file",
            do=f"give a file, such as `{path / 'report.html'}`",
        )
    text = html.paint(told)
    try:
        _put(path, text)
    except OSError as error:
        raise DataError(
            "A report was to be written where no file can be.",
            found=f"{error.strerror or error} at `{path}`",
            because="the page is one file, and the folders above it are made when they are missing",
            do="give a place that can be written to and has room, such as `-o report.html`",
        ) from error
    return path


def _put(path: Path, text: str) -> None:
    """Write `text` to `path`, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def tree(record: Record | None, diagnosis: Diagnosis, *, lang: str = "en", whole: bool = True) -> Page:
    """The report as a tree of parts; the findings alone when it is not `whole`, or of a model at rest.

    Raises:
        UnknownNameError: the report does not speak `lang`.
    """
    words, now = load(lang), Snapshot(record)
    sections = [findings.section(now, diagnosis, words)]
    if record is not None and whole:
        sections += trials.sections(now, words)
        sections += [section(now, diagnosis, words) for section in views.SECTIONS]
        sections.append(run.section(record, diagnosis, words))
    return Page(
        lang=lang,
        heading=_heading(record, diagnosis, words),
        run=run.sentence(now, words),
        verdict=_verdict(diagnosis, words),
        severity=diagnosis[0].severity if diagnosis else None,
        sections=tuple(sections),
        foot=words("page.foot", version=__version__),
    )


def _heading(record: Record | None, diagnosis: Diagnosis, words: Words) -> str:
    """What the diagnosis is of; of a run the directory's own name."""
    path = record.path if record is not None else None
    if path is not None and diagnosis.subject in ("", str(path)):
        return path.name or str(path)
    return diagnosis.subject or words("page.untitled")


def _verdict(diagnosis: Diagnosis, words: Words) -> str:
    """How many findings of each severity, and which to treat first."""
    primary, rules = diagnosis.primary, len(diagnosis.rules)
    if not diagnosis.findings and not diagnosis.unexplained:
        return words.counted("verdict.healthy", rules) if rules else words("verdict.unread")
    counts = {name: sum(finding.severity == name for finding in diagnosis) for name in SEVERITIES}
    told = words("list.comma").join(words.counted(f"severity.{name}", n) for name, n in counts.items() if n)
    if primary is None:
        return words("verdict.unexplained", counts=told or words.counted("findings.none", rules).rstrip(".。"))
    return words("verdict.sick", counts=told, name=findings.ailment(primary, words), code=primary.code)
