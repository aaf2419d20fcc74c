"""Every word of the report's own, a file for each language: ``en.json`` and ``zh.json`` hold the same keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sized
from functools import cache
from importlib import resources
from typing import Any

from normscope.terms.errors import UnknownNameError

LANGUAGES = ("en", "zh")


class Words:
    """The words of one language: ``words("loss.title", first=…, last=…)`` fills the sentence of that key."""

    def __init__(self, lang: str, table: Mapping[str, str]) -> None:
        self.lang = lang
        self.table = table

    def __call__(self, key: str, /, **fields: object) -> str:
        return self.table[key].format_map(fields)

    def __contains__(self, key: str) -> bool:
        return key in self.table

    def named(self, family: str, name: str) -> str:
        """The word for `name` in a family (``"quantity"``); `name` itself where there is none."""
        return self.table.get(f"{family}.{name}", name)

    def joined(self, *sentences: str) -> str:
        """Sentences one after the other; the empty ones are left out."""
        return self("list.sentence").join(sentence for sentence in sentences if sentence)

    def left_out(self, shown: Sized, every: Sized, key: str = "thinned") -> str:
        """The sentence that says how much of everything is shown, where that is not all."""
        return self(key, shown=f"{len(shown):,}", n=f"{len(every):,}") if len(shown) < len(every) else ""

    def counted(self, key: str, n: int, **fields: Any) -> str:
        """The sentence for one thing or for `n` of them: keys ``<key>.one`` and ``<key>.many``."""
        return self(f"{key}.one" if n == 1 else f"{key}.many", n=f"{n:,}", **fields)


@cache
def load(lang: str) -> Words:
    """The words of `lang`.

    Raises:
        UnknownNameError: there is no such language.
    """
    if lang not in LANGUAGES:
        raise UnknownNameError(
            "A report was asked for in a language that it does not speak.",
            found=f"lang={lang!r}",
            because="every sentence of the page is written by hand in each language",
            do="choose " + " or ".join(repr(known) for known in LANGUAGES),
        )
    text = (resources.files(__name__) / f"{lang}.json").read_text(encoding="utf-8")
    return Words(lang, json.loads(text))
