"""What holds for all tests, said before any of them."""

import os

from hypothesis import settings

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run in its interpreter; it reads this when imported
settings.register_profile("here", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("here")
