"""Several optimizers of one model: every parameter's true update is told, in the step in which it was made."""

import gc
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.record.sweep import Sweep
from normscope.terms.errors import ModelError
from normscope.watch.session import watch


class Pair(nn.Module):
    """Two weights; a forward pass can go through one of them alone."""

    def __init__(self, first=2.0, second=3.0):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.first.weight.fill_(first), self.second.weight.fill_(second)

    def forward(self, x, part=None):
        return self.second(self.first(x)) if part is None else getattr(self, part)(x)


def pair(rates=(0.5, 0.25)):
    model = Pair()
    parts = (model.first, model.second)
    return model, [torch.optim.SGD(part.parameters(), lr=rate) for part, rate in zip(parts, rates)]


def told(record, part, what="update"):
    """By step, the mean of what was told of one of the two weights."""
    series = record.series(f"{part}@weight:{what}", "mean", source="live")
    return dict(zip(series.steps.tolist(), series.values.tolist()))


def ratios(record, part):
    series = record.series(f"{part}@weight:update", "update_ratio")
    return dict(zip(series.steps.tolist(), series.values.tolist()))


def test_two_that_step_after_one_backward_pass_make_one_step(tmp_path, faults):
    model, (one, other) = pair()
    with watch(model, [one, other], tmp_path, every=1) as watcher:
        for _ in range(2):
            model(torch.ones(1, 1)).sum().backward()  # d/dw1 = w2 = 3, d/dw2 = w1 = 2
            one.step(), one.zero_grad()
            other.step(), other.zero_grad()
    record = watcher.record
    assert faults(tmp_path) == [] and list(record.steps) == [0, 1]
    assert watcher.optimizer is None and watcher.optimizers == (one, other)
    assert told(record, "first")[0] == -0.5 * 3 and told(record, "second")[0] == -0.25 * 2
    assert ratios(record, "first")[0] == 1.5 / 2 and ratios(record, "second")[0] == pytest.approx(0.5 / 3)
    assert (told(record, "first", "gradient")[0], told(record, "second", "gradient")[0]) == (3, 2)
    assert told(record, "first")[1] == -0.5 * 2.5 and told(record, "second")[1] == -0.25 * 0.5
    assert list(record.series(None, "loss").values) == [6.0, 0.5 * 2.5]
    assert list(record.series(None, "learning_rate_2").values) == [0.25, 0.25]
    assert not one._optimizer_step_pre_hooks and not other._optimizer_step_post_hooks
    assert [event.kind for event in record.events] == ["end"]


def alternate(model, optimizers, turns):
    for turn in range(turns):
        part, optimizer = (("first", "second")[turn % 2], optimizers[turn % 2])
        optimizer.zero_grad()
        model(torch.ones(1, 1), part).sum().backward()
        optimizer.step()


def test_two_in_turn_end_their_steps_with_the_next_forward_pass(tmp_path, faults):
    model, optimizers = pair()
    with watch(model, optimizers, tmp_path, every=1, probe=torch.ones(1, 1)) as watcher:
        alternate(model, optimizers, 4)
    record = watcher.record
    assert faults(tmp_path) == [] and list(record.steps) == [0, 1, 2, 3]
    assert told(record, "first") == {0: -0.5, 2: -0.5} and told(record, "second") == {1: -0.25, 3: -0.25}
    assert told(record, "first", "gradient") == {0: 1.0, 2: 1.0}
    assert ratios(record, "second") == pytest.approx({1: 0.25 / 3, 3: 0.25 / 2.75})
    outputs = record.series("second:output", "mean", source="live")
    assert dict(zip(outputs.steps.tolist(), outputs.values.tolist())) == {1: 3.0, 3: 2.75}
    assert f"ended after {4} steps" in record.events[-1].text


