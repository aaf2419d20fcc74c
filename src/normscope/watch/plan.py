"""`Plan`: which places of a model are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.parameter import Parameter, is_lazy

from normscope.terms.datum import Datum
from normscope.terms.site import Site


@dataclass(frozen=True, repr=False)
class Place(Datum):
    """One parameter: where it is registered, and the sites of its value, its gradient and its update."""

    owner: nn.Module
    name: str
    value: Site
    gradient: Site
    update: Site

    @property
    def parameter(self) -> Parameter | None:
        """The parameter that stands there now; None when there is none, or it has no values yet."""
        known: Any = self.owner._parameters
        if not isinstance(known, dict):  # that of a scripted module, which knows no more than its items
            known = dict(known.items())
        found = known.get(self.name)
        return found if type(found) is Parameter or found is None or not is_lazy(found) else None


@dataclass(frozen=True, repr=False)
class Plan(Datum):
    """Where a model is observed.

    Attributes:
        sites: the norms, producers and activations, each the site of its output, one for each call; functions among
            them, which only the fixed batch shows.
        modules: the modules of those sites that call hooks, by path; the model itself is not among them.
        places: the trainable parameters, each once.
        compiled: paths of the compiled parts, inside which no hook is called.
    """

    sites: tuple[Site, ...] = ()
    modules: dict[str, nn.Module] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    compiled: tuple[str, ...] = ()

    @cached_property
    def calls(self) -> dict[str, list[tuple[Site, Site, Site]]]:
        """By the path of a hooked module: the sites of input, output and gradient of each of its calls."""
        found: dict[str, list[tuple[Site, Site, Site]]] = {}
        for site in self.sites:
            if site.path in self.modules:
                found.setdefault(site.path, []).append((input_of(site), site, site.at("gradient")))
        return found

    @staticmethod
    def of(model: nn.Module, sites: Iterable[Site]) -> Plan:
        """The plan for `model` (unwrapped) with the `sites` that `anatomy.walk.sites` found in it."""
        sites = tuple(sites)
        compiled = tuple(path for path, module in model.named_modules() if path and _is_compiled(module))
        all_modules = dict(model.named_modules(remove_duplicate=False))
        modules = {
            site.path: all_modules[site.path]
            for site in sites
            if site.path in all_modules and site.path and not any(_is_within(site.path, part) for part in compiled)
        }
        return Plan(sites, modules, tuple(_places(model, sites)), compiled)


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(getattr(module, "_orig_mod", None), nn.Module) or module._compiled_call_impl is not None


def _is_within(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")


def _places(model: nn.Module, sites: tuple[Site, ...]) -> Iterable[Place]:
    known = {site.path: site for site in reversed(sites)}
    found: dict[int, Place] = {}
    for path, module in model.named_modules():
        shown = path.replace("_orig_mod.", "").removesuffix("._orig_mod")
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if id(parameter) in found:  # tied weights
                found[id(parameter)] = _also_at(found[id(parameter)], shown)
                continue
            site = known.get(shown) or Site(shown, kind=type(module).__name__)
            found[id(parameter)] = Place(
                module, name, *(site.at(what, name) for what in ("parameter", "gradient", "update"))
            )
    return found.values()


def _also_at(place: Place, path: str) -> Place:
    """The same parameter, with a further path of its own."""
    value, gradient, update = (
        replace(site, aliases=(*site.aliases, path)) for site in (place.value, place.gradient, place.update)
    )
    return Place(place.owner, place.name, value, gradient, update)


def input_of(site: Site) -> Site:
    """The site of the input. What indexes a table has no channels."""
    found = site.at("input")
    return replace(found, channel_axis=None) if site.kind in ("Embedding", "EmbeddingBag") else found


def root_of(model: nn.Module, sites: tuple[Site, ...]) -> Site:
    """The site of the model's own output: one of `sites` when the model is itself a norm, producer or activation."""
    own = next((site for site in sites if site.path == ""), None)
    if own is not None:
        return own
    ran = [site for site in sites if site.depth >= 0]
    axis = max(ran, key=lambda site: site.depth).channel_axis if ran else -1
    return Site("", kind=type(model).__name__, channel_axis=axis)
