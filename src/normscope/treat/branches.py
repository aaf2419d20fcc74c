"""The residual branches of a network: what is added to a shortcut around it."""

from __future__ import annotations

from typing import NamedTuple

from normscope.anatomy.flow import TRANSPARENT, Flow
from normscope.anatomy.observe import Call

_KEEPS_ZEROS = TRANSPARENT | {"roll", "mul", "div", "neg", "DropPath", "StochasticDepth"}


class Branch(NamedTuple):
    """One branch, from behind the point where the shortcut leaves to the sum.

    Attributes:
        sum: the call that adds it to the shortcut.
        calls: what runs on it, in order.
        end: the call whose value is added.
    """

    sum: Call
    calls: tuple[Call, ...]
    end: Call

    @property
    def layers(self) -> tuple[Call, ...]:
        """The producers on it that are modules."""
        return tuple(call for call in self.calls if call.role == "producer" and call.module is not None)


def branches(flow: Flow) -> tuple[Branch, ...]:
    """Every sum of two values of which one took more layers than the other since both were one.

    A sum of two sides with as many layers is a merge, and none of them is the shortcut.
    """
    found = []
    behind = _ancestors(flow)
    for addition in flow.sums():
        ends = list(dict.fromkeys(addition.inputs))
        if len(ends) != 2:
            continue
        above = [behind[end] | {end} if end >= 0 else frozenset[int]() for end in ends]
        sides = [
            (end, tuple(flow.calls[index] for index in sorted(ours - theirs)))
            for end, ours, theirs in zip(ends, above, reversed(above))
        ]
        sides.sort(key=lambda side: sum(call.role == "producer" for call in side[1]))
        (_, short), (end, long) = sides
        if sum(call.role == "producer" for call in long) > sum(call.role == "producer" for call in short):
            found.append(Branch(addition, long, _handed_on(flow, flow.calls[end])))
    return tuple(found)


def _ancestors(flow: Flow) -> list[frozenset[int]]:
    known: list[frozenset[int]] = []
    for call in flow.calls:
        made = {index for index in call.inputs if index >= 0}
        known.append(frozenset(made.union(*(known[index] for index in made))))
    return known


def _handed_on(flow: Flow, call: Call) -> Call:
    """The call whose value `call` hands on, seen through what makes zeros of zeros and knows no other value."""
    while call.kind in _KEEPS_ZEROS and len(made := flow.producers(call)) == 1:
        call = made[0]
    return call
