"""The walk of an LSTM or GRU with norms inside through time, as one differentiable function.

Matrix products are torch's; all else of a time step is one kernel. What is differentiated twice goes the plain way.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from normscope.kernels.costs import LEAST
from normscope.kernels.cpu import fresh
from normscope.kernels.cpu.compiled import step_words as word
from normscope.kernels.cpu.pool import launch, missing, words
from normscope.kernels.force import forced

_ROWS = 8  # of the batch, that one task takes where statistics are those of a row
_UNITS = 32  # hidden units that one task takes where they are those of a column
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Walk(NamedTuple):
    """What is walked.

    Attributes:
        cell: "lstm" or "gru".
        norm: what is inside: of each row ("layer", "rms"), or of each column over the batch ("batch").
        eps: the guard of every division.
        fixed: whether the statistics of the columns are given, rather than measured.
    """

    cell: Literal["lstm", "gru"]
    norm: Literal["layer", "rms", "batch"]
    eps: float = 1e-5
    fixed: bool = False

    @property
    def gates(self) -> int:
        """Blocks of H columns in the product."""
        return 4 if self.cell == "lstm" else 3


class Inputs(NamedTuple):
    """The tensors of a walk over T steps of N sequences with H hidden units and W = gates · H columns.

    Attributes:
        given: the normalized product of the inputs with its bias, (T, N, W).
        h: the first hidden state, (N, H).
        c: the first cell (N, H), None for a GRU.
        weight: the recurrent weight (W, H).
        bias: its bias (W,), or None for 0.
        scale: the weights of the norms of the recurrent product, side by side (W,).
        cell: the weight of the norm of the cell (H,), None for a GRU.
        cell_bias: its bias (H,), or None for 0.
        told: given statistics, (T, 2 · W) or with the cell's (T, 2 · W + 2 · H): means, then variances, in float64.
    """

    given: Tensor
    h: Tensor
    c: Tensor | None
    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    cell: Tensor | None = None
    cell_bias: Tensor | None = None
    told: Tensor | None = None


def refuses(inputs: Inputs, masked: bool = False) -> str | None:
    """Why no kernel walks, in words, or None."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return "the step is compiled, or in mixed precision"
    tensors = [value for value in inputs[:-1] if value is not None]
    kinds = {value.dtype for value in tensors} | {torch.float32}
    if masked:
        return "the sequences have several lengths"
    if inputs.given.numel() < LEAST and forced() != "numba":
        return "the sequences are so short that the call itself is what costs"
    if forced() not in (None, "numba"):
        return f'"{forced()}" is asked for'
    if any(value.device.type != "cpu" for value in tensors) or len(kinds) > 1:
        return "it computes float32 on the CPU"
    if any(type(value) not in _PLAIN for value in tensors):
        return "an operand is of a subclass of Tensor"
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "a function transform is under way"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode looks at every operation"
    return missing()


