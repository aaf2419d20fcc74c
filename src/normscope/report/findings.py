"""The findings, each with its evidence drawn, its cure and its reason."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from textwrap import shorten

from normscope.report.numbers import amount, count
from normscope.report.parts import (
    FIRST,
    Axis,
    Card,
    Chart,
    Code,
    Column,
    Curve,
    Curves,
    Labelled,
    Names,
    Paragraph,
    Part,
    Profile,
    Rule,
    Section,
)
from normscope.report.quantities import axis, title, zeros
from normscope.report.snapshot import Reading, Snapshot
from normscope.report.thin import CARD_SITES, CURVES, STEPS, finite, thin
from normscope.report.words import Words
from normscope.terms.finding import Diagnosis, Evidence, Finding, Prescription

CALL = 120  # characters of a treatment's arguments


def section(run: Snapshot, diagnosis: Diagnosis, words: Words) -> Section:
    """Every finding as a card, the one to treat first on top; and the rules that could not finish."""
    first = diagnosis.primary
    cards = sorted(diagnosis, key=lambda finding: finding is not first)
    parts: list[Part] = [_card(finding, run, diagnosis, words, first=finding is first) for finding in cards]
    if not cards:
        parts.append(Paragraph(words.counted("findings.none", len(diagnosis.rules))))
    parts += [
        Paragraph(words("findings.fault", code=fault.code, error=fault.error), quiet=True) for fault in diagnosis.faults
    ]
    return Section("findings", words("findings"), tuple(parts))


def ailment(finding: Finding, words: Words) -> str:
    """The name of the ailment in words."""
    return (
        words.named("ailment", finding.name) if f"ailment.{finding.name}" in words else finding.name.replace("_", " ")
    )


def _card(finding: Finding, run: Snapshot, diagnosis: Diagnosis, words: Words, *, first: bool) -> Card:
    name = ailment(finding, words)
    aside = [words.counted("places", len(finding.sites))] if finding.sites else []
    if finding.since_step is not None:
        aside.insert(0, words("since", step=count(finding.since_step)))
    if first and len(diagnosis) > 1:
        aside.insert(0, words("first"))
    return Card(
        anchor=finding.code,
        severity=finding.severity,
        tag=words(f"severity.{finding.severity}"),
        code=finding.code,
        heading=name[:1].upper() + name[1:],
        aside=words("list.dot").join(aside),
        lead=(_told(finding.message, words), Paragraph(_measured(finding.evidence, words), quiet=True)),
        chart=_chart(finding, run, words),
        cure=_cures(finding, words) + _where(finding, run, words),
        why=(Labelled(words("why"), (_told(finding.why, words),)),) if finding.why else (),
        links=_links(finding, diagnosis, words),
    )


def typed(change: str, words: Words) -> Part:
    """A change in a rule's words: code where Python can read it, else a sentence, with code between backticks."""
    try:
        ast.parse(change)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return _told(_sentence(change), words)
    return Code(change)


def _told(text: str, words: Words) -> Paragraph:
    """A rule's own words, which are English."""
    return Paragraph(text, lang="" if words.lang == "en" else "en")


