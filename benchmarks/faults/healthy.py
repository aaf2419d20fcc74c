"""Sound trainings, some of them unusual: none may be called sick."""

from __future__ import annotations

from setups import SETUPS, Setup
from torch import nn


def _named(name: str, setup: Setup) -> Setup:
    return setup.but(name=name)


def runs() -> tuple[Setup, ...]:
    """Every sound training, named by what is particular about it."""
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
        rate = 0.1 if optimizer == "sgd" else rate
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
    return (*found, *deep, *SETUPS.values())