def test_one_that_missed_the_sampled_step_is_seen_at_its_next(tmp_path, faults):
    """Two in turn, sampled at even steps alone: the second would never be seen."""
    model, optimizers = pair()
    even = lambda step: step % 4 == 0  # noqa: E731
    with watch(model, optimizers, tmp_path, every=even) as watcher:
        alternate(model, optimizers, 8)
    record = watcher.record
    assert faults(tmp_path) == []
    assert told(record, "first") == {0: -0.5, 4: -0.5} and told(record, "second") == {1: -0.25, 5: -0.25}
    assert told(record, "second", "gradient") == {1: 1.0, 5: 1.0}
    assert ratios(record, "second") == pytest.approx({1: 0.25 / 3, 5: 0.25 / 2.5})
    assert [finding for finding in ns.diagnose(record) if finding.name in ("unmoved_layer", "uneven_updates")] == []


@pytest.mark.parametrize("sampled", ["all", "some"])
def test_one_that_steps_every_third_time_gathers_gradients_meanwhile(sampled, tmp_path, faults):
    model, (often, seldom) = pair((0.0, 0.5))
    every = 1 if sampled == "all" else (lambda step: step == 4)
    with watch(model, (often, seldom), tmp_path, every=every) as watcher:
        for number in range(9):
            often.zero_grad()
            model(torch.ones(1, 1)).sum().backward()  # of the second the gradient is 2
            often.step()
            if number % 3 == 2:
                seldom.step()
                seldom.zero_grad()
            watcher.loss(float(number))
    record = watcher.record
    assert faults(tmp_path) == []
    assert told(record, "second") == ({2: -3.0, 5: -3.0, 8: -3.0} if sampled == "all" else {2: -3.0, 5: -3.0})
    assert set(told(record, "second", "gradient").values()) == {6.0}
    losses = record.series(None, "loss")
    assert dict(zip(losses.steps.tolist(), losses.values.tolist())) == {number: float(number) for number in range(9)}


def test_two_parts_of_a_model_that_is_never_called_itself(tmp_path, faults):
    model, (one, other) = pair()
    with watch(model, [one, other], tmp_path, every=1, probe=torch.ones(1, 1)) as watcher:
        for _ in range(3):
            for part, optimizer in ((model.second, other), (model.first, one)):
                optimizer.zero_grad()
                part(torch.ones(1, 1)).sum().backward()
                optimizer.step()
    assert faults(tmp_path) == [] and list(watcher.record.steps) == [0, 1, 2]
    assert told(watcher.record, "first") == {0: -0.5, 1: -0.5, 2: -0.5}
    assert told(watcher.record, "second") == {0: -0.25, 1: -0.25, 2: -0.25}


def test_one_that_steps_again_without_a_forward_pass_of_the_model_begins_a_step(tmp_path, faults):
    model, (one, other) = pair()
    with watch(model, [one, other], tmp_path, every=1) as watcher:
        for _ in range(3):
            one.zero_grad()
            model.first(torch.ones(1, 1)).sum().backward()
            one.step()
    assert faults(tmp_path) == []
    assert told(watcher.record, "first") == {0: -0.5, 1: -0.5, 2: -0.5}


def test_what_two_change_is_one_change(tmp_path, faults):
    model, _ = pair()
    one = torch.optim.SGD(model.parameters(), lr=0.5)
    other = torch.optim.SGD(model.first.parameters(), lr=0.25)
    with watch(model, [one, other], tmp_path, every=1) as watcher:
        model(torch.ones(1, 1)).sum().backward()
        one.step()
        other.step()
    assert faults(tmp_path) == []
    assert told(watcher.record, "first") == {0: -0.75 * 3} and told(watcher.record, "second") == {0: -0.5 * 2}


class Slow(torch.optim.Optimizer):
    """Half of what the optimizer inside does."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups[0]["params"], {})

    def step(self, closure=None):
        before = [parameter.detach().clone() for parameter in self.param_groups[0]["params"]]
        self.inner.step()
        for parameter, then in zip(self.param_groups[0]["params"], before):
            parameter.data.lerp_(then, 0.5)


class Wrapped(torch.optim.Optimizer):
    """Has an optimizer, and none of the state of one, as accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step()


