"""``normscope live``: a run in progress, in the terminal, from its record alone."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

_HIDE, _SHOW = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # a screen of its own, without a cursor; and back
_CLEAR = "\x1b[H\x1b[2J"


def command(
    path: Annotated[Path, typer.Argument(help="A run directory; it may still be empty of steps.")],
    quantity: Annotated[list[str] | None, typer.Option("--quantity", help="Columns to show.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One frame, as when the output is piped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One frame, as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing when the run has ended.")] = False,
) -> None:
    """Follow a run: layers by quantities as small curves, the loss, and what is wrong so far. Ends with the run.

    Example: normscope live runs/a --quantity std --quantity gradient_norm
    """
    from normscope.diagnose.engine import diagnose
    from normscope.record.reader import Record
    from normscope.report.live import Frame, frame, paint
    from normscope.terms.finding import Diagnosis

    def look() -> Frame:
        record = Record(path)
        # Before its first step a run cannot be diagnosed, but it can be followed.
        return frame(record, diagnose(record) if len(record.steps) else Diagnosis(), quantities=quantity)

    terminal = sys.stdout.isatty()
    if as_json:
        typer.echo(json.dumps(look().to_dict(), ensure_ascii=False))
        return
    now = look()
    if once or not terminal:
        typer.echo(paint(now, width=_size(terminal)[0]), nl=False)
        return
    with suppress(KeyboardInterrupt):
        typer.echo(_HIDE, nl=False)
        try:
            while True:
                width, height = _size(terminal)
                typer.echo(_CLEAR + paint(now, width=width, height=height, color=True), nl=False)
                if now.state in ("complete", "broken off"):
                    break
                time.sleep(interval)
                now = look()
        finally:
            typer.echo(_SHOW, nl=False)
    if not quiet:
        typer.echo(paint(now, width=_size(terminal)[0], color=True), nl=False)


def _size(terminal: bool) -> tuple[int, int]:
    size = shutil.get_terminal_size((120, 40))
    return (size.columns, size.lines) if terminal else (max(80, size.columns), size.lines)
