"""The quantities that are derived at reading: what each is, and of which tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from normscope.record.columns import Columns
from normscope.stats.summary import Summary
from normscope.terms.activations import Activation, activation_named
from normscope.terms.site import Site, What

QUANTILES = (0.01, 0.05, 0.15, 0.25, 0.5, 0.75, 0.85, 0.95, 0.99)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _length(rows: Columns) -> np.ndarray:
    """The Euclidean norm of the whole tensor, from the root mean square of the elements that were looked at."""
    return np.sqrt((rows.moments.mean**2 + rows.moments.var) * rows.size)


# From the columns of the summaries. `zeros` is the share of exact zeros among the finite elements, `nonfinite` the
# share of NaN and infinities among all; std is the biased one.
FROM_COLUMNS: Mapping[str, Callable[[Columns], np.ndarray]] = MappingProxyType(
    {
        "mean": lambda rows: rows.moments.mean,
        "std": lambda rows: rows.moments.std,
        "min": lambda rows: rows.low,
        "max": lambda rows: rows.high,
        "zeros": lambda rows: _share(rows.zeros, rows.moments.count),
        "nonfinite": lambda rows: _share(rows.nonfinite, rows.moments.count + rows.nonfinite),
        "gradient_norm": _length,
        "weight_norm": _length,
    }
)
# From whole summaries, and the sites that they are of.
FROM_SUMMARY: Mapping[str, Callable[[Summary, Site], Any]] = MappingProxyType(
    {
        "quantiles": lambda summary, site: summary.sketch.quantile(QUANTILES),
        "saturated": lambda summary, site: _saturated(summary, site),
    }
)
# Between summaries, of these sources.
SHIFTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "internal_shift": frozenset({"probe"}),
        "external_shift": frozenset({"live", "probe"}),
        "internal_share": frozenset({"live", "probe"}),
    }
)
# Of a parameter: learning rate / ‖w‖², which is how fast the direction of a weight can turn under plain gradient
# descent where a norm takes its length out (van Laarhoven 2017, section 2; see the quantity ``radial_gradient``).
FROM_RATE = "effective_learning_rate"
DERIVED = (*FROM_COLUMNS, *FROM_SUMMARY, *SHIFTS, FROM_RATE)

# What the probes store as numbers. A record need not have them all.
STORED = (
    "loss",
    "learning_rate",
    "overhead",
    "num_batches_skipped",
    "update_ratio",
    "dead",
    "saturated_units",
    "entropy",
    "effective_rank",
    "activation_gain",
    "gradient_gain",
    "eval_gap",
    "running_stat_error",
    "running_stat_kl",
    "batch_stat_noise",
    "batch_stat_excess",
    "scale_drift",
    "offset_drift",
    "collapsed_channels",
    "dominance",
    "radial_gradient",
    "gradient_shift",
    "gradient_shift_cosine",
    "depth_amplification",
    "loss_variation",
    "gradient_predictiveness",
    "effective_smoothness",
    "top_hessian_eigenvalue",
)

# Which tensor a quantity is of, when only the path is given; all others are of the output.
LIVES: Mapping[str, What] = MappingProxyType(
    {
        "saturated": "input",
        "gradient_norm": "gradient",
        "weight_norm": "parameter",
        FROM_RATE: "parameter",
        "update_ratio": "update",
    }
)


def saturating(site: Site) -> Activation | None:
    """The function that can saturate on the tensor at `site`: on its own input, or on the output that feeds it."""
    if site.what == "input" and site.role == "activation":
        function = activation_named(site.kind)
    else:
        function = activation_named(site.feeds) if site.what == "output" else None
    return function if function is not None and function.saturates else None


def _saturated(summary: Summary, site: Site) -> float:
    """The share of finite elements where the function has lost nearly all of its slope."""
    function = saturating(site)
    return float("nan") if function is None else summary.sketch.outside(function.low, function.high)
