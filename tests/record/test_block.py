"""Summaries that stand in blocks are read as those that stand alone, and as those of the first schema."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch

from normscope.record.block import TOGETHER, block_of
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.digest import Digest, Digests
from normscope.stats.summary import Summary
from normscope.terms.errors import RecordError
from normscope.terms.site import Site

WEIGHT = Site("fc", "parameter", name="weight", role="producer", depth=1)
SITES = [Site("in", depth=0), WEIGHT, WEIGHT.at("update", "weight"), Site("out", depth=2)]
SITES += [Site(f"more{at}", depth=3 + at) for at in range(TOGETHER)]


def told(step, summary, sites=SITES):
    """Whose lengths, signs and faults differ from tensor to tensor, one of them without a finite value."""
    made = [summary(100 * step + at, 8 + at % 5) for at in range(len(sites))]
    made[-1] = Summary.of(torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0]))
    made[-2] = Summary.of(torch.full((3,), torch.nan, dtype=torch.float64))
    return made


def write(run, summary, steps, together, sites=SITES):
    with Writer(run) as writer:
        for step in steps:
            made = told(step, summary, sites)
            if together:
                writer.block(step, "live", sites, Digests.of([Digest.of(each) for each in made]))
            for site, each in zip(sites, made) if not together else ():
                writer.summary(site, step, "live", each)


@pytest.fixture
def both(tmp_path, summary):
    """The same run twice, resumed over its last steps: with each summary alone, and in blocks."""
    places = tmp_path / "alone", tmp_path / "together"
    for place in places:
        write(place, summary, range(5), place.name == "together")
        write(place, summary, range(3, 7), place.name == "together", SITES[1:])
    with Record(places[0]) as alone, Record(places[1]) as together:
        yield alone, together


def equal(one, other):
    np.testing.assert_array_equal(one.steps, other.steps)
    np.testing.assert_array_equal(one.values, other.values)


def test_blocks_are_read_as_rows(both):
    alone, together = both
    assert [site.key for site in alone.sites] == [site.key for site in together.sites]
    assert alone.steps.tolist() == together.steps.tolist() == alone.steps_of("live").tolist() == list(range(7))
    assert alone.catalog() == together.catalog()
    assert [rank.count() for rank in alone._ranks()] == [rank.count() for rank in together._ranks()]
    key = lambda one: (one.site.key, one.step)  # noqa: E731
    for one, other in zip(*(sorted(record.nonfinite(), key=key) for record in both), strict=True):
        assert (key(one), one.share, one.masked, one.source) == (key(other), other.share, other.masked, other.source)


def test_a_tensor_is_read_out_of_its_block(both):
    alone, together = both
    for site in (*SITES[:3], SITES[TOGETHER - 1], SITES[TOGETHER], *SITES[-2:]):
        for quantity in ("mean", "std", "min", "max", "zeros", "nonfinite", "quantiles"):
            equal(alone.series(site, quantity), together.series(site, quantity))
        for (step, one), (other_step, other) in zip(alone.summaries(site), together.summaries(site), strict=True):
            assert step == other_step and one.sketch == other.sketch and one.size == other.size
        assert len(together.summaries(site, steps=[0, 4, 99])) == (1 if site is SITES[0] else 2)
        assert together.summary(site, 99) is None


def test_all_tensors_are_read_out_of_their_blocks(both):
    grids, excerpts = ([record.grid("live") for record in both], [record.excerpt("live") for record in both])
    for site in SITES:
        equal(*(grid.series(site, "std") for grid in grids))
        for step in range(8):
            one, other = (excerpt.summary(site, step) for excerpt in excerpts)
            assert (one is None) == (other is None)
            assert one is None or (one.sketch == other.sketch and one.moments.count == other.moments.count)


def test_the_update_ratio_is_what_both_summaries_tell(both, summary):
    for record in both:
        ratios = record.series("fc", "update_ratio")
        values, changes = ([summary(at, 8 + place).rms for at in (1 * place, 100 + place)] for place in (1, 2))
        np.testing.assert_allclose(ratios.values[:2], np.divide(changes, values), rtol=1e-12)
        assert "update_ratio" in record.quantities("fc@weight:update") and "update_ratio" not in record.quantities("in")
        equal(record.scalars("update_ratio")["fc@weight:update"], ratios)


def test_a_record_of_the_first_schema_is_read_and_continued(tmp_path, summary):
    write(tmp_path, summary, range(2), together=False)
    with closing(sqlite3.connect(tmp_path / "rank0.sqlite")) as file:
        file.executescript("DROP TABLE block; DROP TABLE layout; PRAGMA user_version = 1;")
    record = Record(tmp_path)
    assert (
        record.steps.tolist() == [0, 1]
        and len(record.grid().steps) == 2
        and "with 136 summaries" in str(record.describe())
    )
    assert len(record.series("in", "mean")) == 2 and record.excerpt().summary(SITES[0], 1) is not None
    assert len(record.nonfinite()) == 4
    write(tmp_path, summary, range(2, 4), together=True)
    assert len(record.series("in", "mean")) == 4 and record.steps.tolist() == [0, 1, 2, 3]
    assert len(record.nonfinite()) == 8


@pytest.mark.parametrize(
    ("sql", "asked"),
    [
        ("UPDATE block SET numbers = x'00'", lambda record: record.grid()),
        ("UPDATE block SET numbers = 'words'", lambda record: record.series("in", "mean")),
        ("UPDATE block SET numbers = zeroblob(88)", lambda record: record.grid()),
        ("UPDATE block SET numbers = zeroblob(88)", lambda record: record.excerpt()),
        ("UPDATE block SET numbers = zeroblob(88)", lambda record: record.summaries(SITES[3])),
        ("UPDATE block SET codes = x'ff'", lambda record: record.summary("in", 0)),
        ("UPDATE block SET codes = 'words'", lambda record: record.summary("in", 0)),
        ("UPDATE layout SET sites = x'00' WHERE id = 1", lambda record: record.series("in", "mean")),
        ("UPDATE layout SET sites = 7 WHERE id = 1", lambda record: record.excerpt()),
        ("DELETE FROM layout", lambda record: record.grid()),
    ],
)
def test_what_a_stranger_wrote_is_a_record_error(tmp_path, summary, sql, asked):
    write(tmp_path, summary, range(2), together=True)
    with closing(sqlite3.connect(tmp_path / "rank0.sqlite")) as file:
        file.execute(sql)
        file.commit()
    with pytest.raises(RecordError, match="in a record cannot be read"):
        asked(Record(tmp_path))


def test_a_block_is_of_as_many_tensors_as_it_has_summaries(summary):
    with pytest.raises(ValueError, match="2 summaries of 1 tensors"):
        block_of(0, "live", SITES[:1], Digests.of([Digest.of(summary())] * 2))
    with pytest.raises(ValueError, match="a summary comes from one of"):
        block_of(0, "alive", SITES[:1], Digests.of([Digest.of(summary())]))


def test_digests_are_those_they_were_made_of(summary):
    single = [Digest.of(summary(seed)) for seed in range(3)]
    many = Digests.of(single)
    assert list(many) == single and many[1] == single[1] and len(many[1:]) == 2
    assert list(many.at([2, 0, 2])) == [single[2], single[0], single[2]]
    assert list(Digests.joined([many, many[:1]])) == [*single, single[0]] and len(Digests.joined([])) == 0
