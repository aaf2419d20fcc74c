"""What a source of statistics is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from normscope.kernels.reference import Statistics
from normscope.norms.sources.meeting import PATIENCE
from normscope.terms.spec import NormSpec


class Call(NamedTuple):
    """One call of one normalization: the input, its description, its parameters and its buffers.

    `group` is the process group of synchronized statistics, None the default one, and `patience` how many seconds they
    wait for its other ranks. `residual` is added to the normalized input before the activation.
    """

    x: Tensor
    spec: NormSpec
    weight: Tensor | None = None
    bias: Tensor | None = None
    state: Mapping[str, Tensor] | None = None
    mask: Tensor | None = None
    group: Any = None
    residual: Tensor | None = None
    patience: float = PATIENCE

    def kept(self, name: str) -> Tensor | None:
        """The buffer of that name, if there is one."""
        return self.state.get(name) if self.state else None

    def by(self, state: Mapping[str, Tensor]) -> Call:
        """The same call with other buffers; torch.compile before 2.7 follows no `_replace`."""
        x, spec, weight, bias, _, mask, group, residual, patience = self
        return Call(x, spec, weight, bias, state, mask, group, residual, patience)


class Source:
    """Where μ and σ come from. Sources hold nothing: what they keep lives in the buffers of `Call.state`."""

    learns = False  # whether `learn` keeps something of what was measured

    def initial(self, spec: NormSpec, width: int) -> dict[str, Tensor]:
        """The buffers before the first batch, by name."""
        return {}

    def normalize(self, call: Call) -> Tensor:
        """The output, with the residual and the activation."""
        return self.measure(call)[0]

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """That output, and what was measured on the way: one `Statistics` a (virtual) batch, without gradient."""
        return self.normalize(call), ()

    def repeat(self, call: Call) -> Tensor:
        """The output once more, for activation checkpointing: the same operations, and nothing learned."""
        return self.measure(call)[0]

    def at_once(self, call: Call) -> Tensor | None:
        """As a source for inference: the output in training, the batch learned from, where one kernel does both."""
        return None

    def learn(self, state: Mapping[str, Tensor], spec: NormSpec, seen: Statistics) -> None:
        """Update `state` in place with what was measured of one batch."""
