"""How far apart two distributions are, from their moments or their sketches."""

from __future__ import annotations
