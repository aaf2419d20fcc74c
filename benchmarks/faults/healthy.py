"""Sound trainings, some of them unusual: none may be called sick."""

from __future__ import annotations

import math

import networks
import torch
import torch.nn.functional as F
from changes import he, learning
from healthy_further import further
from healthy_others import others
from planted.ends import of_probabilities, to_binary, to_small_regression
from setups import SETUPS, Setup
from torch import Tensor, nn

import normscope as ns


def runs() -> dict[str, tuple[Setup, str]]:
    """Every sound training by its name, and its set: seen while rules were made, or one of those held out."""
    sets = {"seen": _usual(), "first": [*_unusual(), *_of_cifar()], "second": further(), "third": others()}
    return {one.name: (one, held) for held, ones in sets.items() for one in ones}


def _named(name: str, setup: Setup) -> Setup:
    return setup.but(name=name)


def _usual() -> list[Setup]:
    """Widths, depths, functions, norms, optimizers and batches: those which were run while rules were made."""
    found: list[Setup] = []
    flat, images, short, series, tokens = (SETUPS[name] for name in ("mlp", "conv", "residual", "lstm", "transformer"))
    for depth, width, function in (
        (1, 32, nn.ReLU), (2, 256, nn.ReLU), (3, 64, nn.GELU), (4, 64, nn.SiLU), (5, 48, nn.SELU), (6, 64, nn.ELU),
        (2, 64, nn.Tanh), (4, 64, nn.Tanh), (2, 64, nn.Sigmoid), (3, 64, nn.Softplus), (4, 64, nn.LeakyReLU),
        (3, 64, nn.Hardswish), (3, 64, nn.Mish), (2, 16, nn.ReLU), (8, 64, nn.ReLU), (3, 64, nn.Hardtanh),
    ):  # fmt: skip
        options = {"depth": depth, "width": width, "function": function}
        found.append(_named(f"mlp {depth}×{width} {function.__name__}", flat.but(options=options, steps=300)))
    for norm in ("batch", "layer"):
        for depth, function in ((3, nn.ReLU), (8, nn.ReLU), (6, nn.Tanh), (4, nn.GELU), (5, nn.Sigmoid)):
            options = {"depth": depth, "function": function, "norm": norm}
            if function is nn.Sigmoid and norm == "layer":
                options["depth"] = 2
            found.append(_named(f"mlp {depth} {function.__name__} {norm}", flat.but(options=options, steps=300)))
    for optimizer, rate in (("sgd", 0.05), ("sgd", 0.005), ("adamw", 1e-3), ("rmsprop", 1e-3), ("adam", 5e-4)):
        found.append(_named(f"mlp {optimizer} {rate}", flat.but(optimizer=optimizer, rate=rate, steps=350)))
        rate = 4 * rate if optimizer == "sgd" else rate
        found.append(_named(f"conv {optimizer} {rate}", images.but(optimizer=optimizer, rate=rate)))
    for norm in ("group", "layer", "instance", None):
        found.append(_named(f"conv {norm}", images.but(options={"norm": norm})))
        found.append(_named(f"residual {norm}", short.but(options={"norm": norm}, rate=2e-3)))
    for size in (8, 16, 256):
        found.append(_named(f"conv batch {size}", images.but(batch=size)))
        found.append(_named(f"mlp batch {size}", flat.but(batch=size, steps=300)))
    for options in ({"width": 96}, {"kind": "gru"}, {"kind": "rnn"}, {"layers": 2}, {"width": 24, "kind": "gru"}):
        rate = 3e-3 if options.get("kind") == "rnn" else 1e-2
        found.append(_named(f"recurrent {options}", series.but(options=options, rate=rate)))
    for options in ({"first": False}, {"layers": 4}, {"width": 64}, {"function": "relu"}, {"layers": 1}):
        rate = 1e-3 if options.get("first") is False else 3e-3
        found.append(_named(f"transformer {options}", tokens.but(options=options, rate=rate)))
    deep = (_named(f"residual {depth}", short.but(options={"depth": depth})) for depth in (1, 6, 10))
    return [*found, *deep, *(SETUPS[name] for name in ("mlp", "conv", "residual", "lstm", "transformer"))]


