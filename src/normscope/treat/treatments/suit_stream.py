"""Change norms over the batch into the one that suits the batches at hand: by their size, likeness and drift.

Large batches drawn at random keep BatchNorm; smaller ones get BatchRenorm; few samples, sorted ones and drifting
streams get norms of single samples (GroupNorm with standardized weights; OnlineNorm where there are no positions).

It preserves what the conversion to that norm preserves: the function in evaluation mode exactly (BatchRenorm) or to the
measured error. Norms that look at no batch stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from normscope.anatomy.walk import sites as sites_of
from normscope.terms.errors import DataError
from normscope.treat.batches import batches
from normscope.treat.stream import norm_for_stream
from normscope.treat.surgery import within
from normscope.treat.treatment import Change, Treated, Treatment, then, treatments


def apply(model: nn.Module, sites: Sequence[str] = (), *, data: Any = None) -> Treated:
    """Choose by `normscope.norm_for_stream` and convert the norms over the batch at `sites`, or all of them.

    Args:
        model: the network, changed in place.
        sites: paths of norms, or of modules that hold some.
        data: some thirty batches in the order in which training will meet them.

    Raises:
        DataError: there is no data, or too little of it.
        UnknownNameError: the model has no such path.
    """
    if data is None:
        raise DataError(
            "A norm was to be chosen for a stream without any of it.",
            found="data=None",
            because="the size, the likeness and the drift of batches are measured on batches",
            do="pass data: some thirty batches in the order in which training will meet them",
        )
    data = list(batches(data, model))
    choice = norm_for_stream(data)
    chosen = within(model, sites)
    paths = [
        site.path
        for site in sites_of(model)
        if site.role == "norm" and site.spec is not None and "N" in site.spec.over
        if model.get_submodule(site.path) in chosen
    ]
    told = Treated(model, (Change("", "norms as they were", f"{choice.norm}: {choice.reason}"),))
    if not paths:
        return Treated(model, skipped=(("", "no norm here looks at the batch"),))
    if choice.norm == "BatchNorm":
        return Treated(model, skipped=(("", f"nothing to change: {choice.reason}"),))
    return then(told, treatments()["convert"].apply(model, paths, to=choice.norm, data=data))


TREATMENT = Treatment("suit_stream", "approximate", apply)