def walked(walk: Walk, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states (T, N, H), the last cell (N, H), as `plain` specifies them, and the statistics of the columns.

    Of a GRU the last cell is empty; the statistics are as in `Inputs.told`, and empty where rows have their own.
    """
    return _Walk.apply(walk, *inputs)  # type: ignore[return-value]


def plain(walk: Walk, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The specification of `walked`, by torch's functions.

    Layer norm as in Ba, Kiros, Hinton 2016, equations 20 to 22 and 26 to 29; batch norm as in Cooijmans et al. 2017.
    """
    given, h, c, weight, bias, scale, cell, cell_bias, told = inputs
    hidden, width = h.shape[-1], scale.shape[0]

    def norm(x: Tensor, g: Tensor, b: Tensor | None, step: int, at: int) -> Tensor:
        if walk.norm != "batch":
            of = F.rms_norm(x, x.shape[-1:], g, walk.eps) if walk.norm == "rms" else F.layer_norm(
                x, x.shape[-1:], g, None, walk.eps
            )  # fmt: skip
            return of if b is None else of + b
        if told is None or not walk.fixed:
            return F.batch_norm(x, None, None, g, b, True, 0.0, walk.eps)
        mean, var = told[step, at : at + 2 * x.shape[-1]].to(x.dtype).chunk(2)
        return F.batch_norm(x, mean, var, g, b, False, 0.0, walk.eps)

    outputs = []
    for step, x in enumerate(given):
        product = h @ weight.T
        if walk.cell == "lstm":
            assert c is not None and cell is not None
            z = x + norm(product, scale, bias, step, 0)
            i, f, g, o = z.chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(norm(c, cell, cell_bias, step, 2 * width))
        else:
            cuts = (2 * hidden, hidden)
            if walk.norm == "batch":
                p = norm(product, scale, bias, step, 0)
            else:
                p = torch.cat(
                    [norm(a, g, None, step, 0) for a, g in zip(product.split(cuts, -1), scale.split(cuts))], -1
                )
                p = p if bias is None else p + bias
            (r, u, n), (p_r, p_u, p_n) = x.chunk(3, -1), p.chunk(3, -1)
            candidate = torch.tanh(n + torch.sigmoid(r + p_r) * p_n)
            h = torch.lerp(candidate, h, torch.sigmoid(u + p_u))
        outputs.append(h)
    return torch.stack(outputs), given.new_empty(0) if c is None else c


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, walk: Walk, *tensors: Any) -> Any:
        inputs = Inputs(*tensors)
        given, h = inputs.given.contiguous(), inputs.h.contiguous()
        c = None if inputs.c is None else inputs.c.contiguous()
        (steps, rows, _), hidden = given.shape, h.shape[-1]
        y = given.new_empty(steps, rows, hidden)
        cells = given.new_empty(steps, rows, hidden) if c is not None else None
        products, gates = fresh.like(given), fresh.like(given)
        told = _statistics(walk, inputs, steps, rows, hidden)
        packed, kept = _packed(walk, inputs, rows, hidden)
        run, across, tasks = _step(walk, False), inputs.weight.T, int(packed[2])
        for t, (product, x) in enumerate(zip(products, given)):
            torch.mm(h, across, out=product)
            packed[word.PRODUCT], packed[word.GIVEN], packed[word.GATES] = (
                z.data_ptr() for z in (product, x, gates[t])
            )
            packed[word.TOLD] = told[t].data_ptr()
            packed[word.BEFORE] = (h if c is None else c).data_ptr()
            if cells is not None:
                c = cells[t]
                packed[word.AFTER] = c.data_ptr()
            h = y[t]
            packed[word.OUT] = h.data_ptr()
            launch(run, packed, tasks)
        del kept
        ctx.walk = walk
        ctx.save_for_backward(*tensors, y, cells, products, gates, told)
        seen = told if walk.norm == "batch" else told.new_empty(0)
        ctx.mark_non_differentiable(seen)
        return y, y.new_empty(0) if c is None else c.clone(), seen

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dc: Tensor, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, y, cells, products, gates, told = ctx.saved_tensors
        walk, inputs = ctx.walk, Inputs(*tensors)
        if torch.is_grad_enabled():  # create_graph=True
            return None, *_by_torch(walk, inputs, dy, dc)
        steps, rows, hidden = y.shape
        of_given, of_products = fresh.like(gates), fresh.like(gates)
        dy, dh = dy.contiguous(), dy[-1].clone(memory_format=torch.contiguous_format)
        dc = dc.clone(memory_format=torch.contiguous_format)
        first = (inputs.h if inputs.c is None else inputs.c).contiguous()
        packed, kept = _packed(walk, inputs, rows, hidden)
        tasks = int(packed[2])
        shares = [torch.zeros(tasks, size, dtype=torch.float64) for size in (walk.gates * hidden, hidden) * 2]
        of_weight, of_cell, of_bias, of_cell_bias = shares
        work = y.new_empty(rows, hidden)
        for place, value in (
            (word.DH, dh), (word.DC, dc), (word.OF_WEIGHT, of_weight), (word.OF_BIAS, of_bias),
            (word.OF_CELL, of_cell), (word.OF_CELL_BIAS, of_cell_bias), (word.WORK, work),
        ):  # fmt: skip
            packed[place] = value.data_ptr()
        run, before = _step(walk, True), y if cells is None else cells
        for t in reversed(range(steps)):
            for place, value in (
                (word.PRODUCT, products), (word.OF_PRODUCT, of_products), (word.OF_GIVEN, of_given),
                (word.GATES, gates), (word.TOLD, told),
            ):  # fmt: skip
                packed[place] = value[t].data_ptr()
            packed[word.BEFORE] = (before[t - 1] if t else first).data_ptr()
            if cells is not None:
                packed[word.AFTER] = cells[t].data_ptr()
            launch(run, packed, tasks)
            if walk.cell == "gru":  # `dh` holds what goes past the product
                dh.addmm_(of_products[t], inputs.weight)
                if t:
                    dh += dy[t - 1]
            elif t:
                torch.addmm(dy[t - 1], of_products[t], inputs.weight, out=dh)
            else:
                torch.mm(of_products[0], inputs.weight, out=dh)
        del kept
        states = torch.cat((inputs.h[None], y[:-1])).view(-1, hidden)
        of_matrix = of_products.view(-1, walk.gates * hidden).T @ states
        made = Inputs(
            of_given, dh, None if inputs.c is None else dc, of_matrix, _sum(of_bias, inputs.bias),
            _sum(of_weight, inputs.scale), _sum(of_cell, inputs.cell), _sum(of_cell_bias, inputs.cell_bias),
        )  # fmt: skip
        return None, *made


