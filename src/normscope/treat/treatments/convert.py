"""Change the norms of a network into another kind, carrying over what they have learned.

Weight and bias stay the same parameters (the same objects, so that an optimizer goes on with them) where the channel
counts agree; running statistics go along where the new norm keeps any. With data, the new norms are fitted so that
their outputs match those of the old ones, and the error that remains is measured. Groups are chosen to divide.

Between batch norms that keep statistics (plain, synchronized, renormalized, ghost, frozen), and when such a norm is
removed (``"none"``: its weight and bias remain, with the statistics in them), the function in evaluation mode is
preserved exactly. Any other conversion preserves it to the measured error, or nothing when there is no data to measure
it on. ``"GroupNorm+WS"`` also standardizes the weights of the layers that feed the norms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from normscope.anatomy.observe import Call, observe
from normscope.anatomy.recognize import spec_of
from normscope.anatomy.walk import sites as sites_of
from normscope.norms.module import Norm, build
from normscope.terms.errors import NormscopeError
from normscope.terms.site import Site
from normscope.terms.spec import NormSpec
from normscope.treat.batches import batches, empty
from normscope.treat.calibration import Fit, calibrate
from normscope.treat.fitting import fitted, same_kind, spec_named, words
from normscope.treat.flows import flow_of
from normscope.treat.folding import line
from normscope.treat.fused import Thresholded, threshold_of, unlike, without_activation
from normscope.treat.measure import difference
from normscope.treat.snapshot import working_copy
from normscope.treat.standardizing import standardize
from normscope.treat.surgery import replace, unregistered, within
from normscope.treat.treatment import Change, Preserves, Treated, Treatment, perform

Target = str | NormSpec | Mapping[str, Any]
Where = str | Iterable[str] | Callable[[Site], bool] | None
ROUNDING = 1e-5  # of a standard deviation, between two float32 implementations of one formula

_TORCHS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def convert(
    model: nn.Module,
    to: Target | Callable[[Site], Target | None],
    *,
    where: Where = None,
    data: Any = None,
    inplace: bool = False,
) -> Treated:
    """Convert the norms of `model`.

    A name of the catalog keeps from each norm what belongs to the layer and not to the kind: the layout, whether it
    has a weight and a bias, the momentum, and eps where the same cells share statistics. A norm that is of the kind
    already stays as it is. A `NormSpec` is taken as it is given, but for the layout and groups that do not divide.

    Args:
        model: the network.
        to: a name of the catalog, a description (or its `to_dict`), or a function of the norm's `Site` that gives one
            of these, or None to leave that norm alone. ``"GroupNorm+WS"`` is any name with weight standardization of
            the layers before; ``"none"`` removes norms and leaves a weight and a bias a channel.
        where: which norms: a path, several paths (each with all beneath it), or a function of the `Site`; None is all.
        data: a batch or an iterable of batches to fit the new norms on.
        inplace: convert `model` itself instead of a copy.

    Returns:
        What changed. The error is that of the model's output in evaluation mode on `data`, as the root mean square of
        the difference in standard deviations of the original output, in the worst batch; each change tells the error
        at its site. Norms that cannot be converted are skipped, with the reason.

    Raises:
        UnknownNameError: the catalog has no such norm, or the model no such path.
        DataError: `data` is empty or does not fit the model.
    """

    def act(patient: nn.Module) -> Treated:
        if callable(where):
            return apply(patient, to=to, data=data, where=where)
        return apply(patient, (where,) if isinstance(where, str) else tuple(where or ()), to=to, data=data)

    return perform(model, act, inplace=inplace)


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    to: Target | Callable[[Site], Target | None],
    data: Any = None,
    where: Callable[[Site], bool] | None = None,
) -> Treated:
    """`convert`, on the model itself."""
    if not callable(to):
        spec_named(to)
    probes = [] if data is None else list(batches(data, model))
    if data is not None and not probes:
        raise empty()
    chosen = within(model, sites)
    reached = _inputs(model, probes)
    original = working_copy(model) if probes else None
    plans, skipped = [], _unreadable(model, chosen)
    standardized: list[str] = []
    flow = None
    for site in sites_of(model):
        module = model.get_submodule(site.path)
        if site.role != "norm" or module not in chosen or (where is not None and not where(site)):
            continue
        wanted = to(site) if callable(to) else to
        if wanted is None:
            continue
        if spec_named(wanted).weights == "standardized":
            standardized.append(site.path)
            flow = flow or flow_of(model, data)
        try:
            plan = _planned(model, site, module, wanted, reached.get(site.path), bool(probes))
        except _Unfit as unfit:
            skipped.append((site.path, str(unfit)))
            continue
        if plan is not None:
            plans.append(plan)
            model = replace(model, module, plan.new)
    done, left = standardize(flow, standardized) if flow is not None else ([], [])
    skipped += left
    fit = calibrate(original, model, [plan.path for plan in plans if not plan.exact], probes) if original else None
    kept: Preserves = "approximate" if fit else "nothing"
    if not done and all(plan.exact for plan in plans):
        kept = "exact"
    changes = (*(plan.change(fit) for plan in plans), *(Change(*told) for told in done))
    return Treated(model, changes, kept, fit.at_output if fit else None, tuple(skipped))


class _Unfit(Exception):
    """Why a norm cannot be converted."""


class _Plan(NamedTuple):
    """One conversion: the new layer, and whether it computes what the old one did in evaluation mode."""

    path: str
    new: Norm
    exact: bool
    before: str
    after: str

    def change(self, fit: Fit | None) -> Change:
        told = self.after
        if fit is not None and self.path in fit.at_sites:
            told += f", error {fit.at_sites[self.path]:.3g}"
        return Change(self.path, self.before, told)


def _planned(
    model: nn.Module, site: Site, module: nn.Module, to: Target, reached: Tensor | None, fitting: bool
) -> _Plan | None:
    """The conversion of one norm; None when it is of the wanted kind already."""
    source = site.spec
    if source is None:
        raise _Unfit("its formula is one that no description says")
    channels = _channels(module, source, fitting)
    spread = _has_positions(module, reached)
    spec = fitted(spec_named(to).but(weights=None), channels, source.layout, positions=spread)
    if isinstance(to, str):
        if _of_kind(spec, source):
            return None
        spec = _kept(spec, source, module, fitting)
    elif spec == source:
        return None
    if spec.over == frozenset("S") and not spread:
        raise _Unfit(
            f"its input has no positions for {words(spec, channels)} to normalize over, or none that were seen"
        )
    if held := unregistered(model, module):
        raise _Unfit(f"`{held}` holds it outside of the registered modules and would go on calling it")
    new = _built(spec, source, module, channels, _like(module, reached, model))
    exact = _removed(module, new, reached) if spec.scale is None else _same_at_inference(spec, source)
    if exact and not _agree(module, new):
        raise _Unfit(f"{type(module).__name__} does not compute what its description says")
    asked = spec_named(to).groups
    note = f", instead of {asked} groups" if asked not in (1, spec.groups) else ""
    if spec.keeps_state and not source.keeps_state and not fitting:
        note = " (its statistics start at mean 0 and variance 1)"
    return _Plan(site.path, new, exact, words(source, channels), words(spec, channels) + note)


def _kept(spec: NormSpec, source: NormSpec, module: nn.Module, fitting: bool) -> NormSpec:
    """`spec`, a row of the catalog, with what belongs to the layer that it is to replace."""
    if spec.scale is None:
        return spec.but(activation=source.activation)
    changes: dict[str, Any] = {
        "momentum": source.momentum if source.momentum is not None else spec.momentum,
        "affine": source.affine or (fitting and spec.affine),
        "bias": source.bias or (fitting and spec.bias),
        "activation": source.activation,
    }
    if not spec.bias and not fitting and spec.center is False:
        offset = getattr(module, "bias", None)
        changes["bias"] = source.bias and isinstance(offset, Tensor) and bool(offset.detach().any())
    if (spec.over, spec.scale, spec.center) == (source.over, source.scale, source.center):
        changes.update(eps=source.eps, eps_place=source.eps_place)
    return spec.but(**changes)


def _like(module: nn.Module, reached: Tensor | None, model: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that a norm in the place of `module` should have."""
    own = [*module.parameters(), *module.buffers(), *([] if reached is None else [reached]), *model.parameters()]
    return next((tensor for tensor in own if tensor.is_floating_point()), torch.empty(0))


