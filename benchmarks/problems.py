"""What the benchmarks of kernels measure: one normalization of one tensor, and what a user of torch writes for it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import normscope as ns

OVER = {"batch": "NS", "group": "CS", "instance": "S", "layer": "C", "rms": "C"}
TAILS = ((None, False), ("relu", False), ("relu", True), ("silu", False), ("gelu", False))  # activation, residual
Sizes = Mapping[str, tuple[int, ...]]
_GROUPS = 32


class Case(NamedTuple):
    """One row of a table; its size is named by the bytes of the tensor in float32."""

    norm: str
    activation: str | None
    residual: bool
    size: str
    shape: tuple[int, ...]
    dtype: str
    memory: str

    @property
    def name(self) -> str:
        what = " + ".join([self.norm, *["add"] * self.residual, *[self.activation] * (self.activation is not None)])
        return f"{what}, {self.size}, {self.dtype}, {self.memory}"

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        """Of one pass over the tensor."""
        return self.elements * getattr(torch, self.dtype).itemsize

    @property
    def passes(self) -> tuple[int, int]:
        """Over the tensor, that nobody can avoid, forward and backward: read x, write y; read x and dy, write dx.

        A residual is read once more, and its gradient written.
        """
        return 2 + self.residual, 3 + self.residual

    @property
    def spec(self) -> ns.NormSpec:
        return described(self.norm, min(_GROUPS, self.shape[1]) if self.norm == "group" else 1, self.activation)

    def operands(self, device: str = "cpu") -> list[Tensor | None]:
        """Input, weight, bias and residual, all of which want gradients."""
        dtype = getattr(torch, self.dtype)
        memory = torch.channels_last if self.memory == "channels_last" else torch.contiguous_format
        x = torch.randn(self.shape, device=device).to(dtype).to(memory_format=memory)
        own = dtype if OVER[self.norm] == "C" else torch.float32
        weight, bias = (
            (torch.rand(self.shape[1], device=device) + 0.5).to(own),
            torch.rand(self.shape[1], device=device),
        )
        bias = None if self.norm == "rms" else bias.to(own)
        values = [x, weight, bias, torch.randn_like(x) if self.residual else None]
        return [value if value is None else value.requires_grad_() for value in values]

    def by_torch(self, x: Any, weight: Any, bias: Any, residual: Any) -> Tensor:
        """What a user of torch writes."""
        if self.norm == "batch":
            y = F.batch_norm(x, None, None, weight, bias, True)
        elif self.norm == "group":
            y = F.group_norm(x, min(_GROUPS, x.shape[1]), weight, bias)
        elif self.norm == "instance":
            y = F.instance_norm(x, None, None, weight, bias)
        elif self.norm == "layer":
            y = F.layer_norm(x, x.shape[-1:], weight, bias)
        else:
            y = F.rms_norm(x, x.shape[-1:], weight, 1e-5)
        y = y if residual is None else y + residual
        return y if self.activation is None else getattr(F, self.activation)(y)

    def by_us(self, x: Any, weight: Any, bias: Any, residual: Any) -> Tensor:
        """Ours, by whichever offer is chosen or forced."""
        return ns.functional.normalize(x, self.spec, weight=weight, bias=bias, residual=residual)


@functools.cache  # who trains makes it once
def described(norm: str, groups: int, activation: str | None) -> ns.NormSpec:
    source = "batch" if norm == "batch" else "input"
    rms: dict[str, Any] = {"center": False, "scale": "rms", "bias": False} if norm == "rms" else {}
    last: dict[str, Any] = {"layout": "channels_last"} if OVER[norm] == "C" else {}
    return ns.NormSpec(OVER[norm], source, source, groups, activation=activation, **rms, **last)


def cases(images: Sizes, rows: Sizes, dtypes: tuple[str, ...]) -> Iterator[Case]:
    """Every norm × what follows × size × dtype × memory; layer and RMS norm take rows, the others images."""
    for norm, over in OVER.items():
        memories = ("contiguous",) if over == "C" else ("contiguous", "channels_last")
        for activation, residual in TAILS:
            for size, shape in (rows if over == "C" else images).items():
                for dtype in dtypes:
                    for memory in memories:
                        yield Case(norm, activation, residual, size, shape, dtype, memory)


def lines_of(held: dict[str, Any]) -> str:
    """JSON with one line a row."""
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in held["rows"].items())
    head = json.dumps({name: value for name, value in held.items() if name != "rows"})
    return f'{head[:-1]}, "rows": {{\n{rows}\n}}}}\n'
