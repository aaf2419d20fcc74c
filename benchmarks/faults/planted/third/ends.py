"""Bad last layers and losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from changes import before_head, ending, layers, of_probabilities
from setups import Setup
from torch import Tensor, nn

from planted.second.inputs import asked
from planted.third.ways import Held, bare, binary, parity, regressing, stepped

RESTRICTED, UNHEARD = ("restricted_output",), ("unheard_targets",)
ONE_SIDED = (*UNHEARD, "lopsided_loss")


def _ended(end: Callable[[], nn.Module]):
    return lambda s: s.but(options={"end": end})


class Rounded(nn.Module):
    """Whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.round()


def _with_sevens(guarded: bool):
    """Cross-entropy and once more that of a class which is not in every batch."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        each, sevens = F.cross_entropy(output, target, reduction="none"), (target == 7).float()
        number = sevens.sum().clamp(min=1) if guarded else sevens.sum()
        return each.mean() + (each * sevens).sum() / number

    return lambda s: s.but(loss=loss, batch=24)


def _from_one(inputs: Tensor, targets: Tensor) -> Tensor:
    """Classes counted from one."""
    return targets + 1


def _hinge(signed: bool):
    """The hinge is for −1 and 1; 0 and 1 were given."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (1 - (2 * target - 1 if signed else target) * output).relu().mean()

    return lambda s: binary(s).but(loss=loss)


def _first_class_only(output: Tensor, target: Tensor) -> Tensor:
    weights = torch.zeros(output.shape[1])
    weights[0] = 1.0
    return F.cross_entropy(output, target, weights, reduction="sum") / len(target)


def _of_itself(output: Tensor, target: Tensor) -> Tensor:
    """The answer is compared with the answer."""
    return F.cross_entropy(output, output.argmax(1))


def _smoothed_out(output: Tensor, target: Tensor) -> Tensor:
    """Nothing is left of the target."""
    return F.cross_entropy(output, target, label_smoothing=1.0)


def _divergence(output: Tensor, target: Tensor) -> Tensor:
    """The divergence of logits, which are no logarithms of probabilities."""
    return F.kl_div(output, F.one_hot(target, output.shape[1]).float(), reduction="batchmean")


def _class_number(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of every logit and the class's number."""
    return (output - target.float().unsqueeze(1)).pow(2).mean()


class Cosine(nn.Module):
    """Logits that are cosines, times a scale."""

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(outputs, inputs)), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def cosines(scale: float):
    """Puts such a layer behind the last one."""

    def change(model: nn.Module) -> None:
        wide: int = layers(model)[-1].out_features  # type: ignore[assignment]
        ends = Cosine(wide, wide, scale)
        if isinstance(model, nn.Sequential):
            model.append(ends)
        else:
            model.end = ends

    return change


def _likely(setup: Setup) -> Setup:
    return binary(setup).but(loss=of_probabilities)


def _clipped() -> nn.Module:
    return nn.Hardtanh(0.0, 1.0)


class Always(nn.Module):
    """Drops in evaluation too: nobody told the function whether it is training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.85)


def _always(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, Always)]


def _dropping() -> nn.Module:
    return nn.Dropout(0.98)


def _dropouts(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, nn.Dropout)]


def _linear(setup: Setup) -> Setup:
    none = {"functions": (nn.Identity, nn.Identity)} if setup.kind == "towers" else {"function": nn.Identity}
    return parity(bare(setup) if setup.kind != "experts" else setup).but(options=none)


FAULTS = (
    Held("relu behind the decoder", ("coder", "coder cifar"), RESTRICTED, _ended(nn.ReLU), sites=ending),
    Held("sigmoid behind the decoder", ("coder", "coder cifar"), RESTRICTED, _ended(nn.Sigmoid), sites=ending),
    Held(
        "probabilities for log-probabilities, SGD", ("funnel", "bigru", "lenet"), RESTRICTED,
        lambda s: stepped(s).but(options={"end": lambda: nn.Softmax(1)}, loss=F.nll_loss), stepped, ending,
    ),
    Held(
        "the answer rounded before the loss", ("towers", "scribe", "convnext"),
        ("unmoved_layer", "vanishing_gradient"), lambda s: _ended(Rounded)(regressing(s)), regressing,
    ),
    Held(
        "a mean over no sample", ("funnel", "convnext", "words"), ("nonfinite_values",), _with_sevens(False),
        _with_sevens(True),
    ),
    Held(
        "classes one and two for a binary cross-entropy", ("funnel", "lenet", "bigru"), ("unbounded_loss",),
        lambda s: asked(_from_one)(binary(s)), binary,
    ),
    Held("a hinge over 0 and 1", ("towers", "tcn", "resnet"), ONE_SIDED, _hinge(False), _hinge(True)),
    Held(
        "weights of nine classes at zero", ("inception", "points", "bigru"), ONE_SIDED,
        lambda s: s.but(loss=_first_class_only),
    ),
    Held(
        "the answer for the target", ("strided", "scribe", "experts"), UNHEARD, lambda s: s.but(loss=_of_itself),
    ),
    Held(
        "targets smoothed out", ("resnet", "towers", "words"), UNHEARD, lambda s: s.but(loss=_smoothed_out),
    ),
    Held(
        "a divergence of raw logits", ("resmlp", "scribe", "points"), ("unbounded_loss",),
        lambda s: s.but(loss=_divergence),
    ),
    Held(
        "softmax over one unit, networks again", ("funnel", "bigru", "tcn"),
        ("single_unit_softmax", "restricted_output"), lambda s: _ended(lambda: nn.Softmax(1))(_likely(s)),
        lambda s: _ended(nn.Sigmoid)(_likely(s)), ending,
    ),
    Held("squared error of logits and class number", ("lenet", "resmlp"), (), lambda s: s.but(loss=_class_number)),
    Held(
        "the answer clipped to between 0 and 1", ("bigru", "points", "convnext"), RESTRICTED,
        lambda s: _ended(_clipped)(regressing(s)), regressing, ending,
    ),
    Held(
        "dropout that never stops", ("funnel", "tcn", "scribe", "resnet"), ("dropout_in_evaluation",),
        lambda s: s.but(changes=(before_head(Always),)), sites=_always,
    ),
    Held(
        "dropout of 0.98 before the last layer", ("tcn", "funnel", "lenet"), ("excessive_dropout",),
        lambda s: s.but(changes=(before_head(_dropping),)), sites=_dropouts,
    ),
    Held(
        "dropout of 0.9 behind every activation", ("funnel",), ("excessive_dropout",),
        lambda s: s.but(options={"after": lambda: nn.Dropout(0.9)}), sites=_dropouts,
    ),
    Held("attention and layers at dropout of 0.96", ("scribe",), ("excessive_dropout",),
         lambda s: s.but(options={"dropout": 0.96}), sites=_dropouts),
    Held(
        "activations forgotten", ("funnel", "lenet", "strided", "resmlp"), ("linear_network",), _linear,
        lambda s: parity(bare(s) if s.kind != "experts" else s),
    ),
)  # fmt: skip
