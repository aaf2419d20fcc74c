"""Replace the running statistics of batch norms by those of a whole data set.

An exponential average remembers the last batches, at parameters that have moved since; it forgets what differs between
batches altogether. Recalibration measures what evaluation needs: the mean and the variance of everything that reaches
each norm, within- plus between-batch, merged in float64.

It preserves the parameters, and so the function in training mode, exactly. The function in evaluation mode changes: it
comes close to the one in training mode, to the measured gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from normscope.anatomy.batch import Probe, tensors
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.anatomy.recognize import spec_of
from normscope.stats.moments import Moments
from normscope.terms.errors import DataError, SpecError
from normscope.terms.spec import NormSpec
from normscope.treat.batches import batches, empty
from normscope.treat.measure import difference
from normscope.treat.surgery import within
from normscope.treat.treatment import Change, Treated, Treatment, perform

Estimator = Literal["pooled", "paper"]
_Domains = Sequence[tuple[float | None, Any]]  # the weight of each, None for its size, and its data
SETTLED = 1e-5  # of a standard deviation: the order of what float32 resolves of an activation, far below any effect


def recalibrate(
    model: nn.Module,
    data: Any,
    *,
    exact: bool = False,
    estimator: Estimator = "pooled",
    weights: Mapping[str, float] | None = None,
    settle: float | None = None,
    group: Any = None,
    inplace: bool = True,
) -> Treated:
    """Give every batch norm of `model` the population statistics of `data`.

    During the pass the norms normalize by each batch, as in training; every other layer is in evaluation mode. Norms
    that are frozen stay as they are: those with given statistics, with momentum 0, and those in evaluation mode inside
    a model in training mode. Modes, hooks and random states are afterwards what they were.

    Args:
        model: the network, or an average of its weights (`torch.optim.swa_utils.AveragedModel`).
        data: an iterable of batches as a loader yields them, or one batch. With `weights` a mapping from each domain to
            its data.
        exact: measure each norm again with the norms below it already on their population statistics, so that
            evaluation mode is consistent with itself: one more pass over `data` for each norm that stands behind
            another, fewer when nothing moves any more.
        estimator: ``"pooled"`` is the variance of all values together, Σ(x − mean)²/n; ``"paper"`` is the average
            over batches of var·m/(m − 1), weighted by their size (Ioffe & Szegedy 2015, algorithm 2), which leaves
            out what differs between batches.
        weights: the share of each domain in the population, whatever the number of its samples; they need not sum to 1.
        settle: the pass ends early when, from a number of batches to twice that number, no mean and no spread has moved
            by more than so many standard deviations: for streams without an end. None goes to the end.
        group: a process group over whose members the statistics are merged, so that every rank gets the same; None
            merges nothing.
        inplace: write into the buffers of `model` itself.

    Returns:
        What changed. The error is the train/eval gap after it: how far the output in evaluation mode lies from the
        one with batch statistics, on the first batch, in standard deviations of the latter. The change of the whole
        model (site ``""``) tells the gap before and after.

    Raises:
        DataError: there is no batch; a value is not finite; `exact` needs data that can be gone through again; the
            paper's estimator meets a batch with one value a channel; `weights` and domains do not fit.
        SpecError: there is no such estimator.
    """
    ways = {"exact": exact, "estimator": estimator, "weights": weights, "settle": settle, "group": group}
    return perform(model, lambda patient: apply(patient, data=data, **ways), inplace=inplace)


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    data: Any = None,
    exact: bool = False,
    estimator: Estimator = "pooled",
    weights: Mapping[str, float] | None = None,
    settle: float | None = None,
    group: Any = None,
) -> Treated:
    """`recalibrate`, for the norms at `sites` (all of them when empty), on the model itself."""
    if estimator not in get_args(Estimator):
        raise SpecError(
            "A recalibration was asked for with an estimator that does not exist.",
            found={"estimator": repr(estimator)},
            because="the variance is pooled over all data, or averaged over batches as in the paper",
            do='choose "pooled" or "paper"',
        )
    if data is None:
        raise empty()
    domains: _Domains = [(None, data)] if weights is None else _weighted(data, weights)
    if exact and any(isinstance(part, Iterator) for _, part in domains):
        raise DataError(
            "An exact recalibration was asked for on an iterator.",
            found=", ".join(type(part).__name__ for _, part in domains),
            because="it goes through the data once for each norm that stands behind another",
            do="pass a list of batches or a DataLoader, or use exact=False",
        )
    inner = unwrapped(model)
    banks, skipped = _banks(inner, sites)
    if not banks:
        return Treated(model, skipped=(*skipped, ("", "no norm here keeps statistics of batches")))
    gap = _first_pass(inner, banks, domains, group, settle)
    seen = [bank for bank in banks if bank.count]
    skipped += [(bank.path, "it was not called by any batch") for bank in banks if not bank.count]
    changes = [bank.write(estimator) for bank in seen]
    passes = _settle(inner, seen, domains, group, estimator) if exact else ""
    after = gap.now(inner)
    changes = [Change("", f"train/eval gap {gap.before:.3g}", f"train/eval gap {after:.3g}{passes}"), *changes]
    return Treated(model, tuple(changes), "approximate", after if gap.probe else None, tuple(skipped))


class _Bank:
    """One norm, and what has reached it."""

    def __init__(self, path: str, module: nn.Module, spec: NormSpec) -> None:
        self.path, self.module, self.seen = path, module, 0.0
        self.axis = 1 if spec.layout == "channels_first" else -1
        self.clear()

    def clear(self) -> None:
        channels = self.mean.numel()
        self.moments = Moments.empty((channels,))
        self.within = np.zeros(channels)  # Σ over batches of size · unbiased variance

    def join(self, before: tuple[Moments, np.ndarray], weight: float | None) -> None:
        """Add what was seen `before`; what is here counts as `weight`, or as it is."""
        self.seen += self.count
        if weight is not None and self.count:
            share = weight / self.moments.count
            self.moments = Moments(self.moments.count * share, self.moments.mean, self.moments.m2 * share)
            self.within = self.within * share
        self.moments, self.within = self.moments.merge(before[0]), self.within + before[1]

    @property
    def mean(self) -> Tensor:
        return self.module.running_mean  # pyright: ignore[reportReturnType]

    @property
    def var(self) -> Tensor:
        return self.module.running_var  # pyright: ignore[reportReturnType]

    @property
    def count(self) -> float:
        return float(self.moments.count.max())

    def add(self, x: Tensor) -> Moments:
        """Count one call with input `x`; its own moments."""
        batch = Moments.of(x, self.axis)
        if batch.count.sum() != x.numel():
            raise DataError(
                f"Statistics were asked for of what reaches `{self.path}`.",
                found=f"{int(x.numel() - batch.count.sum())} of {x.numel()} values are not finite",
                because="one value that is not finite makes a mean and a variance that are none",
                do="remove the batch, or find where the first such value arises (normscope.watch, normscope.diagnose)",
            )
        self.moments += batch
        with np.errstate(invalid="ignore"):
            self.within += batch.count * batch.unbiased_var
        return batch

    def estimate(self, estimator: Estimator) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the variance of all that was added."""
        if estimator == "pooled":
            return self.moments.mean, self.moments.var
        if np.isnan(self.within).any():
            raise DataError(
                "The paper's estimate of a variance was asked for.",
                found=f"a batch with one value a channel reached `{self.path}`",
                because="it averages var·m/(m − 1), which m = 1 leaves undefined",
                do='leave out the last, smaller batch (drop_last=True), or use estimator="pooled"',
            )
        return self.moments.mean, self.within / self.moments.count

    def write(self, estimator: Estimator) -> Change:
        mean, var = self.estimate(estimator)
        off = np.abs(mean - self.mean.double().cpu().numpy()) / np.sqrt(np.maximum(var, np.finfo(np.float32).tiny))
        self.set(mean, var)
        return Change(
            self.path,
            f"running statistics, the mean of the worst channel {off.max():.3g} standard deviations off",
            f"{estimator} statistics of {self.seen:.0f} values a channel",
        )

    def set(self, mean: np.ndarray, var: np.ndarray) -> None:
        """Write into the buffers that the norm holds now."""
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(mean))
            self.var.copy_(torch.from_numpy(var))


