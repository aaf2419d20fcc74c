"""Layers put together the wrong way."""

from __future__ import annotations

from functools import partial

import torch
from changes import attentions, before_head, everywhere
from fault import Fault, bare
from setups import Setup
from torch import Tensor, nn

Held = partial(Fault, held="second")


def _listed(model: nn.Module) -> None:
    """The blocks stand in a list, where no module finds them."""
    blocks = list(model.blocks)  # type: ignore[arg-type]
    del model.blocks
    model.blocks = blocks  # type: ignore[assignment]


class Muted(nn.Module):
    """A branch whose gate starts at zero and was forgotten among the parameters."""

    def __init__(self, body: nn.Module, adds: bool) -> None:
        super().__init__()
        self.body, self.gate, self.adds = body, torch.zeros(()), adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.gate * y if self.adds else x + self.gate * (y - x)


def _muted(model: nn.Module) -> None:
    adds = hasattr(model, "last")  # the shortcut is the network's own, not the block's
    for number, block in enumerate(model.blocks):  # type: ignore[arg-type]
        model.blocks[number] = Muted(block, adds)  # type: ignore[index]


def _in_blocks(model: nn.Module) -> list[str]:
    return [path for path in everywhere(model) if path.startswith("blocks")]


def _by_samples(model: nn.Module) -> None:
    """The first axis is taken for time."""
    for one in model.modules():
        if isinstance(one, nn.RNNBase | nn.MultiheadAttention):
            one.batch_first = False


def _masked(model: nn.Module) -> None:
    """Attention may look at what it should not, and at nothing else."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.attention = Masked(block.attention)


class Masked(nn.Module):
    """A mask the wrong way round: only the first token is left."""

    def __init__(self, body: nn.MultiheadAttention) -> None:
        super().__init__()
        self.body = body

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        hidden = torch.arange(key.shape[1]) > 0
        return self.body(query, key, value, hidden.expand(len(key), -1), need_weights)


class First(nn.Module):
    """What a recurrent layer says of the first row, where the last is meant."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.body(x)[0].flip(1), None


def _read_first(model: nn.Module) -> None:
    model.body = First(model.body)  # type: ignore[arg-type]


def _dropping(share: float):
    return lambda s: s.but(options={"after": lambda: nn.Dropout(share)})


class Blind(nn.Module):
    """Means over the samples of a batch where the positions were meant."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).expand_as(x)


def _softmaxed(setup: Setup) -> Setup:
    return bare(setup).but(options={"function": lambda: nn.Softmax(1)})


FAULTS = (
    Held(
        "blocks in a plain list", ("residual", "mixer"), ("unmoved_layer",),
        lambda s: s.but(options={"depth": 4}, changes=(_listed,)), lambda s: s.but(options={"depth": 4}),
    ),
    Held(
        "branches behind a gate that no optimizer knows", ("residual", "mixer", "vision cifar"),
        ("unmoved_layer",), lambda s: s.but(changes=(_muted,)), sites=_in_blocks,
    ),
    Held(
        "batch taken for time", ("lstm", "tagger", "vision"), ("mixed_samples",),
        lambda s: s.but(changes=(_by_samples,)),
    ),
    Held(
        "mask the wrong way round", ("vision", "vision cifar"), ("entropy_collapse",),
        lambda s: s.but(changes=(_masked,)),
        sites=attentions,
    ),
    Held(
        "first step read for the last", ("lstm",), ("unread_input",), lambda s: s.but(changes=(_read_first,)),
    ),
    Held(
        "keep probability taken for dropout", ("mlp", "conv"), ("excessive_dropout",),
        lambda s: _dropping(0.95)(bare(s)), lambda s: _dropping(0.05)(bare(s)),
    ),
    Held(
        "softmax between layers", ("mlp", "conv", "series"),
        ("vanishing_gradient", "unnormalized_saturating_stack"), _softmaxed, bare,
    ),
    Held(
        "mean over the batch before the last layer", ("conv", "lstm"), ("mixed_samples",),
        lambda s: s.but(changes=(before_head(Blind),)),
        sites=lambda m: [path for path, one in m.named_modules() if isinstance(one, Blind)],
    ),
)  # fmt: skip
