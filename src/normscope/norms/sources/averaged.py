"""Statistics averaged over batches: exponentially, plainly, or merged as one population.

The buffers have torch's names. A batch with a statistic that is not finite is skipped whole and counted in
``num_batches_skipped`` (not saved, so a `state_dict` is torch's); nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normscope.kernels import native
from normscope.kernels.dispatch import takes_kernel
from normscope.kernels.force import forced
from normscope.kernels.reference import Statistics, finish, measure, root
from normscope.norms import past
from normscope.norms.glance import SIZE, TOP, memory
from normscope.norms.sources.given import Given
from normscope.norms.sources.snapshot import snapshot
from normscope.norms.sources.source import Call
from normscope.terms.spec import NormSpec


class Running(Given):
    """An exponential average: the newest batch weighs `spec.momentum`."""

    learns = True
    averages = True  # of one statistic a batch, rather than a merge of their cells

    def initial(self, spec: NormSpec, width: int) -> dict[str, Tensor]:
        """Mean 0, variance 1, no batch seen; with accumulation, an empty merge of micro-batches."""
        state = {
            **super().initial(spec, width),
            "num_batches_tracked": torch.tensor(0),
            "num_batches_skipped": torch.tensor(0),
        }
        if spec.accumulate > 1:
            state |= {"pending_mean": torch.zeros(width), "pending_var": torch.zeros(width)}
            state |= {"pending_size": torch.tensor(0), "pending_batches": torch.tensor(0)}
        return state

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """As a source for training: learn from the batch first, then normalize by the average, outside the gradient.

        This is the estimated batch normalization of Qiao et al. 2019 ("Rethinking Normalization…").
        """
        assert call.state is not None
        with torch.no_grad():
            seen = measure(call.x, call.spec, call.mask)
            self.learn(call.state, call.spec, seen)
            held = tuple(snapshot(call.state[name]) for name in ("running_mean", "running_var"))
        y = self.estimated(call, *held)
        past.keep(call.state["running_mean"], (seen.mean, seen.var), held, y)
        return y, ()

    def at_once(self, call: Call) -> Tensor | None:
        """What torch's layer does, bit for bit, on the host; None where that serves not."""
        x, spec, weight, bias, state, mask, _, residual, _ = call
        if mask is not None or torch.compiler.is_compiling() or not native.averages(spec):
            return None
        if forced() is not None or takes_kernel(x, spec, weight, bias, residual):
            return None
        assert state is not None
        y = learned(x, state, weight, bias, *terms(spec))
        return None if y is None else finish(y, x, spec, residual)

    def repeat(self, call: Call) -> Tensor:
        """Normalize by the average as the first run left it."""
        with torch.no_grad():
            seen = measure(call.x, call.spec, call.mask)
        return self.estimated(call, *past.again(call.kept("running_mean"), (seen.mean, seen.var)))

    def estimated(self, call: Call, mean: Tensor, var: Tensor) -> Tensor:
        """The output by the given averages."""
        return self.normalize(call.by({"running_mean": mean, "running_var": var}))

    def learn(self, state: Mapping[str, Tensor], spec: NormSpec, seen: Statistics) -> None:
        """Blend in one batch, or the merge of `spec.accumulate` micro-batches when it is complete."""
        at_once = spec.unbiased and self.averages and spec.accumulate == 1
        mean, var = _per_channel(seen.mean, seen), _per_channel(seen.unbiased() if at_once else seen.biased(), seen)
        total = (mean + var).sum(dtype=torch.promote_types(mean.dtype, torch.float32))
        count = seen.size
        if isinstance(count, int) and spec.accumulate == 1 and _on_host(total):
            # the host can look at no cost, and leaves out what only guards against what it sees
            finite = math.isfinite(total.item())
            state["num_batches_tracked" if finite else "num_batches_skipped"].add_(int(not finite or "N" in spec.over))
            if finite:
                self.blend(state, spec, Statistics(mean, var, count), None)
            return
        kept = total - total == 0  # finite: the difference of anything else with itself is NaN
        if isinstance(count, Tensor):
            covered = count > 0  # one for all, or one a channel where a mask counts positions apart
            kept = kept & (covered.expand_as(seen.mean).any(0).flatten() if count.numel() > 1 else covered.reshape(()))
            count = count.double().mean()
        some = kept.any() if kept.ndim else kept
        state["num_batches_skipped"].add_(~some)
        if spec.accumulate > 1:
            mean, var, count, kept = _accumulated(state, spec, Statistics(mean, var, count), kept)
            if spec.unbiased and self.averages:
                var = Statistics(mean, var, count).unbiased()
            some = kept
        if "N" in spec.over:  # torch's InstanceNorm holds the count and does not count
            state["num_batches_tracked"].add_(some)
        self.blend(state, spec, Statistics(mean, var, count), kept)

    def blend(self, state: Mapping[str, Tensor], spec: NormSpec, seen: Statistics, kept: Tensor | None) -> None:
        """Move the buffers towards the statistics, (C,) each, where `kept`; None is everywhere."""
        share = self.share(state, spec)
        if spec.train_from == "renormalized":
            held = state["running_var"]
            held.copy_(_where(kept, _by_deviation(held, seen.var.to(held.dtype), spec, share), held))
            state["running_mean"].lerp_(_where(kept, seen.mean.to(held.dtype), state["running_mean"]), share)
            return
        for buffer, value in ((state["running_mean"], seen.mean), (state["running_var"], seen.var)):
            buffer.lerp_(_where(kept, value.to(buffer.dtype), buffer), share)

    def share(self, state: Mapping[str, Tensor], spec: NormSpec) -> Tensor | float:
        """The weight of the newest batch; torch's 0.1 where the description names none."""
        return 0.1 if spec.momentum is None else spec.momentum


