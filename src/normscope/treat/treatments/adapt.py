"""Let a network adapt while it is used: to batches that come from another distribution than the training data.

Norms with stored statistics mix them with those of each batch, or follow the batches; with ``mode="entropy"`` the
weights and biases of all norms also learn to make predictions sure (Tent). Nothing else changes, `reset` brings the
source back, and a collapse does so by itself.

It preserves nothing of the function: the output depends on the batch, and with ``"ema"`` and ``"entropy"`` on those
before it. A prior much larger than the batch comes close to the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import nn

from normscope.anatomy.recognize import spec_of
from normscope.anatomy.walk import sites as sites_of
from normscope.terms.errors import SpecError
from normscope.terms.spec import NormSpec
from normscope.treat.adaptation import Adapted, AdaptedNorm, Mode
from normscope.treat.surgery import replace, unregistered, within
from normscope.treat.treatment import Change, Treated, Treatment, perform

_STORED = {"running", "cumulative", "population", "given"}


def adapt(
    model: nn.Module,
    *,
    prior: float = 16,
    mode: Mode = "norm",
    momentum: float = 0.1,
    rate: float = 1e-3,
    steps: int = 1,
    episodic: bool = False,
    guard: bool = True,
    classes: int = 1,
) -> Treated:
    """A copy of `model`, in evaluation mode for good, that adapts to the batches it is called with.

    Args:
        model: the trained network, the source; it stays as it is.
        prior: N of N/(N + n), the weight of the source's statistics against those of a batch of n samples (Schneider
            et al. 2020); 0 takes the batch's alone. ``"ema"`` does not use it.
        mode: ``"norm"`` mixes the statistics of each batch with the source's. ``"ema"`` starts from the source's and
            averages over the batches as they come. ``"entropy"`` mixes as ``"norm"`` does, and after each batch lets
            the weights and biases of all norms (GroupNorm, LayerNorm and RMSNorm too) take a step down the entropy of
            the predictions (Wang et al. 2021, "Tent"; with ``prior=0`` it is theirs).
        momentum: of ``"ema"``, the weight of the newest batch.
        rate: of ``"entropy"``, the learning rate of Adam.
        steps: of ``"entropy"``, steps on each batch.
        episodic: whether every batch starts from the source.
        guard: of ``"entropy"``, whether the source is restored when predictions collapse: when they are sure of
            themselves (entropy below 0.2 nats in the running mean; Niu et al. 2023) and yet tell less of the batch than
            the source's do (mutual information), or are not finite.
        classes: of ``"entropy"``, the axis of the output that numbers the classes.

    Returns:
        What changed; `Treated.model` is an `Adapted`, whose ``reset()`` restores the source, whose ``domain = name``
        keeps a bank of its state for each domain, and whose ``restored`` counts the collapses.

    Raises:
        SpecError: a mode that does not exist, or a number out of its range.
    """
    _check(mode, prior=prior, momentum=momentum, rate=rate, steps=steps)
    ways = {"rate": rate, "steps": steps, "episodic": episodic, "guard": guard, "classes": classes}
    return perform(
        model, lambda patient: apply(patient, prior=prior, mode=mode, momentum=momentum, **ways), inplace=False
    )


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    data: object = None,
    prior: float = 16,
    mode: Mode = "norm",
    momentum: float = 0.1,
    **ways: float,
) -> Treated:
    """`adapt`, for the norms at `sites` (all when empty). It looks at no data."""
    _check(mode, prior=prior, momentum=momentum)
    chosen = within(model, sites)
    changes, skipped, learned = [], [], {}
    for site in sites_of(model):
        norm = model.get_submodule(site.path)
        if site.role != "norm" or norm not in chosen:
            continue
        spec = spec_of(norm)
        affine = [own for name in ("weight", "bias") if isinstance(own := getattr(norm, name, None), nn.Parameter)]
        told = []
        if mode == "entropy" and affine:
            learned.update({id(parameter): parameter for parameter in affine})
            told.append("weight and bias that follow the entropy")
        reason = _unfit(model, norm, spec)
        if reason is None and spec is not None:
            model = replace(model, norm, AdaptedNorm(norm, spec, prior, momentum if mode == "ema" else None))
            way = (
                f"averaged with momentum {momentum:g}" if mode == "ema" else f"mixed with the batch's, prior {prior:g}"
            )
            told.insert(0, f"statistics {way}")
        elif not told:
            skipped.append((site.path, str(reason)))
        if told:
            changes.append(Change(site.path, site.kind, ", ".join(told)))
    if not changes:
        return Treated(model, skipped=(*skipped, ("", "no norm here can adapt")))
    return Treated(Adapted(model, learned.values(), **ways), tuple(changes), "nothing", None, tuple(skipped))  # pyright: ignore


def _unfit(model: nn.Module, norm: nn.Module, spec: NormSpec | None) -> str | None:
    """Why the statistics of `norm` stay as they are, or None."""
    if spec is None or spec.infer_from not in _STORED or getattr(norm, "running_mean", None) is None:
        return "its statistics are those of each input already"
    if "N" not in spec.over or "C" in spec.over or spec.scale not in ("std", "rms"):
        return "its statistics are not a mean and a variance of each channel"
    if held := unregistered(model, norm):
        return f"`{held}` holds it outside of the registered modules and would go on calling it"
    return None


def _check(mode: str, **numbers: float) -> None:
    if mode not in get_args(Mode):
        raise SpecError(
            "A model was to adapt in a mode that does not exist.",
            found={"mode": repr(mode)},
            because="statistics are mixed batch by batch, or averaged, or affine parameters learn from the entropy",
            do='choose "norm", "ema" or "entropy"',
        )
    wrong = {name: value for name, value in numbers.items() if not value >= 0 or (name == "steps" and value < 1)}
    if wrong or not numbers.get("momentum", 0.0) <= 1:
        raise SpecError(
            "A model was to adapt by numbers that cannot be.",
            found=wrong or {"momentum": numbers["momentum"]},
            because="a prior counts samples, a momentum is a share, and there is at least one step on a batch",
            do="give prior ≥ 0, 0 ≤ momentum ≤ 1, rate ≥ 0, steps ≥ 1",
        )


TREATMENT = Treatment("adapt", "nothing", apply)
