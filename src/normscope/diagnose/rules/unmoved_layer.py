"""A layer with weights does not learn, while the others do.

## What it finds
Layers whose weights never changed although other layers learned, or all layers of a run in which the loss was taken
back through the network: their parameters are not in the optimizer, or get no gradient at all (cut off by `detach`,
`no_grad`, an integer or an `argmax` on the way), or their gradient is cleared before the optimizer reads it, their rate
is zero, or they are frozen. Frozen is a note, for it is said in the model itself, unless it is most of a network that
does not learn, or a norm behind it is frozen by half; the others are warnings, and an error where nothing moves. With
the model at hand, layers that stand in a plain list, tuple or dict and that the loss reaches are found too: no
optimizer, mode or file of weights knows them.

## Why it hurts
The layer stays at its random start. A fresh head that was built after the optimizer, a list of layers that is no
`nn.ModuleList`, a `detach` too many: nothing fails, and the network learns around the hole.

## Evidence
The updates, values and gradients of every parameter at the sampled steps. What no watched optimizer owns and yet
changes has another one.

## Prescription
Build the optimizer after the model is complete, from `model.parameters()`; take away the `detach`; unfreeze.

## When to ignore
When the layer is a fixed feature extractor, an average of weights, or learns elsewhere.

## References
PyTorch documentation, *Autograd mechanics*, "Locally disabling gradient computation".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.track import PERSISTENCE
from normscope.diagnose.wiring import unlisted
from normscope.terms.finding import Finding, Severity
from normscope.terms.site import Site

STILL = Threshold(0.0, "definition: an update of exactly zero at every sampled step", "updates")

MOST = Threshold(
    0.5,
    "chosen: fine-tuning freezes the body and trains a head; where most is frozen and the loss stays, the body is "
    "missing",
    "share",
)

_WITH_WEIGHTS = ("Linear", "Bilinear", "Conv", "LSTM", "GRU", "RNN", "Embedding", "MultiheadAttention")
_WORDS = {
    "foreign": ("is not in the optimizer", "build the optimizer from `model.parameters()`, once the model is complete"),
    "cut off": (
        "gets no gradient",
        "look for `detach()`, `no_grad()`, `.data`, `argmax` or a conversion to integers between it and the loss",
    ),
    "cleared": (
        "is reached by the loss, and has no gradient when the optimizer steps",
        "call `optimizer.zero_grad()` before `loss.backward()`, and not between that and `optimizer.step()`",
    ),
    "without a rate": (
        "is in the optimizer and has a gradient, and every update of it is zero",
        "give its parameter group a learning rate: `optimizer.param_groups` shows the one of each",
    ),
    "frozen": (
        "is frozen",
        "`layer.requires_grad_(True)`, before the optimizer is built, if it is to learn; if it is to stay, "
        "`normscope.freeze(model, where=…)`, which holds the statistics of its norms too",
    ),
}


def check(case: Case) -> Iterator[Finding]:
    """One finding for each way in which layers were left out."""
    yield from _unlisted(case)
    why = {site: _why(case, site) for site in case.producers if not site.call}
    learns = any(state == "learns" for state in why.values())
    if not learns and not case.ungraded and not any(_reached(case, site) for site in why):
        return
    steps = case.steps
    for state, (words, advice) in _WORDS.items():
        still = [site for site in why if why[site] == state]
        if still:
            yield RULE.finding(
                [site.path for site in still],
                f"`{still[0].place}` {words}, and so {len(still)} of {len(why)} layers stay as they were.",
                STILL.evidence(
                    "graph" if _cut(case, still) else "update", 0.0, steps, [(site.key, 0.0) for site in still]
                ),
                severity=_severity(case, state, len(still) / len(why)) if learns else "error",
                since_step=int(steps[0]),
                prescriptions=[remedies.advice(advice)],
            )


def _unlisted(case: Case) -> Iterator[Finding]:
    """Layers in a plain list: they run, and no optimizer, mode, device or file of weights knows them."""
    hidden = unlisted(case.experiment) if case.experiment is not None else {}
    if not hidden:
        return
    count = sum(one.numel() for module in hidden.values() for one in module.parameters())
    places = tuple(hidden)
    yield RULE.finding(
        places,
        f"{len(places)} module{'s' if len(places) > 1 else ''} with {count} parameters ({remedies.few(places)}) "
        f"{'stand' if len(places) > 1 else 'stands'} in a plain list, tuple or dict: the loss reaches them, and "
        "`model.parameters()` does not, so that they never learn, change their mode or are saved.",
        STILL.evidence("unlisted", 0.0, case.steps, [(place, 0.0) for place in places]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "hold them in `nn.ModuleList(…)` or `nn.ModuleDict(…)`, and build the optimizer after that",
                "a module finds what is assigned to it as a module, and does not look into lists",
            )
        ],
    )


def _severity(case: Case, state: str, share: float) -> Severity:
    """Frozen layers are meant to be, as long as the rest learns well without them."""
    costs = state != "frozen" or (share > MOST.value and not case.thrives)
    return "warning" if costs else "note"


def _why(case: Case, site: Site) -> str:
    """Whether a layer learns, and if not why."""
    parameters = case.parameters(site.path)
    parameters = [one for one in parameters if "weight" in one.name] or parameters
    if not parameters:
        return "frozen" if site.kind.startswith(_WITH_WEIGHTS) else ""
    moves = [case.moves(one) for one in parameters]
    if any(len(track) and track.values.max() > 0 for track in moves):
        return "learns"
    if any(len(set(case.root_mean_square(one).values)) > 1 for one in parameters):
        return "learns"  # by the hand of an optimizer that is not watched
    if not any(len(track) for track in moves):
        return "foreign"
    slopes = [case.root_mean_square(one.at("gradient", one.name)) for one in parameters]
    if not any(len(track) and track.values.max() > 0 for track in slopes):
        return "cleared" if _reached(case, site) else "cut off"
    still = [track for track in moves if len(track) >= PERSISTENCE]
    return "without a rate" if still and not max(track.values.max() for track in still) > 0 else ""


def _cut(case: Case, still: list[Site]) -> bool:
    """Whether the graph ends before these layers: they have no gradient at all, where a dead unit hands on zeros."""
    owned = [one for site in still for one in case.parameters(site.path)]
    slopes = [case.root_mean_square(one.at("gradient", one.name)) for one in owned]
    return bool(slopes) and not any(map(len, slopes)) and all(len(case.moves(one)) for one in owned)


def _reached(case: Case, site: Site) -> bool:
    """Whether the loss was taken back to the output of this layer in training, again and again."""
    slope = case.root_mean_square(site.at("gradient"))
    return int((slope.values > 0).sum()) >= PERSISTENCE


class _Cut(nn.Module):
    """The first layer's output is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().detach())


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


