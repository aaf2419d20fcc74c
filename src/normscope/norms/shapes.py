"""What a layer may be given."""

from __future__ import annotations

from torch import Tensor, nn

from normscope.terms.errors import ShapeError


def expect_channels(layer: nn.Module, input: Tensor, channels: int, axis: int = 1) -> None:
    """Refuse what has no such number of channels on that axis.

    Raises:
        ShapeError: so it is.
    """
    if input.ndim < 2 or input.shape[axis] != channels:
        raise ShapeError(
            f"{type(layer).__name__} was given an input that it cannot normalize.",
            found={"input": tuple(input.shape), "channels": channels},
            because=f"the layer was made for {channels} channels on {'the last axis' if axis < 0 else f'axis {axis}'}",
            do=f"pass (N, *, {channels})" if axis < 0 else f"pass (N, {channels}, *)",
        )
