"""`Norm`: the layer of any description that the formula covers; `build` makes the layer of any description."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels.cells import ungroupable
from normscope.kernels.costs import LEAST, gains, may_gain
from normscope.kernels.direct import fits
from normscope.kernels.force import forced
from normscope.kernels.reference import finish
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.shapes import expect_dtype, expect_floats, expect_size
from normscope.norms.shortcuts import shortcuts
from normscope.norms.sources import Call, initial_state, run
from normscope.norms.sources.meeting import PATIENCE
from normscope.norms.whitening import Whitening
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import ShapeError, SpecError
from normscope.terms.spec import NormSpec

_PASSING = ("num_batches_skipped", "pending_")  # buffers that a checkpoint does not hold, so that its keys are torch's


class Norm(nn.Module):
    """One normalization, described by `spec`: what it computes is all there.

    Args:
        spec: the description.
        channels: C, the number of channels of the input; a tuple where several trailing axes are one (LayerNorm).
        ranks: how many axes the input may have; None for any.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Shapes:
        input (N, C, *S), or (N, *S, C) where the description says channels last; mask (N, *S), boolean, True where a
        cell is counted, or the lengths (N,) of sequences; residual as the input, which is added before the activation
        and takes no part in the statistics. The output has the shape, dtype and memory layout of the
        input; masked cells pass unchanged.

    Raises:
        SpecError: the description asks for kept statistics that are not one a channel.
        ShapeError: the channels do not split into the groups; at a call, the input does not fit.
    """

    _version = 2
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        spec: NormSpec,
        channels: int | tuple[int, ...],
        *,
        ranks: tuple[int, ...] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = tuple(channels) if isinstance(channels, tuple | list) else (channels,)
        for size in shape:
            expect_size(type(self).__name__, channels=size)
        self.channels = math.prod(shape)
        self.shape = shape
        self.ranks = ranks
        self.process_group: Any = None  # for synchronized statistics; None is the default group
        self.patience = PATIENCE  # seconds that they wait for the other ranks
        if spec.groups > 1 and self.channels % spec.groups:
            raise ungroupable(self.channels, spec.groups)
        self.spec = spec  # and its shortcuts
        for name, wanted in (("weight", spec.affine), ("bias", spec.bias)):
            values = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, values)
        self._kept = register_state(self, spec, spec.groups if "C" in spec.over else self.channels, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight such that g = 1, bias 0, and no batch seen."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.spec.weight_offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_running_stats(self) -> None:
        """As before the first batch: mean 0, variance 1, nothing counted."""
        for name, buffer in self.state.items():
            buffer.fill_(1 if name == "running_var" else 0)

    @property
    def state(self) -> dict[str, Tensor]:
        """The buffers that keep statistics from one batch to the next, by name."""
        buffers = self._buffers
        return {name: buffers[name] for name in self._kept}  # type: ignore[misc]

    @property
    def spec(self) -> NormSpec:
        """The description; setting it changes what the layer computes."""
        return self._spec

    @spec.setter
    def spec(self, value: NormSpec) -> None:
        self._spec = value
        self._shortcuts = shortcuts(value)
        in_training = gains(value, value.train_from == "given")
        self._gains = gains(value, given=True) if value.keeps_state else in_training, in_training

    @property
    def eps(self) -> float | None:
        """The guard of the division; setting it changes `spec`."""
        return self.spec.eps

    @eps.setter
    def eps(self, value: float | None) -> None:
        self.spec = self.spec.but(eps=value)

    @property
    def momentum(self) -> float | None:
        """The weight of the newest batch in running statistics; setting it changes `spec`."""
        return self.spec.momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self.spec = self.spec.but(momentum=value)

    def forward(self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """The normalized input; with a residual, of the shape of the input, ``f(normalized input + residual)``."""
        if mask is None and type(input) is Tensor:
            shortcut = self._shortcuts[self.training]
            bare = residual is None and self._spec.activation is None
            if shortcut is not None and self._is_atens(input, residual) and forced() is None:
                try:
                    y = shortcut(self, input)
                except RuntimeError:
                    y = None  # the long way does it, or says what is wrong
                if y is not None:
                    return y if bare else finish(y, input, self._spec, residual)
        if isinstance(input, Proxy):
            return leaf(self, input, mask, residual=residual)
        return self._in_full(input, mask, residual)

    def _in_full(self, input: Tensor, mask: Tensor | None, residual: Tensor | None) -> Tensor:
        """The long way, which serves every call or says why not."""
        self._expect(input)
        x = input.flatten(-len(self.shape)) if len(self.shape) > 1 else input
        self._check(input, x)
        weight, bias = self.weight, self.bias
        if len(self.shape) > 1:
            weight, bias = (None if value is None else value.flatten() for value in (weight, bias))
        if residual is not None and (not isinstance(residual, Tensor) or residual.shape != input.shape):
            raise ShapeError(
                f"{type(self).__name__} was given a residual that it cannot add.",
                found={"residual": tuple(getattr(residual, "shape", ())), "input": tuple(input.shape)},
                because="the residual is added to the normalized input, number by number",
                do="pass a tensor of the input's shape",
            )
        if residual is not None and x is not input:
            residual = residual.flatten(-len(self.shape))
        call = Call(x, self.spec, weight, bias, self.state, mask, self.process_group, residual, self.patience)
        y = run(call, self.training)
        return y if x is input else y.unflatten(-1, self.shape)

    def _expect(self, input: Any) -> None:
        """Refuse in words what ATen would refuse in its own."""
        expect_floats(self, input)
        if self.weight is not None and self.spec.scale != "rms":  # torch's RMSNorm promotes
            expect_dtype(self, input, self.weight)

    def _is_atens(self, x: Tensor, residual: Any) -> bool:
        """Whether ATen is cheapest without a look at the table: `x` is small, or no kernel gains on it."""
        if residual is not None:
            return x.numel() < LEAST and fits(residual, x)
        return x.numel() < LEAST or not may_gain(self._gains[self.training], x)

    def _check(self, input: Tensor, x: Tensor) -> None:
        spec = self.spec
        axis = 1 if spec.layout == "channels_first" else -1
        if (self.ranks is not None and input.ndim not in self.ranks) or x.ndim < axis + 1 or x.ndim == 0:
            raise self._misfit(input, "the rank of the input is not one that this layer takes")
        width = self.channels if len(self.shape) == 1 else self.shape
        free = "C" not in spec.over and not self._kept and self.weight is None and self.bias is None
        found = x.shape[axis] if len(self.shape) == 1 else tuple(input.shape[-len(self.shape) :])
        if found != width and not free:
            raise self._misfit(input, f"the layer was made for {width} channels")
        if x.numel() <= x.shape[0] * x.shape[axis]:  # no positions, or one: few cells may share a statistic
            self._check_cells(x, axis)

    def _check_cells(self, x: Tensor, axis: int) -> None:
        spec, sizes = self.spec, list(x.shape)
        channels = sizes.pop(axis)
        batch = sizes.pop(0) if sizes else 1
        cells = batch if "N" in spec.over else 1
        cells *= channels // spec.groups if "C" in spec.over else 1
        cells *= math.prod(sizes) if "S" in spec.over else 1
        source = spec.train_from if self.training else spec.infer_from
        if cells != 1 or not spec.center or source not in ("input", "batch"):
            return
        if "C" not in spec.over:
            raise self._misfit(input=x, because="one cell a statistic shows no spread: the output would be the bias")
        if not torch.compiler.is_compiling():
            warnings.warn(
                f"{type(self).__name__} has one cell a statistic for an input of shape {tuple(x.shape)}: "
                "its output is the bias, whatever the input. Use fewer groups.",
                stacklevel=5,
            )

    def _misfit(self, input: Tensor, because: str) -> ShapeError:
        last = self.spec.layout == "channels_last"
        wanted = "(N, *, " + ", ".join(map(str, self.shape)) + ")" if last else f"(N, {self.channels}, *)"
        ranks = f" with {' or '.join(map(str, self.ranks))} axes" if self.ranks else ""
        return ShapeError(
            f"{type(self).__name__} was given an input that it cannot normalize.",
            found={"input": tuple(input.shape), "channels": self.channels, "training": self.training},
            because=because,
            do=f"pass {wanted}{ranks}",
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any, **kw: Any) -> None:
        """Checkpoints of torch's layers before version 2 have no count of batches; frozen layers need none."""
        count = prefix + "num_batches_tracked"
        if "num_batches_tracked" in self._kept:
            if count not in state_dict and (local_metadata.get("version") or 0) < 2:
                state_dict[count] = torch.tensor(0)
        elif self._kept:
            state_dict.pop(count, None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest, **kw)

    def extra_repr(self) -> str:
        """The channels and the description."""
        return f"{', '.join(map(str, self.shape))}, {self.spec!r}"


