"""What a rule for a model at rest sees: the model, its data flow, and what is known of the training to come."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from torch.optim import Optimizer

from normscope.anatomy.batch import Probe
from normscope.anatomy.flow import Flow, symbolic, trace
from normscope.anatomy.isolate import unwrapped
from normscope.anatomy.observe import Call, observe
from normscope.anatomy.recognize import spec_of
from normscope.terms.datum import Datum
from normscope.terms.spec import NormSpec

# Calls that hand every value on, each in its channel.
_KEEPS = frozenset(
    ["Identity", "identity", "contiguous", "clone", "to", "float", "half", "bfloat16", "type", "type_as"]
)


@dataclass(frozen=True)
class Norm:
    """A normalization in the model: where, which, and the shapes it was seen to take (none without an example)."""

    path: str
    module: nn.Module
    spec: NormSpec
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def positions(self) -> int | None:
        """The least number of positions behind one channel of one sample; None when it was not seen to run."""
        per_sample = (_positions(shape, self.spec) for shape in self.shapes)
        return min(per_sample, default=None)


@dataclass(frozen=True, repr=False)
class Blueprint(Datum):
    """A model before it trains.

    Attributes:
        model: the model; nothing changes it.
        example: a batch as the loader yields it, or None.
        optimizer: the optimizer that will train it, or None.
        batch_size: the batch size per device that training will use; the example's when None.
        trained: whether the model has trained: its weights then say nothing of how they were drawn.
    """

    model: nn.Module = field(repr=False)
    example: Any = field(default=None, repr=False)
    optimizer: Optimizer | None = field(default=None, repr=False)
    batch_size: int | None = None
    trained: bool = False

    @property
    def samples(self) -> int | None:
        """How many samples a training batch holds, as far as it is known."""
        if self.batch_size is not None:
            return self.batch_size
        return Probe.of(self.example).batch_size if self.example is not None else None

    @cached_property
    def flow(self) -> Flow | None:
        """What feeds what: as it ran on the example, or as the code reads; None when neither can be had."""
        return symbolic(self.model) if self.example is None else trace(self.model, self.example)

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """Every normalization, in order of registration."""
        found = []
        for path, module in unwrapped(self.model).named_modules():
            spec = spec_of(module)
            if spec is not None:
                found.append(Norm(path, module, spec, tuple(self._shapes.get(module, ()))))
        return tuple(found)

    def readers(self, call: Call) -> tuple[Call, ...]:
        """The calls that read the value of `call`, seen through those that only hand it on."""
        assert self.flow is not None
        found = []
        for reader in self.flow.consumers(call):
            found += self.readers(reader) if reader.kind in _KEEPS else [reader]
        return tuple(found)

    def axes(self, module: nn.Module) -> int | None:
        """The number of axes of the tensor that `module` takes first; None when it was not seen to run."""
        shapes = self._shapes.get(module)
        return len(shapes[0]) if shapes else None

    @cached_property
    def _shapes(self) -> dict[nn.Module, list[tuple[int, ...]]]:
        """The shape of the first input of every module that ran on the example, call by call."""
        shapes: dict[nn.Module, list[tuple[int, ...]]] = {}

        def note(call: Call, inputs: tuple[Any, ...], output: Any) -> None:
            if call.module is not None and inputs:
                shapes.setdefault(call.module, []).append(tuple(inputs[0].shape))

        if self.example is not None:
            observe(self.model, note, self.example, training=False)
        return shapes


def _positions(shape: tuple[int, ...], spec: NormSpec) -> int:
    axes = shape[1:-1] if spec.layout == "channels_last" else shape[2:]
    count = 1
    for size in axes:
        count *= size
    return count
