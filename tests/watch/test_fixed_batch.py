"""The fixed batch: what changed between two probes was changed by the parameters, and every measure is right."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.stats.summary import Summary
from normscope.terms.errors import NormscopeWarning, UnknownNameError
from normscope.watch.deviation import deviation as gap
from normscope.watch.measure import Measure, measures, measures_named
from normscope.watch.probes.dead import dead_share
from normscope.watch.probes.running_stat_error import error
from normscope.watch.replica import Replica
from normscope.watch.sample import ELEMENTS, rows_of, summary_of
from normscope.watch.session import watch


def train(model, optimizer, batches, path, target=None, **settings):
    with watch(model, optimizer, path, every=settings.pop("every", 1), **settings) as watcher:
        for x in batches:
            optimizer.zero_grad()
            output = model(x)
            loss = output.square().mean() if target is None else F.cross_entropy(output, target)
            loss.backward()
            optimizer.step()
    return watcher.record


def test_a_model_that_does_not_learn_shifts_by_its_data_alone(tmp_path, trainings):
    torch.manual_seed(0)
    model = trainings["conv"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = [torch.randn(8, 3, 6, 6) + 3 * (step >= 10) for step in range(20)]
    record = train(model, optimizer, batches, tmp_path, every=10)
    for path in ("0", "3"):
        site = f"{path}:input"
        assert record.shift(site, kind="internal").values == pytest.approx([0.0], abs=1e-12)
        assert record.shift(site, kind="internal", against="start").values[-1] == pytest.approx(0.0, abs=1e-12)
    external = record.shift("0:input", kind="external")
    assert external.values[0] < 0.2 and external.values[-1] > 2.5


def test_a_model_that_learns_shifts_by_its_parameters(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(32, 4)
    record = train(model, optimizer, [x] * 31, tmp_path, every=10)
    assert record.shift("0:input").values == pytest.approx([0, 0, 0], abs=1e-12)  # the batch itself
    assert (record.shift("1:input").values > 1e-3).all()


def test_internal_and_external_shift_and_their_share_by_hand(tmp_path):
    """y = w x of each of two channels; the fixed batch spreads x by 1 about 0, the batch of the step lies 1 aside."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Identity())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    fixed = torch.linspace(-1.0, 1.0, 401)[:, None].repeat(1, 2) * math.sqrt(3)  # even: σ = 1
    with watch(model, optimizer, tmp_path, every=10, probe=fixed) as watcher:
        for step in range(11):
            weight = torch.diag(torch.tensor([1.0, 2.0] if step == 0 else [3.0, 2.0]))
            model[0].weight.data.copy_(weight)
            model(fixed + 1.0).sum().backward()
            optimizer.step()
    record = watcher.record

    def shift(distance, **more):
        return record.shift("0", distance=distance, **more).values

    # Parameters alone: the first channel is three times as wide, the other as it was.
    assert shift("std_shift", per_channel=True)[0] == pytest.approx([2.0, 0.0], abs=1e-4)
    assert shift("mean_shift", per_channel=True)[0] == pytest.approx([0.0, 0.0], abs=1e-4)
    # KL(N(0,9) ‖ N(0,1)) + KL back = (9 − 1)/2 + (1/9 − 1)/2
    assert shift("symmetric_kl", per_channel=True)[0] == pytest.approx([32 / 9, 0.0], abs=1e-3)
    # ∫ |3 Q − Q| = 2 E|x| = √3; JS of densities 1/3 on thrice the width and 1: p = (2/3, 1/3), q = (0, 1)
    assert shift("wasserstein1", per_channel=True)[0] == pytest.approx([math.sqrt(3), 0.0], abs=1e-4)
    assert shift("shift", per_channel=True)[0] == pytest.approx([math.sqrt(3), 0.0], rel=1e-2, abs=1e-4)
    divergence = (2 / 3 + math.log2((1 / 3) / (2 / 3)) / 3 + math.log2(1 / (2 / 3))) / 2
    assert shift("jensen_shannon", per_channel=True)[0] == pytest.approx([divergence, 0.0], abs=1e-4)
    # Of the wider one a thirtieth lies in each inner decile, and a third more in the outer two.
    shares = [(401 * share + 0.5) / 406 for share in (0.1, 1 / 30 + 1 / 3, 1 / 30)]
    index = 2 * (shares[1] - shares[0]) * math.log(shares[1] / shares[0])
    index += 8 * (shares[2] - shares[0]) * math.log(shares[2] / shares[0])
    assert shift("psi", per_channel=True)[0] == pytest.approx([index, 0.0], abs=1e-4)

    # Data alone, at the same parameters: the means lie 3 and 2 aside, of channels 3 and 2 wide.
    external = record.series("0:input", "external_shift")
    assert list(external.steps) == [0, 10] and external.values == pytest.approx([1.0, 1.0], rel=0.02)
    assert record.series("0:input", "internal_shift").values == pytest.approx([0.0])
    assert record.series("0:input", "internal_share").values == pytest.approx([0.0])
    inner, outer = (record.series("0", f"{kind}_shift").values[-1] for kind in ("internal", "external"))
    # Of both channels together: (|x| + 2|x|)/2 against (3|x| + 2|x|)/2 and a spread of √((1 + 4)/2), √((9 + 4)/2).
    assert inner == pytest.approx(math.sqrt(3) / 2 / math.sqrt(2.5), rel=0.05)
    assert outer == pytest.approx(2.5 / math.sqrt(6.5), rel=0.05)
    assert record.series("0", "internal_share").values == pytest.approx([inner / (inner + outer)])


