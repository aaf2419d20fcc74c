"""The watcher as the user meets it: what it refuses, survives, and leaves behind."""

import copy
import os
import pickle
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import normscope as ns
from normscope.terms.errors import DataError, ModelError, NormscopeWarning, RecordError, UnknownNameError
from normscope.watch import hooks, schedule
from normscope.watch.hooks import Hook, after_forward
from normscope.watch.session import watch


def notes(path):
    return [event.text for event in ns.Record(path).events if event.kind == "note"]


def started(build=lambda: nn.Linear(2, 1)):
    model = build()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def step(model, optimizer, x=None):
    optimizer.zero_grad()
    loss = model(torch.ones(4, 2) if x is None else x).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def test_asking_for_the_compiler_takes_no_reference_from_it():
    before = sys.getrefcount(None)
    for _ in range(1000):
        hooks._compiler()
    assert abs(sys.getrefcount(None) - before) < 500


def test_what_cannot_be_watched_is_refused_before_the_training(tmp_path):
    model, optimizer = started()
    with pytest.raises(ModelError, match="without a model"):
        watch(lambda x: x, optimizer, tmp_path)
    with pytest.raises(ModelError, match="an optimizer that is none"):
        watch(model, model.parameters(), tmp_path)
    with pytest.raises(UnknownNameError, match="running_stat_error"):
        watch(model, optimizer, tmp_path, probes=("drift",))
    with pytest.raises(DataError, match="no model can be called with"):
        watch(model, optimizer, tmp_path, probe=())
    (tmp_path / "file").write_text("text")
    with pytest.raises(RecordError, match="where a file is"):
        watch(model, optimizer, tmp_path / "file")
    assert not optimizer._optimizer_step_post_hooks and not model._forward_pre_hooks


def test_closing_twice_is_closing_once_and_nothing_follows(tmp_path):
    model, optimizer = started()
    watcher = watch(model, optimizer, tmp_path, every=1)
    step(model, optimizer)
    watcher.close()
    watcher.close()
    watcher.step()
    watcher.loss(1.0)
    step(model, optimizer)
    assert [event.kind for event in watcher.record.events] == ["end"]
    assert watcher.record.complete and list(watcher.record.steps) == [0]
    assert not optimizer._optimizer_step_post_hooks and not model._forward_pre_hooks


def test_a_resumed_run_goes_on_in_its_record_at_its_step(tmp_path):
    model, optimizer = started()
    for start, steps in ((0, 3), (3, 2)):
        with watch(model, optimizer, tmp_path, every=2, start=start) as watcher:
            for number in range(steps):
                watcher.loss(start + number)
                step(model, optimizer)
    record = watcher.record
    assert list(record.steps) == [0, 2, 3, 4]  # every second, and the first after the break
    assert list(record.series(None, "loss").values) == [0, 1, 2, 3, 4]
    assert list(record.series(":output", "mean", source="probe").steps) == [0, 3]
    assert any("continues" in text for text in notes(tmp_path))


def test_the_first_step_is_always_seen(tmp_path):
    model, optimizer = started()
    with watch(model, optimizer, tmp_path, every=lambda step: step == 2) as watcher:
        for _ in range(4):
            step(model, optimizer)
    assert list(watcher.record.steps) == [0, 2]


def test_without_a_path_the_record_lies_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, optimizer = started()
    with watch(model, optimizer) as first, watch(model, optimizer) as second:
        step(model, optimizer)
    assert first.path.parent.name == "runs" and first.path.name.startswith("linear-") and first.path != second.path


def test_losses_and_notes_are_kept_at_their_steps(tmp_path):
    for told in ("before", "after"):
        model, optimizer = started()
        with watch(model, optimizer, tmp_path / told, every=2) as watcher:
            for number in range(4):
                loss = model(torch.ones(4, 2)).mean()
                if told == "before":
                    watcher.loss(10.0 + number)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if told == "after":
                    watcher.loss(torch.tensor(10.0 + number, requires_grad=True))
            watcher.note(accuracy=0.5, split="validation")
        series = watcher.record.series(None, "loss")
        assert list(series.steps) == [0, 1, 2, 3] and list(series.values) == [10, 11, 12, 13]
        assert list(watcher.record.series(None, "accuracy").values) == [0.5]
        assert "split: validation" in notes(tmp_path / told)


def test_without_an_optimizer_the_user_counts(tmp_path):
    model = nn.Linear(2, 1)
    with watch(model, path=tmp_path, every=1) as watcher:
        for _ in range(3):
            model(torch.ones(4, 2)).sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            watcher.step()
    record = watcher.record
    assert list(record.steps) == [0, 1, 2]
    assert record.summary("@bias:update", 1).mean == pytest.approx(-0.1 * 8)
    assert record.summary(":output", 2) is not None


