"""The ledger as one self-contained HTML page: figures, and each claim with its verdict, effects, chart and protocol."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from normscope import __version__
from normscope.claims import runner
from normscope.claims.figure import figures
from normscope.claims.ledger import Row, interval
from normscope.diagnose.engine import rule as rule_named
from normscope.norms.pages import entry as norm_named
from normscope.norms.pages import formula
from normscope.report import html
from normscope.report.numbers import amount
from normscope.report.parts import Card, Labelled, Page, Paragraph, Part, Section, Table
from normscope.report.parts import Row as Pair
from normscope.report.words import Words, load
from normscope.terms.verdict import Verdict

_EN = {
    "heading": "The claims ledger",
    "run": "Every statement of the source articles that an experiment can decide. Each verdict follows from the "
    "effects by a rule that was fixed before the run. Size of the runs: {sizes}; latest: {day}; {machine}.",
    "named": "Norms and rules that claims name",
    "overview": "Overview",
    "article": "Article 00{n}",
    "claim": "claim",
    "statement": "statement",
    "verdict": "verdict",
    "condition": "condition",
    "effect": "effect",
    "summary": "effect, or conditions where it holds",
    "interval": "interval",
    "figures": "Figures",
    "figure": "{said} Known from: {known}. Runs of claim {id}.",
    "see": "See",
    "kind.exact": "exact, float64",
    "kind.measurement": "measurement",
    "kind.training": "training",
    "kind.figure": "figure",
    "ran": "{n} runs, {seconds} CPU seconds, {day}",
    "held": "{n}/{of}",
    "source": "source",
    "protocol": "protocol",
    "decision": "decision",
    "rule": "holds above {above:g}, fails below {below:g} ({unit}); {reason}",
    "colon": "{name}: {value}",
    "all": "all runs",
    "missing": "{n} of its runs are missing: `normscope claims run {id}`",
    "unrun": "not run",
    "count": "{n} × {verdict}",
    **{f"verdict.{verdict}": str(verdict) for verdict in Verdict},
}
_ZH = {
    "heading": "论断总账",
    "run": "原文中凡可由实验判定的论断，逐条验证。每个结论都由效应值按运行之前定下的规则得出。"
    "规模：{sizes}；最近一次：{day}；{machine}。",
    "named": "各条提到的归一化与规则",
    "overview": "总览",
    "article": "文章 00{n}",
    "claim": "编号",
    "statement": "论断",
    "verdict": "结论",
    "condition": "条件",
    "effect": "效应",
    "summary": "效应，或成立的条件数",
    "interval": "区间",
    "figures": "图",
    "figure": "{said}原图见：{known}。数据来自论断 {id}。",
    "see": "参见",
    "kind.exact": "精确，float64",
    "kind.measurement": "测量",
    "kind.training": "训练",
    "kind.figure": "图",
    "ran": "{n} 次运行，{seconds} CPU 秒，{day}",
    "held": "{n}/{of}",
    "source": "出处",
    "protocol": "做法",
    "decision": "判定",
    "rule": "高于 {above:g} 则成立，低于 {below:g} 则不成立（{unit}）；{reason}",
    "colon": "{name}：{value}",
    "all": "全部",
    "missing": "尚缺 {n} 次运行：`normscope claims run {id}`",
    "unrun": "未运行",
    "count": "{verdict} {n} 条",
    f"verdict.{Verdict.HOLDS}": "成立",
    f"verdict.{Verdict.FAILS}": "不成立",
    f"verdict.{Verdict.CONDITIONAL}": "有条件地成立",
    f"verdict.{Verdict.UNCLEAR}": "不能判定",
}
_TONES: dict[Verdict, Any] = {
    Verdict.HOLDS: "good",
    Verdict.CONDITIONAL: "warning",
    Verdict.FAILS: "error",
    Verdict.UNCLEAR: "note",
}
_WORDS = {"en": Words("en", _EN), "zh": Words("zh", _ZH)}


def write(rows: Sequence[Row], out: str | PathLike[str], *, lang: str = "en") -> Path:
    """Write the page; it appears whole or not at all.

    Raises:
        UnknownNameError: the page does not speak `lang`.
        MissingExtraError: altair or vl-convert is not installed.
    """
    path = Path(out)
    told = html.paint(tree(rows, lang=lang))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    draft.write_text(told, encoding="utf-8", newline="\n")
    os.replace(draft, path)
    return path


def tree(rows: Sequence[Row], *, lang: str = "en") -> Page:
    """The ledger as a tree of parts: an overview, the figures whose runs are there, then a section for each article."""
    shared = load(lang)
    words = _WORDS[lang]
    sizes = ", ".join(dict.fromkeys(row.ran.size for row in rows))
    day = max((row.ran.last for row in rows), default="")
    machine = ", ".join(f"{name} {value}" for name, value in runner.machine().items())
    overview = Table(
        (words("claim"), words("statement"), words("verdict"), words("summary")),
        tuple((row.claim.id, row.claim.sentence(lang), _verdict(row, words), _effect(row, words)) for row in rows),
    )
    sections = [Section("overview", words("overview"), (overview,))]
    redrawn = _figures(rows, words)
    if redrawn:
        sections.append(Section("figures", words("figures"), redrawn))
    for number in dict.fromkeys(row.claim.id.partition(".")[0] for row in rows):
        own = tuple(entry(row, lang=lang) for row in rows if row.claim.id.startswith(f"{number}."))
        sections.append(Section(f"article-{number}", words("article", n=number), own))
    named = dict.fromkeys(name for row in rows for name in row.claim.see)
    sections.append(Section("named", words("named"), tuple(_seen(name) for name in named)))
    return Page(
        lang=lang,
        heading=words("heading"),
        run=words("run", sizes=sizes, day=day or words("unrun"), machine=machine),
        verdict=_counts(rows, words),
        severity=None,
        sections=tuple(sections),
        foot=shared("page.foot", version=__version__),
    )


def _figures(rows: Sequence[Row], words: Words) -> tuple[Part, ...]:
    """What was redrawn of the runs of these claims: a sentence, then its panels side by side."""
    known = {row.claim.id: row for row in rows if row.ruling is not None}
    parts: list[Part] = []
    for figure in figures():
        if figure.of not in known:
            continue
        said = figure.zh if words.lang == "zh" else figure.en
        parts.append(Paragraph(words("figure", said=said, known=figure.known_from, id=figure.of)))
        panels = list(figure.draw(known[figure.of].ran.outcomes).values())
        parts += [Pair(tuple(panels[at : at + 2])) for at in range(0, len(panels), 2)]
    return tuple(parts)


def entry(row: Row, *, lang: str = "en") -> Card:
    """One claim: its verdict and sentence, its chart, its effects by condition, and how it was tested."""
    words, claim, rule = _WORDS[lang], row.claim, row.claim.decision
    decided = words("rule", above=rule.holds_above, below=rule.fails_below, unit=rule.unit, reason=rule.reason)
    told = (("source", claim.source), ("protocol", claim.protocol), ("decision", decided))
    how = tuple(Labelled(words(name), (Paragraph(value, quiet=True),)) for name, value in told)
    ran = row.ran
    cost = words("ran", n=len(ran.outcomes), seconds=f"{ran.seconds:.1f}", day=ran.last)
    missing = Paragraph(words("missing", n=ran.missing, id=claim.id))
    return Card(
        anchor=f"claim-{claim.id}",
        severity=_TONES[row.ruling.verdict] if row.ruling else "note",
        tag=_verdict(row, words),
        code=claim.id,
        heading=claim.sentence(lang),
        aside=words(f"kind.{claim.kind}"),
        lead=(Paragraph(cost, quiet=True),) if row.ruling else (missing,),
        chart=claim.draw(ran.outcomes) if row.ruling else None,
        cure=(_effects(row, words),) if row.ruling else (),
        why=how,
        links=tuple((f"{words('see')} {name}", f"see-{name}") for name in claim.see),
    )


def _seen(name: str) -> Card:
    """What a norm or a rule is, for those who follow a link of a claim."""
    if name.startswith("NS"):
        rule = rule_named(name)
        heading, told = rule.title, (rule.sections["What it finds"], rule.sections["Why it hurts"])
    else:
        norm = norm_named(name)
        heading, told = formula(norm), (norm.use, norm.avoid, f"{norm.paper}.")
    lead = tuple(Paragraph(" ".join(paragraph.split())) for paragraph in told)
    command = Paragraph(f"`normscope explain {name}`", quiet=True)
    return Card(f"see-{name}", "note", name, "", heading, "", lead, None, (), (command,))


def _effects(row: Row, words: Words) -> Table:
    assert row.ruling is not None
    return Table(
        (words("condition"), words("verdict"), words("effect"), words("interval")),
        tuple(
            (
                condition or words("all"),
                words.named("verdict", str(row.ruling.by_condition[condition])),
                amount(effect.value),
                interval(effect),
            )
            for condition, effect in row.effects.items()
        ),
        numeric=(2,),
    )


def _effect(row: Row, words: Words) -> str:
    """The effect where there is one; else in how many conditions the sentence holds."""
    if row.ruling is None:
        return ""
    if len(row.effects) > 1:
        return words("held", n=len(row.ruling.under(Verdict.HOLDS)), of=len(row.effects))
    (effect,) = row.effects.values()
    return f"{amount(effect.value)} {row.claim.decision.unit}"


def _verdict(row: Row, words: Words) -> str:
    return words.named("verdict", str(row.ruling.verdict)) if row.ruling else words("unrun")


def _counts(rows: Sequence[Row], words: Words) -> str:
    said = [_verdict(row, words) for row in rows]
    return load(words.lang)("list.dot").join(
        words("count", n=said.count(verdict), verdict=verdict) for verdict in dict.fromkeys(said)
    )
