"""Which tensor is meant: from a site, a key or a bare module path to the sites that the record has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from normscope.record.quantities import LIVES, saturating
from normscope.record.rankfile import RankFile
from normscope.terms.errors import UnknownNameError
from normscope.terms.site import Site

_LISTED = 40  # names that an error lists


def tensors_of(ranks: Sequence[RankFile], site: Site | str) -> list[Site]:
    """The recorded tensors of the module and call that `site` names (and of its parameter, when it names one).

    The one that it names comes first, if it is there. Raises UnknownNameError when nothing of the module is recorded,
    or when `site` is a whole key, and that is not recorded.
    """
    named, explicit = _named(site)
    found: dict[str, Site] = {}
    for rank in ranks:
        found = {**rank.sites("path = ? AND call = ?", named.path, named.call), **found}
    exact = found.pop(named.key, None)
    others = [other for other in found.values() if named.name in ("", other.name)]
    if exact is None and (explicit or not others):
        raise _unknown_site(ranks, named, explicit)
    return [exact, *others] if exact else others


def tensor_for(ranks: Sequence[RankFile], site: Site | str, quantity: str) -> Site | None:
    """The recorded tensor of which `quantity` is, or None. Raises UnknownNameError as `tensors_of` does."""
    tensors = tensors_of(ranks, site)
    if quantity == "saturated":
        return next((tensor for tensor in sorted(tensors, key=lambda t: t.what) if saturating(tensor)), None)
    named, _ = _named(site)
    key = named.at(LIVES.get(quantity, named.what), named.name).key
    return next((tensor for tensor in tensors if tensor.key == key), None)


def unknown(noun: str, name: str, known: Iterable[str], because: str) -> UnknownNameError:
    """The error for a `noun` of that `name`, with the near names and the list."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    told = ", ".join(names[:_LISTED]) + (f", and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    guess = f"did you mean {' or '.join(f'`{one}`' for one in near)}? " if near else ""
    return UnknownNameError(
        f"A {noun} was asked for that does not exist.",
        found=f"`{name}`",
        because=because,
        do=f"{guess}choose from: {told or 'nothing, for the record is empty'}",
    )


def _named(site: Site | str) -> tuple[Site, bool]:
    """What `site` names, and whether it says which tensor."""
    return (site, True) if isinstance(site, Site) else (Site.parse(site), ":" in site)


def _unknown_site(ranks: Sequence[RankFile], named: Site, explicit: bool) -> UnknownNameError:
    sites = {key: site for rank in ranks for key, site in rank.sites().items()}
    alias = next((site for site in sites.values() if named.path in site.aliases), None)
    if alias is not None:
        because = f"that module is recorded under its first path, `{alias.path}`"
        return unknown("site", named.path, [alias.path], because)
    if explicit:
        return unknown("site", named.key, sites, "the record has no such tensor")
    return unknown("site", named.path, {site.path for site in sites.values()}, "the record has no such module")
