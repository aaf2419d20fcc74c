"""``normscope compare``: two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    first: Annotated[Path, typer.Argument(help="A run directory.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A page to write as well.")] = None,
    lang: Annotated[Literal["en", "zh"], typer.Option(help="The language of the page.")] = "en",
    as_json: Annotated[bool, typer.Option("--json", help="Print findings and differences as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Compare two runs: losses, findings, and the layers that differ most, as a table and, with -o, as a page.

    Example: normscope compare runs/a runs/b -o compare.html
    """
    from normscope.diagnose.engine import diagnose
    from normscope.record.reader import Record
    from normscope.report import compare, page, terminal

    records = Record(first), Record(second)
    diagnoses = diagnose(records[0]), diagnose(records[1])
    found = compare.differences(*records)
    told = compare.tree(records, diagnoses, found=found, lang=lang)
    if out is not None:
        page.save(told, out)
    if quiet:
        return
    if as_json:
        runs = [
            {"path": str(record.path), "findings": [finding.to_dict() for finding in diagnosis]}
            for record, diagnosis in zip(records, diagnoses)
        ]
        typer.echo(json.dumps({"runs": runs, "differences": [one.to_dict() for one in found]}, ensure_ascii=False))
    else:
        typer.echo(terminal.paint(told), nl=False)
        if out is not None:
            typer.echo(str(out.resolve()))
