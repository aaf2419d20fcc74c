"""A run is read once for all its tensors: the number of questions to the record does not grow with the network."""

import numpy as np
import pytest
import torch
from torch import nn

from normscope.diagnose.engine import diagnose
from normscope.diagnose.run import NUMBERS, SAMPLES, Run
from normscope.diagnose.scene import Scene
from normscope.record.database import Database
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.site import Site


def network(blocks):
    layers = [part for _ in range(blocks) for part in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 8))


@pytest.fixture
def questions(monkeypatch):
    asked = []
    query = Database.query
    monkeypatch.setattr(Database, "query", lambda self, sql, *rest: asked.append(sql) or query(self, sql, *rest))
    return asked


def test_a_diagnosis_asks_as_often_of_twelve_blocks_as_of_two(tmp_path, questions):
    counts = []
    for blocks in (2, 12):
        record = Scene(lambda blocks=blocks: network(blocks), steps=12).record(tmp_path / str(blocks))
        questions.clear()
        found = diagnose(record)
        assert not found.faults
        counts.append(len(questions))
    assert 10 < counts[0] == counts[1] < 100


def long(path, steps):
    """A record of one layer over many steps, its mean the step."""
    with Writer(path, queue_limit=steps) as writer:
        for step in range(steps):
            writer.summary(
                Site("fc", role="producer", depth=0), step, "live", Summary.of(torch.full((4,), float(step)))
            )
            writer.scalar(Site("fc", role="producer", depth=0), step, "eval_gap", step)
    return Run(Record(path))


def test_of_a_long_run_some_steps_are_read_and_the_last_three_among_them(tmp_path):
    run = long(tmp_path / "long", 3 * NUMBERS)
    (site,) = run.tensors.values()
    mean = run.over(site, "mean")
    assert len(mean) <= NUMBERS
    assert mean.values.tolist() == mean.steps.tolist()
    assert mean.steps[-3:].tolist() == [3 * NUMBERS - 3, 3 * NUMBERS - 2, 3 * NUMBERS - 1]
    assert int(np.diff(mean.steps).max()) <= 4
    assert len(run.summaries(site)) == SAMPLES
    assert len(run.scalar(site, "eval_gap")) == 3 * NUMBERS  # numbers are few: all of them


def test_of_a_short_run_every_step_is_read(tmp_path):
    run = long(tmp_path / "short", 20)
    (site,) = run.tensors.values()
    assert run.over(site, "mean").steps.tolist() == list(range(20))
    assert len(run.over(Site("nowhere"), "mean")) == len(run.scalar(Site("nowhere"), "eval_gap")) == 0


def test_what_needs_whole_summaries_is_read_where_they_are(tmp_path):
    site = Site("tanh", "input", role="activation", kind="Tanh", depth=0)
    with Writer(tmp_path / "run") as writer:
        for step in range(20):
            writer.summary(site, step, "live", Summary.of(torch.tensor([0.0, float(step)])))
    track = Run(Record(tmp_path / "run")).over(site, "saturated")
    assert len(track) == SAMPLES
    assert track.values[0] == 0.0
    assert track.values[-1] == 0.5


def test_a_number_is_found_at_another_tensor_of_the_module(tmp_path):
    weight = Site("fc", "parameter", name="weight", depth=0)
    with Writer(tmp_path / "run") as writer:
        writer.summary(Site("fc", depth=0), 0, "live", Summary.of(torch.ones(4)))
        writer.summary(weight, 0, "live", Summary.of(torch.ones(4)))
        writer.scalar(Site("fc", depth=0), 0, "entropy", 1.0)
        writer.scalar(weight, 0, "radial_gradient", 2.0)
    run = Run(Record(tmp_path / "run"))
    assert run.scalar(weight, "radial_gradient").last == run.scalar(Site("fc"), "radial_gradient").last == 2.0
    assert run.scalar(Site("fc", "input"), "entropy").last == 1.0
    assert len(run.scalar(weight, "entropy")) == 0  # which is of no parameter
    assert len(run.scalar(Site("fc", call=1), "entropy")) == 0
