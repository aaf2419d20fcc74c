"""The tree of parts as one self-contained HTML page.

The page asks nothing of the network and says so to the browser: a content security policy allows the page's own
scripts by their hash and nothing else. Everything in a record is a stranger's data; it enters the page escaped, as
text or as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from functools import singledispatch
from html import escape
from importlib import resources
from string import Template

from normscope.report.parts import (
    FIRST,
    Card,
    Chart,
    Choice,
    Code,
    Curves,
    Facts,
    Intervals,
    Labelled,
    Names,
    Page,
    Paragraph,
    Part,
    Profile,
    Row,
    Rule,
    Section,
    Table,
    visible,
)
from normscope.report.words import Words, load

_CODE = re.compile(r"`([^`]+)`")
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def paint(page: Page) -> str:
    """The whole page.

    Raises:
        MissingExtraError: altair or vl-convert is not installed.
    """
    from normscope.report import charts

    words = load(page.lang)
    scripts = (charts.javascript(), _asset("page.js"))
    return Template(_asset("page.html")).substitute(
        lang={"en": "en", "zh": "zh-Hans"}[page.lang],
        title=text(words("page.title", heading=page.heading)),
        policy=_policy(scripts),
        style=_asset("page.css"),
        brand=text(words("brand")),
        skip=text(words("skip")),
        contents=text(words("contents")),
        links="".join(f'<li><a href="#{text(part.anchor)}">{text(part.heading)}</a></li>' for part in page.sections),
        heading=rich(page.heading),
        run=rich(page.run),
        verdict=rich(page.verdict),
        severity=page.severity or "none",
        body=_all(page.sections, words),
        foot=rich(page.foot),
        noscript=text(words("noscript")),
        undrawn=text(words("undrawn")),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def text(raw: str) -> str:
    """Text from anywhere, safe in an element or a quoted attribute; control characters are made visible."""
    return escape(visible(raw), quote=True)


def rich(raw: str) -> str:
    """The same with words between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", text(raw))


def data(value: object) -> str:
    """A value as JSON that is safe inside a script element, whatever its strings hold."""
    told = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return visible(told).translate(_IN_SCRIPT)


@singledispatch
def _part(part: Part, words: Words) -> str:
    raise TypeError(f"a page has no way to show {type(part).__name__}")


@_part.register
def _(part: Paragraph, words: Words) -> str:
    quiet = ' class="quiet"' if part.quiet else ""
    lang = f' lang="{text(part.lang)}"' if part.lang else ""
    return f"<p{quiet}{lang}>{rich(part.text)}</p>"


@_part.register
def _(part: Code, words: Words) -> str:
    return f'<pre tabindex="0"><code>{text(part.text)}</code></pre>'


@_part.register
def _(part: Facts, words: Words) -> str:
    rows = "".join(f"<div><dt>{rich(name)}</dt><dd>{rich(value)}</dd></div>" for name, value in part.rows)
    return f'<dl class="facts{" headline" if part.headline else ""}">{rows}</dl>'


@_part.register
def _(part: Table, words: Words) -> str:
    def cells(tag: str, row: Iterable[str]) -> str:
        shown = (
            f"<{tag}{' class=number' if at in part.numeric else ''}>{rich(cell)}</{tag}>" for at, cell in enumerate(row)
        )
        return f"<tr>{''.join(shown)}</tr>"

    head, body = cells("th", part.columns), "".join(cells("td", row) for row in part.rows)
    return f'<div class="table" tabindex="0"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


@_part.register
def _(part: Names, words: Words) -> str:
    first, rest = (
        " ".join(f"<code>{text(name)}</code>" for name in names) for names in (part.names[:FIRST], part.names[FIRST:])
    )
    more = f"<details><summary>{text(part.more)}</summary><p>{rest}</p></details>" if rest else ""
    return f'<div class="names"><h4>{text(part.label)}</h4><p>{first}</p>{more}</div>'


@_part.register
def _(part: Labelled, words: Words) -> str:
    return f'<div class="labelled"><h4>{text(part.label)}</h4>{_all(part.parts, words)}</div>'


@_part.register
def _(part: Row, words: Words) -> str:
    return f'<div class="row">{_all(part.parts, words)}</div>'


@_part.register
def _(part: Card, words: Words) -> str:
    links = "".join(f'<a href="#{text(anchor)}">{rich(label)}</a>' for label, anchor in part.links)
    chart = _part(part.chart, words) if part.chart else ""
    columns = "columns" if chart else "columns alone"
    return (
        f'<article class="card {part.severity}" id="{text(part.anchor)}"><header>'
        f'<span class="tag">{text(part.tag)}</span><h3>{text(part.heading)}</h3>'
        f'<span class="code">{text(part.code)}</span><span class="aside">{rich(part.aside)}</span></header>'
        f'<div class="lead">{_all(part.lead, words)}{f"<nav>{links}</nav>" if links else ""}</div>'
        f'<div class="{columns}">{chart}<div class="cure">{_all(part.cure, words)}</div>'
        f'<div class="why">{_all(part.why, words)}</div></div></article>'
    )


@_part.register
def _(part: Choice, words: Words) -> str:
    options = "".join(f'<option value="{at}">{text(name)}</option>' for at, (name, _) in enumerate(part.options))
    panels = "".join(
        f'<div class="panel"{" hidden" if at else ""}>{_part(option, words)}</div>'
        for at, (_, option) in enumerate(part.options)
    )
    return (
        f'<div class="choice"><label><span>{text(part.label)}</span>'
        f'<select autocomplete="off">{options}</select></label>'
        f'<div aria-live="polite">{panels}</div></div>'
    )


@_part.register
def _(part: Section, words: Words) -> str:
    return f'<section id="{text(part.anchor)}"><h2>{text(part.heading)}</h2>{_all(part.parts, words)}</section>'


@_part.register
def _(part: Chart, words: Words) -> str:
    from normscope.report import charts

    note = f'<p class="quiet">{rich(part.note)}</p>' if part.note else ""
    return (
        f'<figure><figcaption>{rich(part.title)}</figcaption>{_key(part)}<div class="plot"></div>{note}'
        f'<script type="application/json">{data(charts.spec(part))}</script></figure>'
    )


def _key(chart: Chart) -> str:
    """What the colors and the dashed line mean; the page asks the drawn chart which color each name has."""
    groups: list[str] = []
    rules: tuple[Rule, ...] = ()
    if isinstance(chart, Curves):
        groups = list(dict.fromkeys(curve.group for curve in chart.curves))
    if isinstance(chart, Profile):
        groups = [column.group for column in chart.columns]
    if isinstance(chart, Profile | Intervals):
        rules = chart.rules
    named = [f"<li>{text(group)}</li>" for group in groups] if len(groups) > 1 else []
    named += [f'<li class="rule">{text(rule.label)}</li>' for rule in rules]
    return f'<ul class="key">{"".join(named)}</ul>' if named else ""


def _all(parts: Iterable[Part], words: Words) -> str:
    return "\n".join(_part(part, words) for part in parts)


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _asset(name: str) -> str:
    return (resources.files("normscope.report") / "assets" / name).read_text(encoding="utf-8")
