"""`Flow`: what ran in which order, and which value fed which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from normscope.anatomy.observe import OUTSIDE, Call, observe
from normscope.terms.datum import Datum

TRANSPARENT = frozenset(
    [
        "reshape",
        "view",
        "view_as",
        "permute",
        "transpose",
        "T",
        "mT",
        "movedim",
        "swapaxes",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "clone",
        "to",
        "float",
        "half",
        "bfloat16",
        "double",
        "type",
        "type_as",
        "detach",
        "expand",
        "expand_as",
        "identity",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
        "Identity",
        "Flatten",
        "Unflatten",
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "AlphaDropout",
        "FeatureAlphaDropout",
    ]
)


@dataclass(frozen=True, repr=False)
class Flow(Datum):
    """The calls of one run in order; each names the calls that made its inputs.

    Attributes:
        calls: in order of execution; ``calls[i].index == i``.
        outputs: indices of the calls whose values the model returns.
        symbolic: whether it was read off the code without running it on data.
    """

    calls: tuple[Call, ...]
    outputs: tuple[int, ...] = ()
    symbolic: bool = False

    def producers(self, call: Call, *, skip: bool = False) -> tuple[Call, ...]:
        """The calls whose values `call` takes, in argument order; with `skip`, seen through transparent calls."""
        return self._walk(call, self._made, skip)

    def consumers(self, call: Call, *, skip: bool = False) -> tuple[Call, ...]:
        """The calls that take the value of `call`, in order; with `skip`, seen through transparent calls."""
        return self._walk(call, self._taken, skip)

    def _made(self, call: Call) -> tuple[Call, ...]:
        return tuple(self.calls[index] for index in dict.fromkeys(call.inputs) if index != OUTSIDE)

    def _taken(self, call: Call) -> tuple[Call, ...]:
        return tuple(other for other in self.calls[call.index + 1 :] if call.index in other.inputs)

    def _walk(self, call: Call, step: Any, skip: bool) -> tuple[Call, ...]:
        found: dict[int, Call] = {}
        for near in step(call):
            beyond = self._walk(near, step, skip) if skip and near.kind in TRANSPARENT else (near,)
            found.update({other.index: other for other in beyond})
        return tuple(found.values())


def trace(model: nn.Module, probe: Any) -> Flow:
    """The flow of one run on `probe`, in evaluation mode and without gradients. The model stays as it is."""
    calls: list[Call] = []
    observe(model, lambda call, inputs, output: calls.append(call), probe, training=False)
    return Flow(tuple(calls))
