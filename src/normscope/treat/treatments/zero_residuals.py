"""Start every residual branch at zero, so that a deep network begins as its shortcuts.

The norm that ends a branch gets weight 0 (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1); a branch
that ends with a linear layer or a convolution gets weight and bias 0 there. The gradient reaches that last weight at
the first step, and everything before it from the second.

It preserves nothing of the function; all parameters but these stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from normscope.anatomy.recognize import spec_of
from normscope.treat.branches import Branch, branches
from normscope.treat.flows import calls_at, flow_of
from normscope.treat.treatment import Change, Treated, Treatment


def apply(model: nn.Module, sites: Sequence[str] = (), *, data: Any = None) -> Treated:
    """Zero the ends of the branches at `sites` (paths of anything that runs on them), or of all branches.

    Args:
        model: the network, changed in place.
        sites: which branches.
        data: a batch, to follow the data; needed where the code cannot be read without running it.

    Raises:
        DataError: the flow cannot be read without data.
        UnknownNameError: a site names nothing that runs.
    """
    flow = flow_of(model, data)
    chosen = {call.index for call in calls_at(flow, sites)}
    changes, skipped = [], []
    for branch in branches(flow):
        if chosen.isdisjoint(call.index for call in branch.calls):
            continue
        reason = _zeroed(branch)
        if reason is None:
            changes.append(Change(branch.end.path, f"ends a branch as {branch.end.kind}", "ends it at zero"))
        else:
            skipped.append((branch.end.path, reason))
    if not changes and not skipped:
        skipped.append(("", "no residual branch was found"))
    return Treated(model, tuple(changes), "nothing" if changes else "exact", None, tuple(skipped))


def _zeroed(branch: Branch) -> str | None:
    """Zero the end of `branch`; or why not."""
    end = branch.end.module
    weight = getattr(end, "weight", None)
    if branch.end.role not in ("norm", "producer") or not isinstance(weight, nn.Parameter):
        return f"the branch ends with {branch.end.kind}, which has no weight to start at zero"
    if end is None or parametrize.is_parametrized(end):
        return "its weight is computed from others"
    spec = spec_of(end)
    with torch.no_grad():
        weight.fill_(-spec.weight_offset if spec is not None else 0.0)
        bias = getattr(end, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.zero_()
    return None


TREATMENT = Treatment("zero_residuals", "nothing", apply)
