"""``normscope lint``: what is wrong with a model before it trains."""

from __future__ import annotations

from typing import Annotated

import typer

from normscope.cli.options import FailOn, Format, Ignore, Select, print_diagnosis, settled


def command(
    factory: Annotated[str, typer.Argument(help="Where a model is built: package.module:function.")],
    batch_size: Annotated[int | None, typer.Option(help="The batch size that training will use.")] = None,
    form: Format = "text",
    select: Select = None,
    ignore: Ignore = None,
    fail_on: FailOn = None,
) -> None:
    """Read a model at rest and name what will hurt. Exit code 1 when there are findings.

    Example: normscope lint mypackage.models:build --batch-size 4
    """
    from normscope.cli.factory import build
    from normscope.diagnose.engine import lint

    model = build(factory)
    print_diagnosis(lint(model, batch_size=batch_size, **settled(select, ignore, fail_on)), form)
