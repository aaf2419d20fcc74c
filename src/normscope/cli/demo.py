"""``normscope demo``: the whole road on real data."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from normscope.terms.finding import Diagnosis


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the records and the page.")] = Path("demo"),
    steps: Annotated[int, typer.Option(help="Optimizer steps of every run.", min=20)] = 200,
    seeds: Annotated[int, typer.Option(help="Pairs of runs in the trial.", min=2)] = 3,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the path of the page alone.")] = False,
) -> None:
    """Watch, diagnose, treat and prove a network that does not learn, on real handwritten digits.

    Example: normscope demo --out demo
    """
    from normscope.demo import demo

    console = Console(quiet=quiet, highlight=False)
    console.print("A network of 20 tanh layers, on 1,797 handwritten digits. It does not learn. Why?\n")
    columns = (TextColumn("{task.description:<30}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        try:
            shown = demo(out, steps=steps, seeds=tuple(range(seeds)), progress=progress)
        except KeyboardInterrupt:
            bars.stop()
            _tell_interrupted(out)
            sys.exit(130)  # what a shell reports of a process that an interrupt ended

    console.print()
    _tell(console, "before", shown.before)
    trial = shown.trial
    console.print(f"treated by    {trial.treatment}", soft_wrap=True)
    effect = trial.effect
    console.print(
        f"trial         {trial.verdict}: {effect.value:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}] {effect.unit}, "
        f"{len(trial.seeds)} seeds",
        soft_wrap=True,
    )
    _tell(console, "after", shown.after)
    typer.echo(str(shown.page.resolve()) if quiet else f"\nThe page: {shown.page.resolve()}")


def _tell_interrupted(out: Path) -> None:
    """Where the records are so far, and how to go on."""
    found = [str(out / name) for name in ("untreated", "treated") if any((out / name).glob("rank*.sqlite"))]
    said = (
        f"what was recorded is in {' and '.join(found)}; next: normscope diagnose {quote(found[0])}"
        if found
        else ("nothing was recorded yet")
    )
    typer.echo(f"normscope: interrupted; {said}", err=True)


def _tell(console: Console, when: str, diagnosis: Diagnosis) -> None:
    primary = diagnosis.primary
    if primary is None:
        told = "nothing found explains why the loss does not fall" if diagnosis.unexplained else "nothing found"
        console.print(f"{when:<13} {told}", soft_wrap=True)
    else:
        console.print(f"{when:<13} {primary.code} {primary.name}: {primary.message}", soft_wrap=True)
