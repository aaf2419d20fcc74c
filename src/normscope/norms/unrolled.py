"""The walk of recurrent layers through time: parameters, layers, directions, packed sequences and padding.

Names, shapes and rules are torch's, so that a `state_dict` loads both ways; a cell gives the one step (`recurrent`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from normscope.kernels.explain import Explanation
from normscope.norms.classes import LayerNorm, RMSNorm
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.reparametrize import weight_norm
from normscope.norms.shapes import expect_floats
from normscope.norms.temporal import TemporalBatchNorm
from normscope.norms.walked import explained, walked
from normscope.terms.errors import DataError, ModelError, ShapeError

Inside = Literal["batch", "layer", "weight", "rms"]
State = tuple[Tensor, ...]


class Unrolled(nn.Module):
    """What LSTM, GRU and RNN share; they say what one step does."""

    parts: tuple[int, ...] = ()  # blocks of gates that one norm covers, in units of the hidden size
    states = 1  # tensors that one step hands to the next
    cell: str | None = None  # what a kernel for all steps is called

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        norm: Inside | None = None,
        max_steps: int = 100,
    ) -> None:
        super().__init__()
        if proj_size:
            raise ModelError(
                f"{type(self).__name__} was asked for a projection of its hidden state.",
                found={"proj_size": proj_size},
                because="no paper says where a norm stands around the projection",
                do="leave proj_size at 0 and put a linear layer after the output, or use torch.nn.LSTM",
            )
        if norm not in (None, "batch", "layer", "weight", "rms"):
            raise ModelError(
                f"{type(self).__name__} was asked for a norm that it does not have inside.",
                found={"norm": repr(norm)},
                because="norm is one of a closed list",
                do='choose None, "batch", "layer", "weight" or "rms"',
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        self._torchs()  # raises what torch's layer raises for these arguments
        self.norm, self.max_steps = norm, max_steps
        self.norms = nn.ModuleDict()
        rows = sum(self.parts) * hidden_size
        for layer, suffix in self._passes():
            width = input_size if layer == 0 else hidden_size * (1 + bidirectional)
            for name, shape in ((f"weight_ih{suffix}", (rows, width)), (f"weight_hh{suffix}", (rows, hidden_size))):
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
            for name in (f"bias_ih{suffix}", f"bias_hh{suffix}") if bias else ():
                self.register_parameter(name, nn.Parameter(torch.empty(rows, device=device, dtype=dtype)))
            if norm in ("batch", "layer", "rms"):
                for place, width in self._places():
                    self.norms[place + suffix] = self._norm(width, device, dtype)
        self.reset_parameters()
        self.flatten_parameters()
        if norm == "weight":
            for _, suffix in self._passes():
                for name in ("weight_ih", "weight_hh"):
                    weight_norm(self, name + suffix)

    def reset_parameters(self) -> None:
        """Uniform in ±1/√hidden_size, as torch does."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size else 0
        for name, value in self.named_parameters():
            if not name.startswith("norms"):
                nn.init.uniform_(value, -bound, bound)

    def _passes(self) -> list[tuple[int, str]]:
        """Every layer and direction, with torch's ending of its parameters' names."""
        ends = ("", "_reverse")[: 1 + self.bidirectional]
        return [(layer, f"_l{layer}{end}") for layer in range(self.num_layers) for end in ends]

    def _places(self) -> list[tuple[str, int]]:
        """The names and widths of the norms of one pass."""
        blocks = [(f"{side}{n}", part) for side in ("ih", "hh") for n, part in enumerate(self.parts)]
        return [(name, part * self.hidden_size) for name, part in blocks]

    def _norm(self, width: int, device: Any, dtype: Any) -> nn.Module:
        if self.norm == "batch":
            return TemporalBatchNorm(width, self.max_steps, bias=False, device=device, dtype=dtype)
        kind = LayerNorm if self.norm == "layer" else RMSNorm
        return kind(width, 1e-5, device=device, dtype=dtype, **({"bias": False} if self.norm == "layer" else {}))

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """The outputs of the last layer and the last states, shaped as torch shapes them.

        Raises:
            ShapeError: the input or the states do not fit the layer.
            DataError: the input has another dtype than the weights.
        """
        if isinstance(input, Proxy):
            return leaf(self, input, hx)
        if isinstance(input, PackedSequence):
            self._check(input.data, "packed sequences of (T, input_size)", input.data.ndim == 2)
            return self._packed(input, hx)
        wanted = "(N, T" if self.batch_first else "(T, N"
        expect_floats(self, input)
        self._check(input, f"{wanted}, input_size), or (T, input_size) for one sequence", input.ndim in (2, 3))
        single = input.ndim == 2
        batch = 0 if self.batch_first else 1
        x = input.unsqueeze(batch) if single else input
        states = self._initial(x, hx, x.shape[batch], single)
        if self.norm in (None, "weight"):
            y, last = self._native(x, states)
        else:
            y, last = self._walk(x.transpose(0, 1) if self.batch_first else x, states, None)
            y = y.transpose(0, 1) if self.batch_first else y
        if single:
            y, last = y.squeeze(batch), tuple(state.squeeze(1) for state in last)
        return y, last if self.states > 1 else last[0]

    def explained(self, input: Tensor | PackedSequence) -> Explanation:
        """What takes the steps over `input`, and why: what `normscope.kernels.explain` tells of this layer."""
        x = input.data if isinstance(input, PackedSequence) else input
        self._check(x, "(…, T, input_size)", x.ndim in (2, 3))
        return explained(self, input)

    def _check(self, input: Tensor, wanted: str, rank: bool) -> None:
        if not rank or input.shape[-1] != self.input_size:
            raise ShapeError(
                f"{type(self).__name__} was given an input that it cannot read.",
                found={"input": tuple(input.shape), "input_size": self.input_size},
                because=f"it reads {wanted}",
                do=f"pass {'(N, T' if self.batch_first else '(T, N'}, {self.input_size})",
            )
        dtype = self.weight_hh_l0.dtype
        if input.dtype != dtype and not torch.is_autocast_enabled(input.device.type):
            raise DataError(
                f"{type(self).__name__} was given an input of another dtype than its weights.",
                found={"input": input.dtype, "weights": dtype},
                because="a matrix product takes one dtype",
                do=f"pass input.to({dtype}), or convert the layer: layer.to({input.dtype})",
            )

    def _packed(self, input: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        data, lengths = pad_packed_sequence(input)
        states = self._initial(data, hx, data.shape[1], False)
        if hx is not None and input.sorted_indices is not None and self.norm in (None, "weight"):
            states = tuple(state.index_select(1, input.sorted_indices) for state in states)
        if self.norm in (None, "weight"):
            y, *last = self._function()(input.data, input.batch_sizes, self._hidden(states), *self._settings())
            packed = PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            if input.unsorted_indices is not None:
                last = [state.index_select(1, input.unsorted_indices) for state in last]
        else:
            y, last = self._walk(data, states, lengths.to(data.device))
            if input.sorted_indices is not None:
                y, lengths = y.index_select(1, input.sorted_indices), lengths[input.sorted_indices.cpu()]
            packed = pack_padded_sequence(y, lengths)
            packed = PackedSequence(packed.data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        return packed, tuple(last) if self.states > 1 else last[0]

    def _initial(self, x: Tensor, hx: Any, batch: int, single: bool) -> State:
        shape = (self.num_layers * (1 + self.bidirectional), batch, self.hidden_size)
        if hx is None:
            return tuple(x.new_zeros(shape) for _ in range(self.states))
        given: Sequence[Any] = (hx,) if isinstance(hx, Tensor) else hx
        tensors = all(isinstance(state, Tensor) for state in given)
        states = tuple(state.unsqueeze(1) if single else state for state in given if tensors)
        if len(states) != self.states or any(state.shape != shape for state in states):
            raise ShapeError(
                f"{type(self).__name__} was given states that do not fit.",
                found={"states": [tuple(getattr(state, "shape", ())) for state in given]},
                because=f"there are {shape[0]} passes over {batch} sequences with {self.hidden_size} hidden units",
                do=f"pass {self.states} of shape {shape[:1] + shape[2:] if single else shape}",
            )
        return states

    # torch's own loop ------------------------------------------------------------------------------------------------

    def _function(self) -> Any:
        raise NotImplementedError

    def _hidden(self, states: State) -> Any:
        return list(states) if self.states > 1 else states[0]

    def _settings(self) -> tuple[Any, ...]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        weights = [getattr(self, name + suffix) for _, suffix in self._passes() for name in names]
        return weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional

    def _native(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        y, *last = self._function()(x, self._hidden(states), *self._settings(), self.batch_first)
        return y, tuple(last)

    # the loop with norms ---------------------------------------------------------------------------------------------

    def _walk(self, x: Tensor, states: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """All layers and directions over (T, N, C); beyond its length a sequence keeps its state and gives zeros."""
        mask = None if lengths is None else torch.arange(len(x), device=x.device)[:, None] < lengths
        last: list[State] = []
        outputs: list[Tensor] = []
        for index, (layer, suffix) in enumerate(self._passes()):
            if layer and not suffix.endswith("_reverse"):
                x, outputs = torch.cat(outputs, -1), []
                x = F.dropout(x, self.dropout, self.training)
            start = tuple(state[index] for state in states)
            turned = suffix.endswith("_reverse")
            y, end = self._pass(_reversed(x, lengths) if turned else x, start, suffix, mask)
            outputs.append(_reversed(y, lengths) if turned else y)
            last.append(end)
        return torch.cat(outputs, -1), tuple(torch.stack(ends) for ends in zip(*last, strict=True))

    def _pass(self, x: Tensor, state: State, suffix: str, mask: Tensor | None) -> tuple[Tensor, State]:
        """One layer in one direction. The product with the inputs is one matrix product for all steps."""
        projected = self._projected(F.linear(x, getattr(self, "weight_ih" + suffix)), suffix, mask)
        walk = None if self.cell is None else walked(self, self.cell, projected, state, suffix, mask)
        return self._steps(projected, state, suffix, mask) if walk is None else walk

    def _steps(self, projected: Tensor, state: State, suffix: str, mask: Tensor | None) -> tuple[Tensor, State]:
        """One step after the other."""
        weight = getattr(self, "weight_hh" + suffix).T
        bias = getattr(self, "bias_hh" + suffix) if self.bias else None
        outputs = []
        for step, given in enumerate(projected.unbind(0)):
            kept = None if mask is None else mask[step]
            new = self._step(given, state, (weight, bias), suffix, step, kept)
            if kept is not None:
                new = tuple(torch.where(kept[:, None], one, old) for one, old in zip(new, state, strict=True))
            state = new
            outputs.append(state[0] if kept is None else state[0] * kept[:, None])
        return torch.stack(outputs), state

    def _projected(self, product: Tensor, suffix: str, mask: Tensor | None) -> Tensor:
        """The product of the inputs, normalized block by block, and its bias."""
        if self.norm != "batch":
            mask = None  # statistics of one step of one sequence know no padding
        blocks = product.split([part * self.hidden_size for part in self.parts], -1)
        y = torch.cat([self.norms[f"ih{n}{suffix}"](block, mask) for n, block in enumerate(blocks)], -1)
        return y + getattr(self, "bias_ih" + suffix) if self.bias else y

    def _recurrent(self, h: Tensor, weights: Any, suffix: str, step: int, mask: Tensor | None) -> Tensor:
        """The product of the hidden state, normalized block by block, and its bias."""
        weight, bias = weights
        product = h @ weight
        if len(self.parts) == 1:
            y = self._at(f"hh0{suffix}", product, step, mask)
        else:
            blocks = product.split([part * self.hidden_size for part in self.parts], -1)
            y = torch.cat([self._at(f"hh{n}{suffix}", block, step, mask) for n, block in enumerate(blocks)], -1)
        return y if bias is None else y + bias

    def _at(self, name: str, x: Tensor, step: int, mask: Tensor | None) -> Tensor:
        norm = self.norms[name]
        return norm.at(x, step, mask) if isinstance(norm, TemporalBatchNorm) else norm(x)

    def _step(
        self, given: Tensor, state: State, weights: Any, suffix: str, step: int, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        """One time step: the states after it, the hidden one first."""
        raise NotImplementedError

    def flatten_parameters(self) -> None:
        """Without a norm, lay the weights in one piece for cuDNN, as torch's layers do; else nothing."""
        if self.norm is None and self.weight_ih_l0.is_cuda:
            twin = self._torchs()
            twin._flat_weights, *_ = self._settings()
            twin.flatten_parameters()

    def _torchs(self) -> nn.RNNBase:
        """The layer of torch of the same sizes, without its weights."""
        mode = "LSTM" if self.states > 1 else "GRU" if len(self.parts) > 1 else "RNN_TANH"
        sizes = (self.input_size, self.hidden_size, self.num_layers, self.bias, self.batch_first)
        return nn.RNNBase(mode, *sizes, self.dropout, self.bidirectional, device="meta")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As torch's layers: weights that were moved are laid in one piece again."""
        moved = super()._apply(fn, recurse)
        self.flatten_parameters()
        return moved

    def extra_repr(self) -> str:
        """The sizes, and what differs from torch's defaults."""
        told = {"norm": None, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        fields = {name: getattr(self, name) for name, default in told.items() if getattr(self, name) != default}
        sizes = {"num_layers": self.num_layers} if self.num_layers != 1 else {}
        return ", ".join(
            [
                f"{self.input_size}, {self.hidden_size}",
                *(f"{name}={value!r}" for name, value in (sizes | fields).items()),
            ]
        )


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(T, N, C) back to front; each sequence within its own length, so that its last step comes first."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, source[..., None].expand_as(x))
