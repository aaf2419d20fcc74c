"""Cause before symptom: which of the findings bring which about, and the order in which to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from normscope.diagnose.rule import Rule
from normscope.terms.finding import SEVERITIES, Finding

DepthOf = Callable[[str], int | None]
Explains = Callable[[Rule, Rule], bool | None]


def related(
    findings: Sequence[Finding],
    rules: Sequence[Rule],
    *,
    depth_of: DepthOf | None = None,
    explains: Explains | None = None,
) -> list[Finding]:
    """The findings with `cause_of` and `caused_by` filled in.

    One finding explains another, which is no root by itself (`Rule.roots`), when its rule declares that ailment among
    its `causes`, it did not begin later, and it lies where its effect can come from: at a common site, or (where depths
    are known) before the symptom in the direction in which the symptom travels. Where it was tried, the symptom must
    have gone away with the cause. A cause is at least as severe as what it brings about.

    Args:
        findings: what the rules found.
        rules: every rule, for what they declare.
        depth_of: the place of a site in execution order, None when it has none.
        explains: whether the effect goes away with the cause, by experiment; None where that cannot be tried.
    """
    by_name = {rule.name: rule for rule in rules}
    pairs = [
        (cause, effect)
        for cause in findings
        for effect in findings
        if effect.name in by_name[cause.name].causes
        and effect.evidence.quantity not in by_name[effect.name].roots
        and _plausible(cause, effect, by_name[effect.name], depth_of)
        and _shown(cause, _verdict(by_name[cause.name], by_name[effect.name], explains))
    ]
    linked = []
    for finding in findings:
        effects = [effect for cause, effect in pairs if cause is finding]
        roots = [cause for cause, effect in pairs if effect is finding]
        linked.append(
            replace(
                finding,
                severity=min((one.severity for one in (finding, *effects)), key=SEVERITIES.index),
                cause_of=_codes(effects),
                caused_by=_codes(roots),
            )
        )
    return linked


def causes_first(findings: Sequence[Finding], rules: Sequence[Rule] = ()) -> tuple[Finding, ...]:
    """Most severe first; then causes before what they bring about, roots, what relieved most, the earliest, the code.

    Args:
        findings: what the rules found, with their links.
        rules: every rule, for what shows a cause by itself (`Rule.roots`).
    """
    ranks = {finding.code: _rank(finding, findings) for finding in findings}
    roots = {(rule.name, quantity) for rule in rules for quantity in rule.roots}

    def place(finding: Finding) -> tuple[int, int, bool, float, int, str]:
        shown = (finding.name, finding.evidence.quantity) in roots
        relief, since = -round(finding.relief, 1), finding.since_step or 0
        return SEVERITIES.index(finding.severity), ranks[finding.code], not shown, relief, since, finding.code

    return tuple(sorted(findings, key=place))


def _verdict(cause: Rule, effect: Rule, explains: Explains | None) -> bool | None:
    """Whether the effect goes with the cause; None where it cannot be tried, or stays whatever becomes of its cause."""
    told = explains(cause, effect) if explains is not None else None
    return None if effect.lasting and not told else told


def _shown(cause: Finding, verdict: bool | None) -> bool:
    """By experiment; where that cannot be had, not of a cause without which its own symptom stays as it was."""
    return not (cause.severity == "note" and cause.removals) if verdict is None else verdict


def _rank(finding: Finding, findings: Sequence[Finding], seen: frozenset[str] = frozenset()) -> int:
    """How many links lie between a finding and the root that is farthest from it."""
    roots = [one for one in findings if one.code in finding.caused_by and one.code not in seen]
    return max((1 + _rank(root, findings, seen | {finding.code}) for root in roots), default=0)


def _codes(findings: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(sorted({finding.code for finding in findings}))


def _plausible(cause: Finding, effect: Finding, rule: Rule, depth_of: DepthOf | None) -> bool:
    if cause.since_step is not None and effect.since_step is not None and _earliest(cause) > effect.since_step:
        return False
    if set(cause.sites) & set(effect.sites) or depth_of is None or rule.travels == "both":
        return True
    causes, effects = (
        [depth for depth in map(depth_of, finding.sites) if depth is not None] for finding in (cause, effect)
    )
    if not causes or not effects:
        return True
    return min(causes) <= max(effects) if rule.travels == "forward" else max(causes) >= min(effects)


def _earliest(finding: Finding) -> int:
    """The earliest step at which a finding can have begun: after the last measurement that did not show it."""
    since = finding.since_step or 0
    return max((step + 1 for step in finding.evidence.steps if step < since), default=0)
