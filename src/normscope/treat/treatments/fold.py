"""Fold norms into the layers beside them, for inference.

In evaluation mode a norm with stored statistics is one factor and one offset a channel, which a linear layer or a
convolution before it, or behind it, can do by its own weight and bias. Which layer feeds which is seen in a run, so a
layer that also feeds something else, or two norms, is left alone; reparametrized weights are computed once and kept.

It preserves the function in evaluation mode exactly, and proves it: the outputs of the whole model are compared in
float64 on the example and on random input. A fold that fails its proof is undone and reported.

Between a layer and its norm the axes may change places (a linear layer, `transpose`, BatchNorm1d over a sequence): the
proof tells whether the channels are still the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normscope.anatomy.batch import Probe, mapped, tensors
from normscope.anatomy.flow import TRANSPARENT, Flow, trace
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.anatomy.observe import CONSTANT, INPUT, Call, observe
from normscope.anatomy.recognize import spec_of
from normscope.terms.errors import DataError, NormscopeError
from normscope.treat.batches import first
from normscope.treat.folding import CONVOLUTIONS, TRANSPOSED, left_over, line, pads_with_zeros, take_up
from normscope.treat.measure import difference
from normscope.treat.surgery import replace, unregistered, within
from normscope.treat.treatment import Change, Treated, Treatment, perform

STORED = {"running", "cumulative", "population", "given"}
IDLE = {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout", "Identity", "dropout"}
PROOF = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a standard deviation of the output, by the proof's precision

_HANDING = IDLE | (TRANSPARENT - {"to", "type", "type_as", "float", "double", "half", "bfloat16"})  # values stay
_OLD_STYLE = {"WeightNorm", "SpectralNorm"}  # classes of torch.nn.utils' hooks
_FORWARDS = {kind.forward for kind in (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)}


def fold(model: nn.Module, example: Any, *, atol: float | None = None) -> Treated:
    """A copy of `model` in evaluation mode with every norm folded that can be.

    Args:
        model: the network; it stays as it is.
        example: a batch as the loader yields it.
        atol: the largest difference of any output that a proof allows; None allows 1e-9 standard deviations of the
            output in float64, 1e-4 for a model that only runs in float32.

    Returns:
        The folded copy. The error is the difference of its output on the example from the original's, in standard
        deviations of that. Norms that could not be folded are skipped, with the reason.

    Raises:
        DataError: the example does not fit the model.
        ModelError: the model raised on the example.
    """
    return perform(model, lambda patient: apply(patient, data=example, atol=atol), inplace=False)


def apply(model: nn.Module, sites: Sequence[str] = (), *, data: Any = None, atol: float | None = None) -> Treated:
    """`fold`, for the norms at `sites` (all when empty), on the model itself, which is then in evaluation mode.

    Raises:
        DataError: there is no data.
    """
    if data is None:
        raise DataError(
            "Norms were to be folded without an example.",
            found="data=None",
            because="which layer feeds which norm is seen in a run, and every fold is proven on one",
            do="pass data: a batch as the loader yields it",
        )
    chosen = within(model, sites)
    probe = first(data, model)
    proof = _Proof(model, probe, atol)
    wanted = _answer(model, probe)
    changes = _baked(model.eval(), chosen)
    plans, skipped = _plans(model, probe, chosen)
    kept, failed = _proven(model, plans, proof)
    for plan in kept:
        model = plan.carried_out(model)
        changes.append(plan.change)
    return Treated(model, tuple(changes), "exact", difference(_answer(model, probe), wanted), (*skipped, *failed))


class _Plan(NamedTuple):
    """One norm and the layers that take it over, by path: those that feed it, or those that it feeds."""

    norm: str
    layers: tuple[str, ...]
    behind: bool  # whether the norm stands behind the layers
    rank: int

    @property
    def change(self) -> Change:
        layers = ", ".join(f"`{layer}`" for layer in self.layers)
        return Change(self.norm, "norm", f"folded into {layers} {'before' if self.behind else 'behind'} it")

    def carried_out(self, model: nn.Module) -> nn.Module:
        norm = model.get_submodule(self.norm)
        factor, offset = line(norm, self.rank)  # pyright: ignore[reportGeneralTypeIssues]
        for path in self.layers:
            take_up(model.get_submodule(path), factor, offset, behind=self.behind)
        return replace(model, norm, left_over(norm))


class _Unfit(Exception):
    """Why a norm cannot be folded."""


class _Proof:
    """The model's outputs before any fold, in float64 where it runs in that, on the example and on random input."""

    def __init__(self, model: nn.Module, probe: Probe, atol: float | None) -> None:
        self.atol, self.dtype = atol, torch.float64
        try:
            self._ask(model, probe)
        except (NormscopeError, RuntimeError, TypeError):  # a dtype is written into the forward
            self.dtype = torch.float32
            self._ask(model, probe)

    def _ask(self, model: nn.Module, probe: Probe) -> None:
        self.probes = [_changed(each, lambda x: x.to(self.dtype)) for each in (probe, _randomized(probe))]
        twin = self.twin(model)
        self.answers = [_answer(twin, each) for each in self.probes]

    def twin(self, model: nn.Module) -> nn.Module:
        """A copy of `model` in the precision of the proof."""
        return copy.deepcopy(model).to(self.dtype)

    def why_not(self, twin: nn.Module) -> str | None:
        """None when the folded `twin` answers as the model did; else what it answered."""
        for probe, wanted in zip(self.probes, self.answers):
            try:
                found = _answer(twin, probe)
            except Exception as error:  # whatever the model's forward does with a norm that is gone
                return f"the folded model raised {type(error).__name__}: {error}".splitlines()[0]
            if self.atol is not None:
                apart = _largest(found, wanted)
                if not apart <= self.atol:
                    return f"an output moved by {apart:.3g}"
            elif not (apart := difference(found, wanted)) <= PROOF[self.dtype]:
                return f"the output moved by {apart:.3g} standard deviations"
        return None


