"""Derived quantities against torch on the tensors themselves, of one rank and of several."""

import numpy as np
import pytest
import torch

from normscope.record.quantities import DERIVED, QUANTILES
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.distance import DISTANCES
from normscope.stats.summary import Summary
from normscope.terms.site import Site

NAN, INF = float("nan"), float("inf")
STEPS = (0, 10, 20)


def write(run, entries, rank=0):
    with Writer(run, rank=rank) as writer:
        for site, step, source, tensor in entries:
            writer.summary(site, step, source, Summary.of(tensor))
    return Record(run)


def test_the_columns_tell_what_the_tensors_are(run, tensor):
    tensors = [tensor(step, 40, 25) * (1 + step) - step for step in STEPS]
    tensors[1][3, :5] = 0.0
    tensors[2][0, :4] = torch.tensor([NAN, INF, -INF, 0.0])
    record = write(run, [(Site("fc"), step, "live", x) for step, x in zip(STEPS, tensors)])
    finite = [x[x.isfinite()].double() for x in tensors]
    truth = {
        "mean": [x.mean() for x in finite],
        "std": [x.std(correction=0) for x in finite],
        "min": [x.min() for x in finite],
        "max": [x.max() for x in finite],
        "zeros": [0.0, 5 / 1000, 1 / 997],
        "nonfinite": [0.0, 0.0, 3 / 1000],
    }
    for quantity, expected in truth.items():
        series = record.series("fc", quantity)
        assert list(series.steps) == list(STEPS) and series.site.key == "fc:output" and series.source == "live"
        assert series.values == pytest.approx([float(value) for value in expected], rel=1e-12)
    quantiles = record.series("fc", "quantiles")
    assert quantiles.values.shape == (3, len(QUANTILES))
    exact = np.stack([np.quantile(x.numpy(), QUANTILES) for x in finite])
    assert quantiles.values == pytest.approx(exact, rel=0.07, abs=0.02)
    assert quantiles.last == quantiles.values[-1][QUANTILES.index(0.5)]


def test_a_tensor_without_a_finite_value_has_no_mean(run):
    record = write(run, [(Site("fc"), 0, "live", torch.full((4,), NAN)), (Site("fc"), 1, "live", torch.zeros(0))])
    assert np.isnan(record.series("fc", "mean").values).all() and np.isnan(record.series("fc", "max").values).all()
    assert record.series("fc", "nonfinite").values[0] == 1.0 and np.isnan(record.series("fc", "zeros").values[0])


def test_the_gradient_norm_is_of_the_whole_tensor_also_from_a_sample(run, tensor):
    gradient = tensor(1, 100, 100) * 1e-4 + 3e-5
    sampled = Summary.of(gradient.flatten()[::7])
    sampled = Summary(sampled.moments, sampled.sketch, sampled.low, sampled.high, gradient.numel())
    with Writer(run) as writer:
        writer.summary(Site("fc"), 0, "live", Summary.of(gradient))
        writer.summary(Site("fc", "gradient"), 0, "live", Summary.of(gradient))
        writer.summary(Site("fc", "gradient"), 1, "live", sampled)
        writer.summary(Site("fc", "gradient", name="weight"), 0, "live", Summary.of(2 * gradient))
        writer.summary(Site("fc", "parameter", name="weight"), 0, "live", Summary.of(gradient))
    record, norm = Record(run), float(gradient.double().norm())
    for site in ("fc", "fc:output", "fc:gradient", Site("fc")):
        values = record.series(site, "gradient_norm").values
        assert values[0] == pytest.approx(norm, rel=1e-6) and values[1] == pytest.approx(norm, rel=0.03)
    for site in ("fc@weight", "fc@weight:gradient", Site("fc", "parameter", name="weight")):
        assert record.series(site, "gradient_norm").values == pytest.approx([2 * norm], rel=1e-6)


