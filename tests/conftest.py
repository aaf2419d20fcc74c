"""Triton's kernels run in its interpreter here. It reads this when it is imported, so it is said before any test."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
