"""Where the first NaN came from, on records written by hand: each kind of origin, and what is none."""

import numpy as np
import pytest

from normscope.diagnose.case import Case
from normscope.diagnose.engine import diagnose
from normscope.diagnose.origin import origin
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.site import Site

FIRST = Site("first", role="producer", kind="Linear", depth=0)
NORM = Site("norm", role="norm", kind="BatchNorm1d", depth=1)
LAST = Site("last", role="producer", kind="Linear", depth=2)
SOFTMAX = Site("softmax", role="activation", kind="Softmax", depth=3)
PLACES = (FIRST, NORM, LAST, SOFTMAX)
TENSORS = [site.at(what) for site in PLACES for what in ("input", "output", "gradient")]
WEIGHTS = [site.at(what, "weight") for site in (FIRST, LAST) for what in ("parameter", "gradient", "update")]


def summary(*values):
    return Summary.of(np.array([1.0, 2.0, *values], dtype=np.float32))


@pytest.fixture
def case(tmp_path):
    """Makes the case of a finite run of three steps, but for the `broken` tensors: {(step, key): value}.

    The output of the model as a whole, which has no depth, is broken with them and must not be named.
    """

    def build(broken, root=True, note=False):
        first = min(step for step, _ in broken)
        with Writer(tmp_path) as writer:
            if note:
                writer.event("nonfinite", "the gradient scaler skipped a step", step=first)
            for step in (0, 10, 20):
                for site in (*TENSORS, *WEIGHTS):
                    value = broken.get((step, site.key))
                    writer.summary(site, step, "live", summary() if value is None else summary(value))
                writer.summary(Site(""), step, "live", summary(*([np.nan] if root and step >= first else [])))
        return Case(Record(tmp_path))

    return build


def spread_from(step, *keys, value=np.nan):
    return {(at, key): value for at in (0, 10, 20) if at >= step for key in keys}


@pytest.mark.parametrize(
    ("broken", "kind", "key", "step", "before"),
    [
        (spread_from(0, "first:input", "first:output", "last:gradient"), "data", "first:input", 0, None),
        (spread_from(10, "norm:output", "last:input", "last:output"), "forward", "norm:output", 10, 0),
        (spread_from(10, "last:input", "last:output"), "between", "last:input", 10, 0),
        (
            spread_from(20, "norm:gradient", "first:gradient", "first@weight:gradient"),
            "backward",
            "norm:gradient",
            20,
            10,
        ),
        (spread_from(20, "last@weight:parameter", "last:output"), "update", "last@weight:parameter", 20, 10),
        (spread_from(20, "first@weight:update"), "update", "first@weight:update", 20, 10),
        (spread_from(10, "norm:output", value=np.inf), "forward", "norm:output", 10, 0),
        (spread_from(20, "norm:output", value=-np.inf), "forward", "norm:output", 20, 10),
    ],
)
def test_the_first_tensor_in_the_order_of_things_is_the_origin(case, broken, kind, key, step, before):
    found = origin(case(broken, root=kind in ("data", "forward", "between")))
    assert found is not None
    assert (found.kind, found.site.key, found.step, found.before) == (kind, key, step, before)
    assert found.share == pytest.approx(1 / 3)
    assert found.lasts


def test_scores_that_a_mask_shut_out_are_no_origin(case):
    assert origin(case(spread_from(0, "softmax:input", value=-np.inf), root=False)) is None


def test_a_nan_among_masked_scores_is_one(case):
    assert origin(case(spread_from(0, "softmax:input"), root=False)).site.key == "softmax:input"


def test_gradients_that_overflow_now_and_then_are_no_finding_and_those_that_stay_are_one(case):
    keys = [site.key for site in (*TENSORS, *WEIGHTS) if site.what == "gradient"]
    now_and_then = {(step, key): np.inf for step in (0, 10) for key in keys}
    record = case(now_and_then, root=False, note=True).record
    assert origin(Case(record)).kind == "backward"
    assert not diagnose(record, select="NS205")


def test_gradients_that_are_broken_to_the_end_are_a_finding(case):
    keys = [site.key for site in (*TENSORS, *WEIGHTS) if site.what == "gradient"]
    (found,) = diagnose(case(spread_from(10, *keys), root=False).record, select="NS205")
    assert found.severity == "error"
    assert found.sites == ("softmax",)  # the last layer's is the first on the way back
    assert found.message == (
        "The gradient at `softmax` is NaN or infinite (33.33%) at step 10, with finite activations. "
        "At step 0 everything was finite."
    )


def test_a_loss_that_is_not_finite_makes_the_whole_run_be_looked_through(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (0, 10, 20):
            writer.summary(NORM, step, "live", summary(*([np.nan] if step == 10 else [])))
            writer.scalar(None, step, "loss", float("nan") if step == 10 else 1.0)
    (found,) = diagnose(tmp_path, select="NS205")
    assert found.severity == "warning"  # the last step is finite
    assert found.since_step == 10
    assert "`norm` made NaN" in found.message