def test_the_same_masks_are_drawn_at_every_probe(tmp_path):
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    record = train(model, optimizer, [torch.randn(8, 4) for _ in range(11)], tmp_path)
    assert record.summary("2:input", 0, "probe") == record.summary("2:input", 10, "probe")
    assert record.summary("2:input", 0, "probe").zero_share > 0.3
    assert record.summary("2:input", 0, "probe_eval").zero_share == 0


def test_the_probe_sees_the_parameters_before_the_update_and_moments_per_channel(tmp_path):
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
    model = nn.Sequential(layer, nn.Identity())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    with watch(model, optimizer, tmp_path, every=10, probe=(x, None), loss_fn=lambda y, _: y.sum()) as watcher:
        for _ in range(11):
            optimizer.zero_grad()
            model(torch.zeros(1, 2)).sum().backward()  # the training itself changes nothing
            with torch.no_grad():
                layer.weight += 0.1 * torch.eye(2)
            optimizer.step()
    channels = watcher.record.summary("0:output", 0, "probe").channels
    assert channels.mean.tolist() == [2.0, 4.0] and channels.std.tolist() == [1.0, 2.0]
    assert watcher.record.summary("0:output", 10, "probe").channels.mean == pytest.approx([4.0, 8.0])
    gradient = watcher.record.summary("0@weight:gradient", 0, "probe")  # dL/dW_ij = Σ_n x_nj
    assert (gradient.low, gradient.high) == (4.0, 8.0)
    assert watcher.record.series(None, "probe_loss").values == pytest.approx([12.0, 24.0])
    assert watcher.record.meta["probe_gradient"] == "loss_fn"


def test_where_the_gradient_of_the_probe_comes_from(tmp_path):
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return {"logits": self.layer(x), "loss": self.layer(x).square().mean()}

    for model, loss, source in (
        (WithLoss(), lambda out: out["loss"], "output.loss"),
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), lambda out: 3 * out.sum(), "held"),
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        path = tmp_path / source
        with watch(model, optimizer, path, every=10) as watcher:
            for _ in range(11):
                loss(model(torch.ones(3, 2))).backward()
                optimizer.step()
        assert watcher.record.meta["probe_gradient"] == source
        site = "1:gradient" if source == "held" else "layer#1:gradient"
        ours, theirs = (watcher.record.summary(site, 10, kind) for kind in ("probe", "live"))
        assert ours.mean == pytest.approx(theirs.mean)


