"""Recurrent layers with norms inside: LSTM, GRU and RNN with torch's arguments and `state_dict` keys.

``norm`` is one of

- None: torch's layer.
- "weight": weight norm of every weight matrix (Salimans & Kingma 2016).
- "layer": layer normalization of each matrix product and of the cell (Ba, Kiros, Hinton 2016).
- "rms": the same with RMSNorm (Zhang & Sennrich 2019).
- "batch": batch normalization in the same places, with statistics of each time step (Cooijmans et al. 2017).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.norms.classes import LayerNorm
from normscope.norms.temporal import TemporalBatchNorm
from normscope.norms.unrolled import State, Unrolled
from normscope.terms.errors import ModelError


class LSTM(Unrolled):
    """Long short-term memory; see `torch.nn.LSTM`, and this module for `norm`. The cell is normalized before its tanh.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        num_layers: layers on top of each other.
        bias: whether there are biases.
        batch_first: whether sequences are (N, T, C).
        dropout: of the outputs of each layer but the last.
        bidirectional: whether each layer reads both ways.
        proj_size: refused.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        norm: what is inside.
        max_steps: with "batch", how many time steps keep statistics.

    Raises:
        ModelError: a projection, or an unknown norm.
        ValueError: sizes that torch's layer refuses, in its words.
        TypeError: arguments of a type that torch's layer refuses, in its words.
    """

    parts = (4,)
    states = 2
    cell = "lstm"

    def _places(self) -> list[tuple[str, int]]:
        return [*super()._places(), ("cell", self.hidden_size)]

    def _norm(self, width: int, device: Any, dtype: Any) -> nn.Module:
        if width == self.hidden_size and self.norm != "rms":  # the cell's own has a bias
            if self.norm == "layer":
                return LayerNorm(width, device=device, dtype=dtype)
            return TemporalBatchNorm(width, self.max_steps, device=device, dtype=dtype)
        return super()._norm(width, device, dtype)

    def _function(self) -> Any:
        return torch.lstm

    def _step(
        self, given: Tensor, state: State, weights: Any, suffix: str, step: int, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        h, c = state
        i, f, g, o = (given + self._recurrent(h, weights, suffix, step, mask)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self._at("cell" + suffix, c, step, mask)), c


class GRU(Unrolled):
    """Gated recurrent unit; see `torch.nn.GRU`, and this module for `norm`.

    The two gates share one norm, and the candidate has its own (Ba, Kiros, Hinton 2016). Arguments
    and errors are those of `LSTM`.
    """

    parts = (2, 1)
    cell = "gru"

    def _function(self) -> Any:
        return torch.gru

    def _step(
        self, given: Tensor, state: State, weights: Any, suffix: str, step: int, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        (h,) = state
        recurrent = self._recurrent(h, weights, suffix, step, mask)
        r, z, n = given.chunk(3, -1)
        r_h, z_h, n_h = recurrent.chunk(3, -1)
        candidate = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
        return (torch.lerp(candidate, h, torch.sigmoid(z + z_h)),)


class RNN(Unrolled):
    """Elman's network; see `torch.nn.RNN`, and this module for `norm`. Arguments and errors are those of `LSTM`.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        num_layers: layers on top of each other.
        nonlinearity: "tanh" or "relu".
        args: the further arguments of `LSTM`, from `bias` on.
        kwargs: the same by name.
    """

    parts = (1,)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ModelError(
                "RNN was asked for a nonlinearity that it does not have.",
                found={"nonlinearity": repr(nonlinearity)},
                because="it is one of two",
                do='choose "tanh" or "relu"',
            )
        super().__init__(input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity

    @property
    def _of_sum(self) -> bool:
        """Layer statistics are those of the sum of both products, batch statistics of each."""
        return self.norm in ("layer", "rms")

    def _places(self) -> list[tuple[str, int]]:
        return [("sum", self.hidden_size)] if self._of_sum else super()._places()

    def _projected(self, product: Tensor, suffix: str, mask: Tensor | None) -> Tensor:
        return product if self._of_sum else super()._projected(product, suffix, mask)

    def _function(self) -> Any:
        return torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu

    def _step(
        self, given: Tensor, state: State, weights: Any, suffix: str, step: int, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        if self._of_sum:
            total = self.norms["sum" + suffix](given + state[0] @ weights[0])
            total = total + getattr(self, "bias_ih" + suffix) + weights[1] if self.bias else total
        else:
            total = given + self._recurrent(state[0], weights, suffix, step, mask)
        return (torch.tanh(total) if self.nonlinearity == "tanh" else torch.relu(total),)