def _built(spec: NormSpec, source: NormSpec, module: nn.Module, channels: int, like: Tensor) -> Norm:
    """The new layer, with the parameters and buffers of the old one where it has a place for them."""
    new = build(spec, channels, device=like.device, dtype=like.dtype)
    if isinstance(new, Norm) and (tau := threshold_of(module)) is not None:
        new = Thresholded(spec, channels, tau, device=like.device, dtype=like.dtype)
    if not isinstance(new, Norm):
        raise _Unfit(f"{type(new).__name__} is another formula, to which weight and statistics cannot be carried over")
    with torch.no_grad():
        for name in ("weight", "bias"):
            if getattr(new, name) is not None and getattr(module, name, None) is not None:
                _carry(getattr(module, name), new, name)
        if new.weight is not None and spec.weight_offset != source.weight_offset:
            new.weight.add_(source.weight_offset - spec.weight_offset)
        for name, buffer in new.state.items():
            if isinstance(old := getattr(module, name, None), Tensor):
                buffer.copy_(old)
    freezing, thawing = spec.train_from == "given", source.train_from == "given"
    if freezing != thawing:
        new.requires_grad_(thawing)
    new.process_group = getattr(module, "process_group", None)
    return new


def _removed(module: nn.Module, new: Norm, reached: Tensor | None) -> bool:
    """Let `new`, a weight and a bias, do what `module` does by stored statistics; False when it does more."""
    straight = None
    for rank in (4, 3, 2, 5) if reached is None else (reached.ndim,):
        with suppress(ValueError, NormscopeError):  # a norm may take one rank only
            straight = straight or line(without_activation(module), rank)
    if straight is None or new.weight is None or new.bias is None:
        return False
    new.weight, new.bias = (nn.Parameter(part.to(new.weight), new.weight.requires_grad) for part in straight)
    return True