def _without_first(parameters: Iterable[Tensor]) -> Optimizer:
    return SGD([*parameters][2:], lr=0.05)


class _Tied(nn.Module):
    """Reads out with the weights it reads in with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def _of_another(parameters: Iterable[Tensor]) -> Optimizer:
    return SGD([one.clone().detach() for one in parameters], lr=0.05)


class _Zeroed(nn.Module):
    """A branch that starts at zero, and learns from the second step on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.scale * self.branch(x.relu()))


class _Both(SGD):
    """An optimizer that leaves the first layer to another one."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        first, *rest = list(parameters)
        self._other = SGD([first], lr=0.05)
        super().__init__(rest, lr=0.05)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self._other.step()
        self._other.zero_grad()
        return super().step(*args, **kwargs)


SICK = (
    Scene(_network, ("0",), optimizer=_without_first, steps=12),
    Scene(_Cut, ("first",), steps=12),
    Scene(_network, ("0", "2"), optimizer=_of_another, steps=12, every=2),
)
HEALTHY = (
    Scene(_network, steps=12),
    Scene(_Zeroed),
    Scene(_Tied, steps=12),
    Scene(_network, optimizer=_Both, steps=12),
)

RULE = Rule(
    "NS215",
    "unmoved_layer",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"still": STILL, "most": MOST},
    causes=(
        *("unrelated_targets", "half_frozen", "updated_while_frozen", "rate_too_low", "stuck_affine"),
        *("train_eval_gap", "unread_input"),
    ),
    roots=("unlisted", "graph"),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
