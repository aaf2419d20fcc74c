"""Any tensor's numbers as float32 or float64, without changing one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.terms.errors import DataError

if TYPE_CHECKING:
    import torch


def values(x: Any) -> torch.Tensor:
    """`x` (torch tensor, numpy array or what numpy reads), detached, of the same shape, on its own device.

    float16, bfloat16, float8, bool and integers of up to 16 bits become float32, which holds them exactly; float64
    and wider integers become float64, where integers beyond ±2⁵³ are rounded. Raises `DataError` for complex numbers.
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
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.to(exact_dtype(tensor.dtype))


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The narrower of float32 and float64 that holds every number of `dtype`."""
    import torch

    narrow = dtype == torch.bool or dtype.itemsize <= 2 or dtype == torch.float32
    return torch.float32 if narrow else torch.float64


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    import torch

    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    usable = array.dtype.isnative and array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if usable else np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
