"""Which tensor is meant: from a site, a key or a bare module path to the sites that the record has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from normscope.record.quantities import LIVES, saturating
from normscope.record.rankfile import RankFile
from normscope.terms.errors import UnknownNameError
from normscope.terms.site import Site

_LISTED = 40  # names that an error lists


@dataclass(frozen=True)
class Place:
    """The recorded tensors of one module and call (and of its parameter, when that is named).

    named: the site that was asked for. tensors: at least one; the one that was asked for comes first, if it is there.
    """

    named: Site
    tensors: tuple[Site, ...]

    @classmethod
    def find(cls, ranks: Sequence[RankFile], site: Site | str) -> Place:
        """The place that `site` names: a site, a key, or a module path, which means any tensor of the module.

        Raises UnknownNameError when the record has nothing of it.
        """
        named = site if isinstance(site, Site) else Site.parse(site)
        whole = isinstance(site, Site) or ":" in site
        found: dict[str, Site] = {}
        for rank in ranks:
            found = {**rank.sites("path = ? AND call = ?", named.path, named.call), **found}
        exact = found.pop(named.key, None)
        others = [other for other in found.values() if named.name in ("", other.name)]
        if exact is None and (whole or not others):
            raise _unknown_site(ranks, named, whole)
        return cls(named, (exact, *others) if exact else tuple(others))

    def home(self, quantity: str) -> Site | None:
        """The tensor of which a derived quantity is, or None when the record has no such tensor."""
        if quantity == "saturated":
            return next((tensor for tensor in sorted(self.tensors, key=lambda t: t.what) if saturating(tensor)), None)
        key = self.named.at(LIVES.get(quantity, self.named.what), self.named.name).key
        return next((tensor for tensor in self.tensors if tensor.key == key), None)


def unknown(noun: str, name: str, known: Iterable[str], because: str) -> UnknownNameError:
    """The error for a `noun` of that `name`, with the near names and the list."""
    names = sorted({*known} - {""})  # the path of the model itself
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    told = ", ".join(names[:_LISTED]) + (f", and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    guess = f"did you mean {' or '.join(f'`{one}`' for one in near)}? " if near else ""
    return UnknownNameError(
        f"A {noun} was asked for that does not exist.",
        found=f"`{name}`",
        because=because,
        do=f"{guess}choose from: {told}" if names else "nothing is recorded yet; ask again later",
    )


def _unknown_site(ranks: Sequence[RankFile], named: Site, whole: bool) -> UnknownNameError:
    sites = {key: site for rank in ranks for key, site in rank.sites().items()}
    first = next((site.path for site in sites.values() if named.path in site.aliases), None)
    if first is not None:
        return unknown("site", named.path, [first], "a module with several paths is recorded under its first one")
    if whole:
        return unknown("site", named.key, sites, "the record has no such tensor")
    return unknown("site", named.path, {site.path for site in sites.values()}, "the record has no such module")
