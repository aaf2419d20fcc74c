"""Layers put together the wrong way."""

from __future__ import annotations

import torch
from changes import before_body, everywhere, insert
from others import Towers
from setups import Setup
from torch import Tensor, nn

from planted.third.ways import Held, bare


class Thrown(nn.Module):
    """A block whose answer is thrown away."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return x


def _thrown(model: nn.Module) -> None:
    for number, block in enumerate(model.blocks):  # type: ignore[arg-type]
        model.blocks[number] = Thrown(block)  # type: ignore[index]


def _in_blocks(model: nn.Module) -> list[str]:
    return [path for path in everywhere(model) if path.startswith("blocks")]


class Viewed(nn.Module):
    """Time goes first by a view, where it was to be transposed."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)


def _viewed(model: nn.Module) -> None:
    """Where the network reads its samples."""
    before_body(Viewed)(model) if not hasattr(model, "stem") else setattr(
        model,
        "stem",
        nn.Sequential(nn.Unflatten(2, (-1, 1)), nn.Flatten(2), _Turned(), model.stem),  # type: ignore[arg-type]
    )


class _Turned(nn.Module):
    """The same for features before time."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1).transpose(1, 2)


class Cut(nn.Module):
    """What comes after the first steps is cut off."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.length]


def _cut(model: nn.Module) -> None:
    name = "embed" if hasattr(model, "embed") else "body"
    setattr(model, name, nn.Sequential(Cut(14 if name == "embed" else 2), getattr(model, name)))


class UpperTowers(Towers):
    """A line copied with its argument: the lower tower is given the upper half."""

    def forward(self, x: Tensor) -> Tensor:
        upper, _ = x.chunk(2, 1)
        return self.end(self.head(torch.cat([self.upper(upper), self.lower(upper)], 1)))


class Step(nn.Module):
    """A step, through which no gradient comes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


def _steps(model: nn.Module) -> list[str]:
    return everywhere(model)[:-1]


class Dot(nn.Module):
    """All of the image in one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).expand_as(x)


def _narrow(setup: Setup) -> Setup:
    return setup.but(options={"narrow": 1} if setup.kind == "coder" else {"widths": (96, 48, 1, 12)})


def _narrowest(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, nn.Linear) and one.out_features == 1]


FAULTS = (
    Held(
        "a block's answer thrown away", ("tcn", "convnext", "scribe"), ("unmoved_layer",),
        lambda s: s.but(changes=(_thrown,)), sites=_in_blocks,
    ),
    Held(
        "a view for a transpose", ("bigru", "scribe", "tcn"), ("mixed_samples",), lambda s: s.but(changes=(_viewed,)),
    ),
    Held(
        "a sequence cut short", ("bigru", "words"), ("unread_input",), lambda s: s.but(changes=(_cut,)),
    ),
    Held("the upper half for both towers", ("towers",), ("unread_input",), lambda s: s.but(build=UpperTowers)),
    Held("attention over samples", ("scribe",), ("mixed_samples",), lambda s: s.but(options={"axis": 0})),
    Held(
        "scores times sixty, where over a root was meant", ("scribe",), ("entropy_collapse", "saturated_activation"),
        lambda s: s.but(options={"scale": 60.0}),
        sites=lambda m: [path for path, _ in m.named_modules() if path.endswith("attention")],
    ),
    Held("a layer of one unit", ("funnel", "coder", "coder cifar"), ("rank_collapse",), _narrow, sites=_narrowest),
    Held(
        "steps for activations", ("funnel", "experts", "points", "lenet"), ("unmoved_layer", "vanishing_gradient"),
        lambda s: s.but(options={"function": Step}), sites=_steps,
    ),
    Held(
        "averaged to a dot after the first layer", ("strided", "lenet"), (),
        lambda s: bare(s).but(changes=(insert(2, Dot),)), bare,
    ),
)  # fmt: skip
