"""What a layer may be given."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from normscope.terms.errors import DataError, ModelError, ShapeError


def expect_floats(layer: object, input: Any) -> None:
    """Refuse what is no tensor of real numbers.

    Raises:
        DataError: so it is.
    """
    if isinstance(input, Tensor) and input.is_floating_point():
        return
    if isinstance(input, Tensor):
        raise DataError(
            f"{_name(layer)} was given numbers that it cannot average.",
            found={"input": f"{tuple(input.shape)} of {input.dtype}"},
            because="means and deviations are fractions, and the output has the dtype of the input",
            do="pass input.float()",
        )
    raise DataError(
        f"{_name(layer)} was given something else than a tensor.",
        found={"input": type(input).__name__},
        because="it computes with torch.Tensor alone",
        do="pass torch.as_tensor(input, dtype=torch.float32)",
    )


def expect_channels(layer: object, input: Any, channels: int, axis: int = 1) -> None:
    """Refuse what is no tensor of real numbers with that number of channels on that axis.

    Raises:
        DataError: it is none.
        ShapeError: it has another number of channels.
    """
    expect_floats(layer, input)
    if input.ndim < 2 or input.shape[axis] != channels:
        raise ShapeError(
            f"{_name(layer)} was given an input that it cannot normalize.",
            found={"input": tuple(input.shape), "channels": channels},
            because=f"the layer was made for {channels} channels on {'the last axis' if axis < 0 else f'axis {axis}'}",
            do=f"pass (N, *, {channels})" if axis < 0 else f"pass (N, {channels}, *)",
        )


def expect_dtype(layer: object, input: Tensor, weight: Tensor) -> None:
    """Refuse an input wider than the weight, which ATen would do in words of its own.

    Raises:
        DataError: so it is.
    """
    if input.element_size() > weight.element_size():
        raise DataError(
            f"{_name(layer)} was given an input of a wider dtype than its weights.",
            found={"input": input.dtype, "weights": weight.dtype},
            because="the output has the dtype of the input, which these weights would not fill",
            do=f"pass input.to({weight.dtype}), or convert the layer: layer.to({input.dtype})",
        )


def expect_size(asked: str, **sizes: Any) -> None:
    """Refuse sizes that are no whole numbers from 0 on.

    Raises:
        ShapeError: so it is.
    """
    for name, value in sizes.items():
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
            raise ShapeError(
                f"{asked} was asked for with a size that is none.",
                found={name: repr(value)},
                because="sizes count channels, groups, samples or steps",
                do=f"pass a whole number, such as {name}=64",
            )


def expect_module(asked: str, module: Any) -> None:
    """Refuse what is no layer or model, its class included.

    Raises:
        ModelError: so it is.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{asked} was asked for, but not of a layer.",
            found=f"{module.__name__}, a class"
            if isinstance(module, type)
            else f"{module!r:.60}, {type(module).__name__}",
            because="it works on a torch.nn.Module",
            do="pass the layer itself, such as torch.nn.Linear(3, 4)",
        )


def _name(layer: object) -> str:
    return layer if isinstance(layer, str) else type(layer).__name__
