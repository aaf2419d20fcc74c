"""Floor 2: the formula, written once (`reference`), and the faster ways to the same numbers (`native`, `dispatch`)."""

from __future__ import annotations

from normscope.kernels.reference import Statistics, measure, normalize, root

__all__ = ["Statistics", "measure", "normalize", "root"]
