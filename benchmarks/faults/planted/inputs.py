"""Bad data and bad batches."""

from __future__ import annotations

import torch
from changes import before_body, constant, domains, first, infinite, lifted, one_in, undefined
from fault import ALL, BATCHES, BROKEN, CIFAR, FADING, GAP, INPUT, SATURATED, STACKS, Fault, bare, batch, stepped
from setups import Setup
from torch import nn


def standing(setup: Setup) -> Setup:
    """With a layer norm over the raw features."""
    over = setup.shape if setup.kind in ("conv", "residual") else setup.shape[-1]
    return setup.but(changes=(before_body(lambda: nn.LayerNorm(over)),))


FAULTS = (
    Fault(
        "classes in order, batch norm", (*ALL, *CIFAR), BATCHES, lambda s: batch(s).but(order="sorted"), batch,
        seen=STACKS,
    ),
    Fault(
        "classes in order, no norm", ALL, BATCHES, lambda s: bare(s).but(order="sorted"), bare,
        seen=("mlp", "lstm", "transformer"),
    ),
    Fault(
        "each batch of one class, batch norm", (*ALL, *CIFAR), BATCHES, lambda s: batch(s).but(order="single"), batch
    ),
    Fault("each batch of one class, no norm", ALL, BATCHES, lambda s: bare(s).but(order="single"), bare),
    Fault(
        "two domains in one batch norm", ALL, (*BATCHES, *GAP), lambda s: batch(s).but(order="halves", data=domains),
        lambda s: batch(s).but(data=domains), seen=("conv", "residual"),
    ),
    Fault(
        "input 200 times too large", ALL, INPUT + SATURATED[:1],
        lambda s: bare(s).but(data=lambda x, y: (200 * x, y)), bare, first, seen=("mlp", "lstm"),
    ),
    Fault(
        "input far from zero", (*ALL, *CIFAR), INPUT,
        lambda s: bare(s).but(data=lambda x, y: (x + 100, y)), bare, first,
        seen=("mlp", "lstm", "transformer"),
    ),
    Fault(
        "input a thousandth", ALL, (*INPUT, *FADING), lambda s: bare(s).but(data=lambda x, y: (1e-3 * x, y)), bare,
        first, seen=("mlp", "lstm"),
    ),
    Fault(
        "one feature a thousand times wider", ALL, INPUT, lambda s: bare(s).but(data=one_in(1000.0)), bare, first,
        seen=("mlp", "lstm"),
    ),
    Fault(
        "layer norm over unlike features", ALL, ("unlike_units", *INPUT),
        lambda s: standing(s).but(data=lifted), standing, lambda m: [*first(m), *_added(m)],
    ),
    Fault("one image for all", ALL, (*INPUT, "constant_input"), lambda s: s.but(data=constant), sites=first),
    Fault(
        "an infinite input", (*ALL, *CIFAR), BROKEN, lambda s: s.but(data=infinite), sites=first,
        seen=("mlp", "lstm", "transformer"),
    ),
    Fault("divided by a deviation of zero", ALL, BROKEN, lambda s: s.but(data=undefined), sites=first),
    Fault(
        "pixels from 0 to 255 under SGD", ALL, (*INPUT, *SATURATED[:1]),
        lambda s: stepped(bare(s)).but(data=lambda x, y: (255 * torch.sigmoid(x), y)), lambda s: stepped(bare(s)),
        first,
    ),
)  # fmt: skip


def _added(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, nn.LayerNorm)][:1]
