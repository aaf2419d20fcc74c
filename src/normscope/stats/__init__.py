"""Statistics that merge: moments, sketches and summaries of tensors, and the distances between them.

Nothing here loads torch until a tensor is measured, so reading a record stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscope.stats.batch import Batch, summarize
    from normscope.stats.distance import (
        DISTANCES,
        gaussian_kl,
        gaussian_wasserstein2,
        jensen_shannon,
        kolmogorov_smirnov,
        psi,
        symmetric_kl,
        wasserstein1,
    )
    from normscope.stats.moments import Moments
    from normscope.stats.sample import strided
    from normscope.stats.sketch import Sketch
    from normscope.stats.summary import Summary

_HOME = {
    "Batch": "batch",
    "summarize": "batch",
    "DISTANCES": "distance",
    "gaussian_kl": "distance",
    "gaussian_wasserstein2": "distance",
    "jensen_shannon": "distance",
    "kolmogorov_smirnov": "distance",
    "psi": "distance",
    "symmetric_kl": "distance",
    "wasserstein1": "distance",
    "Moments": "moments",
    "strided": "sample",
    "Sketch": "sketch",
    "Summary": "summary",
}

__all__ = [
    "DISTANCES",
    "Batch",
    "Moments",
    "Sketch",
    "Summary",
    "gaussian_kl",
    "gaussian_wasserstein2",
    "jensen_shannon",
    "kolmogorov_smirnov",
    "psi",
    "strided",
    "summarize",
    "symmetric_kl",
    "wasserstein1",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'normscope.stats' has no attribute {name!r}") from None
    return getattr(importlib.import_module(f"normscope.stats.{home}"), name)
