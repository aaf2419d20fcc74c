"""What a sweep tells of every tensor is what the record tells of each, at the steps that are read."""

import pytest
import torch

from normscope.record.database import Database
from normscope.record.reader import Record
from normscope.record.sweep import Sweep
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.site import Site

PARTS = (("output", ""), ("input", ""), ("gradient", ""), ("parameter", "weight"), ("update", "weight"))
STEPS = 12


def write(path, layers, rank=0):
    with Writer(path, rank=rank, queue_limit=100_000) as writer:
        for step in range(STEPS):
            torch.manual_seed(step + 100 * rank)
            for at in range(layers):
                tanh = Site(f"{at}", role="activation", kind="Tanh", depth=at)
                for what, name in PARTS:
                    writer.summary(tanh.at(what, name), step, "live", Summary.of(torch.randn(32, 4) * (1 + step), 1))
                if step % 2 == 0:
                    for what in ("output", "input"):
                        writer.summary(tanh.at(what), step, "probe", Summary.of(torch.randn(32, 4) + at, 1))
                    writer.scalar(tanh, step, "dead", step / 100)
                writer.scalar(tanh.at("update", "weight"), step, "update_ratio", 0.1 * step)
            writer.scalar(None, step, "learning_rate", 0.5)
    return Record(path)


def everything(record, numbers=1000, whole=1000):
    return Sweep(record, numbers=numbers, whole=whole, choose=lambda steps, most: steps[:most])


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_quantity_of_every_tensor_is_the_records(tmp_path, ranks):
    for rank in range(ranks):
        record = write(tmp_path, 2, rank)
    record, count = Record(tmp_path), 0
    sweep = everything(record)
    assert list(sweep.tensors.values()) == list(record.sites)
    for site in record.sites:
        assert sweep.quantities(site) == record.quantities(site)
        for quantity in record.quantities(site):
            told, asked = sweep.series(site, quantity), record.series(site, quantity)
            assert (told.source, told.steps.tolist()) == (asked.source, asked.steps.tolist()), (site.key, quantity)
            assert told.values.tolist() == asked.values.tolist() or quantity == "internal_share"
            count += len(told) > 0
    assert count > 60
    assert sweep.series(None, "learning_rate").values.tolist() == [0.5] * STEPS
    assert (
        len(sweep.series(None, "loss")) == len(sweep.series("nowhere", "mean")) == len(sweep.series("0", "such")) == 0
    )


def test_the_first_steps_alone_are_read_where_that_is_asked(tmp_path):
    sweep = everything(write(tmp_path, 1), numbers=5, whole=3)
    assert sweep.series("0", "mean").steps.tolist() == [0, 1, 2, 3, 4]
    assert sweep.series("0", "saturated", "live").steps.tolist() == [0, 1, 2]
    assert sweep.series("0", "internal_shift").steps.tolist() == [2, 4]
    assert sweep.all_steps("live").tolist() == list(range(STEPS))
    assert [step for step, _ in sweep.summaries(Site("0"), "probe_eval")] == []


def test_a_shift_is_against_the_probe_before_also_where_that_is_not_read(tmp_path):
    record = write(tmp_path, 1)
    sweep = Sweep(record, numbers=2, whole=2, choose=lambda steps, most: steps[-most:])
    asked = record.series("0", "internal_shift")
    assert sweep.series("0", "internal_shift").values.tolist() == asked.values[-2:].tolist()


def test_a_sweep_asks_as_often_of_many_layers_as_of_few(tmp_path, monkeypatch):
    asked, counts = [], []
    query = Database.query
    monkeypatch.setattr(Database, "query", lambda self, sql, *rest: asked.append(sql) or query(self, sql, *rest))
    for layers in (1, 8):
        sweep = everything(write(tmp_path / str(layers), layers))
        asked.clear()
        for site in sweep.tensors.values():
            for quantity in sweep.quantities(site):
                sweep.series(site, quantity)
        counts.append(len(asked))
    assert 10 < counts[0] == counts[1] < 60
