"""Any tensor's numbers, ready to be measured: real, dense, detached, in a type that changes none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.terms.errors import DataError

if TYPE_CHECKING:
    import torch


def values(x: Any) -> torch.Tensor:
    """`x` (a torch tensor, or what numpy reads as an array), detached, of its own type, shape and device.

    Sparse tensors become dense. Raises `DataError` for complex and for non-numeric elements.
    """
    import torch

    tensor = x.detach() if isinstance(x, torch.Tensor) else _from_numpy(np.asarray(x))
    if tensor.is_complex():
        raise DataError(
            "A statistic of complex numbers was asked for.",
            found={"dtype": tensor.dtype, "shape": tuple(tensor.shape)},
            because="mean, variance and order are defined here for real numbers",
            do="measure torch.view_as_real(x), x.abs() or x.angle()",
        )
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def exact(x: torch.Tensor) -> torch.Tensor:
    """`x` as float32 where that holds every number of its type, otherwise as float64; `x` itself where it can be.

    float16, bfloat16, float8, bool and integers of up to 16 bits become float32. Of 64-bit integers, those beyond
    ±2⁵³ are rounded. What lies on a device without float64 (MPS) comes to the CPU.
    """
    import torch

    if x.device.type == "mps":
        x = x.cpu()
    return x.to(torch.float32 if x.dtype.itemsize <= 2 or x.dtype == torch.float32 else torch.float64)


def finite(x: torch.Tensor) -> torch.Tensor | None:
    """Which elements of a floating tensor are finite; None when all are, on a CPU, where finding that out is cheap."""
    magnitude = x.abs()
    if x.device.type == "cpu" and (x.numel() == 0 or bool(magnitude.amax() < float("inf"))):  # amax passes NaN on
        return None
    return magnitude < float("inf")


def in_memory_order(x: torch.Tensor) -> torch.Tensor | None:
    """All elements as they lie in memory, a 1-D view; None when they have gaps or overlap."""
    return x.as_strided((x.numel(),), (1,)) if is_dense(x.shape, x.stride()) else None


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements of such a tensor fill a stretch of memory, in whatever order of the axes."""
    expected = 1
    for stride, size in sorted(zip(strides, shape)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def block_size(device: torch.device) -> int:
    """How many elements to measure in one go: what stays in the cache of a core, or a good load for an accelerator."""
    return 2**17 if device.type == "cpu" else 2**24


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    import torch

    if array.dtype.kind not in "biufc":
        raise DataError(
            "A statistic of something else than numbers was asked for.",
            found={"dtype": array.dtype, "shape": array.shape},
            because="only numbers have moments and an order",
            do="give a tensor or an array of numbers",
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    usable = array.dtype.isnative and array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if usable else np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
