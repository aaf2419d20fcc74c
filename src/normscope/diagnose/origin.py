"""Where the first NaN or infinity of a run came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normscope.diagnose.case import Case
from normscope.terms.activations import activation_named
from normscope.terms.datum import Datum
from normscope.terms.site import Site

_SOURCES = ("live", "probe", "probe_eval")


@dataclass(frozen=True, repr=False)
class Origin(Datum):
    """The first tensor that was seen to hold NaN or infinity.

    Attributes:
        kind: ``"data"`` (the network's own input), ``"forward"`` (a layer made it of finite input), ``"between"``
            (what stands between two layers made it), ``"backward"`` (activations are finite, a gradient is not), or
            ``"update"`` (the parameters themselves).
        site: where.
        step: the first sampled step at which it was so.
        source: ``live``, ``probe`` or ``probe_eval``.
        share: the share of the tensor that is not finite.
        before: the last sampled step at which everything was finite; None when there was none.
        lasts: whether the last sampled step still has it.
    """

    kind: str
    site: Site
    step: int
    source: str
    share: float
    before: int | None
    lasts: bool


def origin(case: Case) -> Origin | None:
    """The origin, or None where the run is finite.

    All tensors at all steps are looked through only when there is a sign of it: a loss that is not finite, a note of
    the watcher, or a tensor at the last step.
    """
    if not _suspicious(case):
        return None
    broken = _broken(case)
    if not broken:
        return None
    step = min(one.step for one in broken)
    first = min((one for one in broken if one.step == step), key=_order)
    steps = [int(one) for one in case.record.steps]
    return Origin(
        _kind(case, first),
        first.site,
        step,
        first.source,
        first.share,
        max((one for one in steps if one < step), default=None),
        max(one.step for one in broken) == steps[-1],
    )


@dataclass(frozen=True)
class _Broken:
    """A tensor that is not finite at a step."""

    site: Site
    step: int
    source: str
    share: float


def _suspicious(case: Case) -> bool:
    if case.diverged or any(event.kind == "nonfinite" for event in case.record.events):
        return True
    last = [(source, steps[-1]) for source in _SOURCES if len(steps := case.sampled(source))]
    return any(
        summary is not None and summary.sketch.nonfinite
        for source, step in last
        for site in case.record.sites
        for summary in [case.summary(site, int(step), source)]
    )


def _broken(case: Case) -> list[_Broken]:
    found = []
    for site in case.record.sites:
        for source in _SOURCES:
            shares = case.record.series(site, "nonfinite", source=source)
            found += [
                _Broken(site, int(step), source, float(share))
                for step, share in zip(shares.steps, shares.values)
                if share > 0 and not _masked(case, site, int(step), source)
            ]
    return found


def _masked(case: Case, site: Site, step: int, source: str) -> bool:
    """Whether the tensor holds -inf alone and a softmax reads it: scores that a mask shut out."""
    function = activation_named(site.kind)
    if site.what != "input" or function is None or function.name not in ("softmax", "log_softmax"):
        return False
    summary = case.summary(site, step, source)
    return summary is not None and not (summary.sketch.nan or summary.sketch.pos_inf)


def _order(broken: _Broken) -> tuple[int, float, int]:
    """Parameters were there before the step; then activations as they ran; then gradients, from the last layer back."""
    what = broken.site.what
    depth = broken.site.depth if broken.site.depth >= 0 else np.inf  # the model as a whole comes after its parts
    if what in ("parameter", "statistic"):
        return 0, depth, 0
    if what in ("input", "output"):
        return 1, depth, what == "output"
    return (2 if what == "gradient" else 3), -depth, 0


def _kind(case: Case, first: _Broken) -> str:
    what = first.site.what
    if what in ("parameter", "statistic", "update"):
        return "update"
    if what == "gradient":
        return "backward"
    if what == "output":
        return "forward"
    start = min((site.depth for site in case.sites), default=0)
    return "data" if first.site.depth == start else "between"
