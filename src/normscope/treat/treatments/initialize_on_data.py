"""Scale the weights by what real data make of them: every layer's output starts with variance 1.

``"lsuv"`` draws orthogonal weights and scales each layer as a whole (Mishkin & Matas 2016); ``"data_dependent"`` keeps
the directions of the weights and brings every unit to mean 0 and variance 1 (Salimans & Kingma 2016, section 3).

It preserves nothing: the network starts again. Norms, embeddings and everything else stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from normscope.norms import initialize
from normscope.terms.errors import DataError, SpecError
from normscope.treat.batches import first
from normscope.treat.treatment import Change, Treated, Treatment

Method = Literal["lsuv", "data_dependent"]
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    data: Any = None,
    method: Method = "lsuv",
    seed: int | None = None,
) -> Treated:
    """Initialize all linear layers and convolutions of `model` on the first batch of `data`.

    Args:
        model: the network, changed in place; it runs in the mode that it is in.
        sites: none: every layer is scaled to what the ones before it give.
        data: a batch as the loader yields it.
        method: which of the two.
        seed: of ``"lsuv"``, for the same weights each time; None draws from torch's own generator.

    Raises:
        SpecError: there is no such method, or sites were given.
        DataError: there is no data, or a layer's output does not spread on it.
    """
    if method not in get_args(Method) or sites:
        raise SpecError(
            "An initialization on data was asked for that does not exist.",
            found={"method": repr(method), "sites": list(sites)},
            because="there are two methods, and both go through the whole network in the order in which it runs",
            do='choose "lsuv" or "data_dependent", without sites',
        )
    if data is None:
        raise DataError(
            "An initialization on data was asked for without data.",
            found="data=None",
            because="weights are divided by the spread of the outputs that real inputs give",
            do="pass data: a batch as the loader yields it",
        )
    before = {path: _std(layer) for path, layer in model.named_modules() if isinstance(layer, _LAYERS)}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        getattr(initialize, method)(model, first(data, model))
    changes = [
        Change(path, f"weight of standard deviation {old:.3g}", f"{method}: {_std(model.get_submodule(path)):.3g}")
        for path, old in before.items()
    ]
    return Treated(model, tuple(changes), "nothing" if changes else "exact")


def _std(layer: Any) -> float:
    return float(layer.weight.detach().double().std(correction=0))


TREATMENT = Treatment("initialize_on_data", "nothing", apply)
