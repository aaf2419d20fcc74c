"""``normscope explain``: the page of a rule, a normalization or a claim."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="A rule (NS201), a normalization (GroupNorm) or a claim (0.7).")],
) -> None:
    """Print what a rule looks for, why it matters and what to do; what a normalization computes; what a claim says.

    Example: normscope explain NS201
    """
    from normscope.claims.registry import explain as claim
    from normscope.diagnose.engine import explain as rule
    from normscope.norms.pages import page as norm
    from normscope.terms.catalog import ENTRIES

    if name[:1].isdigit():
        told = claim(name)
    elif name.lower() in {entry.name.lower() for entry in ENTRIES}:
        told = norm(name)
    else:
        told = rule(name)
    typer.echo(told.rstrip("\n"))
