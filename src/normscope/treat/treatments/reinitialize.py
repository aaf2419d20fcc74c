"""Draw the weights of linear, convolutional, recurrent and attention layers anew, at the scale that keeps the signal.

The standard deviation follows from the activation that a layer feeds, through norms, dropout and reshapes: rectifiers
by fan-in (He et al. 2015, section 2.2), functions bounded on both sides by fan-in and fan-out (Glorot & Bengio 2010,
eq. 16), each with the gain of `normscope.terms.activations`; no activation means gain 1. Biases become zero, recurrent
weights orthogonal (Saxe et al. 2014), gate by gate.

It preserves nothing: the network starts again. Norms, embeddings and everything else stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from normscope.anatomy.flow import Flow
from normscope.anatomy.observe import Call
from normscope.terms.activations import Activation
from normscope.terms.errors import SpecError
from normscope.treat.flows import calls_at, flow_of
from normscope.treat.treatment import Change, Treated, Treatment

_POOLING = {f"{way}Pool{rank}d" for way in ("Max", "Avg") for rank in (1, 2, 3)}

Method = Literal["auto", "he", "xavier", "orthogonal"]


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    data: Any = None,
    method: Method = "auto",
    seed: int | None = None,
) -> Treated:
    """Reinitialize the layers at `sites` (an activation stands for what feeds it), or all of them.

    Args:
        model: the network, changed in place.
        sites: paths of modules, or of functions for those that a functional activation ends.
        data: a batch, to follow the data; needed where the code cannot be read without running it.
        method: ``"auto"`` chooses by the activation; the others give one rule to all layers but recurrent weights.
        seed: for the same weights each time; None draws from torch's own generator.

    Raises:
        SpecError: there is no such method.
        DataError: the flow cannot be read without data.
        UnknownNameError: a site names nothing that runs.
    """
    if method not in get_args(Method):
        raise SpecError(
            "A reinitialization was asked for with a method that does not exist.",
            found={"method": repr(method)},
            because="weights are drawn by He's rule, Xavier's, or orthogonal",
            do="choose " + ", ".join(repr(name) for name in get_args(Method)),
        )
    flow = flow_of(model, data)
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    changes, skipped, done = [], [], set()
    for call in _producers(flow, calls_at(flow, sites)):
        module = call.module
        if module is None or module in done:
            continue
        done.add(module)
        reason = _kept(module, embedded)
        if reason:
            skipped.append((call.path, reason))
            continue
        draw = _Draw(method, _following(flow, call), _generator(module, seed, len(done)))
        changes.append(_reinitialized(call.path, module, draw))
    return Treated(model, tuple(changes), "nothing", None, tuple(skipped))


class _Draw:
    """How the weights of one layer are drawn."""

    def __init__(self, method: Method, activation: Activation | None, generator: torch.Generator | None) -> None:
        self.activation, self.generator = activation, generator
        self.gain = activation.gain if activation else 1.0
        bounded = activation is None or (activation.low is not None and activation.high is not None)
        self.method: Method = ("xavier" if bounded else "he") if method == "auto" else method

    def weight(self, like: Tensor, fan_in: float, fan_out: float) -> Tensor:
        """New numbers in the shape of `like`."""
        new = torch.empty_like(like, requires_grad=False)
        if self.method == "orthogonal":
            return self.orthogonal(new, self.gain)
        fan = fan_in if self.method == "he" else (fan_in + fan_out) / 2
        return nn.init.normal_(new, std=self.gain / math.sqrt(fan), generator=self.generator)

    def orthogonal(self, new: Tensor, gain: float = 1.0) -> Tensor:
        wide = torch.empty_like(new, dtype=torch.promote_types(new.dtype, torch.float32))
        return new.copy_(nn.init.orthogonal_(wide, gain, generator=self.generator))

    @property
    def words(self) -> str:
        before = f" before {self.activation.name}" if self.activation else ""
        return f"{self.method}, gain {self.gain:.3g}{before}"


def _reinitialized(path: str, module: nn.Module, draw: _Draw) -> Change:
    with torch.no_grad():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            _recurrent(module, draw)
            return Change(path, "weights as they were", "xavier input, orthogonal recurrent weights, biases 0")
        if isinstance(module, nn.MultiheadAttention):
            _attention(module, draw)
            return Change(path, "weights as they were", "xavier projections, biases 0")
        before = _std(module)
        _single(module, draw)
        return Change(path, f"weight of standard deviation {before:.3g}", f"{draw.words}: {_std(module):.3g}, bias 0")


def _single(module: Any, draw: _Draw) -> None:
    new = draw.weight(module.weight, *_fans(module))
    if parametrize.is_parametrized(module, "weight"):
        module.weight = new  # the parametrization finds the parameters that give this weight
    else:
        module.weight.copy_(new)
    if module.bias is not None:
        module.bias.zero_()


def _recurrent(module: nn.Module, draw: _Draw) -> None:
    """One square matrix of hidden units a gate: each is drawn by itself."""
    linear = _Draw("xavier", None, draw.generator)
    for name, parameter in module.named_parameters(recurse=False):
        gates = parameter.split(module.hidden_size) if parameter.ndim == 2 else ()  # pyright: ignore[reportArgumentType]
        for gate in gates:
            new = draw.orthogonal(gate) if "weight_hh" in name else linear.weight(gate, gate.shape[1], gate.shape[0])
            gate.copy_(new)
        if not gates:
            parameter.zero_()


def _attention(module: nn.MultiheadAttention, draw: _Draw) -> None:
    linear = _Draw("xavier", None, draw.generator)
    for name, parameter in module.named_parameters():
        blocks = parameter.chunk(3) if name == "in_proj_weight" else (parameter,)
        for block in blocks:
            block.copy_(linear.weight(block, block.shape[-1], block.shape[0]) if "weight" in name else 0 * block)


def _fans(module: Any) -> tuple[float, float]:
    """How many inputs a unit has, and how many units an input reaches."""
    weight = module.weight
    if type(module).__name__ == "Conv1D":  # transformers' linear layer stores (inputs, outputs)
        return weight.shape[0], weight.shape[1]
    if not isinstance(module, nn.modules.conv._ConvNd):
        return weight.shape[1], weight.shape[0]
    window = math.prod(module.kernel_size)
    fan_in, fan_out = module.in_channels * window / module.groups, module.out_channels * window / module.groups
    stride = math.prod(module.stride)
    return (fan_in / stride, fan_out) if module.transposed else (fan_in, fan_out / stride)


def _std(module: Any) -> float:
    return float(module.weight.detach().double().std(correction=0))


def _kept(module: nn.Module, embedded: set[int]) -> str | None:
    """Why `module` stays as it is, or None."""
    if any(is_lazy(parameter) for parameter in module.parameters()):
        return "its weights have no shape before its first batch"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag | nn.Bilinear):
        return f"no rule gives the scale of {type(module).__name__}"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return "its weights are reparametrized" if parametrize.is_parametrized(module) else None
    weight = getattr(module, "weight", None)
    if id(weight) in embedded:
        return "its weight is that of an embedding"
    if parametrize.is_parametrized(module, "weight"):
        return _not_assignable(module)
    if not isinstance(weight, nn.Parameter):
        return "its weight is computed before each call (torch's older weight_norm or spectral_norm)"
    return "complex numbers" if weight.is_complex() else None


def _not_assignable(module: Any) -> str | None:
    steps = module.parametrizations.weight
    if all(hasattr(step, "right_inverse") for step in steps):
        return None
    return "its weight is reparametrized by a function that cannot be inverted"


def _producers(flow: Flow, calls: Sequence[Call]) -> tuple[Call, ...]:
    """The producers among `calls`, and those that feed the activations among them, in order."""
    found: dict[int, Call] = {}
    for call in calls:
        for producer in (
            (call,) if call.role == "producer" else _feeding(flow, call) if call.role == "activation" else ()
        ):
            found[producer.index] = producer
    return tuple(found[index] for index in sorted(found))


def _feeding(flow: Flow, call: Call) -> tuple[Call, ...]:
    found: list[Call] = []
    for made in flow.producers(call, skip=True):
        found += (made,) if made.role == "producer" else _feeding(flow, made) if made.role == "norm" else ()
    return tuple(found)


def _following(flow: Flow, call: Call) -> Activation | None:
    """The activation function that `call` feeds, seen through norms, dropout, reshapes and pooling."""
    for taken in flow.consumers(call, skip=True):
        if taken.activation is not None:
            return taken.activation
        if (taken.role == "norm" or taken.kind in _POOLING) and (further := _following(flow, taken)):
            return further
    return None


def _generator(module: nn.Module, seed: int | None, place: int) -> torch.Generator | None:
    if seed is None:
        return None
    device = next(module.parameters()).device
    return torch.Generator(device).manual_seed(seed + place)


TREATMENT = Treatment("reinitialize", "nothing", apply)
