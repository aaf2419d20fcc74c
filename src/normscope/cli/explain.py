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
    from normscope.diagnose.engine import explain
    from normscope.terms.catalog import CATALOG

    if name[:1].isdigit():
        from normscope.claims.registry import explain as explain_claim

        typer.echo(explain_claim(name))
        return
    typer.echo(f"{name}\n\n{CATALOG[name]!r}" if name in CATALOG else explain(name))
