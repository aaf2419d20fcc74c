"""A watched training ends bitwise where an unwatched one ends, whatever happens inside Normscope."""

import importlib
import random
import warnings

import pytest
import torch
from torch.nn import functional as F

import normscope as ns
from normscope.terms.errors import NormscopeWarning
from normscope.watch.session import watch


@pytest.mark.parametrize("every", [1, "auto"])
@pytest.mark.parametrize("given", [False, True], ids=["first batch", "probe and loss"])
def test_a_watched_training_is_bitwise_the_unwatched_one(training, every, given, same, faults, tmp_path):
    alone = training.run()
    torch.manual_seed(7)
    probe = {"probe": (training.batch(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])), "loss_fn": _loss} if given else {}
    watched = training.run(watching=lambda m, o: watch(m, o, tmp_path, every=every, **probe))
    for part, left in alone.items():
        assert same(left, watched[part]), part
    assert faults(tmp_path) == []
    steps = ns.Record(tmp_path).steps
    assert list(steps) == list(range(50)) if every == 1 else steps[0] == 0


def _loss(output, target):
    return F.cross_entropy(output[:8], target)


POINTS = [
    "normscope.watch.taps:row_of",
    "normscope.watch.update:rows_of_all",
    "normscope.watch.observer:digests",
    "normscope.watch.fixed_batch:sites",
    "normscope.watch.observer:FixedBatch",
    "normscope.watch.fixed_batch:observe",
    "normscope.watch.fixed_batch:first_tensor",
    "normscope.watch.measure:summary_of",
    "normscope.watch.replica:_take_buffers",
    "normscope.watch.taps:first_tensor",
    "normscope.watch.taps:loss_in_backward",
    "normscope.watch.update:calling_scaler",
    "normscope.watch.account:Cost",
    "normscope.record.writer:Writer.summary",
    "normscope.record.writer:Writer.scalar",
    "normscope.record.writer:Writer.event",
    "normscope.watch.taps:Taps.attach",
    "normscope.watch.taps:Taps.end",
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("often", [1.0, 0.1])
def test_a_fault_inside_never_reaches_the_loop(point, often, trainings, same, tmp_path, monkeypatch):
    training = trainings["conv"]
    alone = training.run(12)
    module, _, name = point.partition(":")
    holder, _, attribute = f"{module}.{name}".rpartition(".")
    monkeypatch.setattr(*_failing(holder, attribute, often))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", NormscopeWarning)
        watched = training.run(12, watching=lambda m, o: watch(m, o, tmp_path, every=1))
    of_ours = [str(warning.message) for warning in warned if warning.category is NormscopeWarning]
    assert len(of_ours) == 1 or (often < 1 and not of_ours)
    for part, left in alone.items():
        assert same(left, watched[part]), part


def _failing(holder, attribute, often):
    try:
        target = importlib.import_module(holder)
    except ModuleNotFoundError:  # a class
        module, _, name = holder.rpartition(".")
        target = getattr(importlib.import_module(module), name)
    true = getattr(target, attribute)
    chance = random.Random(0)  # not the one that the training uses

    def broken(*args, **kwargs):
        if chance.random() < often:
            raise RuntimeError(f"{attribute} was broken on purpose")
        return true(*args, **kwargs)

    return target, attribute, broken


def test_a_fault_is_recorded_with_its_traceback_and_the_part_is_switched_off(trainings, tmp_path, monkeypatch):
    monkeypatch.setattr(*_failing("normscope.watch.fixed_batch", "observe", 1.0))
    monkeypatch.setattr(*_failing("normscope.watch.update", "calling_scaler", 1.0))
    with pytest.warns(NormscopeWarning, match="The training goes on"):
        trainings["mlp"].run(12, watching=lambda m, o: watch(m, o, tmp_path, every=1))
    record = ns.Record(tmp_path)
    told = [event for event in record.events if event.kind == "fault"]
    assert [event.data["off"] for event in told if event.data["part"] == "observer"] == [False, False, True]
    assert "calling_scaler was broken on purpose" in told[-1].data["traceback"]
    assert record.complete


def test_an_interrupt_passes_and_the_record_tells_it(trainings, tmp_path):
    model, optimizer = trainings["mlp"].start()

    def interrupted():
        with watch(model, optimizer, tmp_path, every=1):
            trainings["mlp"].one_step(model, optimizer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    record = ns.Record(tmp_path)
    assert record.complete
    (crash,) = [event for event in record.events if event.kind == "crash"]
    assert crash.step == 1 and "KeyboardInterrupt" in crash.text
    assert all(not module._forward_pre_hooks for module in model.modules())
