"""``normscope rules``: every rule, one line each."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the rules: code, severity, name.

    Example: normscope rules --json
    """
    from normscope.diagnose.engine import rules

    rows = [{"code": rule.code, "severity": rule.severity, "name": rule.name} for rule in rules()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            typer.echo(f"{row['code']}  {row['severity']:<8}  {row['name']}")