def test_a_loss_that_fails_costs_the_gradients_alone(tmp_path, faults):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1, loss_fn=lambda y, t: F.cross_entropy(y, t)) as watcher:
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
    assert faults(tmp_path) == []
    assert any("could not be differentiated" in event.text for event in watcher.record.events)
    assert watcher.record.summary("0:output", 0, "probe") is not None


def test_a_functional_activation_is_seen_on_the_fixed_batch(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return torch.sigmoid(self.layer(x)).sum(1)

    model = Model()
    record = train(model, torch.optim.SGD(model.parameters(), lr=0.1), [torch.randn(8, 4)], tmp_path)
    site = next(site for site in record.sites if site.path == "/sigmoid" and site.what == "output")
    assert 0 < record.summary(site, 0, "probe").low < record.summary(site, 0, "probe").high < 1
    assert record.summary(site, 0, "live") is None


def test_the_probe_runs_under_the_autocast_of_the_training(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(8, 4)).sum()
        loss.backward()
        optimizer.step()
    live, probe = (watcher.record.summary("1:output", 0, source) for source in ("live", "probe"))
    assert live.sketch == probe.sketch


# The measures, on cases solved by hand.


def test_dead_units_are_those_that_never_change():
    x = torch.zeros(6, 4)
    x[:, 1], x[2, 2], x[:, 3] = 5.0, 1e-9, torch.arange(6)
    assert dead_share(x, 1) == 0.5  # all zero, all five; not the one that spoke once
    assert dead_share(x.T.contiguous(), 0) == 0.5
    assert dead_share(x[:1], 1) is None and dead_share(x, None) is None
    rare = torch.zeros(ELEMENTS, 2)
    sampled = rows_of(torch.arange(ELEMENTS).repeat(2, 1).T, 1)[:, 0]
    missed = set(range(ELEMENTS)) - set(sampled.tolist())
    rare[min(missed)] = 1.0  # alive in one cell, which the sample does not hold
    assert dead_share(rare, 1) == 0.0


def test_dead_relu_units_are_recorded(tmp_path):
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-1e3, -1e3, -1e3, 1e3]))
    record = train(model, torch.optim.SGD(model.parameters(), lr=0.0), [torch.randn(8, 2)], tmp_path)
    assert record.series("1", "dead").values.tolist() == [0.75]


def test_the_gap_between_the_modes_is_in_deviations_of_the_training_mode():
    x = torch.randn(4096, 3, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, correction=0) * 2
    here = Summary.of(x, 1)
    assert gap(here, here) == 0
    assert gap(here, Summary.of(x + 3, 1)) == pytest.approx(1.5)  # three to the side, in deviations of two
    assert gap(here, Summary.of(2 * x, 1)) == pytest.approx(1.0)
    assert gap(here, Summary.of(x + torch.tensor([3.0, 0, 0]), 1)) == pytest.approx(1.5 / math.sqrt(3))
    assert gap(Summary.of(torch.zeros(4, 2), 1), Summary.of(torch.ones(4, 2), 1)) == float("inf")
    assert gap(Summary.of(torch.zeros(4)), Summary.of(torch.zeros(4))) == 0


def test_batch_norm_opens_a_gap_and_stale_statistics_an_error(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(3, affine=False))
    model.append(nn.Linear(3, 1))
    x = 2 * (torch.randn(256, 3) - 5)
    record = train(model, torch.optim.SGD(model.parameters(), lr=0.0), [x] * 41, tmp_path, every=10)
    gaps = record.series("0:output", "eval_gap").values
    errors = record.series("0", "running_stat_error").values
    assert gaps[0] == pytest.approx(math.hypot(10, 1), rel=0.1)  # −10 ± 2 stays as it is, instead of 0 ± 1
    assert errors[0] == pytest.approx(math.hypot(10, 1) / 2, rel=0.1)
    assert gaps[-1] < 0.3 and errors[-1] < 0.2  # momentum 0.1: (1 − 0.1)^40 of it is left
    assert record.series(":output", "eval_gap").values[0] > record.series(":output", "eval_gap").values[-1]