def test_an_optimizer_of_another_model_is_told(tmp_path):
    model, _ = started()
    with pytest.warns(NormscopeWarning, match="does not own 2 of the model's 2"), watch(model, started()[1], tmp_path):
        pass
    partly = torch.optim.SGD([model.weight], lr=0.1)
    with watch(model, partly, tmp_path / "b", every=1) as watcher:
        step(model, partly)
    keys = {site.key for site in watcher.record.sites}
    assert "@weight:update" in keys and "@bias:update" not in keys and "@bias:gradient" in keys


def test_a_model_without_parameters_and_one_on_the_meta_device(tmp_path, faults):
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path / "a", every=1) as watcher:
        model(other(torch.ones(3, 2))).sum().backward()
        optimizer.step()
    assert faults(tmp_path / "a") == [] and "The model has no trainable parameters." in notes(tmp_path / "a")
    assert watcher.record.summary("0:output", 0) is not None

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.here, self.nowhere = nn.Linear(2, 2), nn.Linear(2, 2, device="meta")

        def forward(self, x):
            self.nowhere(x.to("meta"))
            return self.here(x)

    model = Split()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path / "b", every=1) as watcher:
        step(model, optimizer)
    assert faults(tmp_path / "b") == []
    assert watcher.record.summary("here:output", 0, "probe") is not None


def test_a_lazy_model_is_watched_from_its_first_batch_and_probed_from_the_next_sample(tmp_path, faults):
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=10) as watcher:
        for _ in range(21):
            step(model, optimizer)
    assert faults(tmp_path) == []
    assert list(watcher.record.series("0:output", "mean", source="live").steps) == [0, 10, 20]
    assert list(watcher.record.series("0:output", "mean", source="probe").steps) == [10, 20]


def test_a_watched_model_can_be_copied_and_saved_at_any_time(tmp_path):
    model, optimizer = started(lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with watch(model, optimizer, tmp_path / "r", every=1):
        for _ in range(2):
            average = copy.deepcopy(model)
            torch.save(model, tmp_path / "model.pt")
            step(model, optimizer)
    saved = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(average(torch.ones(1, 2)), saved(torch.ones(1, 2)))
    pickle.loads(pickle.dumps(optimizer))
    code = f"import torch, sys; torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)(torch.ones(1, 2)).sum()"
    code += ".backward(); assert not any(name.startswith('normscope') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_forked_child_leaves_the_record_alone(tmp_path):
    model, optimizer = started()
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        step(model, optimizer)
        child = os.fork()
        if child == 0:
            try:
                spent = watcher._guard.spent
                step(model, optimizer)
                watcher.close()
                os._exit(int(watcher._guard.spent != spent))
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        step(model, optimizer)
    assert list(watcher.record.steps) == [0, 1] and watcher.record.complete


def test_the_budget_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "LOAN", 0.0)
    model, optimizer = started()
    with watch(model, optimizer, tmp_path, budget=0.1) as watcher:
        first = None
        start = time.perf_counter()
        while time.perf_counter() - start < 1.5:
            step(model, optimizer)
            first = first if first is not None else watcher._guard.spent
        elapsed = time.perf_counter() - start
        after = watcher._guard.spent - first
    assert after <= 0.1 * elapsed + first + 0.1 * elapsed  # the budget, the loan, and samples that took long
    assert watcher.overhead == pytest.approx(watcher._guard.spent / elapsed, rel=0.3)
    assert len(watcher.record.steps) > 3
    assert list(watcher.record.series(None, "overhead").steps) == list(watcher.record.steps)