def test_saturation_is_of_the_input_of_an_activation_or_of_the_output_that_feeds_one(run):
    x = torch.linspace(-4, 4, 100_001)
    tanh = float((x.abs() > 2.1783).double().mean())
    sigmoid = float((x.abs() > 4.3565).double().mean())
    record = write(
        run,
        [
            (Site("act", "input", role="activation", kind="Tanh"), 0, "live", x),
            (Site("act", "output", role="activation", kind="Tanh"), 0, "live", x.tanh()),
            (Site("block/sigmoid", "input", role="activation", kind="sigmoid"), 0, "live", x),
            (Site("fc", "input", role="producer", kind="Linear", feeds="tanh"), 0, "live", 0 * x),
            (Site("fc", "output", role="producer", kind="Linear", feeds="tanh"), 0, "live", x),
            (Site("relu", "input", role="activation", kind="ReLU"), 0, "live", x),
            (Site("relu", "output", role="activation", kind="ReLU"), 0, "live", x.relu()),
        ],
    )
    for site in ("act", "act:output", "fc", "fc:output"):
        assert record.series(site, "saturated").values == pytest.approx([tanh], abs=2e-3)
    assert record.series("act", "saturated").site.what == "input"
    assert record.series("block/sigmoid", "saturated").values == pytest.approx([sigmoid], abs=2e-3)
    assert len(record.series("relu", "saturated")) == 0
    assert "saturated" in record.quantities("act") and "saturated" not in record.quantities("relu")


@pytest.fixture
def drifting(run, tensor):
    """A site whose probe drifts by a tenth a probe, with training batches twice as wide."""
    probes = {step: tensor(0, 500) + step / 100 for step in STEPS}
    lives = {step: 2 * probes.get(step, tensor(0, 500)) for step in (*STEPS, 15)}
    entries = [(Site("fc"), step, "probe", x) for step, x in probes.items()]
    entries += [(Site("fc"), step, "live", x) for step, x in lives.items()]
    entries += [(Site("other"), 0, "live", tensor(1, 9))]
    summaries = {
        "probe": {s: Summary.of(x) for s, x in probes.items()},
        "live": {s: Summary.of(x) for s, x in lives.items()},
    }
    return write(run, entries), summaries


@pytest.mark.parametrize("distance", sorted(DISTANCES))
def test_internal_shift_is_from_probe_to_probe(drifting, distance):
    record, told = drifting
    probe, measure = told["probe"], DISTANCES[distance]
    series = record.shift("fc", distance=distance)
    assert list(series.steps) == [10, 20] and series.quantity == "internal_shift" and series.source == "probe"
    assert list(series.values) == [measure(probe[10], probe[0]), measure(probe[20], probe[10])]
    start = record.shift("fc", distance=distance, against="start")
    assert list(start.values) == [measure(probe[10], probe[0]), measure(probe[20], probe[0])]


def test_external_shift_is_from_the_probe_to_the_batch_of_the_same_step(drifting):
    record, told = drifting
    series = record.series("fc", "external_shift")
    assert list(series.steps) == list(STEPS) and series.source == "live"
    assert list(series.values) == [DISTANCES["shift"](told["live"][s], told["probe"][s]) for s in STEPS]
    internal = record.series("fc", "internal_shift")
    assert list(internal.values) == list(record.shift("fc").values)
    assert internal.values == pytest.approx([0.1, 0.1], rel=0.2)
    assert len(record.series("other", "internal_shift")) == 0 == len(record.series("other", "external_shift"))


def test_what_a_site_can_tell_is_listed_and_what_is_listed_can_be_told(drifting):
    record, _ = drifting
    assert {"internal_shift", "external_shift", "mean", "quantiles"} <= set(record.quantities("fc"))
    assert "internal_shift" not in record.quantities("other") and "gradient_norm" not in record.quantities("fc")
    for site in record.sites:
        for quantity in DERIVED:
            assert bool(len(record.series(site, quantity))) == (quantity in record.quantities(site))