def test_running_statistics_are_compared_channel_by_channel():
    moments = Summary.of(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), 1).channels  # μ = (1, 0), σ = (1, 0)
    assert error(np.array([1.0, 0.0]), np.array([1.0, 0.0]), moments).tolist() == [0.0, 0.0]
    assert error(np.array([4.0, 0.0]), np.array([25.0, 1.0]), moments).tolist() == [5.0, float("inf")]


# The sample.


@pytest.mark.parametrize(("shape", "axis"), [((7, 5), 1), ((64, 3, 50, 50), 1), ((3, 40, 700), 2), ((100000, 2), -1)])
def test_a_sample_holds_every_channel_and_stands_for_the_whole(shape, axis):
    torch.manual_seed(0)
    x = torch.randn(shape) + torch.arange(shape[axis]).reshape(
        [-1 if a == axis % len(shape) else 1 for a in range(len(shape))]
    )
    rows = rows_of(x, axis)
    assert rows.shape[1] == shape[axis] and rows.numel() <= max(ELEMENTS, shape[axis])
    found = summary_of(x, axis)
    assert found.size == x.numel()
    assert np.allclose(found.channels.mean, np.arange(shape[axis]), atol=5 / math.sqrt(len(rows)))
    assert summary_of(x, axis) == found
    whole = Summary.of(rows, 1)
    assert found.sketch == whole.sketch and (found.low, found.high) == (whole.low, whole.high)
    for one, other in ((found.moments, whole.moments), (found.channels, whole.channels)):
        assert np.array_equal(one.count, other.count)
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(one.m2, other.m2, rtol=1e-11)


# The measures as parts.


def test_every_file_under_probes_holds_one_measure():
    found = measures()
    assert {"activation", "gradient", "dead", "eval_gap", "running_stat_error"} <= set(found)
    assert all(issubclass(kind, Measure) and kind.__doc__ for kind in found.values())
    with pytest.raises(UnknownNameError, match="`deed`"):
        measures_named(["dead", "deed"])


def test_only_the_chosen_measures_are_taken(tmp_path, trainings):
    training = trainings["conv"]
    model, optimizer = training.start()
    with watch(model, optimizer, tmp_path, every=1, probes=("dead",), live=False) as watcher:
        training.one_step(model, optimizer)
    record = watcher.record
    assert record.series("2", "dead").steps.tolist() == [0]
    assert all(record.summary(site, 0, source) is None for site in record.sites for source in ("live", "probe"))


def test_without_measures_the_training_alone_is_looked_at(tmp_path, trainings):
    training = trainings["conv"]
    model, optimizer = training.start()
    with watch(model, optimizer, tmp_path, every=1, probes=()) as watcher:
        training.one_step(model, optimizer)
    record = watcher.record
    assert record.summary("2:output", 0) is not None and watcher._guard.parts["fixed batch"] == 0
    assert all(record.summary(site, 0, source) is None for site in record.sites for source in ("probe", "probe_eval"))


# The replica.


