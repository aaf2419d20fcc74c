"""Count, mean and sum of squared deviations: statistics that merge.

Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.stats.monoid import Arrays, Monoid
from normscope.stats.values import values
from normscope.terms.datum import Datum
from normscope.terms.errors import ShapeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, repr=False, eq=False)
class Moments(Monoid, Datum):
    """Count, mean and M2 = Σ(x − mean)² of the finite elements, float64, all of one shape.

    The shape is () for a whole tensor and (C,) per channel. Where the count is 0 the mean is NaN and M2 is 0.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def empty(cls, shape: Sequence[int] = ()) -> Moments:
        """The moments of nothing: the identity of `merge`. Shape () is the identity for moments of every shape."""
        shape = tuple(shape)
        return cls(np.zeros(shape), np.full(shape, np.nan), np.zeros(shape))

    @classmethod
    def of(cls, x: Any, channel_axis: int | None = None, mask: Any = None) -> Moments:
        """The moments of `x`, in two passes, in float64.

        x: tensor or array of any shape and real dtype. channel_axis: the axis to keep, may be negative.
        mask: boolean, broadcastable to `x` without its channel axis, True = counted.
        Raises `ShapeError` for an axis that `x` has not, or a mask that does not fit.
        """
        tensor = values(x)
        counted = tensor.isfinite()
        if channel_axis is not None:
            channel_axis = _axis(tensor, channel_axis)
        if mask is not None:
            import torch

            keep = mask if isinstance(mask, torch.Tensor) else torch.as_tensor(np.asarray(mask))
            keep = keep.to(tensor.device, torch.bool)
            if channel_axis is not None and keep.ndim:
                keep = keep.expand([n for i, n in enumerate(tensor.shape) if i != channel_axis]).unsqueeze(channel_axis)
            counted = counted & keep
        axes = [axis for axis in range(tensor.ndim) if axis != channel_axis]
        if not axes:
            tensor, counted, axes = tensor.unsqueeze(0), counted.unsqueeze(0), [0]
        zero = tensor.new_zeros((), dtype=tensor.dtype).double()
        wide = tensor.double()
        count = counted.sum(axes, keepdim=True).double()
        mean = wide.where(counted, zero).sum(axes, keepdim=True) / count
        m2 = (wide - mean).where(counted, zero).square().sum(axes, keepdim=True)
        import torch

        shape = (-1,) if channel_axis is not None else ()
        return cls(*(part.reshape(shape) for part in torch.stack((count, mean, m2)).cpu().numpy()))

    def merge(self, other: Moments) -> Moments:
        """The moments of both data sets together. Raises `ShapeError` when the shapes differ."""
        if self.count.shape != other.count.shape:
            for one, another in ((self, other), (other, self)):
                if one.count.shape == () and one.count == 0:
                    return another
            raise ShapeError(
                "Moments of different shapes were asked to merge.",
                found={"left": self.count.shape, "right": other.count.shape},
                because="each channel merges with the same channel of the other",
                do="merge the pooled() moments, or measure both with the same channel axis",
            )
        return combined(
            np.stack((self.count, other.count)), np.stack((self.mean, other.mean)), np.stack((self.m2, other.m2))
        )

    def pooled(self) -> Moments:
        """All channels as one: moments of shape ()."""
        return combined(self.count.ravel(), self.mean.ravel(), self.m2.ravel())

    @property
    def var(self) -> np.ndarray:
        """M2 / count (biased); NaN where the count is 0."""
        return _ratio(self.m2, self.count)

    @property
    def unbiased_var(self) -> np.ndarray:
        """M2 / (count − 1); NaN where the count is below 2."""
        return _ratio(self.m2, self.count - 1)

    @property
    def std(self) -> np.ndarray:
        """The root of `var`."""
        return np.sqrt(self.var)

    def to_arrays(self) -> Arrays:
        """Arrays named count, mean, m2."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Moments:
        """The inverse of `to_arrays`."""
        return cls(*(np.asarray(arrays[name], dtype=np.float64) for name in ("count", "mean", "m2")))


def combined(count: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> Moments:
    """The moments of several disjoint parts, stacked along the first axis, as one: Chan's merge for any number."""
    total = count.sum(0)
    filled = count > 0
    centre = _ratio(np.where(filled, count * mean, 0.0).sum(0), total)
    between = np.where(filled, count * (mean - centre) ** 2, 0.0)
    return Moments(np.asarray(total), np.asarray(centre), np.asarray((m2 + between).sum(0)))


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=np.asarray(under > 0))


def _axis(x: torch.Tensor, channel_axis: int) -> int:
    if not -x.ndim <= channel_axis < x.ndim:
        raise ShapeError(
            f"Moments were asked for each channel along axis {channel_axis}.",
            found={"shape": tuple(x.shape)},
            because=f"the tensor has {x.ndim} axes",
            do="give an axis that the tensor has, or channel_axis=None for all of it",
        )
    return channel_axis % x.ndim