def _sentence(text: str) -> str:
    """A rule's phrase with a capital at its head and a full stop at its end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _measured(evidence: Evidence, words: Words) -> str:
    """The evidence against its threshold, in a sentence."""
    unit = (
        ""
        if evidence.unit in ("share", "ratio", "", evidence.quantity)
        else f" {words.named('measure', evidence.unit)}"
    )
    value, threshold = (amount(end, share=evidence.unit == "share") for end in (evidence.value, evidence.threshold))
    told = words(
        "measured" if math.isfinite(evidence.threshold) else "measured.alone",
        quantity=title(evidence.quantity, words),
        value=value + unit,
        threshold=threshold + unit,
    )
    return (
        told + (words("measured.source", source=evidence.source.rstrip(".")) if evidence.source else "") + words("stop")
    )


def _cures(finding: Finding, words: Words) -> tuple[Part, ...]:
    headings = [words("cure.first"), *[words("cure.next")] * len(finding.prescriptions)]
    return tuple(
        Labelled(heading, _cure(prescription, words)) for heading, prescription in zip(headings, finding.prescriptions)
    )


def _where(finding: Finding, run: Snapshot, words: Words) -> tuple[Part, ...]:
    names = tuple(run.label(site) for site in finding.sites)
    return (Names(words("where"), names, words.counted("more", max(0, len(names) - FIRST))),) if names else ()


def _cure(prescription: Prescription, words: Words) -> tuple[Part, ...]:
    parts: list[Part] = []
    if prescription.words:
        parts.append(typed(prescription.words, words))
    if prescription.reason:
        parts.append(_told(_sentence(prescription.reason), words))
    if prescription.treatment:
        arguments = ", ".join(f"{name}={value!r}" for name, value in prescription.arguments.items())
        call = f"{prescription.treatment}({shorten(arguments, CALL, placeholder='…')})"
        parts.append(Paragraph(words("cure.treatment", call=call), quiet=True))
    return tuple(parts)


def _links(finding: Finding, diagnosis: Diagnosis, words: Words) -> tuple[tuple[str, str], ...]:
    shown = {other.code: ailment(other, words) for other in diagnosis}
    return tuple(
        (words(key, code=code, name=shown[code]), code)
        for key, codes in (("link.causes", finding.cause_of), ("link.caused", finding.caused_by))
        for code in codes
        if code in shown
    )


# evidence -------------------------------------------------------------------------------------------------------------


def _chart(finding: Finding, run: Snapshot, words: Words) -> Chart | None:
    """The measured quantity over steps where the record has it there, else its value at each place."""
    evidence = finding.evidence
    sites = finding.sites[:1] + thin(finding.sites[1:], CURVES - 1)
    series = [read for site in sites if len((read := run.reading(site, evidence.quantity)).known) > 1]
    if series:
        return _over_steps(evidence, series, words)
    if len(evidence.per_site) > 1:
        return _by_depth(run, evidence, words)
    return None


def _over_steps(evidence: Evidence, series: Sequence[Reading], words: Words) -> Curves:
    worst = series[0]
    (first_step, first), (last_step, last) = worst.known[0], worst.known[-1]
    y = axis(evidence.quantity, [*(reading.values for reading in series), finite([evidence.threshold])], words)
    sentence = words(
        "evidence.steps",
        quantity=title(evidence.quantity, words),
        place=worst.label,
        first=amount(first, share=y.share),
        first_step=count(first_step),
        last=amount(last, share=y.share),
        last_step=count(last_step),
    )
    thinned = [reading.thinned(STEPS) for reading in sorted(series, key=lambda reading: reading.depth)]
    curves = tuple(Curve(reading.label, reading.steps, reading.values) for reading in thinned)
    return Curves(sentence, Axis(words("step")), y, curves, _rules(evidence, words, log=y.log), ordered=True)


def _by_depth(run: Snapshot, evidence: Evidence, words: Words) -> Profile:
    order = {site.key: at for at, site in enumerate(run.sites)} | {site.path: at for at, site in enumerate(run.places)}
    rows = sorted(evidence.per_site, key=lambda row: order.get(row[0], len(order)))
    shown = thin(rows, CARD_SITES, keep=evidence.per_site[: CARD_SITES // 3].__contains__)
    values = finite(value for _, value in shown)
    x = axis(evidence.quantity, [values, finite([evidence.threshold])], words)
    worst, value = evidence.per_site[0]
    sentence = words(
        "evidence.depth",
        quantity=title(evidence.quantity, words),
        place=run.label(worst),
        value=amount(value, share=x.share),
    )
    sites = [run.at(key) for key, _ in shown]
    return Profile(
        sentence,
        places=tuple(run.label(key) for key, _ in shown),
        roles=tuple(site.role if site else "" for site in sites),
        x=x,
        columns=(Column(x.title, values),),
        rules=_rules(evidence, words, log=x.log),
        note=words.joined(zeros([values], x, words), words.left_out(shown, rows)),
    )


def _rules(evidence: Evidence, words: Words, *, log: bool) -> tuple[Rule, ...]:
    threshold = evidence.threshold
    if not math.isfinite(threshold) or (log and threshold <= 0):
        return ()
    return (Rule(threshold, words("threshold", value=amount(threshold, share=evidence.unit == "share"))),)
