"""``normscope report``: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    path: Annotated[Path, typer.Argument(help="A run directory, also of a run in progress.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    lang: Annotated[Literal["en", "zh"], typer.Option(help="The language of the page.")] = "en",
    text: Annotated[bool, typer.Option("--text", help="Print the report here instead of writing a page.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write one self-contained HTML page of a run, or print it as text.

    Example: normscope report runs/a -o a.html
    """
    from normscope.diagnose.engine import diagnose
    from normscope.record.reader import Record
    from normscope.report import terminal
    from normscope.verbs import report

    if text:
        record = Record(path)
        typer.echo(terminal.show(record, diagnose(record), lang=lang))
        return
    written = report(path, out, lang=lang)
    if not quiet:
        typer.echo(str(written.resolve()))
