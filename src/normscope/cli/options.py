"""The options that `diagnose` and `lint` share, and how both print and exit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import typer

from normscope.record.reader import Record
from normscope.terms.finding import Diagnosis

Form: TypeAlias = Literal["text", "json", "sarif", "github"]
Format = Annotated[Form, typer.Option("--format", help="How to print the findings.")]
Select = Annotated[list[str] | None, typer.Option("--select", help="Only these rules: codes, prefixes or names.")]
Ignore = Annotated[list[str] | None, typer.Option("--ignore", help="Not these rules.")]
FailOn = Annotated[
    Literal["error", "warning", "note"] | None,
    typer.Option("--fail-on", help="The severity from which the exit code is 1: error when left out."),
]


def settled(select: list[str] | None, ignore: list[str] | None, fail_on: str | None) -> dict[str, Any]:
    """What `diagnose` and `lint` are to do: the settings of the nearest pyproject.toml, then the command line."""
    from normscope.diagnose.settings import Settings

    known = Settings.nearest()
    return {
        "select": known.select if select is None else select,
        "ignore": known.ignore if ignore is None else ignore,
        "per_site": known.per_site,
        "fail_on": fail_on or known.fail_on,
    }


def print_diagnosis(diagnosis: Diagnosis, form: Form, record: Record | None = None) -> None:
    """Print the findings in the form that was asked for, and leave with their exit code."""
    from normscope.report import annotations, page, terminal

    if form == "json":
        told = diagnosis.to_json()
    elif form == "sarif":
        told = annotations.sarif(diagnosis)
    elif form == "github":
        told = annotations.github(diagnosis)
    else:
        told = terminal.paint(page.tree(record, diagnosis, whole=False))
    typer.echo(told.rstrip("\n"))
    raise typer.Exit(diagnosis.exit_code)
