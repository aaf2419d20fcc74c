"""What is read of all tensors at once is what is read of each."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch

from normscope.record.grid import averaged
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.errors import RecordError
from normscope.terms.site import Site

WEIGHT = Site("fc", "parameter", name="weight", role="producer", depth=1)
UPDATE = WEIGHT.at("update", "weight")
SITES = (Site("in", role="producer", depth=0), Site("fc", role="producer", depth=1), WEIGHT, UPDATE)


def write(run, summary, steps, rank=0, seed=0, skips=()):
    with Writer(run, rank=rank) as writer:
        for step in steps:
            for at, site in enumerate(SITES):
                if at not in skips:
                    writer.summary(site, step, "live", summary(seed + 10 * step + at, 8 + at))
                    writer.scalar(site, step, "eval_gap", seed + step + at)
            writer.scalar(UPDATE, step, "update_ratio", 0.1)


@pytest.fixture(params=["one rank", "two ranks", "resumed"])
def record(request, run, summary):
    """One rank; two that saw different steps and sites; one that was resumed over its last steps."""
    write(run, summary, range(6))
    if request.param == "two ranks":
        write(run, summary, range(2, 8), rank=1, seed=500, skips=(0,))
    if request.param == "resumed":
        write(run, summary, range(4, 8), seed=900, skips=(1,))
    with Record(run) as record:
        yield record


def same(one, other):
    assert one.steps.tolist() == other.steps.tolist()
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("steps", [None, [0, 3, 4, 5, 6, 99]])
def test_a_grid_holds_the_series_of_every_tensor(record, steps):
    grid = record.grid("live", steps)
    for site in record.sites:
        for quantity in ("mean", "std", "min", "max", "zeros", "nonfinite"):
            told = record.series(site, quantity, source="live", steps=steps)
            assert len(told) > 1
            same(grid.series(site, quantity), told)
        same(grid.series(site, "gradient_norm"), grid.series(site, "weight_norm"))  # both are the length
    assert grid.series(WEIGHT, "weight_norm").values.tolist() == (
        record.series(WEIGHT, "weight_norm", source="live", steps=steps).values.tolist()
    )
    assert len(grid.series(Site("nowhere"), "mean")) == len(record.grid("probe").series(WEIGHT, "mean")) == 0


def test_columns_of_a_grid_are_those_of_the_tensor(record):
    grid = record.grid()
    for site in record.sites:
        one, other = grid.columns(site), record.columns(site)
        assert one.steps.tolist() == other.steps.tolist()
        assert one.moments.m2.tolist() == other.moments.m2.tolist()
        assert one.size.tolist() == other.size.tolist()


@pytest.mark.parametrize(("steps", "read"), [(None, 6), (3, 3), (slice(2, 4), 2), ([5, 1, 1], 2)])
def test_the_steps_are_chosen_as_for_a_series(run, summary, steps, read):
    write(run, summary, range(6))
    assert len(Record(run).grid("live", steps).steps) == len(Record(run).excerpt("live", steps).steps) == read


def test_an_excerpt_holds_the_summaries_of_every_tensor(record):
    excerpt = record.excerpt("live", [0, 4, 5])
    for site in record.sites:
        for step in (0, 4, 5):
            asked, told = record.summary(site, step), excerpt.summary(site, step)
            assert (asked is None) == (told is None)
            if asked is not None:
                assert told.to_dict() == asked.to_dict()
    assert excerpt.summary(WEIGHT, 3) is None  # which was not asked for


def test_numbers_of_all_tensors_are_those_of_each(record):
    told = record.scalars("eval_gap")
    assert set(told) == {site.key for site in SITES}
    for site in record.sites:
        assert told[site.key].site == site
        same(told[site.key], record.series(site, "eval_gap"))
    ratios = record.scalars("update_ratio")
    assert list(ratios) == [UPDATE.key]
    same(ratios[UPDATE.key], record.series(UPDATE, "update_ratio"))
    assert record.scalars("no_such") == {}


def test_the_steps_of_a_source(run, summary):
    with Writer(run) as writer:
        for step in range(4):
            writer.summary(SITES[0], step, "live", summary(step))
        writer.summary(SITES[0], 2, "probe", summary())
    record = Record(run)
    assert record.steps_of("live").tolist() == [0, 1, 2, 3]
    assert record.steps_of("probe").tolist() == [2]
    assert record.steps_of("probe_eval").tolist() == []


def test_the_mean_of_the_ranks_is_over_those_that_have_the_step():
    steps, values = averaged([(np.array([0, 2]), np.array([1.0, 3.0])), (np.array([2, 5]), np.array([5.0, 7.0]))])
    assert steps.tolist() == [0, 2, 5]
    assert values.tolist() == [1.0, 4.0, 7.0]


def test_what_is_not_finite_is_found_wherever_it_is(run):
    infinite = Summary.of(torch.tensor([1.0, 2.0, -torch.inf, -torch.inf]))
    wrong = Summary.of(torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 0.0]))
    for rank in (0, 1):
        with Writer(run, rank=rank) as writer:
            writer.summary(SITES[0], 0, "live", Summary.of(torch.ones(4)))
            writer.summary(SITES[0], 1, "live", infinite)
            writer.summary(SITES[1], 1, "probe", wrong if rank else infinite)
    found = {(one.site, one.step, one.source): one for one in Record(run).nonfinite()}
    assert set(found) == {(SITES[0], 1, "live"), (SITES[1], 1, "probe")}
    masked, broken = found[SITES[0], 1, "live"], found[SITES[1], 1, "probe"]
    assert (masked.share, masked.masked) == (0.5, True)
    assert (broken.share, broken.masked) == (5 / 9, False)


@pytest.mark.parametrize(
    ("sql", "asked"),
    [
        ("UPDATE summary SET mean = 'x'", lambda record: record.grid()),
        ("UPDATE summary SET site = 'x' WHERE site = 1", lambda record: record.grid()),
        ("UPDATE summary SET nan = 1, pos_inf = 2, neg_inf = x'00'", lambda record: record.nonfinite()),
        ("UPDATE scalar SET value = 'x'", lambda record: record.scalars("eval_gap")),
    ],
)
def test_what_a_stranger_wrote_is_a_record_error(run, summary, sql, asked):
    write(run, summary, range(2))
    with closing(sqlite3.connect(run / "rank0.sqlite")) as file:
        file.execute(sql)
        file.commit()
    with pytest.raises(RecordError, match="in a record cannot be read"):
        asked(Record(run))


def test_rows_of_no_site_are_left_out(run, summary):
    write(run, summary, range(2))
    with closing(sqlite3.connect(run / "rank0.sqlite")) as file:
        file.execute("UPDATE summary SET site = 9223372036854775807 WHERE site = 1")
        file.commit()
    record = Record(run)
    assert len(record.grid().series(SITES[0], "mean")) == 0
    assert len(record.grid().series(SITES[1], "mean")) == 2
    assert record.excerpt().summary(SITES[0], 0) is None