class _Gap(NamedTuple):
    """The first batch, what training mode answers to it, and how far evaluation mode was from that at first."""

    probe: Probe | None = None
    training: Any = None
    before: float = float("nan")

    def now(self, model: nn.Module) -> float:
        if self.probe is None:
            return float("nan")
        with torch.no_grad(), isolated(model, training=False):
            return difference(self.probe.run(model), self.training)


def _first_pass(model: nn.Module, banks: Sequence[_Bank], domains: _Domains, group: Any, settle: float | None) -> _Gap:
    """Fill `banks` with one pass in which they normalize by each batch; the gap before."""
    gap = _Gap()

    def run(probe: Probe) -> None:
        nonlocal gap
        evaluated = probe.run(model) if gap.probe is None else None
        with _measuring(banks, by_batch=True):
            output = probe.run(model)
        if gap.probe is None:
            gap = _Gap(probe, output, difference(evaluated, output))

    with torch.no_grad(), isolated(model, training=False):
        _go_through(model, banks, domains, group, run, settle)
    if gap.probe is None:
        raise empty()
    return gap


def _go_through(
    model: nn.Module,
    banks: Sequence[_Bank],
    domains: _Domains,
    group: Any,
    run: Callable[[Probe], object],
    settle: float | None,
) -> None:
    """Run every batch, domain by domain, and leave in `banks` what all of them together have seen."""
    for weight, data in domains:
        before = [(bank.moments, bank.within) for bank in banks]
        for bank in banks:
            bank.clear()
        last: list[Moments] | None = None
        for number, probe in enumerate(batches(data, model), 1):
            run(probe)
            if settle is not None and number & (number - 1) == 0:  # 1, 2, 4, 8…
                now = [bank.moments for bank in banks if bank.count]
                if last and max(_moved((a.mean, a.var), (b.mean, b.var)) for a, b in zip(last, now)) < settle:
                    break
                last = now
        _merge(banks, group)
        for bank, earlier in zip(banks, before):
            bank.join(earlier, weight)


