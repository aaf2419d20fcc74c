"""``python -m normscope`` and the console script: hand over to the command line, or say which extra it needs."""

from __future__ import annotations

import sys

from normscope.terms.errors import MissingExtraError


def main() -> None:
    """Run the command line; exits with its code."""
    try:
        from normscope.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich", "click"}:
            raise
        sys.exit(f"MissingExtraError: {MissingExtraError.of('The command line', error.name or 'typer', 'cli')}")
    run()


if __name__ == "__main__":
    main()
