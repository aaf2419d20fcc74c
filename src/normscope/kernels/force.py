"""`using`: one offer for all calls inside a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from normscope.kernels.offer import found
from normscope.terms.errors import UnknownNameError

NAMES = ("reference", "aten", "numba", "triton")
_forced: ContextVar[str | None] = ContextVar("normscope_kernels_using", default=None)


def forced() -> str | None:
    """The offer that `using` asks for here, or None."""
    return _when_compiled() if torch.compiler.is_compiling() else _forced.get()


def _when_compiled() -> str | None:
    return _forced.get()


# The compiler cannot read a context variable, but can call who does. This is what torch.compiler.assume_constant_result
# sets; asking it to would load the compiler.
_when_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def using(name: str) -> Iterator[None]:
    """Every normalization inside the block is computed by the offer `name`, in this thread and its tasks alone.

    A function compiled by `torch.compile` keeps the choice with which it was compiled.

    Args:
        name: "reference", "aten", "numba" or "triton"; or "inplace", which writes the output over an input that is
            neither a leaf nor a view, so that training keeps the output alone (activation none or LeakyReLU, no
            residual; CPU; no second derivative).

    Raises:
        UnknownNameError: no such offer. At a call inside the block, SpecError: the offer does not serve it.

    >>> import torch, normscope as ns
    >>> with ns.kernels.using("reference"):
    ...     ns.nn.LayerNorm(2)(torch.tensor([1.0, 3.0])).tolist()
    [-0.9999949932098389, 0.9999949932098389]
    """
    known = {*NAMES, *(offer.name for offer in found())}
    if name not in known:
        raise UnknownNameError(
            "A kernel was asked for by a name that is not known.",
            found=f"`{name}`",
            because="an implementation is named after what computes it",
            do="choose " + ", ".join(sorted(known)),
        )
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
