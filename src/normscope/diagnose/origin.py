"""Where the first NaN or infinity of a run came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normscope.diagnose.case import Case
from normscope.record.grid import Broken
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

    All summaries are looked through only when there is a sign of it: a loss that is not finite, a note of the watcher,
    or a tensor at the last step.
    """
    if not _suspicious(case):
        return None
    broken = [one for one in case.record.nonfinite() if not _shut_out(one)]
    if not broken:
        return None
    step = min(one.step for one in broken)
    first = min((one for one in broken if one.step == step), key=_order)
    steps = case.steps.tolist()
    return Origin(
        _kind(case, first),
        first.site,
        step,
        first.source,
        first.share,
        max((one for one in steps if one < step), default=None),
        max(one.step for one in broken) == steps[-1],
    )


def _suspicious(case: Case) -> bool:
    if case.diverged or any(event.kind == "nonfinite" for event in case.record.events):
        return True
    last = (case.record.grid(source, steps=case.sampled(source)[-1:]) for source in _SOURCES)
    return any(grid.rows.nonfinite.any() for grid in last)


def _shut_out(broken: Broken) -> bool:
    """Whether the tensor holds -inf alone and a softmax reads it: scores that a mask shut out."""
    function = activation_named(broken.site.kind)
    softmax = function is not None and function.name in ("softmax", "log_softmax")
    return broken.masked and softmax and broken.site.what == "input"


def _order(broken: Broken) -> tuple[int, float, int]:
    """Parameters were there before the step; then activations as they ran; then gradients, from the last layer back."""
    what = broken.site.what
    depth = broken.site.depth if broken.site.depth >= 0 else np.inf  # the model as a whole comes after its parts
    if what in ("parameter", "statistic"):
        return 0, depth, 0
    if what in ("input", "output"):
        return 1, depth, what == "output"
    return (2 if what == "gradient" else 3), -depth, 0


def _kind(case: Case, first: Broken) -> str:
    what = first.site.what
    if what in ("parameter", "statistic", "update"):
        return "update"
    if what == "gradient":
        return "backward"
    if what == "output":
        return "forward"
    start = min((site.depth for site in case.sites), default=0)
    return "data" if first.site.depth == start else "between"
