"""Which cells share statistics: the axes of a tensor, seen through a description.

A tensor of any layout is looked at as (N, G, c, S…): its channel axis of C is split into G groups of c channels. That
is a view for every memory layout, so nothing is copied and an elementwise result keeps the strides of the input.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from normscope.terms.errors import ShapeError
from normscope.terms.spec import NormSpec


class Cells(NamedTuple):
    """The view of one tensor under one description.

    Attributes:
        axis: where the groups stand in the split tensor; the channels of a group stand right after.
        groups: G, the number of groups; C when channels do not share statistics.
        channels: C.
        dims: the axes of the split tensor over which statistics run.
        rank: the number of axes of the split tensor.
    """

    axis: int
    groups: int
    channels: int
    dims: tuple[int, ...]
    rank: int

    def split(self, x: Tensor) -> Tensor:
        """`x` with its channel axis as (groups, channels of a group)."""
        return x.unflatten(self.axis, (self.groups, self.channels // self.groups))

    def join(self, x: Tensor) -> Tensor:
        """The split `x` as it was."""
        return x.flatten(self.axis, self.axis + 1)

    def along_channels(self, values: Tensor) -> Tensor:
        """One value a channel (C,), or one a group (G,), shaped to meet the split tensor."""
        shape = [1] * self.rank
        shape[self.axis] = self.groups
        shape[self.axis + 1] = values.numel() // max(self.groups, 1)
        return values.reshape(shape)

    def along_positions(self, mask: Tensor) -> Tensor:
        """A mask (N, *S), shaped to meet the split tensor."""
        return mask.unsqueeze(self.axis).unsqueeze(self.axis)

    def count(self, x: Tensor) -> int:
        """How many cells of the split tensor `x` share one statistic."""
        size = 1
        for dim in self.dims:
            size *= x.shape[dim]
        return size


def cells(x: Tensor, spec: NormSpec) -> Cells:
    """The view of `x`, (N, C, *S) or (N, *S, C), that `spec` asks for.

    Raises:
        ShapeError: the channels do not split into the groups.
    """
    axis = 1 if spec.layout == "channels_first" else x.ndim - 1
    channels = x.shape[axis]
    groups = spec.groups if "C" in spec.over else channels
    if groups and channels % groups:
        raise ungroupable(channels, groups)
    positions = [dim for dim in range(1, x.ndim) if dim != axis]
    dims = [0] * ("N" in spec.over) + [axis + 1] * ("C" in spec.over)
    dims += [dim + (dim > axis) for dim in positions] * ("S" in spec.over)
    return Cells(axis, groups, channels, tuple(dims), x.ndim + 1)


def each(values: Tensor, statistic: Tensor, view: Cells) -> Tensor:
    """One value a channel (C,), once a sample of `statistic` (N, …), shaped to meet the split tensor.

    The gradient of what was spread over samples and positions is summed over the positions first, which are neighbours
    in memory, and only then over the samples: several times faster than over both at once.
    """
    along = view.along_channels(values)
    return along.expand(statistic.shape[0], *along.shape[1:])


def ungroupable(channels: int, groups: int) -> ShapeError:
    """The error for `channels` that do not split into `groups`."""
    divisors = [str(number) for number in range(1, channels + 1) if channels % number == 0]
    return ShapeError(
        f"A normalization was asked to split {channels} channels into {groups} groups.",
        found={"groups": groups, "channels": channels},
        because="every group must hold the same number of channels",
        do=f"choose a divisor of {channels}: " + ", ".join(divisors),
    )


def counted(x: Tensor, spec: NormSpec, mask: Tensor) -> Tensor:
    """`mask` as a boolean (N, *S): itself, or the first positions of each sample where it holds lengths (N,).

    Raises:
        ShapeError: it fits neither. On the host, where a look costs nothing: a length is no number of positions.
    """
    if not isinstance(mask, Tensor):
        raise ShapeError(
            "A normalization was given a mask that is no tensor.",
            found={"mask": type(mask).__name__, "input": tuple(x.shape)},
            because="a mask says of every position whether it counts, and lengths how many do",
            do="pass torch.tensor(mask)",
        )
    sizes = list(x.shape)
    del sizes[1 if spec.layout == "channels_first" else -1]
    if mask.dtype is torch.bool and list(mask.shape) == sizes:
        return mask
    lengths = not mask.is_floating_point() and mask.dtype is not torch.bool and list(mask.shape) == sizes[:1]
    if lengths and len(sizes) == 2:
        if _can_be_looked_at(mask) and not 0 <= mask.min() <= mask.max() <= sizes[1]:
            raise ShapeError(
                "A normalization was given lengths that its input does not have.",
                found={"lengths": f"{int(mask.min())} to {int(mask.max())}", "positions": sizes[1]},
                because="a length counts the positions of a sample that are no padding",
                do=f"pass whole numbers from 0 to {sizes[1]}",
            )
        return torch.arange(sizes[1], device=mask.device) < mask[:, None]
    raise ShapeError(
        "A normalization was given a mask that does not fit its input.",
        found={"mask": f"{tuple(mask.shape)} of {mask.dtype}", "input": tuple(x.shape), "layout": spec.layout},
        because="a mask says of every position whether it counts",
        do=f"pass a boolean mask of shape {tuple(sizes)}, or the lengths as integers of shape {tuple(sizes[:1])}",
    )


def _can_be_looked_at(lengths: Tensor) -> bool:
    """Whether there are values, on the host, in eager torch and under no transform of functions."""
    there = lengths.numel() > 0 and lengths.is_cpu and not torch.compiler.is_compiling()
    return there and not transforming()


def transforming() -> bool:
    """Whether `torch.func` or forward-mode differentiation is under way, where a value cannot be looked at."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
