"""`Bench`: the fixed batch at other parameters than the model's own, for measures that move them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from normscope.stats.summary import Summary
from normscope.terms.site import Site
from normscope.watch.measure import Measure, Reading
from normscope.watch.plan import Place

LAYERS = 8
"""How many layers a measure that runs the batch once for each of them looks at, evenly over the depth."""

Values = Sequence[Tensor | None]
"""One tensor for each place of `Bench.places`."""


class Slope(NamedTuple):
    """The loss at some parameters (None where a held gradient stands for it), and its gradient, one a place."""

    loss: float | None
    gradient: Values


class Layer(NamedTuple):
    """A norm or producer with parameters; or what another module has of its own between two of them.

    Attributes:
        site: that of the output; of parameters on their own, that of the first one's value.
        depth: where it stands in the order of execution, on the scale of `Site.depth`.
        own: the indices of its own places.
        below: those of all layers that stand before it.
    """

    site: Site
    depth: float
    own: tuple[int, ...]
    below: tuple[int, ...]


@dataclass
class Bench:
    """The parameters before and after one real update, and ways to run the fixed batch at any mixture of them.

    Attributes:
        sites: the norms, producers and activations, in order of execution.
        places: the trainable parameters.
        before: θ_t, copies.
        after: θ_{t+1}, as they are.
        slope: loss and gradient at some parameters, one forward and one backward pass; None where there is no loss and
            no gradient held in its place.
        outputs: by site key, the site and the summary of each output at some parameters: one forward pass.
        curvature: the Hessian at θ_{t+1} times a direction: one forward and two backward passes; None like `slope`.
        entries: of each place, where its parameter comes in (`entry.entries`), for those of no norm or producer.
    """

    sites: Sequence[Site]
    places: Sequence[Place]
    before: Values
    after: Values
    slope: Callable[[Values], Slope | None]
    outputs: Callable[[Values], dict[str, tuple[Site, Summary]]]
    curvature: Callable[[Values], Values | None]
    entries: Callable[[], Sequence[float | None]]

    @property
    def update(self) -> Values:
        """θ_{t+1} − θ_t."""
        return [None if a is None or b is None else b - a for a, b in zip(self.before, self.after)]

    @property
    def layers(self) -> list[Layer]:
        """The norms and producers that have parameters, and parameters of none, in order of execution by first call."""
        homes = [home if home is None or home.depth >= 0 else None for home in map(self._home, self.places)]
        entries = self.entries() if None in homes else ()
        depths = [entries[at] if home is None else float(home.depth) for at, home in enumerate(homes)]
        sites = [home or place.value for home, place in zip(homes, self.places)]
        found: dict[tuple[str, int], dict[int, float]] = {}
        for at, depth in enumerate(depths):
            if depth is not None:  # of one module, and between the same two layers
                found.setdefault((sites[at].path, floor(depth)), {})[at] = depth
        layers = []
        for own in found.values():
            begins = min(own.values())
            below = (at for at, depth in enumerate(depths) if depth is not None and depth < begins)
            layers.append(Layer(sites[min(own)], begins, tuple(own), tuple(below)))
        return sorted(layers, key=lambda layer: layer.depth)

    def _home(self, place: Place) -> Site | None:
        """The norm or producer whose parameter it is, if it is one's (a parametrized weight lies inside its layer)."""
        by_path = {site.path: site for site in reversed(self.sites)}
        path = place.value.path
        while path:
            if path in by_path:
                return by_path[path]
            path = path.rpartition(".")[0]
        return by_path.get("")

    def mixed(self, moved: Iterable[int]) -> Values:
        """θ_t, with θ_{t+1} at the places `moved`."""
        chosen = set(moved)
        return [self.after[at] if at in chosen else value for at, value in enumerate(self.before)]


class Experiment(Measure):
    """A measure that runs the batch at other parameters, with passes of its own: taken rarely, or where it is named.

    Attributes:
        passes: how many forward and backward passes it takes at most. A probe takes two, so this bounds the cost.
    """

    passes: ClassVar[int]

    @abstractmethod
    def run(self, bench: Bench) -> Iterable[Reading]:
        """What was measured across one update."""


def spread(layers: Sequence[Layer], most: int) -> list[Layer]:
    """At most so many of `layers`, evenly from the first to the last."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(at * (len(layers) - 1) / max(1, most - 1))] for at in range(most)]


def norm(values: Values) -> float:
    """The Euclidean norm of all of them together."""
    return (
        float(sum(float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2 for value in _there(values))) ** 0.5
    )


def dot(one: Values, other: Values) -> float:
    """The inner product of all of them together."""
    pairs = ((a, b) for a, b in zip(one, other) if a is not None and b is not None)
    return float(sum(float((a.double() * b.double()).sum()) for a, b in pairs))


def along(values: Values, step: float, direction: Values) -> Values:
    """``values + step · direction``, of the type of `values`; where there is no direction, the value itself."""
    return [a if a is None or d is None else (a + step * d).to(a.dtype) for a, d in zip(values, direction)]


def apart(one: Values, other: Values) -> Values:
    """``one − other``, where both are."""
    return along(one, -1.0, other)


@contextmanager
def placed(model: nn.Module, places: Sequence[Place], values: Values) -> Iterator[list[nn.Parameter | None]]:
    """Inside, the parameters at `places` are new ones with these values, wherever they are registered in `model`.

    In scripted modules, where nothing can be exchanged, they are the same ones on other memory.
    """
    scripted = [isinstance(place.owner, torch.jit.ScriptModule) for place in places]
    held = [place.parameter for place in places]
    fresh = [
        value if value is None else parameter if stays else nn.Parameter(value.detach())
        for value, parameter, stays in zip(values, held, scripted)
    ]
    by_identity = {id(parameter): new for parameter, new in zip(held, fresh) if new is not None}
    holders = [module._parameters for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    kept = [dict(holder) for holder in holders]
    memory = [
        (p, p.data, v) for p, v, stays in zip(held, values, scripted) if stays and p is not None and v is not None
    ]
    try:
        for holder in holders:
            holder.update({name: by_identity.get(id(known), known) for name, known in holder.items()})
        for parameter, _, value in memory:
            parameter.data = value.detach()
        yield fresh
    finally:
        for holder, before in zip(holders, kept):
            holder.update(before)
        for parameter, before, _ in memory:
            parameter.data = before


def _there(values: Values) -> list[Tensor]:
    return [value for value in values if value is not None]
