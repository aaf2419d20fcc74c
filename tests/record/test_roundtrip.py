"""What is written is read back bitwise."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.catalog import CATALOG
from normscope.terms.site import Site
from normscope.terms.verdict import Arm, Effect, Trial, Verdict

WORDS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="#:@\x00"), max_size=6)
SITES = st.builds(
    Site,
    path=WORDS,
    what=st.sampled_from(["input", "output", "gradient", "parameter", "update", "statistic"]),
    call=st.integers(0, 3),
    name=WORDS,
    role=st.sampled_from(["norm", "producer", "activation", "other"]),
    kind=WORDS,
    depth=st.integers(-1, 9),
    channel_axis=st.none() | st.integers(-3, 3),
    spec=st.none() | st.sampled_from(list(CATALOG.values())),
    feeds=st.none() | WORDS,
    aliases=st.lists(WORDS, max_size=2).map(tuple),
)
FLOATS = st.floats(width=32)
SUMMARIES = st.lists(FLOATS, max_size=12).map(lambda values: Summary.of(np.array(values)))
STEPS = st.integers(0, 2**40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner), max_leaves=4
)


def bits(summary):
    arrays = {name: array + array.dtype.type(0) for name, array in summary.to_arrays().items()}  # −0 is kept as 0
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@settings(max_examples=25)
@given(
    summaries=st.dictionaries(
        st.tuples(SITES, STEPS, st.sampled_from(["live", "probe", "probe_eval"])), SUMMARIES, max_size=6
    ),
    scalars=st.dictionaries(
        st.tuples(st.none() | SITES, STEPS, st.sampled_from(["loss", "dead", "ß"])), st.floats(), max_size=6
    ),
    events=st.lists(
        st.tuples(st.sampled_from(["note", "crash"]), st.text(max_size=9), st.none() | STEPS, JSON), max_size=3
    ),
    meta=st.dictionaries(st.text(min_size=1, max_size=5), JSON, max_size=3),
)
def test_what_is_written_is_read_back(summaries, scalars, events, meta):
    with tempfile.TemporaryDirectory() as place:
        with Writer(Path(place) / "run", meta=meta) as writer:
            for (site, step, source), summary in summaries.items():
                writer.summary(site, step, source, summary)
            for (site, step, quantity), value in scalars.items():
                writer.scalar(site, step, quantity, value)
            for kind, text, step, data in events:
                writer.event(kind, text, step=step, data={"data": data})
        assert writer.faults == () and writer.dropped == 0
        record = Record(Path(place) / "run")

        last = {(site.key, step, source): summary for (site, step, source), summary in summaries.items()}
        for (key, step, source), summary in last.items():
            found = record.summary(key, step, source)
            assert found is not None and bits(found) == bits(summary)
        assert list(record.steps) == sorted({step for _, step, _ in summaries})
        numbers = {(site and site.key, step, name): value for (site, step, name), value in scalars.items()}
        for (key, step, name), value in numbers.items():
            series = record.series(key, name)
            assert same(series.values[list(series.steps).index(step)], value)
        told = [(event.kind, event.text, event.step, event.data["data"]) for event in record.events]
        assert told == events
        assert {key: record.meta[key] for key in meta} == meta
        described = {site.key: site for site, *_ in (*summaries, *scalars) if site}
        assert {site.key: site for site in record.sites} == described
        record.close()


def test_a_trial_is_read_back(run):
    trial = Trial(
        treatment="BatchNorm before every tanh",
        seeds=(0, 1),
        steps=2,
        arms=(
            Arm("untreated", ((2.0, math.inf), (2.0, 1.5)), ((0, "diverged"),)),
            Arm("treated", ((2.0, 1.0), (2.0, 0.5))),
        ),
        effect=Effect(-0.75, -1.0, -0.5, unit="nats"),
        verdict=Verdict.HOLDS,
        settings={"lr": 0.1},
    )
    with Writer(run) as writer:
        writer.trial(trial)
    (found,) = Record(run).trials
    assert found == trial


def test_a_summary_with_channels_is_read_back(run, tensor):
    summary = Summary.of(tensor(0, 16, 5, 3), channel_axis=1)
    with Writer(run) as writer:
        writer.summary(Site("bn"), 0, "probe", summary)
    found = Record(run).summary("bn", 0, "probe")
    assert found is not None and bits(found) == bits(summary) and found.channels is not None
    assert found.channels.mean.shape == (5,)


def test_the_newest_of_the_same_place_counts(run, summary):
    site = Site("fc")
    with Writer(run) as writer:
        for seed in (1, 2):
            writer.summary(site, 3, "live", summary(seed))
            writer.scalar(site, 3, "dead", seed)
            writer.meta(epoch=seed)
    record = Record(run)
    assert bits(record.summary("fc", 3)) == bits(summary(2))
    assert list(record.series("fc", "dead").values) == [2.0] and record.meta["epoch"] == 2


def test_what_json_cannot_hold_is_told_in_words(run):
    with Writer(run, meta={"limit": math.inf, "place": Path("a")}) as writer:
        writer.event("note", "odd", data={"value": math.nan, "array": np.arange(2)})
    record = Record(run)
    assert (record.meta["limit"], record.meta["place"]) == ("inf", "a")
    assert record.events[0].data == {"value": "nan", "array": [0, 1]}
    assert json.loads(json.dumps(record.events[0].to_dict()))["text"] == "odd"
