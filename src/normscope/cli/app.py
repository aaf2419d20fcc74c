"""The application: the commands, and how an error of ours reaches the terminal (four lines, exit code 2)."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import normscope
from normscope.cli import (
    claims,
    compare,
    demo,
    diagnose,
    explain,
    export,
    lint,
    live,
    norms,
    report,
    rules,
    run_script,
    trial,
)
from normscope.terms.errors import NormscopeError

app = typer.Typer(
    name="normscope",
    help="See, explain and repair what normalization does inside a PyTorch network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(name="demo")(demo.command)
app.command(name="run", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})(
    run_script.command
)
app.command(name="lint")(lint.command)
app.command(name="diagnose")(diagnose.command)
app.command(name="trial")(trial.command)
app.command(name="report")(report.command)
app.command(name="live")(live.command)
app.command(name="compare")(compare.command)
app.command(name="export")(export.command)
app.command(name="explain")(explain.command)
app.command(name="rules")(rules.command)
app.command(name="norms")(norms.command)
app.add_typer(claims.app, name="claims")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"normscope {normscope.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None: ...


def run() -> None:
    """Parse ``sys.argv``, run the command, exit with its code: 0, 1 for findings, 2 for input that cannot be used."""
    try:
        app()
    except NormscopeError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(2)