@pytest.mark.parametrize("wrapper", [Slow, Wrapped])
def test_one_inside_another_is_one_step(wrapper, tmp_path, faults):
    model, _ = pair()
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    outer = wrapper(inner)
    with watch(model, [inner, outer], tmp_path / "both", every=1) as watcher, watch(model, outer, tmp_path / "one"):
        for _ in range(2):
            inner.zero_grad()
            model(torch.ones(1, 1)).sum().backward()
            outer.step()
    assert faults(tmp_path / "both") == faults(tmp_path / "one") == [] and list(watcher.record.steps) == [0, 1]
    for path in ("both", "one"):
        assert told(ns.Record(tmp_path / path), "first")[0] == (-0.75 if wrapper is Slow else -1.5)


def test_each_parameter_has_its_own_that_steps_in_the_backward_pass(tmp_path, faults):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    own = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def step(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with watch(model, list(own.values()), tmp_path, every=1) as watcher:
        for _ in range(3):
            model(torch.randn(8, 4)).sum().backward()
    record = watcher.record
    assert faults(tmp_path) == [] and list(record.steps) == [0, 1, 2]
    for place in ("0@weight", "0@bias", "2@weight", "2@bias"):
        gradient, update = (record.summary(f"{place}:{what}", 2) for what in ("gradient", "update"))
        assert update.rms == pytest.approx(0.1 * gradient.rms, rel=1e-4) and gradient.rms > 0
    assert record.summary("0:output", 2) is not None


def test_a_scaler_divides_for_each_by_itself(tmp_path, faults):
    """One is unscaled and clipped by hand, the other in its step; a third weight has no optimizer at all."""
    model, (one, other) = pair((0.0, 0.0))
    model.alone = nn.Parameter(torch.ones(()))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(model, [one, other], tmp_path, every=1) as watcher:
        for _ in range(2):
            one.zero_grad(), other.zero_grad()
            model.alone.grad = None
            scaler.scale((model.alone * model(torch.ones(1, 1))).sum()).backward()
            scaler.unscale_(one)
            nn.utils.clip_grad_norm_(model.first.parameters(), 1.0)
            scaler.step(one)
            scaler.step(other)
            scaler.update()
    record = watcher.record
    assert faults(tmp_path) == [] and list(record.steps) == [0, 1]
    assert told(record, "first", "gradient") == pytest.approx({0: 1.0, 1: 1.0}, rel=1e-5)
    assert told(record, "second", "gradient") == {0: 2.0, 1: 2.0}
    assert record.summary("@alone:gradient", 1).mean == 6.0
    assert record.summary("second:gradient", 1).mean == 1.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_that_the_scaler_skips_beside_one_that_steps_is_marked(order, tmp_path, faults):
    model, optimizers = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with watch(model, optimizers, tmp_path, every=1) as watcher:
        for number in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            first = model(torch.ones(1, 1), "first") * (float("inf") if number == 0 else 1.0)
            scaler.scale((first + model(torch.ones(1, 1), "second")).sum()).backward()
            for place in order:
                scaler.step(optimizers[place])
            scaler.update()
    record = watcher.record
    assert faults(tmp_path) == [] and list(record.steps) == [0, 1, 2]
    assert [event.step for event in record.events if event.kind == "skipped" and "SGD left" in event.text] == [0]
    assert told(record, "first") == {1: -0.5, 2: -0.5} and told(record, "second") == {0: -0.25, 1: -0.25, 2: -0.25}


def test_a_closure_beside_an_ordinary_step(tmp_path, faults):
    model = Pair()
    one = torch.optim.SGD(model.first.parameters(), lr=0.01)
    other = torch.optim.LBFGS(model.second.parameters(), lr=0.1, max_iter=3)

    def loss():
        one.zero_grad(), other.zero_grad()
        value = model(torch.ones(1, 1)).square().sum()
        value.backward()
        return value

    with watch(model, [one, other], tmp_path, every=1) as watcher:
        for _ in range(3):
            loss()
            one.step()
            other.step(loss)
    record = watcher.record
    assert faults(tmp_path) == [] and list(record.steps) == [0, 1, 2]
    assert told(record, "first")[0] == pytest.approx(-0.01 * 2 * 6 * 3) and told(record, "second")[0] < 0
    assert told(record, "first", "gradient")[0] == 36.0


def test_one_that_was_replaced_is_not_kept_and_not_waited_for(tmp_path, faults):
    model, (one, other) = pair()
    with watch(model, one, tmp_path, every=1) as watcher:
        watcher.adopt(other)
        for number in range(4):
            if number == 2:
                other.zero_grad()
                del other
                gc.collect()
                assert watcher.optimizers == (one,)
                other = torch.optim.SGD(model.second.parameters(), lr=0.125)
                watcher.adopt(other)
            model(torch.ones(1, 1)).sum().backward()
            one.step(), other.step()
            one.zero_grad(), other.zero_grad()
    assert faults(tmp_path) == [] and list(watcher.record.steps) == [0, 1, 2, 3]
    assert len(told(watcher.record, "second")) == 4


def test_the_effective_rate_is_that_of_the_parameter_s_own_group(tmp_path):
    """Groups of one optimizer, two optimizers, and a schedule that makes their rates alike for a step."""
    model, _ = pair()
    model.third = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.third.weight, 4.0)
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in ((model.first, 0.5), (model.second, 0.25))]
    one, other = torch.optim.SGD(groups), torch.optim.SGD(model.third.parameters(), lr=0.125)
    with watch(model, [one, other], tmp_path, every=1) as watcher:
        for rate in (0.25, 0.5, 0.0625):
            one.param_groups[1]["lr"] = rate
            with torch.no_grad():
                model(torch.zeros(1, 1))
            one.step(), other.step()
    sweep = Sweep(watcher.record, numbers=9, whole=9, choose=lambda steps, _: steps)
    for part, rates, length in (("first", [0.5] * 3, 2), ("second", [0.25, 0.5, 0.0625], 3), ("third", [0.125] * 3, 4)):
        site = next(site for site in watcher.record.sites if site.key == f"{part}@weight:parameter")
        for told in (watcher.record, sweep):
            found = told.series(site, "effective_learning_rate")
            assert list(found.values) == pytest.approx([rate / length**2 for rate in rates])
    assert list(watcher.record.series(None, "learning_rate").values) == [0.5] * 3


def test_what_is_no_optimizer_among_them_is_refused(tmp_path):
    model, (one, _) = pair()
    with pytest.raises(ModelError, match="dict where the optimizer should be"):
        watch(model, [one, {}], tmp_path)
    assert not tmp_path.joinpath("rank0.sqlite").exists() and not one._optimizer_step_pre_hooks


def test_a_compiled_model_with_two_in_turn_is_compiled_once(tmp_path, faults):
    from torch._dynamo.testing import CompileCounter

    def train(watched):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, counter = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), CompileCounter()
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2])]
        called = torch.compile(model, backend=counter, fullgraph=True)
        with watch(called, optimizers, tmp_path, every=3) if watched else nullcontext():
            for number in range(10):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                F.mse_loss(called(torch.ones(4, 2)), torch.zeros(4, 1)).backward()
                optimizers[number % 2].step()
        return [parameter.tolist() for parameter in model.parameters()], counter.frame_count

    assert train(False) == train(True)
    record = ns.Record(tmp_path)
    assert faults(tmp_path) == [] and "ended after 10 steps" in record.events[-1].text
    for place in ("0@weight:update", "2@weight:update"):
        assert (record.series(place, "update_ratio").values > 0).all()