def _sum(shares: Tensor, of: Tensor | None) -> Any:
    return None if of is None else shares.sum(0).to(of.dtype)


def _by_torch(walk: Walk, inputs: Inputs, *grads: Tensor) -> list[Tensor | None]:
    """The gradients as a graph that can be differentiated again."""
    aliases = Inputs(*(None if x is None else x.view_as(x) for x in inputs))  # type: ignore[arg-type]
    there = [x if x.requires_grad else x.requires_grad_() for x in aliases if x is not None]
    outputs = [(y, grad) for y, grad in zip(plain(walk, aliases), grads) if y.numel()]
    ys, ups = zip(*outputs)
    found = iter(torch.autograd.grad(ys, there, ups, create_graph=True, allow_unused=True))
    return [None if x is None else next(found) for x in inputs]


def _statistics(walk: Walk, inputs: Inputs, steps: int, rows: int, hidden: int) -> Tensor:
    if walk.norm != "batch":
        return torch.empty(steps, rows, 4, dtype=torch.float64)
    if walk.fixed:
        assert inputs.told is not None
        return inputs.told.double().contiguous()
    return torch.empty(steps, 2 * hidden * (walk.gates + (walk.cell == "lstm")), dtype=torch.float64)


def _packed(walk: Walk, inputs: Inputs, rows: int, hidden: int) -> tuple[Any, list[Tensor]]:
    """The words that are the same at every step, and the tensors behind them, which must live as long."""
    panel, size = (_UNITS, hidden) if walk.norm == "batch" else (_ROWS, rows)
    width = walk.gates * hidden
    kept = {word.WEIGHT: inputs.scale.detach().contiguous()}
    for place, value, length in (
        (word.BIAS, inputs.bias, width), (word.CELL, inputs.cell, hidden), (word.CELL_BIAS, inputs.cell_bias, hidden)
    ):  # fmt: skip
        kept[place] = inputs.h.new_zeros(length) if value is None else value.detach().contiguous()
    told = {2: -(-size // panel), 3: rows, 4: hidden, 5: panel, 6: int(walk.fixed)}
    return words(told | {place: value.data_ptr() for place, value in kept.items()}, walk.eps), list(kept.values())


def _step(walk: Walk, back: bool) -> Any:
    return _compiled(walk.cell, walk.fixed if walk.norm == "batch" else walk.norm == "rms", walk.norm == "batch", back)


@functools.cache
def _compiled(cell: str, kind: bool, batch: bool, back: bool) -> Any:
    from normscope.kernels.cpu.compiled import recurrent, temporal

    return getattr(temporal if batch else recurrent, f"{cell}_{'backward' if back else 'forward'}")(kind)
