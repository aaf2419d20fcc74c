"""What to prescribe: the cures that several rules share, in the order in which they help.

The order was measured: 20-layer networks of width 64 on handwritten digits, cross-entropy after 200 steps at batch 128
(2.30 is chance). Weights of standard deviation 1 under tanh: untreated 2.3, BatchNorm 0.06, LayerNorm 0.06, Xavier 0.3.
Torch's default weights under tanh: untreated 2.3, BatchNorm 0.2, Xavier 0.3, LayerNorm 1.7. Under sigmoid, any weights:
untreated 2.3, BatchNorm 0.1, and 2.3 with LayerNorm, GroupNorm or Xavier: the constant that every sigmoid adds is
common to all samples, and only a norm over the batch takes that away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from normscope.diagnose.case import Case
from normscope.terms.activations import activation_named
from normscope.terms.catalog import CATALOG
from normscope.terms.finding import Prescription
from normscope.terms.site import Site
from normscope.treat.fitting import fitted

ENOUGH_FOR_BATCH = 16
"""Samples from which batch statistics serve (Wu & He 2018, table 2: as good at 16 images a worker as at 32)."""

POSITIVE = frozenset(["sigmoid", "hardsigmoid", "softplus"])
"""Functions that give nothing below zero and never nothing: what they add is common to all samples."""

_RECTIFYING = frozenset(
    ["relu", "relu6", "leaky_relu", "prelu", "rrelu", "gelu", "silu", "elu", "celu", "mish", "hardswish"]
)
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a path that is a number: a place in a list
# (enough samples for a batch, feature maps) → the norm, and what one types for it
_NORM = {
    (True, False): ("BatchNorm", "nn.BatchNorm1d(features)"),
    (True, True): ("BatchNorm", "nn.BatchNorm2d(channels)"),
    (False, False): ("LayerNorm", "nn.LayerNorm(features)"),
    (False, True): ("GroupNorm", "nn.GroupNorm(32, channels)"),
}


def cures(case: Case, activations: Sequence[Site], *, anew: bool = True) -> Iterator[Prescription]:
    """How to get signal and gradient through these activations, best first.

    A norm over the batch where the batch allows it, else weights at the right gain before a norm of each sample.

    Args:
        case: the run.
        activations: what stands where it hurts, in execution order.
        anew: whether drawing the weights anew can help: not where training spoiled them.
    """
    norm = normalize(case, activations)
    weights = reinitialize(case, activations) if anew else None
    over_batch = norm is not None and norm.arguments["norm"] == "BatchNorm"
    yield from (cure for cure in ((norm, weights) if over_batch else (weights, norm)) if cure is not None)
    if any(_function(site) in POSITIVE for site in activations):
        yield advice(
            "use `nn.Tanh()` or `nn.ReLU()` in hidden layers", "a sigmoid adds a constant and has slope 1/4 at most"
        )


def normalize(case: Case, activations: Sequence[Site]) -> Prescription | None:
    """Put a norm before these activations, where none stands yet: over the batch when it is large enough.

    None when no norm helps: every activation has one already, or the batch is too small for the only norm that would.
    """
    bare = [site for site in activations if not case.follows_norm(site)]
    sites = tuple(dict.fromkeys(site.path for site in bare))
    enough = case.batch_size is None or case.batch_size >= ENOUGH_FOR_BATCH
    if not sites or (not enough and any(_function(site) in POSITIVE for site in bare)):
        return None
    norm, typed = _NORM[enough, any(site.channel_axis == 1 for site in bare)]
    typed = sized(typed, (case.channels(site) for site in bare))
    return Prescription(
        "insert_norm",
        sites,
        {"norm": norm},
        words=f"put `{typed}` before each of the activations ({few(sites)})",
        reason="its output has mean 0 and deviation 1 whatever the weights are, where the function has its slope",
    )


def reinitialize(case: Case, activations: Sequence[Site]) -> Prescription | None:
    """Draw the weights of the layers before these activations anew, at the functions' gain; None before sigmoids."""
    sites = case.producers_before(activations)
    names = {_function(site) for site in activations}
    if not sites or names <= POSITIVE:
        return None
    typed = "kaiming_normal_(weight)" if names & _RECTIFYING else "xavier_normal_(weight, gain=5 / 3)"
    return Prescription(
        "reinitialize",
        sites,
        words=f"draw the weights with `nn.init.{typed}` and set biases to zero ({few(sites)})",
        reason="at this scale a layer hands on as much variance as it gets, forward and backward",
    )


