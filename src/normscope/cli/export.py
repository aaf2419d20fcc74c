"""``normscope export``: the measurements of a run, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    path: Annotated[Path, typer.Argument(help="A run directory, also of a run in progress.")],
    to: Annotated[Literal["parquet", "csv", "tensorboard"], typer.Option("--to", help="The form.")] = "parquet",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; beside the run when left out.")
    ] = None,
    quantity: Annotated[list[str] | None, typer.Option("--quantity", help="Only these quantities.")] = None,
    site: Annotated[list[str] | None, typer.Option("--site", help="Only these sites: keys or module paths.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="At most so many steps of a series, evenly.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write every number of a run as a Parquet or CSV table, or as TensorBoard event files, and print where.

    Example: normscope export runs/a --to csv -o a.csv --quantity std --quantity gradient_norm
    """
    from normscope.record.export import export
    from normscope.record.reader import Record

    written = export(Record(path), to, out, sites=site, quantities=quantity, steps=steps)
    if not quiet:
        typer.echo(str(written.resolve()))
