"""Bad starts."""

from __future__ import annotations

import torch
from changes import batch_norms, everywhere, fill, hidden, layers, norms, scale, scale_at, weights
from others import Causal, Next
from setups import Setup
from torch import Tensor, nn

from planted.third.ways import Held, bare, normed, slow, stepped

STARTED = ("poor_initialization", "unmatched_gain")
ALIKE = ("symmetric_units",)


def _drawn(std: float):
    """Draws every weight, the last layer's too, with one deviation."""

    def change(model: nn.Module) -> None:
        for one in weights(model):
            nn.init.normal_(one, std=std)

    return change


def _empty(model: nn.Module) -> None:
    """The first and the last weights of every branch start at zero, and so stay there."""
    for one in model.modules():
        if isinstance(one, Causal | Next):
            ends = (one.first, one.second) if isinstance(one, Causal) else (one.wide, one.narrow)
            for end in ends:
                nn.init.zeros_(end.weight)
                if end.bias is not None:
                    nn.init.zeros_(end.bias)


def _in_blocks(model: nn.Module) -> list[str]:
    return [path for path in everywhere(model) if path.startswith("blocks")]


def _loud(model: nn.Module) -> None:
    with torch.no_grad():
        for one in model.embed.parameters():  # type: ignore[union-attr]
            one.mul_(200)


def _embed(model: nn.Module) -> list[str]:
    return ["embed"]


def _last(model: nn.Module) -> list[str]:
    return everywhere(model)[-1:]


def _decided(model: nn.Module) -> None:
    """The last bias has made up its mind."""
    with torch.no_grad():
        layers(model)[-1].bias[1] = 300.0  # type: ignore[index]


def _steep() -> nn.Module:
    """Half, written in per cent."""
    return nn.LeakyReLU(50.0)


class Sine(nn.Module):
    """The activation of SIREN, at its usual frequency."""

    def forward(self, x: Tensor) -> Tensor:
        return (30 * x).sin()


def sines(setup: Setup) -> Setup:
    return setup.but(options={"function": Sine}, rate=5e-4, steps=300)


def siren(model: nn.Module) -> None:
    """The start that SIREN asks for (Sitzmann et al. 2020, section 3.2), here for inputs of unit variance."""
    for number, one in enumerate(weights(model)):
        bound = (6 / one.shape[1]) ** 0.5 / 30
        nn.init.uniform_(one, -bound / (2 if number == 0 else 1), bound / (2 if number == 0 else 1))


def _logistic(setup: Setup) -> dict:
    more = {"funnel": {"widths": (64, 56, 48, 40, 32)}, "strided": {"depth": 6}}
    return {"function": nn.Sigmoid, **more.get(setup.kind, {})}


def _low(model: nn.Module) -> None:
    for one in norms(model):
        nn.init.constant_(one.bias, -5.0)  # type: ignore[arg-type]


def _sill() -> nn.Module:
    return nn.Threshold(5.0, 0.0)


def _decoder(model: nn.Module) -> list[str]:
    """The layer behind the narrowest one."""
    return ["6"]


def _thresholds(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, nn.Threshold)]


FAULTS = (
    Held(
        "torch.randn for every weight", ("funnel", "lenet", "experts", "towers"), STARTED,
        lambda s: s.but(changes=(_drawn(1.0),)), sites=everywhere,
    ),
    Held(
        "every layer five times too large", ("tcn", "coder", "towers"), STARTED,
        lambda s: slow(s).but(changes=(scale(5.0),)), slow, everywhere,
    ),
    Held(
        "deviation of a thousandth in every layer", ("funnel", "lenet", "points"), STARTED,
        lambda s: slow(s).but(changes=(_drawn(1e-3),)), slow, everywhere,
    ),
    Held(
        "both ends of every branch at zero", ("convnext", "tcn"), (*STARTED, *ALIKE),
        lambda s: s.but(changes=(_empty,)), sites=_in_blocks,
    ),
    Held(
        "kernels all ones", ("lenet", "segmenter", "strided cifar"), ALIKE, lambda s: bare(s).but(changes=(fill(1.0),)),
        bare, everywhere,
    ),
    Held(
        "embedding two hundred times too large", ("words", "scribe"), STARTED,
        lambda s: stepped(s).but(changes=(_loud,)), stepped, _embed,
    ),
    Held(
        "a last bias that has decided", ("tcn", "experts", "words"), STARTED, lambda s: s.but(changes=(_decided,)),
        sites=_last,
    ),
    Held(
        "slope of 50 for a leaky relu", ("funnel", "strided"), STARTED,
        lambda s: bare(s).but(options={"function": _steep}), bare, hidden,
    ),
    Held(
        "sines of frequency 30 from torch's start", ("funnel", "resmlp"), STARTED, lambda s: sines(bare(s)),
        lambda s: sines(bare(s)).but(changes=(siren,)), everywhere,
    ),
    Held(
        "logistic units from torch's start", ("funnel", "lenet", "strided"),
        ("vanishing_gradient", "unnormalized_saturating_stack"), lambda s: bare(s).but(options=_logistic(s)),
        lambda s: normed(s).but(options=_logistic(s)), hidden,
    ),
    Held(
        "β of every norm at −5", ("strided", "inception", "segmenter"), ("dead_units", "poor_initialization"),
        lambda s: normed(s).but(changes=(_low,)), normed, batch_norms,
    ),
    Held(
        "threshold at five for relu's zero", ("funnel", "tcn", "points"), ("dead_units",),
        lambda s: bare(s).but(options={"function": _sill}), bare, _thresholds,
    ),
    Held(
        "decoder's first layer a hundred times too large", ("coder", "coder cifar"), STARTED,
        lambda s: stepped(s).but(changes=(scale_at(_decoder, 100.0),)), stepped, _decoder,
    ),
)  # fmt: skip