class Cumulative(Running):
    """The plain average of all batches so far (torch's ``momentum=None``), the number of them read on the device."""

    def share(self, state: Mapping[str, Tensor], spec: NormSpec) -> Tensor | float:
        """One part in as many as there were batches."""
        return (1.0 / state["num_batches_tracked"].clamp(min=1)).to(state["running_mean"].dtype)


class Population(Running):
    """All batches merged as one population (Chan et al. 1979): variance within the batches and between them, biased."""

    averages = False

    def initial(self, spec: NormSpec, width: int) -> dict[str, Tensor]:
        """As an average, with the number of cells merged so far."""
        return {**super().initial(spec, width), "population_size": torch.tensor(0)}

    def blend(self, state: Mapping[str, Tensor], spec: NormSpec, seen: Statistics, kept: Tensor | None) -> None:
        """Chan's merge of one batch with all before it."""
        held = [state[name] for name in ("running_mean", "running_var", "population_size")]
        for buffer, value in zip(held, _merged(held, seen), strict=True):
            buffer.copy_(_where(kept, value, buffer))


def _by_deviation(held: Tensor, seen: Tensor, spec: NormSpec, share: Tensor | float) -> Tensor:
    """The variance whose σ, with eps in it, is the average of both (Ioffe 2017, algorithm 1, averages σ)."""
    sigma = root(held, spec).lerp(root(seen, spec), share)
    least = root(torch.zeros_like(held), spec)  # what eps adds where it stands
    return (sigma.square() - least.square() if spec.eps_place == "inside" else (sigma - least).square()).clamp(min=0)


def terms(spec: NormSpec) -> tuple[Any, float, float | None]:
    """How `learned` does what `spec` asks for: ATen's function, eps, and the weight of the newest batch.

    That weight is None where it is one part in as many as there were batches.
    """
    newest = None if spec.infer_from == "cumulative" else 0.1 if spec.momentum is None else spec.momentum
    return torch.batch_norm if "N" in spec.over else torch.instance_norm, spec.eps or 0.0, newest


