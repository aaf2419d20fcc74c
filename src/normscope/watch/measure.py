"""`Measure`: what is measured on the fixed batch. Each file under ``probes/`` holds one, and is found by its place."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from normscope.stats.summary import Summary
from normscope.terms.errors import UnknownNameError
from normscope.terms.site import Site
from normscope.watch.sample import summary_of

Mode = Literal["probe", "probe_eval", "batch"]


class Scalar(NamedTuple):
    """One number of a site, or of the whole run (None)."""

    site: Site | None
    quantity: str
    value: float


class Distribution(NamedTuple):
    """The summary of one tensor in one mode."""

    site: Site
    mode: Mode
    summary: Summary


Reading = Scalar | Distribution


@dataclass(eq=False)
class Sight:
    """One tensor of the model as it passes.

    Attributes:
        site: the place, `what` included.
        mode: ``"probe"`` in training mode, ``"probe_eval"`` in evaluation mode; ``"batch"`` is the training batch of
            the step instead of the fixed batch, in training mode, where a measure compares the two.
        tensor: the whole tensor, detached; gone or overwritten after `Measure.see` returns.
        module: the module that made it; None for a function.
    """

    site: Site
    mode: Mode
    tensor: Tensor
    module: nn.Module | None = None

    @cached_property
    def summary(self) -> Summary:
        """The summary of a fixed sample of the tensor, per channel where it has channels."""
        quantiles = self.mode == "probe" and self.site.what in ("input", "output")
        return summary_of(self.tensor, self.site.channel_axis, quantiles=quantiles)


@dataclass
class View:
    """All that was seen at one step.

    Attributes:
        step: optimizer steps taken.
        model: the replica, at rest, as it was before the passes.
        summaries: by mode and site key (`Site.key`).
    """

    step: int
    model: nn.Module
    summaries: dict[tuple[Mode, str], Distribution] = field(default_factory=dict)

    def of(self, mode: Mode) -> Iterator[Distribution]:
        """What was seen in one mode, in order of execution; gradients last."""
        return (found for (seen_in, _), found in self.summaries.items() if seen_in == mode)

    def pairs(self) -> Iterator[tuple[Site, Summary, Summary]]:
        """Each place that was seen in both modes: its summaries in training mode and in evaluation mode."""
        for found in self.of("probe"):
            other = self.summaries.get(("probe_eval", found.site.key))
            if other is not None:
                yield found.site, found.summary, other.summary


class Measure:
    """One measure of the fixed batch. It may look at each tensor while it is there, and tells at the end.

    Attributes:
        on_request: whether it is taken only where it is named: it costs more than it tells most users.
        compares_batches: whether it is to see the training batch as well (`Sight.mode` ``"batch"``), norms' inputs.
    """

    on_request: ClassVar[bool] = False
    compares_batches: ClassVar[bool] = False

    def __init__(self) -> None:
        self._found: list[Reading] = []

    def see(self, sight: Sight) -> None:
        """Called for each tensor of the passes, in order of execution, before anything can overwrite it."""

    def find(self, site: Site | None, quantity: str, value: float) -> None:
        """Keep one number until `tell`."""
        self._found.append(Scalar(site, quantity, value))

    def tell(self, view: View) -> Iterable[Reading]:
        """What was measured at this step: what was found since the last one, unless a measure tells otherwise."""
        found, self._found = self._found, []
        return found


def measures() -> Mapping[str, type[Measure]]:
    """The measures under ``probes/``, by the name of their file."""
    from normscope.watch import probes

    found: dict[str, type[Measure]] = {}
    for leaf in pkgutil.iter_modules(probes.__path__):
        module = importlib.import_module(f"{probes.__name__}.{leaf.name}")
        (found[leaf.name],) = (
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Measure) and value.__module__ == module.__name__
        )
    return found


def measures_named(names: Iterable[str] | None) -> dict[str, Measure]:
    """Fresh measures: all but those on request, or those named.

    Raises:
        UnknownNameError: there is no measure of that name.
    """
    known = measures()
    chosen = (
        [name for name in known if not known[name].on_request]
        if names is None
        else [names]
        if isinstance(names, str)
        else list(names)
    )
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise UnknownNameError(
            "A measure of the fixed batch was asked for that does not exist.",
            found=", ".join(f"`{name}`" for name in unknown),
            because="each measure is a file under normscope/watch/probes",
            do="choose among " + ", ".join(sorted(known)),
        )
    return {name: known[name]() for name in chosen}