class Odd(nn.Module):
    """Everything that a copy can get wrong."""

    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.old = nn.utils.spectral_norm(nn.Linear(4, 4))
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.old.weight_orig
        self.norm = nn.BatchNorm1d(4)
        self.history = []
        self.calls = 0
        self.cache = None
        self.register_buffer("table", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.table += 1
        x = self.norm(self.tied(self.old(self.layer(x))))
        self.history.append(float(x.detach().mean()))
        self.cache = {"last": [x * 2]}  # a tensor that autograd made
        return x


def test_the_replica_runs_what_the_model_runs_and_touches_nothing(tmp_path, faults, same):
    def run(watched):
        torch.manual_seed(0)
        random.seed(0)
        model = Odd()
        seen = []
        model.norm.register_forward_hook(lambda *_: seen.append(1))
        model.tied.weight.register_hook(lambda gradient: (seen.append(2), gradient * 0.5)[1])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = watch(model, optimizer, tmp_path, every=2) if watched else None
        for number in range(12):
            if number % 3 == 0:  # otherwise gradients pile up, and the probe must not clear them
                optimizer.zero_grad()
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
        if watcher:
            watcher.close()
        return model.state_dict(), model.calls, model.table, model.history, len(seen), torch.get_rng_state()

    assert same(run(False), run(True))
    assert faults(tmp_path) == []
    record = ns.Record(tmp_path)
    assert list(record.series("norm:output", "mean", source="probe").steps) == [0, 10]
    assert any("without the 1 hooks" in event.text for event in record.events)


def test_the_replica_follows_what_was_exchanged(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, tmp_path, every=10) as watcher:
        for step in range(31):
            if step == 10:
                model[0].weight = nn.Parameter(torch.full((2, 2), 7.0))
                model[0].bias.data = torch.zeros(2)
            if step == 20:
                model[1].p = 0.999999
            if step == 30:
                model[2] = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
            model(torch.ones(4, 2)).sum().backward()
            optimizer.step()
    record = watcher.record
    assert record.summary("0:output", 10, "probe").mean == pytest.approx(14.0)
    assert record.summary("2:input", 20, "probe").zero_share == 1.0
    assert record.summary("2.1:output", 30, "probe") is not None
    assert record.summary("2.1:output", 30, "live") is not None


def test_a_model_that_overwrites_its_input_gets_the_same_batch_each_time(tmp_path):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    given = torch.tensor([[-1.0, 1.0]])
    with watch(model, optimizer, tmp_path, every=10) as watcher:
        for _ in range(11):
            model(given.clone()).sum().backward()
            optimizer.step()
        held = watch(model, optimizer, tmp_path / "held", every=10, probe=given)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        held.close()
    for step in (0, 10):
        for source in ("probe", "probe_eval"):
            assert watcher.record.summary("0:input", step, source).low == -1.0
    assert given.tolist() == [[-1.0, 1.0]]


def test_what_the_model_prints_is_printed_once(tmp_path, capsys):
    class Talking(nn.Linear):
        def forward(self, x):
            print("forward")
            return super().forward(x)

    model = Talking(2, 1)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), [torch.ones(2, 2)] * 2, tmp_path)
    assert capsys.readouterr().out == "forward\n" * 2


def test_a_synchronized_norm_is_copied_as_a_local_one():
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.SyncBatchNorm(3))
    replica = Replica(model)
    replica.refresh()
    assert isinstance(model[0], nn.SyncBatchNorm)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in replica.model.modules())
    x = torch.randn(5, 3, 2)
    reference = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    assert torch.equal(replica.model(x), reference(x)) and torch.equal(model[0].running_mean, torch.zeros(3))


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.lock = __import__("threading").Lock()

    def forward(self, x):
        return self.layer(x)


def test_a_model_that_cannot_be_copied_is_watched_without_the_fixed_batch(tmp_path, faults):
    model = Uncopyable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(NormscopeWarning, match="only the training is watched"):
        record = train(model, optimizer, [torch.ones(2, 2)] * 3, tmp_path)
    assert faults(tmp_path) == []
    assert list(record.series("layer:output", "mean", source="live").steps) == [0, 1, 2]
    assert record.summary("layer:output", 0, "probe") is None
    assert any("cannot pickle" in event.text for event in record.events if event.kind == "note")


def test_a_probe_that_does_not_fit_is_told_and_the_training_is_watched(tmp_path):
    model = nn.Sequential(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(NormscopeWarning, match="only the training is watched"):
        record = train(model, optimizer, [torch.ones(2, 2)], tmp_path, probe=torch.ones(2, 3))
    assert record.summary("0:output", 0) is not None
