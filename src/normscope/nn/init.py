"""Starting weights; see `normscope.norms.initialize`."""

from __future__ import annotations

from normscope.norms.initialize import data_dependent, fixup, gain_of, he, lsuv, orthogonal, xavier

__all__ = ["data_dependent", "fixup", "gain_of", "he", "lsuv", "orthogonal", "xavier"]
