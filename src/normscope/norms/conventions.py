"""The same statistics under other libraries' conventions: torch, Keras and flax.

=========  ==============================  =======  ==================  =========================================
library    momentum m means                default  running variance    names
=========  ==============================  =======  ==================  =========================================
torch      r ← (1 − m) r + m · batch       0.1      unbiased, n/(n−1)   weight, bias, running_mean, running_var
Keras      r ← m r + (1 − m) · batch       0.99     biased (*)          gamma, beta, moving_mean, moving_variance
flax       r ← m r + (1 − m) · batch       0.99     biased              scale, bias, mean, var
=========  ==============================  =======  ==================  =========================================

(*) Keras' former fused kernel on a GPU kept the unbiased one. Default eps: torch 1e-5, Keras 1e-3, flax 1e-5. The
numbers differ by n/(n − 1), n the cells a statistic was taken over: 2% for 50 cells, nothing that matters for 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from normscope.terms.datum import Datum
from normscope.terms.errors import DataError, UnknownNameError

A = TypeVar("A")  # a numpy array or a torch tensor


@dataclass(frozen=True, repr=False)
class Convention(Datum):
    """How one library writes batch normalization down.

    Attributes:
        name: the library.
        momentum_of_new: whether momentum weighs the newest batch (torch) rather than the past.
        momentum: its default.
        eps: its default.
        unbiased: whether the running variance is the unbiased one.
        keys: its names for torch's weight, bias, running_mean and running_var.
    """

    name: str
    momentum_of_new: bool
    momentum: float
    eps: float
    unbiased: bool
    keys: tuple[str, str, str, str]


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        row.name: row
        for row in (
            Convention("torch", True, 0.1, 1e-5, True, ("weight", "bias", "running_mean", "running_var")),
            Convention("keras", False, 0.99, 1e-3, False, ("gamma", "beta", "moving_mean", "moving_variance")),
            Convention("flax", False, 0.99, 1e-5, False, ("scale", "bias", "mean", "var")),
        )
    }
)


def momentum(value: float, source: str, target: str) -> float:
    """A momentum of `source` in the meaning of `target`.

    Raises:
        UnknownNameError: no such library.

    >>> momentum(0.99, "keras", "torch")
    0.01
    """
    same = _named(source).momentum_of_new == _named(target).momentum_of_new
    return value if same else round(1.0 - value, 15)


def running_variance(value: A, source: str, target: str, *, cells: int | None = None) -> A:
    """A running variance of `source` as `target` would have kept it.

    Args:
        value: an array or a tensor.
        source: the library that it comes from.
        target: the library that it goes to.
        cells: how many cells a statistic was taken over (batch size times positions).

    Raises:
        DataError: the libraries differ and `cells` is missing or below 2.
        UnknownNameError: no such library.
    """
    before, after = _named(source).unbiased, _named(target).unbiased
    if before == after:
        return value
    if cells is None or cells < 2:
        raise DataError(
            f"A running variance was asked to go from {source} to {target}.",
            found={"cells": cells},
            because="one library divides by n, the other by n − 1, and n is not written down with the variance",
            do="give cells = batch size × positions of the training, or pass it on unchanged where that is large",
        )
    return value * ((cells / (cells - 1)) if after else (cells - 1) / cells)  # type: ignore[operator]


def state_dict(values: Mapping[str, Any], source: str, target: str, *, cells: int | None = None) -> dict[str, Any]:
    """The parameters and statistics of one batch norm, by the names and conventions of `target`.

    Args:
        values: arrays or tensors by the names of `source`; a path before the last ``.`` or ``/`` is kept.
        source: "torch", "keras" or "flax".
        target: "torch", "keras" or "flax".
        cells: see `running_variance`; None passes the variance on unchanged.

    Raises:
        DataError: a name that is none of the library's.
        UnknownNameError: no such library.
    """
    names = dict(zip(_named(source).keys, _named(target).keys, strict=True))
    if source == "torch" != target:
        names["num_batches_tracked"] = ""  # torch alone counts
    found = {}
    for key, value in values.items():
        cut = max(key.rfind("."), key.rfind("/")) + 1
        if key[cut:] not in names:
            raise DataError(
                f"The statistics of a batch norm were read as {source} writes them.",
                found=f"`{key}`",
                because=f"{source} has no such name",
                do="pass one layer's values, named " + ", ".join(names),
            )
        if not names[key[cut:]]:
            continue
        if key[cut:] == _named(source).keys[3] and cells is not None:
            value = running_variance(value, source, target, cells=cells)
        found[key[:cut] + names[key[cut:]]] = value
    return found


def _named(library: str) -> Convention:
    if library in CONVENTIONS:
        return CONVENTIONS[library]
    raise UnknownNameError(
        "A convention was asked for by a library that is not known.",
        found=f"`{library}`",
        because="each library's conventions are written down by hand",
        do="choose " + ", ".join(CONVENTIONS),
    )