def _carry(old: Tensor, new: Norm, name: str) -> None:
    if isinstance(old, nn.Parameter) and old.shape == getattr(new, name).shape:
        setattr(new, name, old)
    else:  # a weight for each cell of several axes: the mean of each channel's
        getattr(new, name).copy_(old.reshape(getattr(new, name).numel(), -1).mean(1))


def _of_kind(wanted: NormSpec, source: NormSpec) -> bool:
    """Whether a norm is already what a name of the catalog asks for, in whatever number of groups."""
    return same_kind(wanted.but(groups=source.groups) if "C" in wanted.over & source.over else wanted, source)


def _same_at_inference(one: NormSpec, other: NormSpec) -> bool:
    """Whether both compute the same function in evaluation mode from the same parameters and buffers."""
    stored = {"running", "cumulative", "population", "given"}
    formula = ("over", "groups", "layout", "center", "scale", "eps", "eps_place", "affine", "bias", "activation")
    same = all(getattr(one, name) == getattr(other, name) for name in formula)
    return same and {one.infer_from, other.infer_from} <= stored


def _agree(old: nn.Module, new: nn.Module) -> bool:
    """Whether both give the same output for random input in evaluation mode."""
    copies = copy.deepcopy(old).eval(), copy.deepcopy(new).eval()
    like = next(new.parameters(), next(new.buffers(), torch.empty(0)))
    generator = torch.Generator().manual_seed(0)
    channels = new.channels if isinstance(new, Norm) else 1
    last = isinstance(new, Norm) and new.spec.layout == "channels_last"
    for extra in ((3, 2), (3,), (), (3, 2, 2)):
        shape = (4, *extra, channels) if last else (4, channels, *extra)
        x = torch.randn(shape, generator=generator).to(like)
        with torch.no_grad():
            try:
                answers = copies[0](x), copies[1](x)
            except (RuntimeError, ValueError, NormscopeError):
                continue
        return difference(*answers) < ROUNDING * max(1.0, torch.finfo(like.dtype).eps / torch.finfo(torch.float32).eps)
    return False


def _channels(module: nn.Module, source: NormSpec, fitting: bool) -> int:
    """The number of channels that `module` normalizes.

    Raises:
        _Unfit: it has none, or cannot be converted for another reason that it shows itself.
    """
    own = (*module.parameters(), *module.buffers())
    if any(is_lazy(tensor) for tensor in own):
        raise _Unfit("it has no channels before its first batch")
    if parametrize.is_parametrized(module):
        raise _Unfit("its parameters are reparametrized")
    if reason := unlike(module, source):
        raise _Unfit(reason)
    tensors = (getattr(module, name, None) for name in ("weight", "running_mean"))
    sizes = {tuple(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor)}
    for name in ("num_features", "num_channels", "normalized_shape", "channels"):
        if (size := getattr(module, name, None)) is not None:
            sizes.add((size,) if isinstance(size, int) else tuple(size))
    if len(sizes) != 1:
        raise _Unfit("it does not say how many channels it has")
    shape = sizes.pop()
    if len(shape) != 1 and not (fitting and source.over == frozenset("CS") and source.layout == "channels_first"):
        raise _Unfit("it has a weight for each of several axes; pass data to fit one for each channel")
    unread = {name for name, _ in module.named_parameters()} - {"weight", "bias"}
    unread -= {"tau"} if threshold_of(module) is not None else set()
    if unread:
        raise _Unfit(f"it has parameters of its own: {', '.join(sorted(unread))}")
    return shape[0]


def _has_positions(module: nn.Module, reached: Tensor | None) -> bool:
    """What was seen; unseen, only norms that also take (N, C) are thought to be given that."""
    ranks = getattr(module, "ranks", None)
    flat = isinstance(module, nn.BatchNorm1d) or (ranks is not None and 2 in ranks)
    return not flat if reached is None else reached.ndim > 2


def _inputs(model: nn.Module, probes: Sequence[Any]) -> dict[str, Tensor]:
    """For each norm that runs on the first batch, an input without numbers: rank, dtype, device."""
    found: dict[str, Tensor] = {}

    def note(call: Call, inputs: tuple[Tensor, ...], output: Any) -> None:
        if inputs and call.role == "norm":
            found[call.path] = inputs[0].new_empty([0] * inputs[0].ndim)

    if probes:
        observe(model, note, probes[0], training=False)
    return found


def _unreadable(model: nn.Module, chosen: frozenset[nn.Module]) -> list[tuple[str, str]]:
    """Norms by their class that nobody can describe."""
    return [
        (path, f"{type(module).__name__} has a forward of its own, and what it computes cannot be described")
        for path, module in model.named_modules()
        if module in chosen and isinstance(module, _TORCHS) and spec_of(module) is None
    ]


TREATMENT = Treatment("convert", "approximate", apply)
