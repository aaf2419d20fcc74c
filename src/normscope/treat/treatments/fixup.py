"""Start a residual network without norms so that it trains: Fixup (Zhang, Dauphin & Ma 2019).

In each of the L residual branches of m layers the last layer starts at 0 and the others at He's standard deviation
times L^(−1/(2m − 2)); the layer that answers starts at 0. The scalar biases and multipliers of the paper's third rule
are a matter of the architecture and are not added.

It preserves nothing: the layers of the branches start again. Everything else stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from normscope.norms import initialize
from normscope.treat.branches import branches
from normscope.treat.flows import calls_at, flow_of
from normscope.treat.treatment import Change, Treated, Treatment

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    data: Any = None,
    activation: str | None = "relu",
    seed: int | None = None,
) -> Treated:
    """Apply Fixup to the branches at `sites` (paths of anything that runs on them), or to all branches.

    Args:
        model: the network, changed in place.
        sites: which branches.
        data: a batch, to follow the data; needed where the code cannot be read without running it.
        activation: what follows each layer, for the gain.
        seed: for the same weights each time; None draws from torch's own generator.

    Raises:
        DataError: the flow cannot be read without data.
        UnknownNameError: a site names nothing that runs; no such activation is known.
    """
    flow = flow_of(model, data)
    chosen = {call.index for call in calls_at(flow, sites)}
    wanted: list[nn.Module] = []
    changes, skipped = [], []
    for branch in branches(flow):
        if chosen.isdisjoint(call.index for call in branch.calls):
            continue
        layers = [call.module for call in branch.layers if isinstance(call.module, _LAYERS)]
        if any(call.role == "norm" for call in branch.calls):
            skipped.append((branch.end.path, 'a norm stands on the branch: remove it first (convert to "none")'))
        elif not layers or len(layers) < len(branch.layers):
            skipped.append((branch.end.path, "the branch holds other layers than linear ones and convolutions"))
        else:
            wanted.append(nn.ModuleList(layers))
            changes.append(
                Change(branch.end.path, "ends a branch", f"ends it at zero, {len(layers) - 1} layers scaled")
            )
    if not wanted:
        return Treated(model, skipped=(*skipped, ("", "no residual branch without norms was found")))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        initialize.fixup(wanted, activation=activation)
    for index in flow.outputs:
        answer = flow.calls[index]
        if isinstance(answer.module, _LAYERS) and answer.index in chosen:
            for parameter in answer.module.parameters(recurse=False):
                nn.init.zeros_(parameter)
            changes.append(Change(answer.path, "answers", "answers zero at first"))
    return Treated(model, tuple(changes), "nothing", None, tuple(skipped))


TREATMENT = Treatment("fixup", "nothing", apply)
