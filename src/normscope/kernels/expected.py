"""What calls on CUDA should cost, counted in passes over memory. NOTHING HERE WAS MEASURED: no GPU was at hand.

A pass moves every number of the tensor once, at the bandwidth assumed below. Triton's kernels take the activation and
the residual sum along; for ATen each is passes of its own. Where both need as many, ATen's cheaper call decides.
`benchmarks/gpu.py` prints the rows that belong in `normscope.kernels.costs`; a row there replaces the one here.
"""

from __future__ import annotations

import torch

BANDWIDTH = 3500.0  # bytes a nanosecond, assumed: three quarters of what an H200's memory moves
_CALLS = {"aten": 30.0, "triton": 120.0}  # microseconds forward and backward, assumed

# forward + backward. Batch: the statistics are read apart from the numbers, twice. Group and instance: a group is read
# again from the cache; ATen reads it from memory, and copies channels_last to contiguous and back. Rows: ATen sums the
# gradients of weight and bias in a pass of their own.
_PASSES = {
    ("NS", "contiguous"): {"aten": 8, "triton": 8},
    ("NS", "channels_last"): {"aten": 8, "triton": 8},
    ("CS", "contiguous"): {"aten": 8, "triton": 5},
    ("CS", "channels_last"): {"aten": 14, "triton": 5},
    ("S", "contiguous"): {"aten": 8, "triton": 5},
    ("S", "channels_last"): {"aten": 14, "triton": 5},
    ("C", "channels_last"): {"aten": 7, "triton": 5},
}
_BYTES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}

# (offer, device, statistics over, memory, dtype) → microseconds a call, nanoseconds an element
EXPECTED: dict[tuple[str, str, str, str, torch.dtype], tuple[float, float]] = {
    (name, "cuda", over, memory, dtype): (_CALLS[name], passes * size / BANDWIDTH)
    for (over, memory), offers in _PASSES.items()
    for name, passes in offers.items()
    for dtype, size in _BYTES.items()
}

# what ATen's functions for the activation and for the residual sum add, each: read and write, forward and backward
EXPECTED_ADDED = {("cuda", dtype): (20.0, 5 * size / BANDWIDTH) for dtype, size in _BYTES.items()}
