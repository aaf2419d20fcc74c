"""Floor 2: the formula, written once (`reference`), and the faster ways to the same numbers.

`offer` says what an implementation is, `dispatch` picks one for a call by a table of measured costs, `explain` tells
which and why, `using` forces one, and `kept` tells what training holds in memory.
"""

from __future__ import annotations

from normscope.kernels.explain import Explanation, explain
from normscope.kernels.force import using
from normscope.kernels.kept import kept
from normscope.kernels.reference import Statistics, measure, normalize, root

__all__ = ["Explanation", "Statistics", "explain", "kept", "measure", "normalize", "root", "using"]
