"""``normscope norms``: every normalization, one line each."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from normscope.terms.catalog import ENTRIES
from normscope.terms.spec import NormSpec


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the normalizations: name, axes that share statistics, where statistics come from.

    Example: normscope norms
    """
    if as_json:
        typer.echo(json.dumps([entry.to_dict() for entry in ENTRIES], indent=2, ensure_ascii=False))
        return
    for entry in ENTRIES:
        typer.echo(f"{entry.name:<24} {entry.formula if entry.spec is None else _told(entry.spec)}")


def _told(spec: NormSpec) -> str:
    over = "".join(axis for axis in "NCS" if axis in spec.over) or "–"
    return f"over {over:<4} training: {spec.train_from:<13} inference: {spec.infer_from}"