def without_batch(case: Case) -> Prescription:
    """A normalization of each sample in the place of every norm over the batch."""
    norms = [norm for norm in case.norms if norm.spec and "N" in norm.spec.over]
    maps = any(norm.kind.endswith(("2d", "3d")) for norm in norms)
    to, typed = ("GroupNorm", "nn.GroupNorm(32, channels)") if maps else ("LayerNorm", "nn.LayerNorm(features)")
    sites = tuple(dict.fromkeys(norm.path for norm in norms))
    widths = [case.channels(norm) for norm in norms]
    return Prescription(
        "convert",
        sites,
        {"to": to},
        words=replaced((norm.kind for norm in norms), sites, typed, widths),
        reason="its statistics come from each sample alone, in both modes",
    )


def recalibrate(reason: str, sites: tuple[str, ...] = ()) -> Prescription:
    """Take the running statistics anew: of all norms, or of those at `sites`."""
    return Prescription(
        "recalibrate",
        sites,
        words="run some hundred training batches through the model to take the statistics anew: "
        "`normscope.recalibrate(model, batches)`",
        reason=reason,
    )


def advice(words: str, reason: str = "") -> Prescription:
    """What the user alone can do, outside the model."""
    return Prescription("", words=words, reason=reason)


def few(places: Sequence[str], most: int = 3) -> str:
    """Places as code: the first of many, those that differ in a number alone as one pattern.

    >>> few(["layer2.0.bn1", "layer2.1.bn1", "layer2.2.bn1", "layer2.3.bn1", "stem"])
    '`layer2.*.bn1`, `stem`'
    """
    groups: dict[str, list[str]] = {}
    for place in dict.fromkeys(places):
        pattern = _NUMBER.sub("*", place)
        alone = len(places) <= most or pattern.strip("*.") == ""
        groups.setdefault(place if alone else pattern, []).append(place)
    named = [(pattern if len(told) > 1 else told[0], len(told)) for pattern, told in groups.items()]
    told = ", ".join(f"`{name or '(model)'}`" for name, _ in named[:most])
    more = sum(count for _, count in named[most:])
    return told + (f" and {more} more" if more else "")


def sized(typed: str, widths: Iterable[int]) -> str:
    """What one types for a norm, with the number of channels where it is the same at every place, and known.

    >>> sized("nn.GroupNorm(32, channels)", [48, 48]), sized("nn.LayerNorm(features)", [8, 16])
    ('nn.GroupNorm(24, 48)', 'nn.LayerNorm(features)')
    """
    known = set(widths)
    if len(known) != 1 or not (width := known.pop()):
        return typed
    groups = fitted(CATALOG["GroupNorm"].but(groups=32), width, "channels_first").groups
    typed = typed.replace("32, channels", f"{groups}, channels")
    return typed.replace("features", str(width)).replace("channels", str(width))


def replaced(kinds: Iterable[str], sites: Sequence[str], typed: str, widths: Sequence[int]) -> str:
    """The change from norms of some classes to what one types, with the number of channels where it is the same."""
    known = set(kinds)
    old = f"`{sized(f'nn.{known.pop()}(channels)', widths)}`" if len(known) == 1 else "the batch normalization"
    return f"replace {old} in {few(sites)} by `{sized(typed, widths)}`"


def _function(site: Site) -> str:
    row = activation_named(site.kind)
    return row.name if row else ""
