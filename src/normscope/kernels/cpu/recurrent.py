"""The walk of an LSTM with layer or RMS norm inside through time, as one differentiable function.

Matrix products are torch's; all else of a time step is one kernel. What is differentiated twice goes the plain way.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from normscope.kernels.costs import LEAST
from normscope.kernels.cpu.pool import launch, missing, words
from normscope.kernels.force import forced

_PANEL = 8  # rows of the batch that one task takes
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def serves(projected: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel walks over `projected` (T, N, 4H): large, float32, on the CPU, with nothing looking in."""
    tensors = [tensor for tensor in (projected, *others) if tensor is not None]
    return (
        projected.numel() >= LEAST
        and forced() in (None, "numba")
        and not torch.compiler.is_compiling()
        and all(type(x) in _PLAIN and x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore[reportAttributeAccessIssue]
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and missing() is None
    )


def lstm(rms: bool, eps: float, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """The hidden states (T, N, H), and the last cell (N, H), as `plain` specifies them.

    tensors: the normalized product of the inputs with its bias (T, N, 4H), h₀ and c₀ (N, H), the recurrent weight
    (4H, H), its bias (4H,) or None, and the weights of the norm of the recurrent product (4H,) and of the cell (H,).
    """
    return _LSTM.apply(rms, eps, *tensors)  # type: ignore[return-value]


def plain(rms: bool, eps: float, *tensors: Any) -> tuple[Tensor, Tensor]:
    """The specification of `lstm`, by torch's functions (Ba, Kiros, Hinton 2016, equations 20 to 22)."""
    given, h, c, weight, bias, scale, cell = tensors

    def norm(x: Tensor, g: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], g, eps) if rms else F.layer_norm(x, x.shape[-1:], g, None, eps)

    outputs = []
    for x in given:
        z = x + norm(h @ weight.T, scale)
        i, f, g, o = (z if bias is None else z + bias).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(norm(c, cell))
        outputs.append(h)
    return torch.stack(outputs), c


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rms: bool, eps: float, *tensors: Tensor) -> Any:
        given, h, c, weight, bias, scale, cell = tensors
        given, h, c = given.contiguous(), h.contiguous(), c.contiguous()
        steps, rows, hidden = len(given), *h.shape
        y, cells = given.new_empty(2, steps, rows, hidden)
        products, gates = torch.empty_like(given), torch.empty_like(given)
        told = given.new_empty(steps, rows, 4, dtype=torch.float64)
        shift = given.new_zeros(4 * hidden) if bias is None else bias.contiguous()
        packed = _packed(rows, hidden, scale, cell, eps)
        packed[14] = shift.data_ptr()
        run, across, tasks = _step("forward", rms), weight.T, int(packed[2])
        for t, (product, x) in enumerate(zip(products, given)):
            torch.mm(h, across, out=product)
            packed[10], packed[12], packed[18] = product.data_ptr(), x.data_ptr(), gates[t].data_ptr()
            packed[16], packed[17], packed[19] = c.data_ptr(), cells[t].data_ptr(), told[t].data_ptr()
            h, c = y[t], cells[t]
            packed[11] = h.data_ptr()
            launch(run, packed, tasks)
        ctx.rms, ctx.eps = rms, eps
        ctx.save_for_backward(*tensors, y, cells, products, gates, told)
        return y, c.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dc: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, y, cells, products, gates, told = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return None, None, *_by_torch(ctx.rms, ctx.eps, inputs, dy, dc)
        _, h0, c0, weight, bias, scale, cell = inputs
        steps, rows, hidden = y.shape
        of_given, of_products = torch.empty_like(gates), torch.empty_like(gates)
        dy, c0 = dy.contiguous(), c0.contiguous()
        dc, dh = dc.clone(memory_format=torch.contiguous_format), y.new_empty(rows, hidden)
        packed = _packed(rows, hidden, scale, cell, ctx.eps)
        of_scale = torch.zeros(int(packed[2]), 4 * hidden, dtype=torch.float64)
        of_cell = torch.zeros(int(packed[2]), hidden, dtype=torch.float64)
        packed[20], packed[21], packed[22], packed[23] = (x.data_ptr() for x in (dh, dc, of_scale, of_cell))
        run, tasks = _step("backward", ctx.rms), int(packed[2])
        dh.copy_(dy[-1])
        for t in reversed(range(steps)):
            packed[10], packed[11], packed[12] = (x[t].data_ptr() for x in (products, of_products, of_given))
            packed[16] = (cells[t - 1] if t else c0).data_ptr()
            packed[17], packed[18], packed[19] = (x[t].data_ptr() for x in (cells, gates, told))
            launch(run, packed, tasks)
            if t:
                torch.addmm(dy[t - 1], of_products[t], weight, out=dh)
            else:
                torch.mm(of_products[0], weight, out=dh)
        states = torch.cat((h0[None], y[:-1])).view(-1, hidden)
        of_weight = of_products.view(-1, 4 * hidden).T @ states
        of_bias = None if bias is None else of_given.sum((0, 1))
        return None, None, of_given, dh, dc, of_weight, of_bias, of_scale.sum(0).float(), of_cell.sum(0).float()


def _by_torch(rms: bool, eps: float, inputs: list[Tensor | None], *grads: Tensor) -> list[Tensor | None]:
    """The gradients as a graph that can be differentiated again."""
    aliases = [None if x is None else x.view_as(x) for x in inputs]
    there = [x if x.requires_grad else x.requires_grad_() for x in aliases if x is not None]
    found = iter(torch.autograd.grad(plain(rms, eps, *aliases), there, grads, create_graph=True, allow_unused=True))
    return [None if x is None else next(found) for x in inputs]


def _packed(rows: int, hidden: int, scale: Tensor, cell: Tensor, eps: float) -> Any:
    told = {2: -(-rows // _PANEL), 3: rows, 4: hidden, 5: _PANEL, 13: scale.data_ptr(), 15: cell.data_ptr()}
    return words(told, eps)


@functools.cache
def _step(name: str, rms: bool) -> Any:
    from normscope.kernels.cpu.compiled import recurrent

    return getattr(recurrent, name)(rms)
