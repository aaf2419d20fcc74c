"""``normscope norms``: every normalization of the catalog, one line each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from normscope.terms.catalog import CATALOG


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the normalizations: name, axes that share statistics, where statistics come from.

    Example: normscope norms
    """
    if as_json:
        typer.echo(json.dumps({name: spec.to_dict() for name, spec in CATALOG.items()}, indent=2))
        return
    for name, spec in CATALOG.items():
        over = "".join(axis for axis in "NCS" if axis in spec.over) or "–"
        typer.echo(f"{name:<24} over {over:<4} training: {spec.train_from:<13} inference: {spec.infer_from}")