def _proven(model: nn.Module, plans: Sequence[_Plan], proof: _Proof) -> tuple[list[_Plan], list[tuple[str, str]]]:
    """The folds that are proven: all at once, or one by one when that fails; and why the others are not."""

    def why_not(tried: Sequence[_Plan]) -> str | None:
        twin = proof.twin(model)
        for plan in tried:
            twin = plan.carried_out(twin)
        return proof.why_not(twin)

    if why_not(plans) is None:
        return list(plans), []
    kept: list[_Plan] = []
    failed: list[tuple[str, str]] = []
    for plan in plans:
        reason = why_not([*kept, plan])
        if reason is None:
            kept.append(plan)
        else:
            failed.append((plan.norm, f"undone: {reason}"))
    return kept, failed


def _plans(model: nn.Module, probe: Probe, chosen: frozenset[nn.Module]) -> tuple[list[_Plan], list[tuple[str, str]]]:
    """What can be folded by the flow of one run, and why the other norms cannot."""
    flow, ranks = trace(model, probe), _ranks(model, probe)
    plans, skipped = [], []
    done: set[nn.Module] = set()
    for call in flow.calls:
        norm = call.module
        if call.role != "norm" or norm is None or norm not in chosen or norm in done:
            continue
        done.add(norm)
        try:
            plans.append(_plan(model, flow, call.path, norm, ranks))
        except _Unfit as unfit:
            skipped.append((call.path, str(unfit)))
    return plans, skipped


