"""The faults: each a change of a sound training, the names of the rules that tell its cause, and where it applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from setups import Residual, Setup
from torch import Tensor, nn

FLAT, IMAGES, PLAIN = ("mlp",), ("conv", "residual"), ("mlp", "conv")
STACKS = ("mlp", "conv", "residual")
ALL = ("mlp", "conv", "residual", "lstm", "transformer")


@dataclass(frozen=True)
class Fault:
    """One type of fault.

    Attributes:
        name: of the type.
        where: the architectures that it can befall.
        causes: names of rules any of which, as primary finding, tells the cause.
        plant: the spoiled training.
        sound: the training that it is compared with, where that is not the architecture's own.
        sites: paths, or beginnings of paths, one of which the primary finding must name; empty where it is nowhere.
    """

    name: str
    where: tuple[str, ...]
    causes: tuple[str, ...]
    plant: Callable[[Setup], Setup]
    sound: Callable[[Setup], Setup] = lambda setup: setup
    sites: tuple[str, ...] = ()


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Every matrix and kernel."""
    return [one for one in model.parameters() if one.ndim > 1]


def layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers and convolutions."""
    return [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]


def norms(model: nn.Module) -> list[nn.Module]:
    """Batch normalizations."""
    return [one for one in model.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]


@torch.no_grad()
def scale(factor: float, start: int = 0, end: int | None = None):
    """Multiplies the weights of some layers."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            for one in weights(model)[start:end]:
                one.mul_(factor)

    return change


def fill(value: float):
    """Sets every weight to one number."""

    def change(model: nn.Module) -> None:
        for one in weights(model):
            nn.init.constant_(one, value)

    return change


def normal(std: float):
    """Draws the weights of hidden layers with one deviation, whatever their size."""

    def change(model: nn.Module) -> None:
        for one in weights(model)[:-1]:
            nn.init.normal_(one, std=std)

    return change


def bias(value: float):
    """Sets the biases of hidden layers."""

    def change(model: nn.Module) -> None:
        for one in layers(model)[:-1]:
            nn.init.constant_(one.bias, value)  # type: ignore[arg-type]

    return change


def freeze_all_but_last(model: nn.Module) -> None:
    """No layer but the last learns."""
    for one in list(model.parameters())[:-2]:
        one.requires_grad_(False)


def set_norms(**fields: float):
    """Sets attributes of every batch normalization."""

    def change(model: nn.Module) -> None:
        for one in norms(model):
            for name, value in fields.items():
                setattr(one, name, value)

    return change


def shut(model: nn.Module) -> None:
    """Most channels of the second norm stay at γ = 0."""
    one = norms(model)[1]
    nn.init.zeros_(one.weight)  # type: ignore[arg-type]
    nn.init.zeros_(one.bias)  # type: ignore[arg-type]
    one.requires_grad_(False)


def evaluated(model: nn.Module) -> None:
    """Batch normalizations never see a batch: they stay in evaluation mode as they were made."""
    for one in norms(model):
        one.eval()


class Cut(nn.Module):
    """Cuts the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Broken(nn.Module):
    """Gives NaN for some inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x + 2.2) if x.ndim == 2 else torch.sqrt(x + 2.0)


def insert(place: int, make: Callable[[], nn.Module]):
    """Puts a module into a sequence."""

    def change(model: nn.Module) -> None:
        if isinstance(model, Residual):
            model.blocks.insert(place, make())
        elif isinstance(model, nn.Sequential):
            model.insert(place, make())

    return change


def peaked(model: nn.Module) -> None:
    """Attention that looks at one place."""
    for one in model.modules():
        if isinstance(one, nn.MultiheadAttention):
            with torch.no_grad():
                one.in_proj_weight[: 2 * one.embed_dim].mul_(25)


def exploding(gain: float):
    """Recurrent weights that grow what they are given."""

    def change(model: nn.Module) -> None:
        for name, one in model.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(one, gain)

    return change


def aligned(model: nn.Module) -> None:
    """Weights of one sign, all rows nearly alike."""
    for one in weights(model)[:-1]:
        with torch.no_grad():
            fan = one[0].numel()
            one.normal_(1.0 / fan, 0.02 / fan)


