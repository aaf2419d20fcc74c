"""A group normalization has one channel a group, which makes it instance normalization.

## What it finds
Group normalization with as many groups as channels (a note), and one whose groups hold a single value in the example,
because the input has one position too (an error).

## Why it hurts
A group count that is fixed while widths change ends at one channel a group in the narrow layers: instance
normalization, which removes the mean of every channel, and with it what says how strongly a feature is present. With a
single value in a group the output is β, whatever the input is.

## Evidence
The least number of values that share a mean; without an example, channels a group.

## Prescription
Choose the group count from the channels: several channels a group (Wu & He 2018 take 32 groups), or
`normscope.convert`, which chooses a divisor.

## When to ignore
When instance normalization is meant (style transfer).

## References
Wu & He 2018, *Group Normalization*: ResNet-50 errs on 28.4% with one channel a group, which is instance
normalization, on 25.6% with two, and on 24.1% with 32 groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from normscope.diagnose.blueprint import Blueprint, Norm
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Severity

SINGLE = Threshold(
    1, "Wu & He 2018: one channel a group is instance normalization; one value has no deviation", "values a group"
)


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding for constant outputs, one for groups that are single channels."""
    norms = [norm for norm in blueprint.norms if _channels_a_group(norm) == SINGLE.value]
    constant = tuple(norm.path for norm in norms if norm.positions == 1)
    single = tuple(norm.path for norm in norms if norm.path not in constant)
    kinds: tuple[tuple[tuple[str, ...], str, Severity], ...] = (
        (constant, "a single value in each group, so the output is the offset whatever the input is", "error"),
        (single, "a single channel in each group, which makes it instance normalization", "note"),
    )
    for sites, says, severity in kinds:
        if sites:
            yield RULE.finding(
                sites,
                f"{len(sites)} group normalization{'s' if len(sites) > 1 else ''} with {says}.",
                Evidence("values", SINGLE.value, SINGLE.value, unit=SINGLE.unit, source=SINGLE.source),
                severity=severity,
                prescriptions=[
                    advice(f"choose fewer groups at {few(sites)}", "a group needs values to have a mean and a variance")
                ],
            )


def _channels_a_group(norm: Norm) -> float:
    """Channels that share statistics in a group normalization; infinite for what is none."""
    groups, channels = (getattr(norm.module, name, 0) for name in ("num_groups", "num_channels"))
    if not groups and "S" in norm.spec.over and "N" not in norm.spec.over and norm.spec.groups > 1:
        groups, channels = norm.spec.groups, getattr(norm.module, "channels", 0)
    return channels / groups if groups and channels > 1 else float("inf")


SICK = (
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8)), ("1",)),
    Specimen(lambda: nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(8, 8)), ("1",), {"example": torch.zeros(2, 4)}),
)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8))),
)

RULE = Rule(
    "NS114",
    "group_of_one_channel",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"single": SINGLE},
    sick=SICK,
    healthy=HEALTHY,
)