def test_sources_are_kept_apart(drifting):
    record, told = drifting
    for source in ("live", "probe"):
        steps = sorted(told[source])
        assert list(record.series("fc", "mean", source=source).values) == [told[source][s].mean for s in steps]
        assert [step for step, _ in record.summaries("fc", source)] == steps
    assert record.series("fc", "mean").source == "live" and len(record.series("fc", "mean", source="probe_eval")) == 0
    assert record.summary("fc", 15, "probe") is None and record.summary("fc", 15) is not None


def test_a_bare_path_finds_the_tensor_that_has_the_number(run):
    with Writer(run) as writer:
        writer.scalar(Site("fc", "update", name="weight"), 0, "update_ratio", 0.001)
        writer.scalar(Site("fc", "parameter", name="bias"), 0, "age", 3.0)
        writer.scalar(Site("act", "input"), 0, "dead", 0.25)
        writer.scalar(Site("act", "output"), 0, "eval_gap", 0.5)
        writer.scalar(Site("act", "output", call=1), 0, "eval_gap", 0.75)
        writer.scalar(None, 0, "loss", 2.0)
    record = Record(run)
    for site, quantity, value, key in (
        ("fc", "update_ratio", 0.001, "fc@weight:update"),
        ("fc@weight", "update_ratio", 0.001, "fc@weight:update"),
        ("act", "dead", 0.25, "act:input"),
        ("act:output", "dead", 0.25, "act:input"),
        ("act", "eval_gap", 0.5, "act:output"),
        ("act#1", "eval_gap", 0.75, "act#1:output"),
    ):
        series = record.series(site, quantity)
        assert series.last == value and series.site.key == key and series.source == ""
    assert record.quantities("fc") == ("age", "update_ratio") and record.quantities("fc@bias") == ("age",)
    assert len(record.series("fc@bias", "update_ratio")) == 0
    assert record.quantities("act") == ("dead", "eval_gap") and record.quantities(None) == ("loss",)
    assert len(record.series("fc", "dead")) == 0 == len(record.series(None, "overhead"))
    assert np.isnan(record.series(None, "overhead").last)


def test_ranks_are_read_as_one(run, tensor):
    x = tensor(3, 90) * torch.linspace(0.1, 9, 90)
    x[:3] = torch.tensor([0.0, NAN, INF])
    for rank, part in enumerate(x.split(30)):
        write(run, [(Site("fc"), 4, "live", part)], rank)
    write(run, [(Site("fc"), 5, "live", x[:1])], 3)
    with Writer(run, rank=4, meta={"model": "of rank 4", "only": 4}) as writer:
        writer.scalar(None, 4, "loss", 1.0)
        writer.event("note", "second")
    with Writer(run, rank=3, meta={"model": "of rank 3"}) as writer:
        writer.scalar(None, 6, "loss", 5.0)
    with Writer(run, rank=5, meta={"model": "of rank 5"}) as writer:
        writer.scalar(None, 4, "loss", 2.0)
        writer.event("note", "third")
    record, whole = Record(run), Summary.of(x)
    merged = record.summary("fc", 4)
    assert merged is not None and np.array_equal(merged.sketch.counts, whole.sketch.counts) and merged.size == 90
    for quantity in ("mean", "std", "min", "max", "zeros", "nonfinite", "quantiles"):
        series = record.series("fc", quantity)
        alone = write(run.with_name("alone"), [(Site("fc"), 4, "live", x)]).series("fc", quantity)
        assert list(series.steps) == [4, 5] and series.values[0] == pytest.approx(alone.values[0], rel=1e-12)
    loss = record.series(None, "loss")
    assert list(loss.steps) == [4, 6] and list(loss.values) == [1.5, 5.0]
    assert record.meta["model"] == "of rank 3" and record.meta["only"] == 4
    notes = [(event.rank, event.text) for event in record.events if "segment" not in event.text]
    assert notes == [(4, "second"), (5, "third")]
    assert record.complete and record.describe().endswith("ranks     0, 1, 2, 3, 4, 5")
