"""`Flow`: what ran in which order, and which value fed which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from normscope.anatomy.batch import Probe, tensors
from normscope.anatomy.makers import Makers
from normscope.anatomy.observe import CONSTANT, Call, observe
from normscope.anatomy.symbolic import Unreadable, read
from normscope.terms.datum import Datum

# Calls that hand on the values they take, at inference: only their arrangement changes.
TRANSPARENT = {
    *("reshape", "view", "view_as", "permute", "transpose", "T", "mT", "movedim", "swapaxes", "flatten", "unflatten"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "contiguous", "clone", "detach", "to", "type", "type_as"),
    *("float", "double", "half", "bfloat16", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
    *("feature_alpha_dropout", "Identity", "Flatten", "Unflatten", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d"),
    *("AlphaDropout", "FeatureAlphaDropout"),
}


@dataclass(frozen=True, repr=False)
class Flow(Datum):
    """The calls of one run in order; each names the calls that made its inputs.

    Attributes:
        calls: in order of execution; ``calls[i].index == i``.
        outputs: indices of the calls whose values the model returns.
        symbolic: whether it was read off the code without running it on data.

    >>> flow = symbolic(nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.BatchNorm1d(3), nn.Tanh()))
    >>> [(producer.path, norm.path) for producer, norm in flow.chain("producer", "norm")]
    [('0', '2')]
    """

    calls: tuple[Call, ...]
    outputs: tuple[int, ...] = ()
    symbolic: bool = False

    def at(self, path: str) -> tuple[Call, ...]:
        """The calls of the module (or function) at `path`."""
        return tuple(call for call in self.calls if call.path == path)

    def producers(self, call: Call, *, skip: bool = False) -> tuple[Call, ...]:
        """The calls whose values `call` takes, in argument order; with `skip`, seen through transparent calls."""
        return tuple(_beyond(self._made(call), self._made) if skip else self._made(call))

    def consumers(self, call: Call, *, skip: bool = False) -> tuple[Call, ...]:
        """The calls that take the value of `call`, in order; with `skip`, seen through transparent calls."""
        return tuple(_beyond(self._taken(call), self._taken) if skip else self._taken(call))

    def chain(self, *steps: str, sole: bool = False) -> Iterator[tuple[Call, ...]]:
        """Calls that feed one another directly or through transparent calls, one of each step.

        Args:
            steps: roles (``"producer"``) or kinds (``"Dropout"``, ``"add"``), first to last.
            sole: whether each value must go to the next step only, and not be returned by the model either.
        """
        for call in self.calls:
            if _is(call, steps[0]):
                yield from ((call, *rest) for rest in self._onward(call, steps[1:], sole))

    def sums(self) -> tuple[Call, ...]:
        """The calls that add two values of the run: residual connections, merged branches."""
        return tuple(
            call for call in self.calls if call.kind == "add" and len(call.inputs) > 1 and CONSTANT not in call.inputs
        )

    def feeds(self, call: Call) -> str | None:
        """The activation function that takes the value of `call` at once, by torch's functional name."""
        functions = (other.activation for other in self.consumers(call, skip=True))
        return next((function.name for function in functions if function is not None), None)

    def _onward(self, call: Call, steps: tuple[str, ...], sole: bool) -> Iterator[tuple[Call, ...]]:
        if not steps:
            yield ()
            return
        following = _beyond(self._taken(call), self._taken, until=steps[0])
        if sole and (self._is_returned(call) or not all(_is(other, steps[0]) for other in following)):
            return
        for other in following:
            if _is(other, steps[0]):
                yield from ((other, *rest) for rest in self._onward(other, steps[1:], sole))

    def _is_returned(self, call: Call) -> bool:
        """Whether the model returns the value of `call`, or a rearrangement of it."""
        handed_on = (other for other in self._taken(call) if other.kind in TRANSPARENT)
        return call.index in self.outputs or any(self._is_returned(other) for other in handed_on)

    def _made(self, call: Call) -> tuple[Call, ...]:
        return tuple(self.calls[index] for index in dict.fromkeys(call.inputs) if index >= 0)

    def _taken(self, call: Call) -> tuple[Call, ...]:
        return tuple(self.calls[index] for index in self._takers[call.index])

    @cached_property
    def _takers(self) -> list[list[int]]:
        takers: list[list[int]] = [[] for _ in self.calls]
        for call in self.calls:
            for index in dict.fromkeys(call.inputs):
                if index >= 0:
                    takers[index].append(call.index)
        return takers


def trace(model: nn.Module, probe: Any) -> Flow:
    """The flow of one run on `probe`, in evaluation mode and without gradients. The model stays as it is.

    A value is known by the tensor that holds it. A call that returns its argument itself (``flatten`` of what is flat,
    dropout in evaluation mode) stands for it from then on, so ask across such calls with ``skip``.

    Raises:
        DataError: the probe does not fit the model.
        ModelError: the model raised.
    """
    calls: list[Call] = []
    maker = Makers()

    def follow(call: Call, inputs: Any, output: Any) -> None:
        calls.append(call)
        maker.note(tensors(output), call.index)

    output = observe(model, follow, Probe.of(probe), training=False)
    returned = (maker.get(tensor, CONSTANT) for tensor in tensors(output))
    return Flow(tuple(calls), tuple(dict.fromkeys(index for index in returned if index >= 0)))


def symbolic(model: nn.Module) -> Flow | None:
    """The flow as `torch.fx` reads it off the code, without a batch; None when it cannot be read.

    Parts that cannot be read (control flow on values) stand as one call each, so a nest of `nn.Sequential` is always
    read. Optional arguments of ``forward`` have their defaults.
    """
    try:
        calls, outputs = read(model)
    except Unreadable:
        return None
    return Flow(calls, outputs, symbolic=True)


def _is(call: Call, step: str) -> bool:
    return step in (call.role, call.kind)


def _beyond(calls: tuple[Call, ...], step: Callable[[Call], tuple[Call, ...]], until: str = "") -> list[Call]:
    """`calls`, with each transparent one (but for those that `until` names) replaced by what `step` finds behind it."""
    found: dict[int, Call] = {}
    waiting = list(reversed(calls))
    while waiting:
        call = waiting.pop()
        if call.kind in TRANSPARENT and not _is(call, until):
            waiting.extend(reversed(step(call)))
        else:
            found[call.index] = call
    return list(found.values())