def register_state(module: nn.Module, spec: NormSpec, width: int, device: Any, dtype: Any) -> tuple[str, ...]:
    """Give `module` the buffers that keep the statistics of `spec`, `width` numbers each; their names.

    Raises:
        SpecError: the description asks for kept statistics that are not one a channel.
    """
    state = initial_state(spec, width)
    if state and "S" not in spec.over:
        raise SpecError(
            "A normalization was described with kept statistics, but not over the positions.",
            found={"over": "".join(sorted(spec.over)), "infer_from": spec.infer_from},
            because="kept statistics are one a channel, so positions must share them",
            do="add 'S' to `over`, or take the statistics from the input or the batch at inference too",
        )
    for name, value in state.items():
        kind = dtype if value.is_floating_point() else None
        module.register_buffer(name, value.to(device=device, dtype=kind), persistent=not name.startswith(_PASSING))
    return tuple(state)


def build(
    spec: NormSpec | str,
    channels: int | tuple[int, ...],
    *,
    device: Any = None,
    dtype: Any = None,
    rank: int | None = None,
) -> nn.Module:
    """The layer for a description.

    Args:
        spec: the description, for example ``normscope.catalog["GroupNorm"].but(groups=8)``, or its name there.
        channels: the channels of its input.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        rank: how many axes its input has (4 for images); None leaves it open.

    Raises:
        UnknownNameError: the catalog has no such name.
        SpecError: the formula does not cover the description.
        ShapeError: the channels do not split into the groups.
    """
    spec = described(spec)
    if spec.weights is not None:
        raise SpecError(
            "A layer was asked for by a description that the formula does not cover.",
            found={"weights": spec.weights},
            because="a reparametrization belongs to the weights of another layer",
            do="use a function such as normscope.nn.weight_norm(layer)",
        )
    if spec.scale == "whiten":
        return Whitening(spec, math.prod(channels) if isinstance(channels, tuple) else channels, device, dtype)
    return Norm(spec, channels, ranks=None if rank is None else (rank,), device=device, dtype=dtype)


def described(spec: Any) -> NormSpec:
    """The description itself, or by its name in the catalog.

    Raises:
        UnknownNameError: the catalog has no such name.
        SpecError: it is neither a description nor a name.
    """
    if isinstance(spec, NormSpec):
        return spec
    if isinstance(spec, str):
        return CATALOG[spec]
    raise SpecError(
        "A normalization was asked for by something that does not describe it.",
        found=f"{spec.__name__}, a class" if isinstance(spec, type) else f"{type(spec).__name__}",
        because="a normalization is built from a NormSpec",
        do='pass normscope.catalog["GroupNorm"] or its name, or normscope.spec_of(layer)',
    )
