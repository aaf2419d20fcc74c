"""Bad normalization."""

from __future__ import annotations

from changes import batch_norms, before_head, last_norm, norms, set_norms, shut, spoiled
from fault import ALL, BATCHES, CIFAR, DEAD, GAP, PLAIN, STACKS, UNMOVED, Fault, batch
from setups import Setup
from torch import nn


def small(setup: Setup) -> Setup:
    """In small batches."""
    return batch(setup).but(batch=6)


def tiny(setup: Setup) -> Setup:
    """In batches of two, for as many samples as can be had in the time."""
    return setup.but(batch=2, rate=setup.rate / 4, steps=2 * setup.steps)


def of_each(setup: Setup) -> Setup:
    """The same batches, with norms that take each sample by itself."""
    return tiny(setup.but(options={"norm": "group" if setup.kind in ("conv", "residual") else "layer"}))


def _lone(setup: Setup) -> Setup:
    """A norm whose groups hold one feature each, where no positions are left."""
    width = {"mlp": 64, "conv": 64, "residual": 64, "lstm": 48, "transformer": 32}[setup.kind]
    return setup.but(changes=(before_head(lambda: nn.GroupNorm(width, width)),))


def _shut(model: nn.Module) -> list[str]:
    return batch_norms(model)[min(1, len(norms(model)) - 1) :][:1]


FAULTS = (
    Fault(
        "running statistics hardly move", (*ALL, *CIFAR), GAP,
        lambda s: batch(s).but(changes=(set_norms(momentum=1e-4),)), batch,
        batch_norms, seen=STACKS,
    ),
    Fault(
        "running statistics never move", ALL, GAP, lambda s: batch(s).but(changes=(set_norms(momentum=0.0),)), batch,
        batch_norms,
    ),
    Fault(
        "momentum of another framework", ALL, (*GAP, "foreign_momentum", *BATCHES, "batch_too_small"),
        lambda s: small(s).but(changes=(set_norms(momentum=0.99),)), small, batch_norms, seen=PLAIN,
    ),
    Fault(
        "running variance not a number", ALL, ("broken_running_stats",), lambda s: batch(s).but(changes=(spoiled,)),
        batch, last_norm,
    ),
    Fault(
        "batches of two", (*ALL, *CIFAR), ("batch_too_small", *BATCHES, *GAP), lambda s: tiny(batch(s)), of_each,
        batch_norms, seen=STACKS,
    ),
    Fault(
        "most channels of a norm shut", ALL, ("collapsed_channels", *UNMOVED, *DEAD),
        lambda s: batch(s).but(changes=(shut,)), batch, _shut, seen=("conv",),
    ),
    Fault(
        "heavy dropout before batch norm", (*ALL, *CIFAR), ("dropout_variance_shift", "dropout_into_norm", *GAP),
        lambda s: batch(s).but(options={"before": lambda: nn.Dropout(0.85)}), batch, batch_norms, seen=PLAIN,
    ),
    Fault(
        "groups of one element", ALL, ("lone_element", "group_of_one_channel"), _lone,
        sites=lambda m: [path for path, one in m.named_modules() if isinstance(one, nn.GroupNorm)], seen=("mlp",),
    ),
)  # fmt: skip
