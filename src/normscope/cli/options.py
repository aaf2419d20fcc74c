"""The options that `diagnose` and `lint` share, and how both print and exit."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from normscope.record.reader import Record
from normscope.terms.finding import Diagnosis

Format = Annotated[Literal["text", "json"], typer.Option("--format", help="How to print the findings.")]
Select = Annotated[list[str] | None, typer.Option("--select", help="Only these rules: codes, prefixes or names.")]
Ignore = Annotated[list[str] | None, typer.Option("--ignore", help="Not these rules.")]
FailOn = Annotated[
    Literal["error", "warning", "note"],
    typer.Option("--fail-on", help="The severity from which the exit code is 1."),
]


def print_diagnosis(diagnosis: Diagnosis, form: Literal["text", "json"], record: Record | None = None) -> None:
    """Print the findings in the form that was asked for, and leave with their exit code."""
    from normscope.report import terminal

    typer.echo(diagnosis.to_json() if form == "json" else terminal.show(record, diagnosis))
    raise typer.Exit(diagnosis.exit_code)
