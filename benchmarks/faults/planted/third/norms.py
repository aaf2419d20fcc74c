"""Bad normalization."""

from __future__ import annotations

import torch
from changes import batch_norms, before_body, norms, set_norms
from setups import Setup
from torch import Tensor, nn

from planted.second.inputs import asked, fed
from planted.third.inputs import _twice
from planted.third.ways import Held, normed, regressing

STALE = ("stale_running_stats", "broken_running_stats")


def _higher(inputs: Tensor, targets: Tensor) -> Tensor:
    return 4 * targets + 9


def _high(setup: Setup) -> Setup:
    return asked(_higher)(regressing(setup)).but(rate=1e-2, steps=300)


def _fixed_end() -> nn.Module:
    return nn.BatchNorm1d(1, affine=False)


def _end(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, nn.BatchNorm1d) and not one.affine]


def _foreign(model: nn.Module) -> None:
    """Running statistics of other data, which nothing moves."""
    generator = torch.Generator().manual_seed(6)
    for one in norms(model):
        one.momentum = 0.0  # type: ignore[assignment]
        one.running_mean.copy_(3 * torch.randn(one.num_features, generator=generator))  # type: ignore[operator,arg-type]
        one.running_var.copy_(10 * torch.rand(one.num_features, generator=generator) + 0.1)  # type: ignore[operator,arg-type]


def _undefined(model: nn.Module) -> None:
    """One channel of one norm has a running mean that is not a number."""
    norms(model)[1].running_mean[0] = float("nan")  # type: ignore[index,operator]


def _second(model: nn.Module) -> list[str]:
    return batch_norms(model)[1:2]


def _short(setup: Setup) -> Setup:
    """Images of an offset, for a few steps only."""
    return fed(_brighter)(normed(setup)).but(steps=50, rate=1e-2)


def _brighter(images: Tensor) -> Tensor:
    return 2 * images + 3


def _few(setup: Setup) -> Setup:
    return normed(setup).but(batch=4, rate=setup.rate / 4, steps=300)


def _by_sample(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, nn.LayerNorm)]


def _wide(model: nn.Module) -> None:
    """ε of ten thousand."""
    for path in _by_sample(model):
        model.get_submodule(path).eps = 1e4  # type: ignore[assignment]


def _alone(model: nn.Module) -> None:
    """A group for each feature of the narrowest layer."""
    if isinstance(model, nn.Sequential):
        place = next(place for place, one in enumerate(model) if isinstance(one, nn.Linear))
        width: int = model[place].out_features  # type: ignore[assignment]
        model.insert(place + 1, nn.GroupNorm(width, width))
    else:
        model.head = nn.Sequential(nn.GroupNorm(80, 80), model.head)  # type: ignore[arg-type]


def _groups(model: nn.Module) -> list[str]:
    return [path for path, one in model.named_modules() if isinstance(one, nn.GroupNorm)]


def _salary(images: Tensor) -> Tensor:
    """One column of another unit."""
    images = images.clone()
    images[:, 5] = 40_000 + 9_000 * images[:, 30]
    return images


def _over_all(setup: Setup) -> Setup:
    return (
        setup.but(changes=(before_body(lambda: nn.LayerNorm(64)),))
        if setup.kind == "funnel"
        else setup.but(changes=(_normed_stem,))
    )


def _normed_stem(model: nn.Module) -> None:
    model.stem = nn.Sequential(nn.LayerNorm(64), model.stem)  # type: ignore[arg-type]


def _over_inputs(model: nn.Module) -> list[str]:
    return ["0", "stem.0"]


def _before(share: float):
    return lambda s: s.but(options={"before": lambda: nn.Dropout2d(share)})


def _decaying(setup: Setup) -> Setup:
    """The two groups of parameters exchanged: norms decay, weights do not."""

    def groups(model: nn.Module) -> list:
        kinds = nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm
        chosen = [one for each in model.modules() if isinstance(each, kinds) for one in each.parameters()]
        known = {id(one) for one in chosen}
        others = [one for one in model.parameters() if id(one) not in known]
        return [{"params": others, "weight_decay": 0.0}, {"params": chosen, "weight_decay": 150.0}]

    return setup.but(optimizer="adamw", trains=groups)


def _quartets(setup: Setup) -> Setup:
    return setup.but(batch=2, rate=setup.rate / 4, steps=300)


FAULTS = (
    Held(
        "batch norm without affine behind the answer", ("funnel", "resmlp", "towers"),
        ("norm_before_output", "restricted_output"), lambda s: _high(s).but(options={"end": _fixed_end}), _high, _end,
    ),
    Held(
        "running statistics of other data, never moved", ("inception", "resnet", "segmenter"), STALE,
        lambda s: normed(s).but(changes=(_foreign,)), normed, batch_norms,
    ),
    Held(
        "fifty steps at a momentum of 0.01", ("strided", "resnet", "lenet"),
        ("unripe_running_stats", "stale_running_stats"), lambda s: _short(s).but(changes=(set_norms(momentum=0.01),)),
        _short, batch_norms,
    ),
    Held(
        "running mean of one channel not a number", ("segmenter", "strided", "inception cifar"),
        ("broken_running_stats",), lambda s: normed(s).but(changes=(_undefined,)), normed, _second,
    ),
    Held(
        "momentum of 0.999 in torch's sense", ("strided", "lenet"), ("foreign_momentum",),
        lambda s: _few(s).but(changes=(set_norms(momentum=0.999),)), _few, batch_norms,
    ),
    Held(
        "batch norm over what was divided twice", ("strided", "segmenter", "inception"),
        ("dominant_eps", "unstandardized_input"), lambda s: fed(_twice)(normed(s)), normed,
        lambda m: batch_norms(m)[:1],
    ),
    Held(
        "ε of ten thousand in layer norms", ("scribe", "convnext"), ("dominant_eps",),
        lambda s: s.but(changes=(_wide,)), sites=_by_sample,
    ),
    Held("a group for each feature of the bottleneck", ("coder", "coder cifar", "towers"), ("lone_element",),
         lambda s: s.but(changes=(_alone,)), sites=_groups),
    Held(
        "pixels and a salary under one layer norm", ("funnel", "resmlp"), ("unlike_units", "unstandardized_input"),
        lambda s: fed(_salary)(_over_all(s)), _over_all, _over_inputs,
    ),
    Held(
        "channels dropped before batch norm", ("inception", "inception cifar"),
        ("dropout_variance_shift", "dropout_into_norm"), _before(0.85), sites=lambda m: batch_norms(m)[:1],
    ),
    Held(
        "decay of norms and of weights exchanged", ("strided", "convnext", "segmenter"),
        ("decayed_norm", "decayed_weights"), _decaying,
    ),
    Held(
        "batches of two, networks again", ("towers", "funnel"), ("batch_too_small", "noisy_batch_statistics"),
        lambda s: _quartets(normed(s)), lambda s: _quartets(s.but(options={"norm": "layer"})), batch_norms,
    ),
)  # fmt: skip