def _plan(model: nn.Module, flow: Flow, path: str, norm: nn.Module, ranks: dict[int, int]) -> _Plan:
    spec = spec_of(norm)
    if spec is None or "C" in spec.over or (spec.infer_from not in STORED and spec.scale is not None):
        raise _Unfit("its statistics are measured on each input")
    if norm._forward_hooks or norm._forward_pre_hooks:
        raise _Unfit("it has hooks, which would see something else")
    if held := unregistered(model, norm):
        raise _Unfit(f"`{held}` holds it outside of the registered modules and would go on calling it")
    calls = [call for call in flow.calls if call.module is norm]
    rank, *others = {ranks[call.index] for call in calls}
    if others:
        raise _Unfit("it is called with inputs of different rank")
    straight = line(norm, rank)
    if straight is None:
        raise _Unfit(f"{type(norm).__name__} is not one factor and one offset a channel")
    offset = straight[1]
    axis = 1 if spec.layout == "channels_first" else rank - 1
    try:
        layers, direct = _layers(flow, calls, _feeder, _taker)
        _check(layers, axis if direct else None, rank)
        _check_count(layers, offset.numel(), behind=True)
        return _Plan(path, tuple(layers), True, rank)
    except _Unfit as not_behind:
        if spec.activation is not None:
            raise
        try:
            layers, direct = _layers(flow, calls, _taker, _feeder)
            _check(layers, axis if direct else None, rank)
            _check_count(layers, offset.numel(), behind=False)
            padded = next((path for path, layer in layers.items() if pads_with_zeros(layer)), None)
            if padded and bool(offset.any()):
                raise _Unfit(f"`{padded}` pads with zeros, which the offset of the norm does not reach")
        except _Unfit as not_before:
            raise _Unfit(f"before it: {not_behind}; behind it: {not_before}") from None
        return _Plan(path, tuple(layers), False, rank)


_Step = Callable[..., Call]


def _layers(flow: Flow, calls: Sequence[Call], towards: _Step, back: _Step) -> tuple[dict[str, nn.Module], bool]:
    """The layers on one side of a norm, and whether no axes change places in between.

    Every call of the norm meets one of theirs, and every one of theirs the norm's.
    """
    direct = True
    found: dict[str, nn.Module] = {}
    for call in calls:
        met = towards(flow, call)
        if met.role != "producer" or met.module is None:
            raise _Unfit(f"`{met.path}` is no layer that could take it over")
        found[met.path] = met.module
        direct = direct and towards(flow, call, IDLE) is met
    for path, layer in found.items():
        for other in (other for other in flow.calls if other.module is layer):
            if back(flow, other) not in calls:
                raise _Unfit(f"`{path}` also serves `{back(flow, other).path}`")
    return found, direct


def _feeder(flow: Flow, call: Call, through: Collection[str] = _HANDING) -> Call:
    """The one call whose value `call` takes, past what hands values on at inference."""
    sources = [index for index in call.inputs if index != CONSTANT]
    if len(sources) != 1 or sources[0] < 0:
        raise _Unfit("the model's input feeds it" if sources == [INPUT] else f"several values feed `{call.path}`")
    made = flow.calls[sources[0]]
    return _feeder(flow, made, through) if made.kind in through else made


def _taker(flow: Flow, call: Call, through: Collection[str] = _HANDING) -> Call:
    """The one call that takes the value of `call`, past what hands values on at inference."""
    takers = flow.consumers(call)
    if call.index in flow.outputs:
        raise _Unfit(f"the model returns the output of `{call.path}`")
    if len(takers) != 1:
        raise _Unfit(f"the output of `{call.path}` goes to {len(takers)} places")
    return _taker(flow, takers[0], through) if takers[0].kind in through else takers[0]


def _check_count(layers: dict[str, Any], channels: int, *, behind: bool) -> None:
    for path, layer in layers.items():
        names = ("out_features", "out_channels") if behind else ("in_features", "in_channels")
        own = next(getattr(layer, name) for name in names if hasattr(layer, name))
        if own != channels:
            raise _Unfit(f"it has {channels} channels, and `{path}` {own} on that side")