def sink(model: nn.Module) -> None:
    """Biases of the logits that are all below zero."""
    last = [one for one in layers(model) if isinstance(one, nn.Linear)][-1]
    nn.init.constant_(last.bias, -3.0)


def regression(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The amount of ink, far outside [−1, 1]."""
    return images, (images.mean(1) * 40 + 25).unsqueeze(1)


def binary(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the digit is above four."""
    return images, (labels > 4).float().unsqueeze(1)


def of_probabilities(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of two classes, from a probability."""
    return F.binary_cross_entropy(output.clamp(1e-6, 1 - 1e-6), target)


def one_in(factor: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One feature much wider than the others."""

    def change(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.clone()
        images[:, 27] *= factor
        return images, labels

    return change


def domains(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The second half of the data is brighter and of higher contrast."""
    half = len(images) // 2
    return torch.cat([images[:half], images[half:] * 5 + 8]), labels


def to_regression(setup: Setup) -> Setup:
    return setup.but(options={"outputs": 1}, data=regression, loss=F.mse_loss, score="error", rate=5e-3, steps=300)


def to_binary(setup: Setup) -> Setup:
    return setup.but(options={"outputs": 1, "end": nn.Sigmoid}, data=binary, loss=of_probabilities, score="binary")


def batch(setup: Setup) -> Setup:
    return setup.but(options={"norm": "batch"})


def bare(setup: Setup) -> Setup:
    return setup.but(options={"norm": None})


def deep(depth: int, function: type[nn.Module] = nn.ReLU) -> Callable[[Setup], Setup]:
    return lambda setup: setup.but(options={"norm": None, "depth": depth, "function": function}, rate=1e-3)


def deep_normed(depth: int, function: type[nn.Module] = nn.ReLU) -> Callable[[Setup], Setup]:
    return lambda setup: setup.but(options={"norm": "batch", "depth": depth, "function": function})


START = ("poor_initialization", "saturated_activation", "unmatched_gain", "exploding_gradient", "vanishing_gradient")
FADING = ("vanishing_gradient", "poor_initialization", "unnormalized_saturating_stack", "unmatched_gain")
SATURATED = ("saturated_activation", "poor_initialization", "unmatched_gain", "unstandardized_input")
HIGH = ("rate_too_high", "nonfinite_values", "dead_units", "exploding_gradient")
LOW = ("rate_too_low",)
UNMOVED = ("unmoved_layer",)
BATCHES = ("unlike_batches", "mixed_domains", "noisy_batch_statistics")
GAP = ("train_eval_gap", "stale_running_stats", "unripe_running_stats")
INPUT = ("unstandardized_input",)
ENDS = ("restricted_output", "double_softmax", "single_unit_softmax")

FAULTS = (
    Fault(
        "weights all alike",
        ("mlp", "conv", "transformer"),
        ("symmetric_units",),
        lambda s: s.but(changes=(fill(0.02),)),
    ),
    Fault(
        "weights all zero",
        ("mlp", "conv", "lstm"),
        ("symmetric_units", *UNMOVED),
        lambda s: s.but(changes=(fill(0.0),)),
    ),
    Fault(
        "weights of deviation 1, tanh",
        (*FLAT, "conv"),
        SATURATED,
        lambda s: deep(8, nn.Tanh)(s).but(changes=(normal(1.0),)),
        deep(4, nn.Tanh),
    ),
    Fault(
        "weights ten times too large, relu",
        PLAIN,
        (*START, *HIGH),
        lambda s: deep(6)(s).but(changes=(scale(10.0),)),
        deep(4),
    ),
    Fault("weights ten times too small, relu", PLAIN, FADING, lambda s: deep(8)(s).but(changes=(scale(0.1),)), deep(4)),
    Fault("torch's weights, 20 relu layers", PLAIN, FADING, deep(20), deep_normed(8)),
    Fault(
        "ten sigmoid layers", PLAIN, (*FADING, "saturated_activation"), deep(10, nn.Sigmoid), deep_normed(6, nn.Sigmoid)
    ),
    Fault(
        "hard sigmoids",
        FLAT,
        (*FADING, "saturated_activation"),
        deep(8, nn.Hardsigmoid),
        deep_normed(6, nn.Hardsigmoid),
    ),
    Fault("biases of −6, relu", PLAIN, ("dead_units",), lambda s: bare(s).but(changes=(bias(-6.0),)), bare),
    Fault(
        "biases of +8, tanh",
        PLAIN,
        SATURATED,
        lambda s: deep(4, nn.Tanh)(s).but(changes=(bias(8.0),)),
        deep(4, nn.Tanh),
    ),
    Fault(
        "rate too high, SGD",
        ("mlp", "residual", "transformer"),
        HIGH,
        lambda s: (
            bare(s).but(optimizer="sgd", rate=8.0) if s.name != "transformer" else s.but(optimizer="sgd", rate=8.0)
        ),
        lambda s: s.but(optimizer="sgd", rate=0.03),
    ),
    Fault("rate too high, Adam", ALL, HIGH, lambda s: s.but(rate=1.0)),
    Fault(
        "rate far too low, SGD",
        STACKS,
        LOW,
        lambda s: s.but(optimizer="sgd", rate=1e-6),
        lambda s: s.but(optimizer="sgd", rate=0.03),
    ),
    Fault("rate far too low, Adam", ALL, LOW, lambda s: s.but(rate=1e-7)),
    Fault(
        "loss scaled down under SGD",
        ("mlp", "lstm"),
        LOW,
        lambda s: s.but(optimizer="sgd", rate=0.05, loss=lambda o, t: 1e-6 * F.cross_entropy(o, t)),
        lambda s: s.but(optimizer="sgd", rate=0.05 if s.name == "mlp" else 0.3),
    ),
    Fault(
        "gradients clipped to nothing",
        ("mlp", "conv"),
        LOW,
        lambda s: s.but(optimizer="sgd", rate=0.03, clip=1e-6),
        lambda s: s.but(optimizer="sgd", rate=0.03),
    ),
    Fault(
        "gradients never cleared",
        ("mlp", "conv", "transformer", "lstm"),
        ("accumulated_gradient",),
        lambda s: s.but(clears=False, optimizer="sgd", rate=0.03),
        lambda s: s.but(optimizer="sgd", rate=0.03 if s.name != "lstm" else 0.3),
    ),
    Fault(
        "only the last layer learns",
        ("conv", "residual", "lstm", "transformer"),
        UNMOVED,
        lambda s: s.but(
            changes=(freeze_all_but_last,), trains=lambda m: [p for p in m.parameters() if p.requires_grad]
        ),
    ),
    Fault(
        "only the last layer in the optimizer",
        ("conv", "residual", "lstm", "transformer"),
        UNMOVED,
        lambda s: s.but(trains=lambda m: list(m.parameters())[-2:]),
    ),
    Fault(
        "graph cut in the middle",
        ("conv",),
        (*UNMOVED, "vanishing_gradient"),
        lambda s: s.but(changes=(insert(8, Cut),)),
    ),
    Fault("classes in order, batch norm", STACKS, BATCHES, lambda s: batch(s).but(order="sorted"), batch),
    Fault("classes in order, no norm", ("mlp", "lstm", "transformer"), BATCHES, lambda s: s.but(order="sorted")),
    Fault(
        "two domains in one batch norm",
        ("conv", "residual"),
        (*BATCHES, *GAP),
        lambda s: s.but(order="halves", data=domains),
        lambda s: s.but(data=domains),
    ),
    Fault(
        "input 200 times too large",
        ("mlp", "lstm"),
        INPUT + SATURATED[:1],
        lambda s: s.but(data=lambda x, y: (200 * x, y)),
    ),
    Fault(
        "input far from zero", ("mlp", "lstm", "transformer"), INPUT, lambda s: s.but(data=lambda x, y: (x + 100, y))
    ),
    Fault("input a thousandth", ("mlp", "lstm"), (*INPUT, *FADING), lambda s: s.but(data=lambda x, y: (1e-3 * x, y))),
    Fault("one feature a thousand times wider", ("mlp", "lstm"), INPUT, lambda s: s.but(data=one_in(1000.0))),
    Fault(
        "softmax before cross-entropy",
        ("mlp", "conv", "lstm", "transformer"),
        ENDS,
        lambda s: s.but(options={"end": lambda: nn.Softmax(1)}, optimizer="sgd", rate=0.02),
        lambda s: s.but(optimizer="sgd", rate=0.02 if s.name != "lstm" else 0.3),
    ),
    Fault(
        "relu on the logits",
        ("mlp", "lstm", "transformer"),
        ENDS,
        lambda s: s.but(options={"end": nn.ReLU}, changes=(sink,)),
    ),
    Fault(
        "sigmoid on the logits",
        ("mlp", "conv"),
        ENDS,
        lambda s: s.but(options={"end": nn.Sigmoid}, optimizer="sgd", rate=0.02),
        lambda s: s.but(optimizer="sgd", rate=0.02),
    ),
    Fault(
        "sigmoid for an unbounded target",
        ("mlp", "conv", "lstm"),
        (*ENDS, "saturated_activation"),
        lambda s: to_regression(s).but(options={"end": nn.Sigmoid}),
        to_regression,
    ),
    Fault(
        "tanh for an unbounded target",
        ("mlp", "conv"),
        (*ENDS, "saturated_activation"),
        lambda s: to_regression(s).but(options={"end": nn.Tanh}),
        to_regression,
    ),
    Fault(
        "softmax over one unit",
        ("mlp", "conv", "lstm", "transformer"),
        ENDS,
        lambda s: to_binary(s).but(options={"end": lambda: nn.Softmax(1)}),
        to_binary,
    ),
    Fault(
        "running statistics hardly move",
        STACKS,
        GAP,
        lambda s: batch(s).but(changes=(set_norms(momentum=1e-4),)),
        batch,
    ),
    Fault(
        "momentum of another framework",
        ("mlp", "conv"),
        (*GAP, "foreign_momentum", *BATCHES),
        lambda s: batch(s).but(changes=(set_norms(momentum=0.99),), batch=6, rate=8e-3),
        lambda s: batch(s).but(batch=6, rate=8e-3),
    ),
    Fault(
        "batches of two",
        ("mlp", "conv", "residual"),
        ("batch_too_small", *BATCHES, *GAP),
        lambda s: batch(s).but(batch=2),
        batch,
    ),
    Fault(
        "most channels of a norm shut",
        ("conv",),
        ("collapsed_channels", *UNMOVED, "dead_units"),
        lambda s: s.but(changes=(shut,)),
    ),
    Fault(
        "heavy dropout before batch norm",
        ("mlp", "conv"),
        ("dropout_before_norm", "dropout_into_norm", *GAP),
        lambda s: batch(s).but(options={"before": lambda: nn.Dropout(0.85)}),
        batch,
    ),
    Fault(
        "logarithm of what can be negative",
        ("mlp", "conv"),
        ("nonfinite_values",),
        lambda s: s.but(changes=(insert(2, Broken),)),
    ),
    Fault(
        "an infinite input",
        ("mlp", "lstm", "transformer"),
        ("nonfinite_values",),
        lambda s: s.but(data=lambda x, y: (torch.where(torch.arange(len(x))[:, None] % 300 == 5, float("inf"), x), y)),
    ),
    Fault(
        "recurrent weights that explode",
        ("lstm",),
        ("exploding_gradient", *HIGH, "saturated_activation"),
        lambda s: s.but(options={"kind": "rnn"}, changes=(exploding(4.0),)),
        lambda s: s.but(options={"kind": "rnn"}, rate=3e-3),
    ),
    Fault(
        "recurrent weights that vanish",
        ("lstm",),
        (*FADING, "saturated_activation"),
        lambda s: s.but(options={"kind": "rnn"}, optimizer="sgd", rate=0.02, changes=(exploding(0.02),)),
        lambda s: s.but(options={"kind": "rnn"}, rate=3e-3),
    ),
    Fault(
        "attention that sees one place",
        ("transformer",),
        ("entropy_collapse", "saturated_activation"),
        lambda s: s.but(changes=(peaked,), optimizer="sgd", rate=0.02),
        lambda s: s.but(optimizer="sgd", rate=0.1),
    ),
    Fault(
        "rows of weights alike",
        ("mlp",),
        ("rank_collapse", "symmetric_units"),
        lambda s: s.but(options={"depth": 8}, changes=(aligned,), rate=2e-4),
        lambda s: s.but(rate=2e-3),
    ),
    Fault(
        "groups of one element",
        ("mlp",),
        ("lone_element", "group_of_one_channel"),
        lambda s: s.but(changes=(insert(1, lambda: nn.GroupNorm(64, 64)),)),
    ),
)
