"""`Settings`: what a project says once, in ``[tool.normscope]`` of its ``pyproject.toml``.

.. code-block:: toml

    [tool.normscope]
    select = ["NS2", "NS3"]
    ignore = ["NS204"]
    fail-on = "warning"

    [tool.normscope.per-site-ignores]
    "backbone.*" = ["NS215", "stuck_affine"]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from normscope.terms.datum import Datum
from normscope.terms.errors import SpecError
from normscope.terms.finding import SEVERITIES, Severity

_KEYS = ("select", "ignore", "fail-on", "per-site-ignores")


@dataclass(frozen=True, repr=False)
class Settings(Datum):
    """What the nearest ``pyproject.toml`` asks for.

    Attributes:
        select: only these rules: codes, prefixes or names; None is all.
        ignore: not these rules; None is none.
        fail_on: the severity from which the exit code is 1.
        per_site: pattern of module paths (as in `fnmatch`) → rules that are silent there.
        source: the file they come from; None where there is none.
    """

    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    fail_on: Severity = "error"
    per_site: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: Path | None = None

    @staticmethod
    def nearest(start: str | PathLike[str] = ".") -> Settings:
        """The settings of the first ``pyproject.toml`` from `start` upwards; without a table in it, the usual ones.

        Raises:
            SpecError: the file is no TOML, or the table holds an unknown key or a value of another kind.
        """
        here = Path(start).absolute()
        files = (folder / "pyproject.toml" for folder in (here, *here.parents))
        file = next((one for one in files if one.is_file()), None)
        reader = _reader()
        if file is None or reader is None:
            return Settings()
        try:
            told = reader.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _wrong(file, f"{error}", "it is no TOML") from error
        return Settings.of(told.get("tool", {}).get("normscope", {}), file)

    @staticmethod
    def of(table: Mapping[str, Any], file: Path) -> Settings:
        """The settings in the table ``[tool.normscope]`` of `file`. Raises SpecError when it is not as it should be."""
        unknown = [key for key in table if key not in _KEYS]
        if unknown:
            raise _wrong(file, f"the key `{unknown[0]}`", "it is none of " + ", ".join(_KEYS))
        lists = {key: _rules(table[key], file, key) for key in ("select", "ignore") if key in table}
        fail_on = table.get("fail-on", "error")
        if fail_on not in SEVERITIES:
            raise _wrong(file, f"fail-on = {fail_on!r}", "a severity is one of " + ", ".join(SEVERITIES))
        sites = table.get("per-site-ignores", {})
        if not isinstance(sites, Mapping):
            raise _wrong(
                file, f"per-site-ignores = {sites!r}", "it is a table: pattern of module paths = list of rules"
            )
        per_site = {pattern: _rules(rules, file, pattern) for pattern, rules in sites.items()}
        return Settings(lists.get("select"), lists.get("ignore"), fail_on, per_site, file if table else None)


def _reader() -> Any:
    """The module that reads TOML: Python's own from 3.11 on, ``tomli`` before; None without either."""
    known = (name for name in ("tomllib", "tomli") if importlib.util.find_spec(name) is not None)
    name = next(known, None)
    return importlib.import_module(name) if name else None


def _rules(value: Any, file: Path, key: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _wrong(file, f"{key} = {value!r}", "rules are a list of codes, prefixes or names")
    return tuple(value)


def _wrong(file: Path, found: str, because: str) -> SpecError:
    return SpecError(
        f"Settings were read from `{file}`, and cannot be used.",
        found=found,
        because=because,
        do='write it like `ignore = ["NS204"]` under [tool.normscope], or `"head.*" = ["NS202"]` under '
        "[tool.normscope.per-site-ignores]",
    )
