"""Weight standardization of the layers that feed norms: the other half of GroupNorm for small batches."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.utils import parametrize

from normscope.anatomy.flow import Flow
from normscope.norms.reparametrize import Rows, weight_standardization

_FORM = "row by row, (v − mean v)/√(var v + ε)"


def standardize(flow: Flow, norms: Iterable[str]) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Standardize the weights of the layers that feed the norms at the paths `norms` and nothing but norms.

    Returns:
        What was done as (path, before, after), and (path, reason) for the layers that were left alone. A layer whose
        weights are standardized already is in neither.
    """
    done, skipped = [], []
    wanted = frozenset(norms)
    for path, layer in _feeders(flow, wanted).items():
        if _is_standardized(layer):
            continue
        reason = _kept(flow, path, layer)
        if reason is None:
            weight_standardization(layer)
            done.append((path, "weight as stored", f"weight standardized {_FORM}"))
        else:
            skipped.append((path, reason))
    return done, skipped


def _feeders(flow: Flow, norms: frozenset[str]) -> dict[str, nn.Module]:
    found = {}
    for call in flow.calls:
        if call.path in norms and call.role == "norm":
            made = (maker for maker in flow.producers(call, skip=True) if maker.role == "producer")
            found.update({maker.path: maker.module for maker in made if maker.module is not None})
    return found


def _is_standardized(layer: nn.Module) -> bool:
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    return any(isinstance(step, Rows) and step.spec.scale == "std" for step in layer.parametrizations.weight)  # pyright: ignore


def _kept(flow: Flow, path: str, layer: nn.Module) -> str | None:
    """Why the weights of `layer` stay as they are, or None."""
    if parametrize.is_parametrized(layer):
        return "its weights are reparametrized already"
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
        return f"{type(layer).__name__} has no weight with rows to standardize"
    if weight[0].numel() < 2:
        return "each of its rows is one weight, of which standardization leaves nothing"
    others = [taken for call in flow.at(path) for taken in flow.consumers(call, skip=True) if taken.role != "norm"]
    if others or any(call.index in flow.outputs for call in flow.at(path)):
        return "its output also goes past the norm, where its scale counts"
    shared = [call.path for call in flow.calls if call.module is not layer and _holds(call.module, weight)]
    return f"`{shared[0]}` shares its weight" if shared else None


def _holds(module: nn.Module | None, weight: nn.Parameter) -> bool:
    return module is not None and any(parameter is weight for parameter in module.parameters(recurse=False))
