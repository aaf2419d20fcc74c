"""What a fault is, and the words in which rules tell causes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from setups import Setup
from torch import nn

PLAIN = ("mlp", "conv")
IMAGES = ("conv", "residual")
STACKS = ("mlp", "conv", "residual")
ALL = ("mlp", "conv", "residual", "lstm", "transformer")
CIFAR = ("conv cifar", "residual cifar")
OWN = ("tagger", "vision", "mixer")  # whose norms, if any, are not a choice
RATES = {
    "lstm": 0.3, "transformer": 0.1, "tagger": 0.1, "vision": 0.05, "mixer": 0.05, "depthwise": 0.1, "series": 0.05,
}  # fmt: skip

START = ("poor_initialization", "saturated_activation", "unmatched_gain", "exploding_gradient", "vanishing_gradient")
FADING = ("vanishing_gradient", "poor_initialization", "unnormalized_saturating_stack", "unmatched_gain")
SATURATED = ("saturated_activation", "poor_initialization", "unmatched_gain", "unstandardized_input")
DEAD = ("dead_units",)
HIGH = ("rate_too_high", "nonfinite_values", "dead_units", "exploding_gradient")
LOW = ("rate_too_low",)
UNMOVED = ("unmoved_layer",)
BATCHES = ("unlike_batches", "mixed_domains", "noisy_batch_statistics")
GAP = ("train_eval_gap", "stale_running_stats", "unripe_running_stats")
INPUT = ("unstandardized_input",)
ENDS = ("restricted_output", "double_softmax", "single_unit_softmax")
BROKEN = ("nonfinite_values",)

Change = Callable[[Setup], Setup]
Sites = Callable[[nn.Module], Sequence[str]]


def same(setup: Setup) -> Setup:
    """Nothing is changed."""
    return setup


@dataclass(frozen=True)
class Fault:
    """One type of fault.

    Attributes:
        name: of the type.
        where: the trainings that it can befall, names of `SETUPS`.
        causes: names of rules any of which, as primary finding, tells the cause.
        plant: the spoiled training.
        sound: the training that it is compared with, where that is not the architecture's own.
        sites: the paths in the spoiled model at which it was planted; None where it is nowhere in particular.
        seen: those of `where` whose diagnosis was looked at while rules were written.
        held: the held-out set of the others.
    """

    name: str
    where: tuple[str, ...]
    causes: tuple[str, ...]
    plant: Change
    sound: Change = same
    sites: Sites | None = None
    seen: tuple[str, ...] = ()
    held: str = "first"

    def set(self, where: str) -> str:
        """The set to which the fault on that network belongs: seen, or one of those held out."""
        return "seen" if where in self.seen else self.held


def batch(setup: Setup) -> Setup:
    """With batch normalization: in every layer, or in the head of those whose body takes none."""
    return setup.but(options={"norm": "batch"})


def bare(setup: Setup) -> Setup:
    """Without norms but a transformer's own, which it does not train without."""
    return setup if setup.kind in OWN else setup.but(options={"norm": None})


def local(setup: Setup) -> Setup:
    """With a hidden layer that everything passes."""
    if setup.kind in PLAIN:
        return bare(setup)
    return setup.but(options={"hidden": True})


def stepped(setup: Setup) -> Setup:
    """Trained by SGD."""
    return setup.but(optimizer="sgd", rate=RATES.get(setup.kind, 0.03))


def grouped(place: Callable[[nn.Module], list[str]], factor: float) -> Change:
    """The parameters at some place in a group with a rate of its own."""

    def change(setup: Setup) -> Setup:
        def groups(model: nn.Module) -> list:
            chosen = [one for path in place(model) for one in model.get_submodule(path).parameters()]
            known = {id(one) for one in chosen}
            others = [one for one in model.parameters() if id(one) not in known]
            return [{"params": others}, {"params": chosen, "lr": factor * setup.rate}]

        return setup.but(trains=groups)

    return change


def deep(depth: int, function: type[nn.Module] | None = None) -> Change:
    """A stack of so many layers without a norm."""

    def change(setup: Setup) -> Setup:
        options = {"depth": depth, **({"function": function} if function else {})}
        return bare(setup).but(options=options, rate=1e-3)

    return change


def deep_normed(depth: int, function: type[nn.Module] | None = None) -> Change:
    """The same with batch normalization, by which it trains."""

    def change(setup: Setup) -> Setup:
        return batch(setup).but(options={"depth": depth, **({"function": function} if function else {})})

    return change
