"""Gains along a network at rest: what its weights do to the size of a signal, layer after layer without a norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from normscope.anatomy.flow import Flow
from normscope.anatomy.observe import Call


class Stack(NamedTuple):
    """Layers that feed one another with no norm and no shortcut between.

    Attributes:
        factor: the product of what each layer does to the size of the signal.
        paths: the layers, first to last.
    """

    factor: float = 1.0
    paths: tuple[str, ...] = ()


Factor = Callable[[float, Call], "float | None"]


def weight_gain(module: nn.Module | None) -> float | None:
    """How much a layer multiplies the deviation of a centred signal: σ of its weights × √(fan in).

    None for what is no linear layer or convolution, has no weights yet, or multiplies by nothing.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or not isinstance(weight, Tensor):
        return None
    if isinstance(weight, nn.UninitializedParameter) or weight.numel() < 2 or weight.is_meta:
        return None
    outputs = weight.shape[0]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        outputs = weight.shape[1] * module.groups
    rms = weight.detach().float().square().mean().sqrt().item()
    return rms * (weight.numel() / outputs) ** 0.5


def pairs(flow: Flow) -> Iterator[tuple[Call, float, Call]]:
    """Each activation behind a layer: the layer, the gain of its weights, the activation."""
    for call in flow.calls:
        found = _weighted(flow, call) if call.role == "activation" else None
        if found is not None:
            yield (*found, call)


def stacks(flow: Flow, factor: Factor) -> list[Stack]:
    """The stack that ends at each activation, longest run first.

    A norm begins anew; where branches meet (a residual sum, a concatenation) the shortest way counts, for the signal
    and its gradient can take it.

    Args:
        flow: the model's data flow.
        factor: ``(gain of the weights, the activation behind) → factor``, None for an activation to leave out.
    """
    ending: dict[int, Stack] = {}
    found = []
    for call in flow.calls:
        before = [ending[index] for index in call.inputs if index in ending]
        here = min(before, key=lambda stack: len(stack.paths), default=Stack())
        if call.role == "norm" or isinstance(call.module, nn.RNNBase | nn.RNNCellBase | nn.Embedding):
            here = Stack()
        elif call.role == "activation":
            here = _longer(flow, call, here, factor)
            found.append(here)
        ending[call.index] = here
    return sorted((stack for stack in found if stack.paths), key=lambda stack: -len(stack.paths))


def _longer(flow: Flow, call: Call, stack: Stack, factor: Factor) -> Stack:
    found = _weighted(flow, call)
    share = factor(found[1], call) if found is not None else None
    return stack if found is None or share is None else Stack(stack.factor * share, (*stack.paths, found[0].path))


def _weighted(flow: Flow, activation: Call) -> tuple[Call, float] | None:
    """The layer whose output an activation takes, and the gain of its weights."""
    for producer in flow.producers(activation, skip=True):
        gain = weight_gain(producer.module) if producer.role == "producer" else None
        if gain is not None:
            return producer, gain
    return None
