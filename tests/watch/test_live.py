"""What is seen of the training itself: the right numbers, of the right step, each once."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import normscope as ns
from normscope.stats import compiled
from normscope.watch.sample import digests, row_of, rows_of_all
from normscope.watch.session import watch
from normscope.watch.taps import PASSES


def one_layer(weight=(1.0, 2.0)):
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
    return layer


def values(summary):
    return float(summary.mean), float(summary.std), summary.low, summary.high, summary.size


def events(path, kind):
    return [event for event in ns.Record(path).events if event.kind == kind]


def test_the_numbers_of_a_layer_solved_by_hand(tmp_path):
    layer = one_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).sum().backward()  # y = (1, 2); dL/dy = 1; dL/dw = (1, 1)
            optimizer.step()  # w = (0.9, 1.9)
    record = watcher.record
    assert values(record.summary(":input", 0)) == (0.5, 0.5, 0.0, 1.0, 4)
    assert values(record.summary(":output", 0)) == (1.5, 0.5, 1.0, 2.0, 2)
    assert values(record.summary(":gradient", 0)) == (1.0, 0.0, 1.0, 1.0, 2)
    assert values(record.summary("@weight:parameter", 0)) == (1.5, 0.5, 1.0, 2.0, 2)
    assert values(record.summary("@weight:gradient", 0)) == (1.0, 0.0, 1.0, 1.0, 2)
    assert values(record.summary("@weight:update", 0)) == pytest.approx((-0.1, 0.0, -0.1, -0.1, 2), abs=1e-7)
    assert record.series("@weight:update", "update_ratio").values == pytest.approx(
        [0.1 * np.sqrt(2 / 5), 0.1 * np.sqrt(2 / (0.9**2 + 1.9**2))], rel=1e-5
    )
    assert values(record.summary("@weight:parameter", 1))[:2] == pytest.approx((1.4, 0.5))
    assert record.series(None, "loss").values == pytest.approx([3.0, 2.8])  # found at the root of the backward pass
    assert record.series(None, "learning_rate").values == pytest.approx([0.1, 0.1])


def test_an_in_place_function_does_not_falsify_what_came_before_it(tmp_path):
    model = nn.Sequential(one_layer((1.0, -1.0)), nn.ReLU(inplace=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        (3 * model(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))).sum().backward()
        optimizer.step()
    for source in ("live", "probe"):
        assert values(watcher.record.summary("0:output", 0, source))[:2] == (0.0, 1.0)  # (1, −1), not (1, 0)
        assert values(watcher.record.summary("1:input", 0, source))[:2] == (0.0, 1.0)
        assert values(watcher.record.summary("1:output", 0, source))[:2] == (0.5, 0.5)
    assert values(watcher.record.summary("0:gradient", 0))[:2] == (1.5, 1.5)  # (3, 0): zero where ReLU is off
    assert values(watcher.record.summary("1:gradient", 0))[:2] == (3.0, 0.0)


def test_micro_batches_are_one_step_and_one_batch(tmp_path, faults):
    layer = one_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            for factor in (1.0, 2.0, 6.0):
                (layer(factor * torch.ones(2, 2)).sum() / 3).backward()
            optimizer.step()
    record = watcher.record
    assert faults(tmp_path) == [] and list(record.steps) == [0, 1, 2]
    for step in range(3):
        read = record.summary(":input", step)
        assert (read.mean, read.low, read.high, read.size) == (3.0, 1.0, 6.0, 12)
        assert record.summary(":gradient", step).mean == pytest.approx(1 / 3)
    assert record.summary("@weight:gradient", 0).mean == pytest.approx(2 * (1 + 2 + 6) / 3)  # what the optimizer saw
    assert record.series(None, "loss").values == pytest.approx([6 * (1 + 2 + 6) / 3] * 3)
    assert events(tmp_path, "skipped") == [] and "#1:input" not in {site.key for site in record.sites}


def test_of_many_micro_batches_the_first_are_told_and_the_loss_of_all(tmp_path):
    layer = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    nn.init.ones_(layer.weight)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for number in range(20):
            layer(torch.full((1, 1), float(number))).sum().backward()
        optimizer.step()
    record = watcher.record
    assert record.summary(":input", 0).size == PASSES and record.summary(":input", 0).high == PASSES - 1
    assert record.summary(":gradient", 0).size == PASSES
    assert record.series(None, "loss").values == [sum(range(20))]
    assert record.summary("@weight:gradient", 0).mean == sum(range(20))


def test_two_backward_passes_of_two_places_are_told_apart(tmp_path, faults):
    critic = nn.Sequential(one_layer((1.0, 1.0)), nn.Identity(), nn.Tanh())
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.0)
    with watch(critic, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):  # accumulated on top of it
                (-critic(torch.full((2, 2), 0.1)).sum()).backward()
                (3 * critic(torch.full((3, 2), -0.2)).sum()).backward()
            optimizer.step()
    record = watcher.record
    assert faults(tmp_path) == []
    for step in (0, 1):
        calls = ("", "#1")
        assert [record.summary(f"0{call}:input", step).mean for call in calls] == pytest.approx([0.1, -0.2])
        assert [record.summary(f"0{call}:output", step).size for call in calls] == [4, 6]
        assert [record.summary(f"2{call}:gradient", step).mean for call in calls] == [-1.0, 3.0]
        assert [record.summary(f"{call}:gradient", step).mean for call in calls] == [-1.0, 3.0]
    assert "0#2:input" not in {site.key for site in record.sites}
    loss = -2 * math.tanh(0.2) + 3 * 3 * math.tanh(-0.4)
    assert record.series(None, "loss").values == pytest.approx([2 * loss] * 2)


@pytest.mark.parametrize("clear", ["before", "after forward", "to zero"])
def test_a_step_that_the_scaler_skips_is_marked_and_not_taken_for_a_micro_batch(clear, tmp_path):
    layer = one_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for factor in (float("inf"), 1.0, 1.0):
            if clear != "after forward":
                optimizer.zero_grad(set_to_none=clear == "before")
            loss = (layer(torch.ones(2, 2)) * factor).sum()
            if clear == "after forward":
                optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    record = watcher.record
    assert list(record.steps) == [0, 1]
    assert events(tmp_path, "skipped")[0].step == 0
    assert events(tmp_path, "nonfinite") == []
    assert record.summary("@weight:gradient", 0).mean == 2.0
    assert record.summary(":gradient", 1).mean == 1.0


def test_a_step_that_is_given_up_by_hand_is_begun_again(tmp_path):
    layer = one_layer()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for factor in (5.0, 1.0):
            optimizer.zero_grad()
            layer(factor * torch.ones(2, 2)).sum().backward()
            if factor == 1.0:
                optimizer.step()
    assert watcher.record.summary(":input", 0).mean == 1.0
    assert any("cleared without an update" in event.text for event in events(tmp_path, "note"))
    assert events(tmp_path, "skipped") == []


def test_a_fused_optimizer_unscales_itself(tmp_path):
    layer = one_layer()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        scaler.scale(layer(torch.ones(4, 2)).sum()).backward()
        scaler.step(optimizer)
    assert watcher.record.summary("@weight:gradient", 0).mean == 4.0
    assert watcher.record.summary(":gradient", 0).mean == 1.0


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_recorded_without_the_scale_of_the_loss(fused, tmp_path):
    layer = one_layer()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = layer(torch.ones(4, 2)).float().sum()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    record = watcher.record
    for step in (0, 1, 2):
        assert record.summary(":gradient", step).mean == 1.0
        assert record.summary("@weight:gradient", step).rms == pytest.approx(np.sqrt(0.5), rel=1e-4)  # clipped to 1
    assert record.series(None, "loss").values[0] == pytest.approx(12.0)


def test_a_fused_optimizer_that_was_called_in_vain_is_marked(tmp_path):
    layer = one_layer()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    with watch(layer, optimizer, tmp_path, every=1):
        scaler.scale((layer(torch.ones(4, 2)) * float("inf")).sum()).backward()
        scaler.step(optimizer)
    assert [event.step for event in events(tmp_path, "skipped")] == [0]


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.first(x)
        if self.reentrant is None:
            x = torch.tanh(self.second(x))
        else:
            x = checkpoint(lambda x: torch.tanh(self.second(x)), x, use_reentrant=self.reentrant)
        return self.last(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_is_not_a_second_observation(reentrant, tmp_path):
    found = {}
    for kind in (None, reentrant):
        torch.manual_seed(0)
        model = Checkpointed(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model, optimizer, tmp_path / str(kind), every=1) as watcher:
            for _ in range(2):
                model(torch.randn(3, 4)).sum().backward()
                optimizer.step()
        record = watcher.record
        found[kind] = {
            site.key: values(record.summary(site, 1))
            for site in record.sites
            if record.summary(site, 1) is not None and "/" not in site.path
        }
    assert found[None].keys() == found[reentrant].keys()
    assert found[None]["second:gradient"] == found[reentrant]["second:gradient"]
    assert found[None] == found[reentrant]


def test_a_module_called_several_times_is_several_sites_and_one_never_called_none(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.idle = one_layer((1.0, 1.0)), nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) + self.layer(2 * x)

    model = Twice()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    record = watcher.record
    assert record.summary("layer:input", 0).mean == 1.0
    assert record.summary("layer#1:input", 0).mean == 2.0
    assert not {"idle:output", "idle@weight:gradient"} & {site.key for site in record.sites}


def test_a_module_called_a_varying_number_of_times(tmp_path, faults):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = one_layer((1.0, 0.0))

        def forward(self, x, times):
            for _ in range(times):
                x = torch.cat((self.cell(x), x[:, :1] + 1), dim=1)
            return x

    model = Unrolled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for times in (2, 1, 3):
            model(torch.ones(2, 2), times).sum().backward()
            optimizer.step()
    record = watcher.record
    assert faults(tmp_path) == []
    assert list(record.series("cell:output", "mean").steps) == [0, 1, 2]
    assert list(record.series("cell#1:output", "mean", source="live").steps) == [0, 2]
    assert "cell#2:output" not in {site.key for site in record.sites}  # the first batch has two


@dataclass
class Answer:
    main: torch.Tensor
    extra: str = ""


@pytest.mark.parametrize(
    "shape",
    [
        lambda y: {"logits": y, "note": "text"},
        lambda y: (y, None),
        lambda y: Answer(y),
        lambda y: None,
    ],
    ids=["dict", "tuple", "dataclass", "nothing"],
)
def test_any_output_and_an_input_by_name_will_do(shape, tmp_path, faults):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = one_layer()

        def forward(self, *, x):
            self.kept = self.layer(input=x)
            return shape(self.kept)

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            optimizer.zero_grad()
            model(x=torch.ones(2, 2))
            model.kept.sum().backward()
            optimizer.step()
    assert faults(tmp_path) == []
    assert watcher.record.summary("layer:gradient", 2).mean == 1.0
    assert watcher.record.summary("layer:output", 0, "probe").mean == 3.0
    assert watcher.record.summary("layer:input", 2).mean == watcher.record.summary("layer:input", 0, "probe").mean == 1


def test_complex_and_integer_tensors_are_recorded(tmp_path, faults):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.wave = nn.Linear(4, 4, dtype=torch.complex64)

        def forward(self, ids):
            return self.wave(self.embed(ids).to(torch.complex64)).abs()

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            model(torch.tensor([[0, 1], [2, 3]])).sum().backward()
            optimizer.step()
    assert faults(tmp_path) == []
    assert watcher.record.summary("embed:input", 0).mean == 1.5
    assert watcher.record.summary("wave:output", 0).size == 2 * 2 * 4 * 2  # real and imaginary parts
    assert watcher.record.summary("wave:output", 0, "probe") is not None


@pytest.mark.parametrize("compiled_loops", [True, False])
def test_a_tensor_without_memory_is_told_or_left_alone(compiled_loops, monkeypatch):
    """Zeros that autograd did not write down, and parameters whose memory was given back until they are needed."""
    if not compiled_loops:
        monkeypatch.setattr(compiled, "_reading", None)
    compiled.prepare()
    row = row_of(ns.Site("layer"), torch._efficientzerotensor((5, 3)))
    assert row is not None and row.size == 15 and values(digests([row]).digests[0].summary) == (0.0, 0.0, 0.0, 0.0, 15)
    freed = nn.Parameter(torch.randn(100, 100))
    freed.untyped_storage().resize_(0)
    assert rows_of_all([(ns.Site("layer"), freed), (ns.Site("other"), torch.ones(3))])[0] is None
    assert compiled.digest(freed) is None and row_of(ns.Site("layer"), freed) is None


def test_packed_sequences_are_recorded(tmp_path, faults):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 3, batch_first=True)

        def forward(self, packed):
            out, _ = self.rnn(packed)
            return out.data.sum()

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            model(packed).backward()
            optimizer.step()
    assert faults(tmp_path) == []
    assert watcher.record.summary("rnn:output", 1).size == 4 * 3


def test_the_first_value_that_is_not_finite_is_told_with_its_place(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.tensor([[1.0, float("nan")]])
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            model(batch).sum().backward()
            optimizer.step()
    place, loss = events(tmp_path, "nonfinite")
    assert place.step == 0 and place.data["site"] == "0:input"
    assert loss.step == 0 and loss.data["quantity"] == "loss"
    assert watcher.record.summary("0:input", 0).nonfinite_share == 0.5


def test_only_training_forward_passes_count(tmp_path, trainings, faults):
    training = trainings["mlp"]
    model, optimizer = training.start()
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            with torch.no_grad():
                model(torch.full((2, 8), 100.0))
            model.eval()
            model(torch.full((2, 8), 100.0))
            model.train()
            torch.func.functional_call(model, dict(model.named_parameters()), torch.ones(2, 8)).sum()
            model(torch.full((2, 8), 100.0))  # in training mode, but no backward pass follows
            loss = model(torch.randn(16, 8)).square().sum()
            torch.func.vmap(lambda x: model(x), randomness="different")(torch.full((2, 8), 100.0))
            for _ in range(PASSES + 1):  # more than are remembered, had they been taken for training
                with torch.no_grad():
                    model(torch.full((2, 8), 100.0))
                model.eval()(torch.full((2, 8), 100.0))
                model.train()
            loss.backward()
            optimizer.step()
    assert faults(tmp_path) == []
    for step in range(3):
        assert watcher.record.summary("0:input", step).high < 50


def test_a_replica_shares_the_hooks_of_the_model_and_is_not_it(tmp_path):
    """As `DataParallel` makes one on each device, for each batch."""
    model = nn.Sequential(one_layer())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            replica = model._replicate_for_data_parallel()
            replica._modules = {"0": one_layer((100.0, 100.0))}
            (model(torch.ones(1, 2)).sum() + replica(torch.ones(1, 2)).sum()).backward()
            optimizer.step()
    assert values(watcher.record.summary(":output", 2)) == (3.0, 0.0, 3.0, 3.0, 1)
    assert not any(site.call for site in watcher.record.sites)  # it would be a second call


def test_two_branches_that_meet_in_one_loss_are_both_told(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = one_layer(), one_layer()

        def forward(self, x, side):
            return getattr(self, side)(x)

    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            (model(torch.ones(2, 2), "left") + model(torch.ones(2, 2), "right")).sum().backward()
            optimizer.step()
    assert not {"left#1:gradient", "right#1:gradient"} & {site.key for site in watcher.record.sites}
    for site in ("left:gradient", "right:gradient", ":gradient", "#1:gradient"):
        assert watcher.record.summary(site, 1).mean == 1.0
    assert watcher.record.summary("left@weight:gradient", 0).mean == 2.0


def test_the_gradient_of_a_penalty_is_not_the_gradient_of_the_loss(tmp_path, faults):
    critic = nn.Sequential(one_layer(), nn.Tanh())
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    x = torch.zeros(2, 2, requires_grad=True)
    with watch(critic, optimizer, tmp_path, every=1) as watcher:
        out = critic(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (3 * out.sum() + 0 * slope.square().sum()).backward()
        optimizer.step()
    assert faults(tmp_path) == []
    assert watcher.record.summary("1:gradient", 0).mean == 3.0
    assert watcher.record.summary("0:gradient", 0).mean == 3.0


@pytest.mark.parametrize("kind", [None, False, True], ids=["selective", "checkpoint", "reentrant"])
def test_a_model_that_is_checkpointed_as_a_whole(kind, tmp_path, faults):
    class Copy(nn.Module):
        def forward(self, x):
            return x.clone()  # the operation with which samples are taken

    def save_all(*_, **__):
        return CheckpointPolicy.MUST_SAVE

    def train(watched):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), Copy(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        selective = {"context_fn": lambda: create_selective_checkpoint_contexts(save_all)} if kind is None else {}
        x = torch.ones(2, 2, requires_grad=True)
        with watch(model, optimizer, tmp_path, every=1) if watched else nullcontext():
            for _ in range(2):
                checkpoint(model, x.clone(), use_reentrant=bool(kind), **selective).square().sum().backward()
                optimizer.step()
        return model.state_dict(), x.grad

    assert str(train(False)) == str(train(True))
    assert faults(tmp_path) == []
    record = ns.Record(tmp_path)
    assert list(record.series("0@weight:update", "mean").steps) == [0, 1]
    if not kind:
        assert list(record.series("3:output", "mean", source="live").steps) == [0, 1]
        assert record.summary("0:gradient", 1) is not None


def test_a_model_that_learns_in_evaluation_mode_is_watched_from_the_second_step(tmp_path):
    layer = one_layer().eval()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            layer(torch.ones(2, 2)).sum().backward()
            optimizer.step()
    record = watcher.record
    assert list(record.series("@weight:parameter", "mean").steps) == [0, 1, 2]
    assert list(record.series(":output", "mean", source="live").steps) == [1, 2]


def test_a_closure_that_runs_the_passes_inside_the_step(tmp_path, faults):
    layer = one_layer()
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.1, max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = (layer(torch.eye(2)) ** 2).sum()
        loss.backward()
        return loss

    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            optimizer.step(closure)
    assert faults(tmp_path) == []
    assert list(watcher.record.series(":output", "mean", source="live").steps) == [0, 1, 2]
    assert watcher.record.summary("@weight:gradient", 0) is not None
    assert watcher.record.series("@weight:update", "update_ratio").values[0] > 0
    assert [event.kind for event in watcher.record.events] == ["end"]


def test_a_module_that_returns_a_parameter_is_left_without_hooks(tmp_path):
    class Prompt(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.own

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt, self.layer = nn.Sequential(Prompt(), nn.ReLU()), one_layer()

        def forward(self, x):
            return self.prompt[0](x)

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(3):
            model(torch.ones(2, 2)).sum().backward()
            optimizer.step()
    assert watcher.record.summary(":gradient", 2).mean == 1.0
    assert not model.prompt[0].own._backward_hooks


def test_a_forward_that_raises_is_begun_again(tmp_path, faults):
    model = nn.Sequential(one_layer((1.0, 1.0)), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        with pytest.raises(RuntimeError):
            model(torch.ones(2, 3))
        model(torch.ones(2, 2)).sum().backward()
        optimizer.step()
    assert faults(tmp_path) == []
    assert watcher.record.summary("0:input", 0).size == 4


def test_a_gan_is_two_watchers(tmp_path, faults):
    torch.manual_seed(0)
    g, d = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    og, od = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters())
    with watch(g, og, tmp_path / "g", every=1) as wg, watch(d, od, tmp_path / "d", every=2) as wd:
        for _ in range(4):
            od.zero_grad()
            loss = F.softplus(-d(torch.randn(8, 2))).mean() + F.softplus(d(g(torch.randn(8, 2)).detach())).mean()
            loss.backward()
            od.step()
            og.zero_grad()
            F.softplus(-d(g(torch.randn(8, 2)))).mean().backward()
            og.step()
    assert faults(tmp_path / "g") == faults(tmp_path / "d") == []
    assert list(wg.record.steps) == [0, 1, 2, 3] and list(wd.record.steps) == [0, 2]
    assert wg.record.summary("2:gradient", 3) is not None and wd.record.summary("1:gradient", 2) is not None


def test_a_discriminator_called_twice_before_one_backward_shows_both_calls(tmp_path, faults):
    critic = nn.Sequential(one_layer((1.0, 1.0)), nn.Tanh())
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.0)
    with watch(critic, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            optimizer.zero_grad()
            real, fake = critic(torch.full((2, 2), 0.1)), critic(torch.full((3, 2), -0.2))
            critic(torch.full((2, 2), 100.0))  # a look at the side, from which no gradient comes back
            (3 * fake.sum() - real.sum()).backward()
            optimizer.step()
    record = watcher.record
    assert faults(tmp_path) == []
    for step in (0, 1):
        assert [record.summary(f"0{call}:input", step).mean for call in ("", "#1")] == pytest.approx([0.1, -0.2])
        assert [record.summary(f"0{call}:output", step).size for call in ("", "#1")] == [2, 3]
        assert [record.summary(f"1{call}:gradient", step).mean for call in ("", "#1")] == [-1.0, 3.0]
        assert [record.summary(f"{call}:gradient", step).mean for call in ("", "#1")] == [-1.0, 3.0]
    assert "0#2:input" not in {site.key for site in record.sites}


def test_many_passes_without_a_backward_leave_little_behind(tmp_path):
    layer = nn.Sequential(one_layer())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with watch(layer, optimizer, tmp_path, every=1) as watcher:
        first = layer(torch.full((1, 2), 5.0))
        for _ in range(20):
            last = layer(torch.ones(1, 2))
            assert sum(len(of.passes) for of in watcher._observer._taps._rounds) <= PASSES
        (first + last).sum().backward()
        optimizer.step()
    record = watcher.record
    assert record.summary("0:input", 0).mean == 1.0 and "0#1:input" not in {site.key for site in record.sites}
    assert record.summary("0@weight:gradient", 0).mean == 6.0


def test_two_watchers_of_one_model_see_the_same(tmp_path, trainings):
    training = trainings["conv"]
    model, optimizer = training.start()
    with (
        watch(model, optimizer, tmp_path / "a", every=1) as a,
        watch(model, optimizer, tmp_path / "b", every=1) as b,
    ):
        for _ in range(3):
            training.one_step(model, optimizer)
    for site in a.record.sites:
        for source in ("live", "probe", "probe_eval"):
            assert a.record.summary(site, 0, source) == b.record.summary(site, 0, source)


def test_an_output_that_is_the_next_input_is_read_anew_when_something_was_written_to_it(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1):
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    record = ns.Record(tmp_path)
    told = {key: record.summary(key, 0) for key in ("0:output", "1:input", "1:output", "2:input", "2:output")}
    assert told["1:input"] == told["0:output"] and told["0:output"].low < 0
    assert told["2:input"] == told["1:output"] and told["1:output"].low == 0
    assert told["2:output"] != told["2:input"]


def test_the_record_is_the_same_with_and_without_the_compiled_loops(tmp_path, trainings, monkeypatch):
    if compiled.prepare() is not None:
        pytest.skip("it was installed without a C compiler")
    trainings["conv"].run(3, watching=lambda m, o: watch(m, o, tmp_path / "fast", every=1, probes=("activation",)))
    monkeypatch.setattr(compiled, "_reading", None)
    trainings["conv"].run(3, watching=lambda m, o: watch(m, o, tmp_path / "plain", every=1, probes=("activation",)))
    fast, plain = ns.Record(tmp_path / "fast"), ns.Record(tmp_path / "plain")
    assert fast.meta["summaries"] == "compiled"
    assert [site.key for site in fast.sites] == [site.key for site in plain.sites]
    for site in fast.sites:
        for source in ("live", "probe"):
            found, wanted = fast.summaries(site, source), plain.summaries(site, source)
            assert [step for step, _ in found] == [step for step, _ in wanted]
            for (_, one), (_, other) in zip(found, wanted):
                assert one.sketch == other.sketch and one.size == other.size
                assert (one.low, one.high) == (other.low, other.high)
                np.testing.assert_allclose(one.moments.mean, other.moments.mean, rtol=1e-9, atol=1e-12)
                np.testing.assert_allclose(one.moments.m2, other.moments.m2, rtol=1e-9)
