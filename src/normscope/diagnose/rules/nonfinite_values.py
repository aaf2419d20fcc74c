"""NaN or infinity has entered the run.

## What it finds
The first sampled step at which a tensor holds NaN or infinity, and the first tensor of that step in the order in which
things happen: parameters, then activations as they run, then gradients from the output back. It tells apart a broken
input (the data), a layer or an operation that made it of finite values, a gradient that broke while activations were
finite, and parameters that an update broke. Where activations are finite and the loss is not, the loss function is
asked with outputs of sizes up to 300: one that breaks there is the cause, whatever the data are like. Two things are no
finding: scores of minus infinity before a softmax, which masks put there, and gradients that overflow now and then
under a loss scaler, which skips those steps.

## Why it hurts
NaN spreads to everything it touches and never goes away: from that step on nothing is learned, and what was learned is
lost once a parameter is hit.

## Evidence
The count of non-finite elements in every tensor that was recorded, of training batches and of the fixed batch.

## Prescription
By origin. Data: find and repair the samples. A layer or operation: guard the division, logarithm or root at that place
with an eps. Gradient: the same for the derivative (the slope of a square root at zero is infinite). Update: smaller
steps, clipped gradients, a warm-up; in half precision a loss scaler, or bfloat16.

## When to ignore
When a custom loop skips such steps on purpose.

## References
Goldberg 1991, *What every computer scientist should know about floating-point arithmetic*.
Micikevicius et al. 2018, *Mixed precision training*, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from normscope.anatomy.batch import Probe, first_tensor
from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment
from normscope.diagnose.origin import Origin, origin
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters, sgd
from normscope.terms.finding import Evidence, Finding, Prescription

ANY = Threshold(0.0, "one NaN is enough: every sum it enters is NaN (IEEE 754-2019, section 6.2)", "share")

POLE = Threshold(
    300.0, "chosen: three times what exp reaches in float32 (log 3.4e38 is 89): a stable loss takes any logit", "output"
)
SIZES = (10.0, 100.0, 300.0)

_WORDS = {
    "data": "The input itself holds NaN or infinity: {share:.2%} of `{place}`'s input at step {step}.",
    "forward": "`{place}` made NaN or infinity of finite input: {share:.2%} of its output at step {step}.",
    "between": "What stands before `{place}` made NaN or infinity: {share:.2%} of its input at step {step}.",
    "backward": "The gradient at `{place}` is NaN or infinite ({share:.2%}) at step {step}, with finite activations.",
    "update": "The parameters of `{place}` are NaN or infinite ({share:.2%}) at step {step}: an update broke them.",
}
_ADVICE = {
    "data": "find the samples with `torch.isfinite(inputs).all()`, and repair or drop them; a division by a column's "
    "standard deviation of zero is the usual source",
    "forward": "guard what this layer computes: an eps in divisions, logarithms and roots, a clamp before exponentials",
    "between": "guard what is computed there: an eps in divisions, logarithms and roots, a clamp before exponentials",
    "backward": "guard the derivative: an eps inside square roots and norms; `torch.autograd.set_detect_anomaly(True)` "
    "names the line",
    "update": "divide the learning rate by 10, clip gradients by `nn.utils.clip_grad_norm_(parameters, 1.0)`, warm up",
}


def check(case: Case) -> Iterator[Finding]:
    """One finding: the origin."""
    found = origin(case)
    if found is None or (found.kind == "backward" and not found.lasts):
        return
    if (pole := _pole(case, found)) is not None:
        yield pole
        return
    since = "" if found.before is None else f" At step {found.before} everything was finite."
    words = _WORDS[found.kind].format(share=found.share, place=found.site.place, step=found.step)
    yield RULE.finding(
        [found.site.path],
        words + since,
        Evidence(
            "nonfinite",
            found.share,
            ANY.value,
            (found.step,),
            ANY.unit,
            ANY.source,
            ((found.site.key, found.share),),
        ),
        severity="error" if found.lasts else "warning",
        since_step=found.step,
        prescriptions=[_advice(found)],
    )


def _pole(case: Case, found: Origin) -> Finding | None:
    """The loss itself: of finite outputs, no larger than a confident network gives, it makes NaN or infinity."""
    if found.site.path or found.kind != "backward" or case.experiment is None:
        return None
    value = _breaks(case.experiment)
    if value is None:
        return None
    return RULE.finding(
        [""],
        f"The loss of outputs of size {value:g}, all finite, or its gradient is NaN or infinite: a logarithm, a root "
        f"or a quotient in it meets zero. In the run {found.share:.2%} of the gradient at the output was so at step "
        f"{found.step}.",
        POLE.evidence("pole", value, (found.step,), ((found.site.key, found.share),)),
        severity="error" if found.lasts else "warning",
        since_step=found.step,
        prescriptions=[
            remedies.advice(
                "use a loss that takes logits, such as `nn.functional.cross_entropy` or "
                "`binary_cross_entropy_with_logits`, or clamp what logarithms and roots read",
                "they take the logarithm and the exponential together, where neither overflows",
            )
        ],
    )


def _breaks(tried: Experiment) -> float | None:
    """The size of outputs from which on the loss is not finite; None where none of those tried is."""
    given, target = first_tensor(tried.output()), Probe.of(tried.probe).target
    if tried.loss_fn is None or given is None or not given.is_floating_point():
        return None
    for size in SIZES:
        output = (size * torch.randn(given.shape, generator=torch.Generator().manual_seed(0))).to(given)
        output.requires_grad_()
        try:
            with torch.enable_grad():
                loss = tried.loss(output, target)
                (slope,) = torch.autograd.grad(loss, output)
        except Exception:  # outputs that this loss does not take
            return None
        if not (torch.isfinite(loss.detach()) and torch.isfinite(slope).all()):
            return size
    return None


def _advice(found: Origin) -> Prescription:
    return remedies.advice(_ADVICE[found.kind], f"that is where the first of them was seen, in a {found.source} tensor")


def _broken_clusters() -> Data:
    inputs, labels = clusters()
    inputs[::16, 3] = torch.nan
    return inputs, labels


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


class _Logarithm(nn.Module):
    """Takes the logarithm of what a ReLU leaves: minus infinity wherever a unit is silent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu().log())


SICK = (
    Scene(_network, ("0",), data=_broken_clusters, steps=12),
    Scene(_Logarithm, ("second",), steps=12),
    Scene(_network, optimizer=sgd(1e30), steps=12),
)
HEALTHY = (Scene(_network, steps=12),)

RULE = Rule(
    "NS205",
    "nonfinite_values",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"any": ANY, "pole": POLE},
    causes=(
        "unread_input",
        "unrelated_targets",
    ),
    roots=("pole",),
    sick=SICK,
    healthy=HEALTHY,
)
