"""``normscope explain``: the page of a rule or a normalization."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="A rule's code or name (NS201), or a normalization (GroupNorm).")],
) -> None:
    """Print what a rule looks for, why it matters and what to do; or what a normalization computes.

    Example: normscope explain NS201
    """
    from normscope.diagnose.engine import explain
    from normscope.terms.catalog import CATALOG

    typer.echo(f"{name}\n\n{CATALOG[name]!r}" if name in CATALOG else explain(name))