def test_a_step_that_is_not_sampled_touches_neither_model_nor_data(tmp_path):
    class Counting(torch.Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            Counting.calls += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    def counted(watched):
        model, optimizer = started()
        with watch(model, optimizer, tmp_path, every=100) if watched else open(os.devnull):
            step(model, optimizer)
            Counting.calls = 0
            step(model, optimizer, torch.ones(4, 2).as_subclass(Counting))
            hooks = len(model._forward_pre_hooks) + len(model._forward_hooks)
        return Counting.calls, hooks

    assert counted(False) == counted(True)


class OnDevice(torch.Tensor):
    """A tensor that says it lies on an accelerator, and counts what would make the program wait for it."""

    waits: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "__get__" and func.__self__ is torch.Tensor.device:
            return torch.device("cuda")
        if name in ("cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
            cls.waits.append(name)
            with torch._C.DisableTorchFunctionSubclass():
                return func(*(arg.as_subclass(torch.Tensor) for arg in args))
        return super().__torch_function__(func, types, args, kwargs or {})


class Factories(TorchFunctionMode):
    """Makes here what is asked for over there, where there is no accelerator."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "cpu")) != "cpu":
            return func(*args, **{**kwargs, "device": "cpu"}).as_subclass(OnDevice)
        return func(*args, **kwargs)


@pytest.mark.parametrize("every", [1, 100])
def test_a_sampled_step_is_one_transfer_from_the_device_and_any_other_none(every, tmp_path, faults):
    model, optimizer = started(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))
    with watch(model, optimizer, tmp_path, every=every, probe=torch.ones(4, 2)) as watcher:
        step(model, optimizer)
        OnDevice.waits.clear()
        with Factories():
            step(model, optimizer, torch.ones(4, 2).as_subclass(OnDevice))
        waits = list(OnDevice.waits)
    assert faults(tmp_path) == []
    assert waits == (["cpu"] if every == 1 else [])  # inputs, outputs and the loss; the parameters stayed here
    assert (watcher.record.summary("2:output", 1) is not None) == (every == 1)
    assert len(watcher.record.series(None, "loss")) == (2 if every == 1 else 1)


# torch.compile


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        return self.body(x)


@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor.*:UserWarning")
@pytest.mark.parametrize("order", ["compiled, then watched", "watched, then compiled", "compiled in place", "a part"])
def test_a_compiled_model_keeps_its_graph_and_is_watched(order, tmp_path, faults):
    from torch._dynamo.testing import CompileCounter

    def train(watched):
        torch._dynamo.reset()
        torch.manual_seed(0)
        counter = CompileCounter()
        compiler = {"backend": counter, "fullgraph": True}
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        called = model
        if order == "compiled in place":
            model.compile(**compiler)
        elif order == "a part":
            model.body[1] = torch.compile(nn.Sequential(nn.Tanh(), nn.Tanh()), **compiler)
        elif order == "compiled, then watched":
            called = torch.compile(model, **compiler)
        path = tmp_path / "record"
        watcher = watch(called, optimizer, path, every=1) if watched else None
        if order == "watched, then compiled":
            called = torch.compile(model, **compiler)
        for _ in range(12):
            loss = step(called, optimizer)
        if watcher:
            watcher.close()
        return loss.item(), counter.frame_count, counter.op_count

    assert train(False) == train(True)
    assert faults(tmp_path / "record") == []
    record = ns.Record(tmp_path / "record")
    assert any("ompiled" in text for text in notes(tmp_path / "record"))
    assert list(record.series("body.2:output", "mean", source="probe").steps) == [0, 10]
    assert list(record.series("body.0@weight:update", "mean").steps) == list(range(12))
    assert list(record.series(":output", "mean", source="live").steps) == list(range(12))
    assert record.summary(":gradient", 3) is not None
    if order == "a part":
        assert record.summary("body.2:output", 3) is not None
        assert record.summary("body.1.1:output", 10, "probe") is not None


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_the_inside_of_a_compiled_model_keeps_its_graphs_and_the_record_says_what_to_watch(dynamic, tmp_path, faults):
    from torch._dynamo.testing import CompileCounter

    def train(watched):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, counter = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), CompileCounter()
        called = torch.compile(model, backend=counter, dynamic=dynamic)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model, optimizer, tmp_path, every=1) if watched else nullcontext():
            for size in (4, 4, 8, 5):
                optimizer.zero_grad()
                loss = called(torch.randn(size, 6)).square().mean()
                loss.backward()
                optimizer.step()
        return loss.item(), counter.frame_count

    alone = train(False)
    assert alone == train(True) and alone[1] == {None: 2, True: 1, False: 3}[dynamic]
    assert faults(tmp_path) == []
    assert any("is to be watched itself" in text for text in notes(tmp_path))
    assert list(ns.Record(tmp_path).series("0@weight:update", "mean").steps) == [0, 1, 2, 3]


def test_a_compiled_step_is_not_broken_and_not_silently_ignored(tmp_path, faults):
    from torch._dynamo.testing import CompileCounter

    def train(watched):
        torch._dynamo.reset()
        torch.manual_seed(0)
        counter = CompileCounter()
        model, optimizer = started()
        loss_of = torch.compile(lambda x: model(x).square().mean(), backend=counter, fullgraph=True)
        watcher = watch(model, optimizer, tmp_path, every=2, probe=torch.ones(4, 2)) if watched else None
        for _ in range(6):
            optimizer.zero_grad()
            loss = loss_of(torch.ones(4, 2))
            loss.backward()
            optimizer.step()
        if watcher:
            watcher.close()
        return loss.item()

    assert train(False) == train(True)
    assert faults(tmp_path) == []
    assert any("without a forward pass of the model itself" in text for text in notes(tmp_path))
    record = ns.Record(tmp_path)
    assert list(record.series("@weight:update", "mean").steps) == [0, 2, 4]
    assert record.summary(":output", 0, "probe") is not None


def test_a_hook_is_traced_to_nothing():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, called, counter = Net(), [], CompileCounter()
    for part in model.body:
        after_forward(part, Hook(lambda *_: called.append(1)))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(torch.ones(2, 2)), compiled(torch.ones(2, 2))
    assert (called, counter.frame_count, counter.op_count) == ([], 1, 3)
    model(torch.ones(2, 2))
    assert called == [1, 1, 1]


def test_data_parallel_wrappers_are_passed_through(tmp_path):
    model, optimizer = started(lambda: nn.Sequential(nn.Linear(2, 2)))
    wrapped = nn.DataParallel(model)
    with watch(wrapped, optimizer, tmp_path, every=1) as watcher:
        F.mse_loss(wrapped(torch.ones(4, 2)), torch.zeros(4, 2)).backward()
        optimizer.step()
    assert watcher.record.summary("0:output", 0) is not None
