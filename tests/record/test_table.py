"""A record as a table, at chosen steps, and the quantities that need more than one series."""

import sys

import numpy as np
import pytest
import torch

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.errors import MissingExtraError, UnknownNameError
from normscope.terms.site import Site

OUT = Site("fc", role="producer", kind="Linear", depth=0, channel_axis=1)
WEIGHT = OUT.at("parameter", "weight")
COLUMNS = ["step", "site", "path", "what", "depth", "quantity", "source", "value"]


@pytest.fixture
def record(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(0, 50, 10):
            at = torch.tensor([[0.0, 0.0], [2.0, 4.0]]) + step
            writer.summary(OUT, step, "probe", Summary.of(at, 1))
            writer.summary(OUT, step, "live", Summary.of(at + 1))
            writer.summary(WEIGHT, step, "live", Summary.of(torch.tensor([[3.0, 4.0]]) * (1 + step)))
            writer.scalar(None, step, "learning_rate", 0.5)
            writer.scalar(OUT, step, "dead", step / 100)
    return Record(tmp_path)


def test_only_the_steps_that_are_asked_for_are_read(record):
    assert [step for step, _ in record.summaries(OUT, "probe", steps=[40, 10, 7])] == [10, 40]
    assert list(record.series("fc", "mean", steps=slice(10, 40)).steps) == [10, 20, 30]
    assert list(record.series("fc", "quantiles", steps=slice(None, None, 2)).steps) == [0, 20, 40]
    assert list(record.series("fc", "dead", steps=(20,)).values) == [0.2]
    assert list(record.series(None, "learning_rate", steps=()).steps) == []


@pytest.mark.parametrize("against", ["previous", "start"])
@pytest.mark.parametrize("kind", ["internal", "external"])
def test_a_shift_at_some_steps_is_that_part_of_the_whole_shift(kind, against, record):
    whole = record.shift("fc", kind=kind, against=against)
    some = record.shift("fc", kind=kind, against=against, steps=[0, 20, 40])
    kept = np.isin(whole.steps, [0, 20, 40])
    assert list(some.steps) == list(whole.steps[kept]) and list(some.values) == list(whole.values[kept])


def test_a_shift_of_each_channel_is_in_its_own_deviations(record):
    shift = record.shift("fc", distance="mean_shift", per_channel=True)
    assert shift.steps.tolist() == [10, 20, 30, 40] and shift.values.shape == (4, 2)
    assert shift.values[0].tolist() == [10.0, 5.0]  # σ is 1 and 2
    assert not record.shift("fc", distance="std_shift", per_channel=True, against="start").values.any()
    assert len(record.shift("fc", distance="mean_shift", per_channel=True, kind="external")) == 0
    assert len(record.shift("fc", per_channel=True)) == 0  # these summaries have moments alone
    with pytest.raises(UnknownNameError, match="mean_shift, psi"):
        record.shift("fc", distance="kolmogorov_smirnov", per_channel=True)


def test_the_share_of_the_parameters_in_the_shift(record):
    inner, outer = (record.shift("fc", kind=kind).values for kind in ("internal", "external"))
    share = record.series("fc", "internal_share")
    assert share.values == pytest.approx(inner / (inner + outer[1:])) and list(share.steps) == [10, 20, 30, 40]
    assert "internal_share" in record.quantities("fc")


def test_the_length_of_a_weight_and_the_rate_it_leaves(record):
    assert record.series("fc@weight", "weight_norm").values == pytest.approx([5, 55, 105, 155, 205])
    assert record.series("fc@weight", "effective_learning_rate", steps=[10]).values == pytest.approx([0.5 / 55**2])


def test_a_record_is_a_table_of_values(record):
    told = record.to_numpy()
    assert list(told) == COLUMNS and len({len(column) for column in told.values()}) == 1

    def values(**wanted):
        chosen = np.logical_and.reduce([told[name] == value for name, value in wanted.items()])
        return told["step"][chosen].tolist(), told["value"][chosen].tolist()

    assert values(site="fc:output", quantity="mean", source="probe")[1] == [1.5 + step for step in range(0, 50, 10)]
    assert values(site="fc:output", quantity="mean", source="live")[1] == [2.5 + step for step in range(0, 50, 10)]
    assert values(site="fc:output", quantity="dead") == ([0, 10, 20, 30, 40], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert values(site="", quantity="learning_rate")[1] == [0.5] * 5
    assert values(what="parameter", quantity="weight_norm")[1][0] == pytest.approx(5.0)
    assert values(quantity="internal_shift", what="output")[0] == [10, 20, 30, 40]
    assert not values(quantity="gradient_norm")[0] and not values(quantity="weight_norm", what="output")[0]


def test_a_table_holds_what_is_asked_for(record):
    some = record.to_numpy(sites=["fc"], quantities=["std"], steps=[20])
    assert set(some["quantity"]) == {"std"} and set(some["step"]) == {20} and set(some["site"]) == {"fc:output"}
    assert record.to_numpy(quantities=["eval_gap"])["value"].size == 0
    with pytest.raises(UnknownNameError, match="`nowhere`"):
        record.to_numpy(sites=["nowhere"])


def test_data_frames_and_arrow_tables_hold_the_same(record):
    told, frame, table = record.to_numpy(), record.to_pandas(), record.to_arrow()
    assert list(frame.columns) == table.column_names == COLUMNS
    for name in COLUMNS:
        assert frame[name].tolist() == table[name].to_pylist() == told[name].tolist()
    pivoted = record.to_pandas(quantities=["mean"]).query("source == 'probe'").set_index("step")["value"]
    assert pivoted[20] == 21.5


@pytest.mark.parametrize(("name", "package"), [("to_pandas", "pandas"), ("to_arrow", "pyarrow")])
def test_a_missing_extra_says_what_to_install(name, package, record, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'normscope\[data\]'"):
        getattr(record, name)()


def test_a_quantity_that_is_nowhere_is_refused_and_one_that_is_not_there_yet_is_not(record):
    with pytest.raises(UnknownNameError, match="did you mean `std`"):
        record.to_numpy(quantities=["stdd"])
    assert set(record.to_numpy(quantities=["dead", "eval_gap"])["quantity"]) == {"dead"}
    with pytest.raises(UnknownNameError) as refused:
        record.series("fd", "mean")
    assert "choose from: fc" in str(refused.value)
