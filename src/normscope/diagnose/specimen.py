"""`Specimen`: an example for rules that read a model at rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from torch import nn

from normscope.diagnose.blueprint import Blueprint
from normscope.terms.datum import Datum


@dataclass(frozen=True, repr=False)
class Specimen(Datum):
    """A model at rest: the subject is its blueprint.

    Attributes:
        build: makes the model.
        sites: module paths that a finding must name.
        known: what else is known, as keyword arguments of `Blueprint`.
    """

    build: Callable[[], nn.Module]
    sites: tuple[str, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)

    def subject(self, folder: str | PathLike[str] | None = None) -> Blueprint:
        """The blueprint of the model; `folder` is for examples that write."""
        return Blueprint(self.build(), **self.known)
