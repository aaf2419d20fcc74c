"""``normscope run``: watch an unchanged training script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from normscope.watch.session import Watcher


def command(
    script: Annotated[str, typer.Argument(help="The training script, as one would give it to python.")],
    args: Annotated[list[str] | None, typer.Argument(help="The script's own arguments.")] = None,
    path: Annotated[
        Path | None, typer.Option("--path", "-p", help="The record; a new runs/<script> when left out.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of the run's time that watching may take.")] = 0.01,
    every: Annotated[int | None, typer.Option(help="Sample each so many steps, instead of by the budget.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing beside the script.")] = False,
) -> None:
    """Run a training script, unchanged, under watch, and say what was wrong with it when it ends, crashes or is
    interrupted. Its output, exit code and arguments are as without.

    Example: normscope run --path runs/a train.py --epochs 3
    """
    from normscope.watch.script import run

    path = path or _fresh(Path("runs") / Path(script).stem)
    code = run(
        script,
        args or [],
        path,
        budget=budget,
        every=every if every is not None else "auto",
        afterwards=None if quiet else partial(_last_words, path),
    )
    sys.exit(code)


def _last_words(path: Path, watchers: Sequence[Watcher], hurried: bool) -> None:
    """Print what is wrong with each training that was watched, and where it is kept: not among the script's words."""
    try:
        _diagnosed(watchers, hurried)
    finally:
        typer.echo(f"normscope: {_outcome(path)}", err=True)


def _diagnosed(watchers: Sequence[Watcher], hurried: bool) -> None:
    """The diagnosis of each; of the record alone where there is no time to try causes on the model."""
    from normscope.cli.options import settled
    from normscope.diagnose.engine import diagnose
    from normscope.report import page, terminal

    for watcher in watchers:
        record = watcher.record
        if len(record.steps):
            found = diagnose(record if hurried else watcher, **settled(None, None, None))
            typer.echo(terminal.paint(page.tree(record, found, whole=False)).rstrip("\n"), err=True)


def _fresh(path: Path) -> Path:
    """`path`, or with a number behind it where a record of an earlier run is: that one stays as it is."""
    places = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in count(1))
    return next(place for place in places if not place.exists())


def _outcome(path: Path) -> str:
    """Where the record is, and what to do with it; or why there is none."""
    from normscope.record.reader import Record
    from normscope.terms.errors import RecordError

    try:
        record = Record(path)
        if parts := record.parts if not len(record.steps) else ():
            told = "; ".join(f"normscope diagnose {quote(str(part))}" for part in parts)
            return f"each model has a record in a folder of {path}; next: {told}"
        if not len(record.steps):
            return "the record has no step: " + "; ".join(event.text for event in record.events)
    except RecordError as error:
        return f"there is no record that can be read in {path}: {error.found}"
    return f"the record is in {path}; next: normscope diagnose {quote(str(path))}"