def _check(layers: dict[str, nn.Module], axis: int | None, rank: int) -> None:
    """Whether the channels of the norm, on `axis` of `rank`, are those of the layers; None leaves that to the proof."""
    for path, layer in layers.items():
        if type(layer).forward not in _FORWARDS:
            raise _Unfit(f"`{path}`, {type(layer).__name__}, has a forward of its own")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise _Unfit(f"`{path}` has hooks, which would see something else")
        channels = rank - 1 if isinstance(layer, nn.Linear) else 1
        if axis is not None and axis != channels:
            raise _Unfit(f"it normalizes axis {axis} of {rank}, and `{path}` has its channels on axis {channels}")


def _baked(model: nn.Module, chosen: frozenset[nn.Module]) -> list[Change]:
    """Reparametrized weights computed once and kept."""
    changes = []
    for path, module in list(model.named_modules()):
        if module not in chosen:
            continue
        names = _bake(module) if parametrize.is_parametrized(module) else _bake_old_style(module)
        changes += [Change(path, f"{name} computed at each call", f"{name} computed once") for name in names]
    return changes


def _bake_old_style(module: nn.Module) -> list[str]:
    """The same for torch's older weight_norm and spectral_norm, which compute a tensor before each call."""
    hooks: list[tuple[int, Any]] = [
        (key, hook) for key, hook in module._forward_pre_hooks.items() if type(hook).__name__ in _OLD_STYLE
    ]
    learned = any(parameter.requires_grad for parameter in module.parameters())
    for key, hook in hooks:
        with torch.no_grad():
            hook(module, None)
            weight = getattr(module, hook.name).detach().clone()
            for ending in ("_g", "_v", "_orig"):
                module._parameters.pop(hook.name + ending, None)
            for ending in ("_u", "_v"):
                module._buffers.pop(hook.name + ending, None)
        del module._forward_pre_hooks[key]
        vars(module).pop(hook.name, None)
        module.register_parameter(hook.name, nn.Parameter(weight, requires_grad=learned))
    return [hook.name for _, hook in hooks]


def _bake(module: nn.Module) -> list[str]:
    """Make the parametrized tensors of `module` plain ones; their names.

    Not by torch's `remove_parametrizations`: it deletes the property from the class, which a deep copy shares with its
    original, and so takes the weight from the original too.
    """
    names = list(module.parametrizations)  # pyright: ignore[reportArgumentType, reportCallIssue]
    weights = {name: getattr(module, name).detach().clone() for name in names}
    learned = any(parameter.requires_grad for parameter in module.parameters())
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=learned))
    return names


def _ranks(model: nn.Module, probe: Probe) -> dict[int, int]:
    """The number of axes of what reaches each call."""
    found: dict[int, int] = {}

    def note(call: Call, inputs: tuple[Tensor, ...], output: Any) -> None:
        found[call.index] = inputs[0].ndim if inputs else 0

    observe(model, note, probe, training=False)
    return found


def _answer(model: nn.Module, probe: Probe) -> Any:
    with torch.no_grad(), isolated(model, training=False):
        return probe.run(unwrapped(model))


def _randomized(probe: Probe) -> Probe:
    """Random numbers of the same spread in the place of every floating input; indices stay as they are."""
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Tensor) -> Tensor:
        spread = x.double().std(correction=0).nan_to_num(1.0).clamp(min=1e-3)
        return (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) * spread).to(x.dtype)

    return _changed(probe, drawn)


def _changed(probe: Probe, change: Callable[[Tensor], Tensor]) -> Probe:
    """`probe` with its floating inputs changed."""

    def floating(x: Tensor) -> Tensor:
        return change(x) if x.is_floating_point() else x

    return Probe(mapped(probe.args, floating), mapped(dict(probe.kwargs), floating), probe.target)


def _largest(found: Any, wanted: Any) -> float:
    pairs = zip(tensors(found), tensors(wanted))
    return max((float((one.double() - other.double()).abs().max()) for one, other in pairs if one.numel()), default=0.0)


TREATMENT = Treatment("fold", "exact", apply)
