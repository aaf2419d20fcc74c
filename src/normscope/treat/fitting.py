"""Reading which norm is wanted, and fitting its description to the place where it will stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from normscope.terms.catalog import CATALOG
from normscope.terms.errors import UnknownNameError
from normscope.terms.spec import Layout, NormSpec

AFFINE = NormSpec(frozenset(), train_from="none", infer_from="none", center=False, scale=None)  # what a removal leaves
STANDARDIZED = "+WS"  # after a catalog's name: and the layers before it with standardized weights
SHARING = 16  # channels that share a statistic where there are no positions to share it (Wu & He 2018, table 3)


def spec_named(norm: str | NormSpec | Mapping[str, Any]) -> NormSpec:
    """The description that `norm` stands for: a name of the catalog, a `NormSpec`, or its `to_dict`.

    ``"none"`` is no norm but a weight and a bias a channel; ``"GroupNorm+WS"`` asks for standardized weights before it.

    Raises:
        UnknownNameError: the catalog has no such name.
        SpecError: the fields contradict each other.
    """
    if isinstance(norm, NormSpec):
        return norm
    if isinstance(norm, Mapping):
        known = {field.name for field in fields(NormSpec)}
        return NormSpec(**{name: _frozen(value) for name, value in norm.items() if name in known})
    if norm == "none":
        return AFFINE
    if (row := CATALOG.get(norm.removesuffix(STANDARDIZED))) is not None:
        return row.but(weights="standardized") if norm.endswith(STANDARDIZED) else row
    close = get_close_matches(str(norm), CATALOG, 1)
    raise UnknownNameError(
        "A treatment was asked for with a norm that does not exist.",
        found=f"{norm!r}",
        because='a norm is named as in normscope.catalog, with "+WS" or not, or "none", or described by a NormSpec',
        do=(f"did you mean {close[0]!r}? " if close else "") + "choose one of " + ", ".join(sorted(CATALOG)),
    )


def name_of(spec: NormSpec) -> str:
    """The catalog's name of the kind of norm that `spec` describes, or ``"norm"``."""
    return next((name for name, row in CATALOG.items() if same_kind(row, spec)), "norm")


def same_kind(one: NormSpec, other: NormSpec) -> bool:
    """Whether both take the same statistics of the same cells: equal but for eps, momentum, affine, layout and cast."""
    kind = ("over", "train_from", "infer_from", "groups", "center", "scale")
    return all(getattr(one, name) == getattr(other, name) for name in kind)


def fitted(spec: NormSpec, channels: int, layout: Layout, *, positions: bool = True) -> NormSpec:
    """`spec` for an input of so many channels, in that layout, with or without positions beside them.

    More than one group becomes the largest number of groups, no larger than asked for, that divides the channels and
    leaves two channels a group; without positions sixteen, since two values alone normalize to +1 and −1.
    """
    spec = spec.but(layout=layout)
    if spec.groups == 1:
        return spec
    least = 2 if positions else SHARING
    allowed = (n for n in range(min(spec.groups, channels), 1, -1) if channels % n == 0 and channels // n >= least)
    return spec.but(groups=next(allowed, 1))


def words(spec: NormSpec, channels: int) -> str:
    """The norm as one reads it: ``GroupNorm(15 groups of 2)``."""
    if spec.scale is None and not spec.over:
        return f"weight and bias of {channels} channels"
    if spec.over == frozenset("CS") and spec.center:
        return f"GroupNorm({spec.groups} group{'s' * (spec.groups > 1)} of {channels // spec.groups})"
    return f"{name_of(spec)}({channels})"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