def _settle(model: nn.Module, banks: Sequence[_Bank], domains: _Domains, group: Any, estimator: Estimator) -> str:
    """Measure in evaluation mode until nothing moves; how that went, in words.

    Pass k leaves the norms of depth k at their fixed point.
    """
    moved, passes = float("inf"), 0
    while moved >= SETTLED and passes < len(banks):
        before = [bank.estimate(estimator) for bank in banks]
        for bank in banks:
            bank.clear()
        with torch.no_grad(), isolated(model, training=False), _measuring(banks, by_batch=False):
            _go_through(model, banks, domains, group, lambda probe: probe.run(model), None)
        for bank in banks:
            bank.set(*bank.estimate(estimator))
        moved = max(_moved(old, bank.estimate(estimator)) for old, bank in zip(before, banks))
        passes += 1
    return f" after {passes} more passes, the last of which moved nothing by more than {moved:.2g} standard deviations"


def _weighted(data: Any, weights: Mapping[str, float]) -> list[tuple[float | None, Any]]:
    """The domains with a weight above zero."""
    fits = isinstance(data, Mapping) and data.keys() == weights.keys()
    if not fits or not all(weight >= 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise DataError(
            "A recalibration was asked for by domains whose weights do not fit.",
            found={"domains": list(data) if isinstance(data, Mapping) else type(data).__name__, "weights": weights},
            because="each domain counts by its weight, and a weight is a share of the population",
            do='give data={"a": loader, "b": loader}, weights={"a": 1.0, "b": 3.0}',
        )
    return [(weight, data[name]) for name, weight in weights.items() if weight > 0]


def _moved(old: tuple[np.ndarray, np.ndarray], new: tuple[np.ndarray, np.ndarray]) -> float:
    """How far mean and spread of the worst channel moved, in standard deviations."""
    spread = np.sqrt(new[1])
    moves = np.maximum(np.abs(new[0] - old[0]), np.abs(spread - np.sqrt(old[1])))
    return float(np.divide(moves, spread, out=np.zeros_like(moves), where=spread > 0).max())


@contextmanager
def _measuring(banks: Sequence[_Bank], *, by_batch: bool) -> Iterator[None]:
    """Inside, what reaches each norm is counted; with `by_batch` it normalizes by the batch it has just seen."""

    def hooked(bank: _Bank) -> Any:
        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            batch = bank.add(tensors((args, kwargs))[0])
            if by_batch:
                bank.set(batch.mean, batch.var)

        return bank.module.register_forward_pre_hook(count, with_kwargs=True)

    with ExitStack() as stack:
        for bank in banks:
            stack.callback(hooked(bank).remove)
        yield


def _merge(banks: Sequence[_Bank], group: Any) -> None:
    """Make every rank of `group` know what all of them have seen, merged in the order of ranks."""
    if group is None:
        return
    import torch.distributed as dist

    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    for bank in banks:
        ours = np.stack((*bank.moments.to_arrays().values(), bank.within))
        mine = torch.from_numpy(ours).to(device)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, mine, group=group)
        bank.clear()
        for count, mean, m2, inside in (rank.cpu().numpy() for rank in every):
            bank.moments += Moments(count, mean, m2)
            bank.within = bank.within + inside


def _banks(model: nn.Module, sites: Sequence[str]) -> tuple[list[_Bank], list[tuple[str, str]]]:
    """The norms to measure, and those that stay as they are, with the reason."""
    banks, skipped = [], []
    chosen = within(model, sites)
    for path, module in model.named_modules():
        if module not in chosen or getattr(module, "running_mean", None) is None:
            continue
        spec = spec_of(module)
        reason = _kept_out(model, module, spec)
        if reason:
            skipped.append((path, reason))
        elif spec is not None:
            banks.append(_Bank(path, module, spec))
    return banks, skipped


def _kept_out(model: nn.Module, module: nn.Module, spec: NormSpec | None) -> str | None:
    """Why the statistics of `module` stay as they are, or None."""
    if spec is None or getattr(module, "running_var", None) is None:
        return "it is no normalization that can be read"
    if spec.train_from == "given" or getattr(module, "momentum", None) == 0:
        return "its statistics are frozen"
    if model.training and not module.training:
        return "it is frozen: in evaluation mode inside a model in training mode"
    if "N" not in spec.over or "C" in spec.over:
        return "its statistics are not those of each channel over the batch"
    return None


TREATMENT = Treatment("recalibrate", "approximate", apply)