def learned(
    x: Tensor,
    state: Mapping[str, Any],
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: Any,
    eps: float,
    newest: float | None,
) -> Tensor | None:
    """The output of one call of ATen, which blends in the batch too; None, and nothing learned, if not finite or lost.

    Only the host can look at what came of it, and take it back. It looks at bytes, because a tensor's own functions
    (clone, isfinite) take longer than a small batch's normalization.
    """
    mean, var, count = state["running_mean"], state["running_var"], state["num_batches_tracked"]
    kind, width, of_batch = mean.dtype, mean.numel(), normalize is torch.batch_norm
    size = SIZE.get(kind)
    if size is None or not x.is_cpu:
        return None
    if not (mean.is_contiguous() and var.is_contiguous() and (of_batch or x.is_contiguous())):
        return None  # ATen would not keep the layout
    if x.numel() <= (width if of_batch else width * len(x)):
        return None  # one cell a statistic
    try:
        bytes_of = memory(mean.data_ptr(), width * size), memory(var.data_ptr(), width * size)
    except RuntimeError:  # under vmap, many statistics in one, that hold no values to look at
        return None
    before = bytes_of[0].raw, bytes_of[1].raw
    share = 1.0 / (int(count) + 1) if newest is None else newest
    found = None
    if of_batch and native.doubtful(x):
        y, *found = torch.native_batch_norm(x, weight, bias, mean, var, True, share, eps)
    else:  # (on the host the last argument, whether cuDNN may serve, is not read)
        y = normalize(x, weight, bias, mean, var, True, share, eps, True)
    top = TOP[size]  # the byte with the sign and most of the exponent, 0x7f or 0xff in NaN, inf and near them
    tops = bytes_of[0][top] + bytes_of[1][top]
    exact = found is None or not native.lost(x, *found)
    if exact and b"\x7f" not in tops and b"\xff" not in tops:
        if of_batch:  # torch's InstanceNorm holds the count and does not count
            count.add_(1)
        return y
    for buffer, kept in zip((mean, var), before, strict=True):
        buffer.copy_(torch.frombuffer(bytearray(kept), dtype=kind))
    return None


def _on_host(value: Tensor) -> bool:
    return value.device.type == "cpu" and not torch.compiler.is_compiling()


def _where(kept: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """The new values where `kept`, the old elsewhere; None keeps all."""
    return new if kept is None else torch.where(kept, new, old)


def _merged(held: Sequence[Tensor], seen: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Chan's merge of held (mean, variance, size) with what was seen: exact, and the empty one is its identity."""
    mean, var, size = held
    total = size + seen.size
    share = (seen.size / total.clamp(min=1)).to(mean.dtype)
    delta = seen.mean - mean
    merged = var * (1 - share) + seen.var * share + delta.square() * (share * (1 - share))
    return mean + delta * share, merged, total


def _per_channel(values: Tensor, seen: Statistics) -> Tensor:
    """One value a channel, (C,); those of single samples are averaged, as torch's InstanceNorm does."""
    if values.shape[0] == 1:
        return values.flatten()
    if isinstance(seen.size, int):
        return values.mean(0).flatten()
    counted = (seen.size > 0).to(values.dtype)
    return ((values * counted).sum(0) / counted.sum(0).clamp(min=1)).flatten()


def _accumulated(
    state: Mapping[str, Tensor], spec: NormSpec, seen: Statistics, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge a micro-batch with the pending ones: mean, variance, size, and whether it is complete."""
    pending = [state[f"pending_{name}"] for name in ("mean", "var", "size")]
    mean, var, size = (torch.where(kept, new, old) for new, old in zip(_merged(pending, seen), pending, strict=True))
    complete = state["pending_batches"].add_(1) >= spec.accumulate
    for buffer, value in zip(pending, (mean, var, size), strict=True):
        buffer.copy_(torch.where(complete, 0, value))
    state["pending_batches"].mul_(~complete)
    return mean, var, size, complete & (size > 0)
