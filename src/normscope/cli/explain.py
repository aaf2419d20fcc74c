"""``normscope explain``: the page of a rule, a normalization or a claim."""

from __future__ import annotations

from difflib import get_close_matches
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

    norms = [entry.name.lower() for entry in ENTRIES]
    if name[:1].isdigit():
        told = claim(name)
    elif name.lower() in norms or get_close_matches(name.lower(), norms, 1, 0.8):
        told = norm(name)
    else:
        told = rule(name)
    typer.echo(told.rstrip("\n"))
