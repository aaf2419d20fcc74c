"""The data flow that a treatment follows, and the calls that its sites name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from normscope.anatomy.flow import Flow, symbolic, trace
from normscope.anatomy.observe import Call
from normscope.terms.errors import DataError, UnknownNameError
from normscope.terms.site import Site
from normscope.treat.batches import first


def flow_of(model: nn.Module, data: Any) -> Flow:
    """What feeds what in `model`: from one run on the first batch of `data`, or read off its code without data.

    Raises:
        DataError: there is no data and the code cannot be read.
    """
    flow = symbolic(model) if data is None else trace(model, first(data, model))
    if flow is None:
        raise DataError(
            f"A treatment has to follow the data through {type(model).__name__}, and was given none.",
            found="data=None, and a forward that cannot be read without running it",
            because="which module feeds which is only seen in a run when the code branches on its input",
            do="pass data: a batch as the loader yields it",
        )
    return flow


def calls_at(flow: Flow, sites: Iterable[str]) -> tuple[Call, ...]:
    """The calls that `sites` (paths or site keys) name; a path names what runs beneath it; every call for no sites.

    Raises:
        UnknownNameError: nothing of that name ran.
    """
    chosen: dict[int, Call] = {}
    asked = [Site.parse(site) for site in sites]
    for site, text in zip(asked, sites):
        found = [call for call in flow.calls if _is_at(call, site, exact="#" in text)]
        if not found:
            raise UnknownNameError(
                f"A treatment was asked for at `{text}`.",
                found="nothing of that name runs in the model",
                because="a site is the path of a module that runs, or path/function for a function",
                do="choose a path from normscope.sites(model, example)",
            )
        chosen.update((call.index, call) for call in found)
    return tuple(chosen.values()) if asked else flow.calls


def _is_at(call: Call, site: Site, *, exact: bool) -> bool:
    if exact and call.call != site.call:
        return False
    return site.path in ("", call.path) or call.path.startswith((f"{site.path}.", f"{site.path}/"))
