"""Count, mean and sum of squared deviations: statistics that merge.

Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.stats.monoid import Arrays, Monoid
from normscope.stats.values import block_size, exact, finite, in_memory_order, values
from normscope.terms.datum import Datum
from normscope.terms.errors import ShapeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, repr=False, eq=False)
class Moments(Monoid, Datum):
    """Count, mean and M2 = Σ(x − mean)² of the finite elements: float64 arrays, all of one shape.

    The shape is () for a whole tensor and (C,) per channel. Where the count is 0, the mean is NaN and M2 is 0.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def empty(cls, shape: Sequence[int] = ()) -> Moments:
        """The moments of nothing: the identity of `merge`. That of shape () is the identity for every shape."""
        shape = tuple(shape)
        return cls(np.zeros(shape), np.full(shape, np.nan), np.zeros(shape))

    @classmethod
    def of(cls, x: Any, channel_axis: int | None = None, mask: Any = None) -> Moments:
        """The moments of `x`: two passes over each block, in float64, on the device of `x`; then the blocks are merged.

        x: tensor or array of real numbers, of any shape. channel_axis: the axis to keep, may be negative.
        mask: boolean, broadcastable to `x` without its channel axis; True = counted.
        Raises `ShapeError` for an axis that `x` has not and for a mask that does not fit.
        """
        import torch

        tensor = values(x)
        if channel_axis is not None:
            channel_axis = _existing(channel_axis, tensor)
        table = by_channel(tensor, channel_axis, keep_order=mask is not None)
        counted = None if mask is None else _counted(mask, tensor, channel_axis).expand(table.shape)
        parts = [_block_moments(exact(block), kept) for block, kept in _blocks(table, counted)]
        count, mean, m2 = torch.stack(parts, dim=1).cpu().numpy()
        merged = combined(count, mean, m2)
        return merged if channel_axis is not None else merged.pooled()

    def merge(self, other: Moments) -> Moments:
        """The moments of both data sets together. Raises `ShapeError` when the shapes differ."""
        for one, another in ((self, other), (other, self)):
            if one.count.shape == () and one.count == 0:
                return another
        if self.count.shape != other.count.shape:
            raise ShapeError(
                "Moments of different shapes were asked to merge.",
                found={"left": self.count.shape, "right": other.count.shape},
                because="each channel merges with the same channel of the other",
                do="merge their pooled() moments, or measure both along axes of one size",
            )
        return combined(*(np.stack(pair) for pair in zip(self._parts(), other._parts())))

    def pooled(self) -> Moments:
        """All channels as one: moments of shape ()."""
        return combined(*(part.ravel() for part in self._parts()))

    @property
    def var(self) -> np.ndarray:
        """M2 / count, the biased variance; NaN where the count is 0."""
        return _ratio(self.m2, self.count)

    @property
    def unbiased_var(self) -> np.ndarray:
        """M2 / (count − 1); NaN where the count is below 2."""
        return _ratio(self.m2, self.count - 1)

    @property
    def std(self) -> np.ndarray:
        """The square root of `var`."""
        return np.sqrt(self.var)

    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.count, self.mean, self.m2

    def to_arrays(self) -> Arrays:
        """Three float64 arrays: count, mean, m2."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Moments:
        """The inverse of `to_arrays`."""
        return cls(*(np.asarray(arrays[name], dtype=np.float64) for name in ("count", "mean", "m2")))


def combined(count: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> Moments:
    """The moments of disjoint parts, stacked along the first axis, as one: Chan's merge for any number of parts."""
    total = count.sum(0)
    filled = count > 0
    with np.errstate(over="ignore", invalid="ignore"):  # float64 values beyond about 1e150 may end in +∞ or NaN
        centre = _ratio(np.where(filled, count * mean, 0.0).sum(0), total)
        between = np.where(filled, count * (mean - centre) ** 2, 0.0)
        m2 = (m2 + between).sum(0)
    return Moments(np.asarray(total), np.asarray(centre), np.asarray(m2))


def two_pass(x: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Count, mean and M2 over the first and the last axis of (O, C, I): float64, (3, C).

    counted: boolean, of the shape of `x`, True for no element that is not finite; None for all, if all are finite.
    """
    import torch

    if counted is None:
        count = x.new_full((x.shape[1],), x.shape[0] * x.shape[2], dtype=torch.float64)
        wide = x.to(torch.float64, copy=True)
    else:
        count = counted.sum((0, 2)).double()
        wide = x.where(counted, 0.0).double()
    mean = wide.sum((0, 2)) / count
    wide.sub_(mean[:, None])
    if counted is not None:
        wide = wide.where(counted, 0.0)
    return torch.stack((count, mean, wide.square_().sum((0, 2))))


def by_channel(x: torch.Tensor, channel_axis: int | None, *, keep_order: bool = True) -> torch.Tensor:
    """`x` as (O, C, I), with C = 1 for no channel axis; a view of contiguous and channels-last tensors.

    Without a channel axis and without `keep_order` the elements come as they lie in memory where that saves a copy.
    """
    if channel_axis is not None:
        return x.reshape(prod(x.shape[:channel_axis]), x.shape[channel_axis], prod(x.shape[channel_axis + 1 :]))
    flat = None if keep_order else in_memory_order(x)
    return (x.reshape(-1) if flat is None else flat).view(1, 1, -1)


def _block_moments(x: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    if counted is None and bool((moments := two_pass(x)).isfinite().all()):
        return moments  # a sum that is finite has no other terms: cheaper than to look at each
    is_finite = finite(x)
    if counted is not None and is_finite is not None:
        counted = counted & is_finite
    return two_pass(x, is_finite if counted is None else counted)


def _blocks(table: torch.Tensor, counted: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    axis = 0 if table.shape[0] >= table.shape[2] else 2
    slices = block_size(table.device) * table.shape[axis] // max(1, table.numel())
    pieces = table.split(max(1, slices), axis)
    masks = [None] * len(pieces) if counted is None else counted.split(max(1, slices), axis)
    return zip(pieces, masks)


def _counted(mask: Any, x: torch.Tensor, channel_axis: int | None) -> torch.Tensor:
    """The mask as boolean (O, 1, I) for `x` as (O, C, I)."""
    import torch

    mask = torch.as_tensor(mask, device=x.device).to(torch.bool)
    shape = [size for axis, size in enumerate(x.shape) if axis != channel_axis]
    try:
        mask = mask.expand(shape)
    except RuntimeError:
        raise ShapeError(
            "Moments were asked for under a mask.",
            found={"mask": tuple(mask.shape), "x": tuple(x.shape), "channel_axis": channel_axis},
            because="the mask must broadcast to the tensor without its channel axis",
            do=f"give a mask of shape {tuple(shape)}",
        ) from None
    return mask.reshape(prod(x.shape[:channel_axis]) if channel_axis is not None else 1, 1, -1)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=np.asarray(under > 0))


def _existing(channel_axis: int, x: torch.Tensor) -> int:
    if not -x.ndim <= channel_axis < x.ndim:
        raise ShapeError(
            f"Moments were asked for each channel along axis {channel_axis}.",
            found={"shape": tuple(x.shape)},
            because=f"the tensor has {x.ndim} axes",
            do="give an axis that the tensor has, or channel_axis=None for all of it",
        )
    return channel_axis % x.ndim