def _unusual() -> list[Setup]:
    """What looks odd and trains well."""
    flat, images, short, series, tokens = (SETUPS[name] for name in ("mlp", "conv", "residual", "lstm", "transformer"))
    made = {
        "8 units a layer": flat.but(options={"width": 8, "depth": 2}, steps=500, rate=5e-3),
        "logistic regression": flat.but(options={"depth": 0}, rate=1e-2),
        "one layer of 1024 units": flat.but(options={"depth": 1, "width": 1024}, rate=1e-3),
        "funnel of conv 6 wide": images.but(options={"width": 6}, steps=300),
        "residual of 12 blocks": short.but(options={"depth": 12, "width": 8}),
        "residual of 8 blocks, no norm, branches at zero": short.but(
            options={"depth": 8, "width": 12, "norm": None}, changes=(networks.branches_at_zero,), rate=2e-3
        ),
        "16 relu layers from He": flat.but(
            options={"depth": 16}, changes=(he,), optimizer="sgd", rate=5e-3, steps=300
        ),
        "12 tanh layers from Xavier": flat.but(
            options={"depth": 12, "function": nn.Tanh}, changes=(networks.xavier,), rate=5e-4, steps=250
        ),
        "8 SELU layers from LeCun": flat.but(
            options={"depth": 8, "function": nn.SELU}, changes=(networks.lecun,), optimizer="sgd", rate=0.01
        ),
        "conv from He, no norm": images.but(options={"norm": None, "depth": 5}, changes=(he,), rate=2e-3),
        "one sigmoid layer, SGD of 0.5": flat.but(
            options={"depth": 1, "function": nn.Sigmoid}, optimizer="sgd", rate=0.5, tuning={"momentum": 0.0}
        ),
        "PReLU": flat.but(options={"function": nn.PReLU}),
        "relu6": flat.but(options={"function": nn.ReLU6, "depth": 3}),
        "SGD of 0.5 with batch norm": batch_normed(flat).but(optimizer="sgd", rate=0.5, tuning={"momentum": 0.0}),
        "SGD of 0.2 with momentum and batch norm": images.but(optimizer="sgd", rate=0.2),
        "Nesterov": flat.but(optimizer="sgd", rate=0.03, tuning={"nesterov": True}),
        "Adam of 1e-4, wide": flat.but(options={"width": 384, "depth": 2}, rate=1e-4, steps=400),
        "Adagrad": flat.but(optimizer="adagrad", rate=0.02),
        "RAdam": images.but(optimizer="radam", rate=6e-3),
        "NAdam": tokens.but(optimizer="nadam", rate=2e-3),
        "AdamW with decay 0.3": flat.but(optimizer="adamw", tuning={"weight_decay": 0.3}),
        "SGD with decay 0.005": images.but(optimizer="sgd", rate=0.05, tuning={"weight_decay": 5e-3}),
        "batch of 4 with group norm": images.but(options={"norm": "group"}, batch=4, rate=2e-3, steps=300),
        "batch of 1 with layer norm": flat.but(
            options={"norm": "layer", "depth": 2}, batch=1, rate=5e-4, steps=700
        ),
        "all data in one batch": flat.but(batch=1397, rate=5e-3, steps=120),
        "label smoothing": images.but(loss=_smoothed),
        "targets as one-hot, squared error": flat.but(loss=_squared, options={"depth": 2}),
        "ten binary targets": flat.but(loss=_binary, options={"depth": 2}, rate=4e-3),
        "log-softmax and its likelihood": flat.but(options={"end": _log_softmax}, loss=F.nll_loss),
        "focal loss": images.but(loss=_focal),
        "dropout of 0.5 everywhere": flat.but(
            options={"width": 256, "depth": 3, "after": _half}, steps=300
        ),
        "dropout of 0.3 in convolutions": images.but(options={"after": _third, "width": 24}, steps=250),
        "dropout in a transformer": tokens.but(options={"dropout": 0.2}, steps=260),
        "grey levels as words": flat.but(build=networks.of_tokens, data=_levels, options={}, rate=5e-3),
        "regression, mlp": to_small_regression(flat).but(data=_standard),
        "regression, conv": to_small_regression(images).but(data=_standard),
        "regression, lstm": to_small_regression(series).but(data=_standard),
        "regression, transformer": to_small_regression(tokens).but(data=_standard),
        "tanh for targets within it": to_small_regression(flat).but(data=_bounded, options={"end": nn.Tanh}),
        "two classes, one sigmoid": to_binary(flat).but(loss=of_probabilities),
        "autoencoder": flat.but(build=networks.Coder, options={}, data=_copy, loss=F.mse_loss, score="copy", steps=400),
        "autoencoder of tied weights": flat.but(
            build=networks.Tied, options={"width": 32}, data=_copy, loss=F.mse_loss, score="copy", steps=400, rate=5e-3
        ),
        "squeeze and excitation": images.but(build=networks.Squeezed, options={}),
        "every layer reads all before": flat.but(build=networks.Dense, options={}),
        "one body called twice": flat.but(build=networks.Siamese, options={}),
        "depthwise convolutions": images.but(build=networks.separable, options={}),
        "raw pixels behind batch norm": flat.but(build=networks.normed_first, data=_raw),
        "pixels from 0 to 1": flat.but(data=_unit, steps=300),
        "pixels from 0 to 1, conv": images.but(data=_unit),
        "black and white": images.but(data=_binarized, options={"norm": None}, rate=3e-3),
        "RMS norm": flat.but(options={"norm": "rms"}),
        "weight norm": flat.but(build=networks.reparametrized, options={"depth": 3}),
        "spectral norm": flat.but(
            build=networks.reparametrized,
            options={"kind": nn.utils.parametrizations.spectral_norm, "depth": 2}, rate=5e-3, steps=300,
        ),
        "a pretrained body, frozen": flat.but(
            changes=(networks.pretrained("mlp"), _without_body), trains=learning, rate=1e-2
        ),
        "a pretrained body with its batch norms, frozen": images.but(
            changes=(networks.pretrained("conv"), _frozen_body), trains=learning, rate=1e-2
        ),
        "fine-tuned, batch norms frozen": images.but(
            changes=(networks.pretrained("conv"), _frozen_norms), trains=learning, rate=1e-3
        ),
        "fine-tuned at a small rate": flat.but(changes=(networks.pretrained("mlp"),), rate=2e-4, steps=300),
        "averaged weights": images.but(loop="averaged", steps=300),
        "warm-up": tokens.but(schedule=_warm),
        "warm-up and cosine, norms behind": tokens.but(
            options={"first": False}, schedule=_cosine, rate=2e-3, steps=260
        ),
        "rate in steps": images.but(optimizer="sgd", rate=0.1, schedule=_steps),
        "gradients clipped to 1": series.but(clip=1.0),
        "gradients clipped to 0.1, Adam": tokens.but(clip=0.1),
        "bfloat16, mlp": flat.but(loop="autocast"),
        "bfloat16, conv": images.but(loop="autocast", steps=120),
        "bfloat16, transformer": tokens.but(loop="autocast", steps=120),
        "four batches a step": flat.but(loop="accumulated", batch=16),
        "four batches a step, group norm": images.but(
            loop="accumulated", batch=16, options={"norm": "group"}, steps=100
        ),
        "momentum 0.01, many steps": images.but(changes=(_slow,), steps=500, options={"depth": 2}),
        "batch norm in an LSTM's head": series.but(options={"norm": "batch"}),
        "batch norm in a transformer's head": tokens.but(options={"norm": "batch"}),
        "four heads, post-norm, relu": tokens.but(options={"first": False, "function": "relu"}, rate=1e-3, steps=250),
        "plain recurrence, clipped": series.but(options={"kind": "rnn", "width": 64}, rate=2e-3, clip=1.0, steps=300),
    }  # fmt: skip
    return [_named(name, setup) for name, setup in made.items()]


