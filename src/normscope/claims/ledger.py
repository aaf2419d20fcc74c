"""The ledger: what the cache says of every claim, as rows and as CLAIMS.md. No verdict is typed in anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from normscope.claims import runner
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Ruling
from normscope.report.numbers import amount
from normscope.terms.datum import Datum
from normscope.terms.verdict import Effect, Verdict


@dataclass(frozen=True, repr=False)
class Row(Datum):
    """One claim as it stands: its effects and its ruling, or how many runs are missing before there can be one."""

    ran: runner.Ran
    effects: Mapping[str, Effect]
    ruling: Ruling | None

    @property
    def claim(self) -> Claim:
        """The claim."""
        return self.ran.claim

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.ruling is None:
            return "not run" if not len(self.ran.outcomes) else f"{self.ran.missing} runs missing"
        return str(self.ruling.verdict)

    @property
    def summary(self) -> str:
        """The effect where there is one; else how many conditions say what."""
        if self.ruling is None:
            return ""
        if len(self.effects) == 1:
            (effect,) = self.effects.values()
            return f"{amount(effect.value)} {self.claim.decision.unit}, {interval(effect)}"
        said = ((verdict, len(self.ruling.under(verdict))) for verdict in Verdict)
        return f"{len(self.effects)} conditions: " + ", ".join(
            f"{count} × {verdict}" for verdict, count in said if count
        )


def ledger(
    claims: Iterable[Claim], *, size: str = "quick", bench: Bench | None = None, cache: Path = runner.CACHE
) -> tuple[Row, ...]:
    """A row for each claim, from what the cache holds; a claim with missing runs has no verdict."""
    return tuple(_row(runner.load(claim, size=size, bench=bench, cache=cache)) for claim in claims)


def _row(ran: runner.Ran) -> Row:
    if ran.missing:
        return Row(ran, {}, None)
    effects = dict(ran.claim.weigh(ran.outcomes))
    return Row(ran, effects, ran.claim.decision.judge(effects))


def markdown(rows: Iterable[Row]) -> str:
    """CLAIMS.md: a table of all rows, then each claim with its effects."""
    rows = tuple(rows)
    sizes = ", ".join(dict.fromkeys(row.ran.size for row in rows))
    day = max((row.ran.last for row in rows), default="")
    machine = ", ".join(f"{name} {value}" for name, value in runner.machine().items())
    told = [
        "# The claims ledger",
        "",
        "Every statement of the source articles that an experiment can decide, put to the test. This file is written "
        "by `normscope claims report --markdown CLAIMS.md` from the outcomes of `normscope claims run`: each verdict "
        "follows from the effects by the rule that stands beside it, which was fixed before the run.",
        "",
        f"Size of the runs: {sizes}. Latest run: {day or 'none'}. Machine: {machine}.",
        "",
        "| id | statement | kind | verdict | effect |",
        "| --- | --- | --- | --- | --- |",
    ]
    told += [
        f"| [{row.claim.id}](#{anchor(row)}) | {row.claim.en} | {row.claim.kind} | {row.verdict} | {row.summary} |"
        for row in rows
    ]
    for row in rows:
        told += ["", *_section(row)]
    return "\n".join(told) + "\n"


def _section(row: Row) -> list[str]:
    claim, rule = row.claim, row.claim.decision
    told = [
        f"## {claim.id} {claim.name}",
        "",
        f"{claim.en} {claim.zh}",
        "",
        f"- source: {claim.source}",
        f"- protocol: {claim.protocol}",
        f"- rule: holds above {rule.holds_above:g}, fails below {rule.fails_below:g} ({rule.unit}); {rule.reason}",
        f"- verdict: **{row.verdict}** ({len(row.ran.outcomes)} runs, {row.ran.seconds:.1f} CPU seconds)",
    ]
    if row.ruling is not None:
        told += ["", "| condition | verdict | effect | interval |", "| --- | --- | --- | --- |"]
        for condition, effect in row.effects.items():
            verdict = row.ruling.by_condition[condition]
            told.append(f"| {condition or 'all'} | {verdict} | {amount(effect.value)} | {interval(effect)} |")
    return told


def interval(effect: Effect) -> str:
    """The interval in words."""
    if effect.low == effect.high:
        return effect.method
    return f"{amount(effect.low)} to {amount(effect.high)} ({effect.confidence:.0%}, {effect.method})"


def anchor(row: Row) -> str:
    """The anchor that Markdown gives the claim's heading."""
    return f"{row.claim.id} {row.claim.name}".lower().replace(".", "").replace(" ", "-")
