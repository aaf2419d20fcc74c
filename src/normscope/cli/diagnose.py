"""``normscope diagnose``: what is wrong with a run, from its record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli.options import FailOn, Format, Ignore, Select, print_diagnosis, settled


def command(
    path: Annotated[Path, typer.Argument(help="A run directory, also of a run in progress.")],
    form: Format = "text",
    select: Select = None,
    ignore: Ignore = None,
    fail_on: FailOn = None,
) -> None:
    """Name what is wrong with a run, with the evidence and the cure. Exit code 1 when there are findings.

    Example: normscope diagnose runs/a --format json
    """
    from normscope.diagnose.engine import diagnose
    from normscope.record.reader import Record

    record = Record(path)
    print_diagnosis(diagnose(record, **settled(select, ignore, fail_on)), form, record)