def _of_cifar() -> list[Setup]:
    images, short = SETUPS["conv cifar"], SETUPS["residual cifar"]
    made = {
        "conv": images, "residual": short, "conv, group norm": images.but(options={"norm": "group"}),
        "conv, no norm": images.but(options={"norm": None}, rate=2e-3, steps=200),
        "residual, SGD": short.but(optimizer="sgd", rate=0.05),
    }  # fmt: skip
    return [_named(f"cifar {name}", setup) for name, setup in made.items()]


def batch_normed(setup: Setup) -> Setup:
    return setup.but(options={"norm": "batch"})


def _log_softmax() -> nn.Module:
    return nn.LogSoftmax(1)


def _half() -> nn.Module:
    return nn.Dropout(0.5)


def _third() -> nn.Module:
    return nn.Dropout(0.3)


def _warm(step: int) -> float:
    return min(1.0, (step + 1) / 60)


def _cosine(step: int) -> float:
    return _warm(step) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(step, 260) / 260)))


def _steps(step: int) -> float:
    return 0.1 ** (step // 80)


def _smoothed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, label_smoothing=0.1)


def _squared(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(target, 10).float())


def _binary(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, F.one_hot(target, 10).float())


def _focal(output: Tensor, target: Tensor) -> Tensor:
    each = F.cross_entropy(output, target, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def _levels(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return ((images - images.min()) / (images.max() - images.min()) * 16).round().long(), labels


def _standard(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    ink = images.mean(1)
    return images, ((ink - ink.mean()) / ink.std()).unsqueeze(1)


def _bounded(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images, (2 * images.mean(1)).tanh().unsqueeze(1)


def _copy(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images, images


def _raw(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return 6 * images + 5, labels


def _unit(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (images - images.min()) / (images.max() - images.min()), labels


def _binarized(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (images > 0).float(), labels


def _without_body(model: nn.Module) -> None:
    for one in list(model.parameters())[:-2]:
        one.requires_grad_(False)


def _frozen_body(model: nn.Module) -> None:
    _without_body(model)
    ns.freeze(model)


def _frozen_norms(model: nn.Module) -> None:
    ns.freeze(model)


def _slow(model: nn.Module) -> None:
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.momentum = 0.01
