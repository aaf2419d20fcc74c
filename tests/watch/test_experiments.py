"""What runs the fixed batch at other parameters: each on a case solved by hand, and none of it touches the training."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

import normscope as ns
from normscope.anatomy.batch import Probe
from normscope.stats.summary import Summary
from normscope.terms.errors import NormscopeWarning
from normscope.watch import schedule
from normscope.watch.account import Account
from normscope.watch.bench import LAYERS, Experiment, spread
from normscope.watch.deviation import deviation
from normscope.watch.fixed_batch import FixedBatch
from normscope.watch.measure import measures, measures_named
from normscope.watch.schedule import Budgeted, Cost, Due, Spending
from normscope.watch.session import watch

EXPERIMENTS = ("gradient_shift", "landscape", "amplification")


def chain(*weights):
    """y = w_n ⋯ w_2 w_1 x."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights))
    with torch.no_grad():
        for layer, weight in zip(model, weights):
            layer.weight.fill_(weight)
    return model


def trained(model, x, path, *, rate, steps=1, loss=lambda y, _: y.square().mean() / 2, **settings):
    """The record of plain gradient descent on one batch, which is the fixed batch as well."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    settings = {"every": 10, "probe": (x, None), "loss_fn": loss, "probes": EXPERIMENTS, **settings}
    with watch(model, optimizer, path, **settings) as watcher:
        for _ in range(steps + 1):  # the step after the sampled one ends the experiment
            optimizer.zero_grad()
            loss(model(x), None).backward()
            optimizer.step()
    return watcher.record


def value(record, quantity, site=None):
    (found,) = record.series(site, quantity).values
    return found


def test_the_gradient_shift_of_a_chain_is_what_its_derivatives_say(tmp_path):
    # L = (c b a x)² / 2 with x = 1: ∂L/∂b = c² b a², ∂L/∂c = c b² a²
    a, b, c, rate = 1.0, 2.0, 3.0, 0.01
    slope = {"a": c**2 * b**2 * a, "b": c**2 * b * a**2, "c": c * b**2 * a**2}
    later = {"a": a - rate * slope["a"], "b": b - rate * slope["b"]}
    record = trained(chain(a, b, c), torch.ones(4, 1), tmp_path, rate=rate)
    assert value(record, "gradient_shift", "1") == pytest.approx(abs(c**2 * b * later["a"] ** 2 - slope["b"]), rel=1e-4)
    moved = c * later["b"] ** 2 * later["a"] ** 2
    assert value(record, "gradient_shift", "2") == pytest.approx(abs(moved - slope["c"]), rel=1e-4)
    assert value(record, "gradient_shift_cosine", "1") == pytest.approx(1.0)
    assert not len(record.series("0:output", "gradient_shift"))  # nothing is below the first layer
    assert list(record.series("2", "gradient_shift").steps) == [0]


def test_parameters_of_no_layer_are_layers_where_they_come_in(tmp_path):
    class Head(nn.Module):
        def __init__(self, weight, offset):
            super().__init__()
            self.offset, self.weight = nn.Parameter(torch.tensor([offset])), nn.Parameter(torch.tensor([weight]))

        def forward(self, h):
            return self.weight * h + self.offset

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head(3.0, 0.0)  # registered first, used last
            self.layer = chain(2.0)[0]
            self.token = nn.Parameter(torch.tensor([[1.0]]))
            self.idle = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.head(self.layer(x * self.token))

    # The chain of the test above, a and c without a layer of their own, and L = (c b a + o)² / 2 with o = 0.
    a, b, c, rate = 1.0, 2.0, 3.0, 0.01
    slope = {"a": c**2 * b**2 * a, "b": c**2 * b * a**2, "c": c * b**2 * a**2, "o": c * b * a}
    later = {"a": a - rate * slope["a"], "b": b - rate * slope["b"]}
    model = Model()
    record = trained(model, torch.ones(4, 1), tmp_path, rate=rate)
    shift = abs(c**2 * b * later["a"] ** 2 - slope["b"])
    assert value(record, "gradient_shift", "layer") == pytest.approx(shift, rel=1e-4)
    moved = {"c": c * later["b"] ** 2 * later["a"] ** 2, "o": c * later["b"] * later["a"]}
    shift = math.hypot(*(moved[name] - slope[name] for name in "co"))
    assert value(record, "gradient_shift", "head@offset:parameter") == pytest.approx(shift, rel=1e-4)
    cosine = sum(moved[n] * slope[n] for n in "co") / math.hypot(*moved.values()) / math.hypot(slope["c"], slope["o"])
    assert value(record, "gradient_shift_cosine", "head@offset:parameter") == pytest.approx(cosine, rel=1e-5)
    fixed = FixedBatch(model, Probe((torch.ones(4, 1),)), [], loss_fn=None, seed=0)
    layers = fixed.bench(fixed.kept()).layers
    assert [layer.site.key for layer in layers] == ["@token:parameter", "layer:output", "head@offset:parameter"]
    assert [len(layer.below) for layer in layers] == [0, 1, 2]  # the idle one is nowhere


def test_a_layer_below_that_turns_the_gradient_around_shows_in_the_cosine(tmp_path):
    # h = a x with a = 1 → −1 by the update; L = b h: dL/db = a, so the gradient of b changes its sign.
    record = trained(chain(1.0, 1.0), torch.ones(4, 1), tmp_path, rate=2.0, loss=lambda y, _: y.mean())
    assert value(record, "gradient_shift", "1") == pytest.approx(2.0)
    assert value(record, "gradient_shift_cosine", "1") == pytest.approx(-1.0)


def test_the_landscape_of_a_parabola(tmp_path):
    # L = k w² / 2 with k = x² = 4 at w = 1: g = 4, β = 4 everywhere, and with rate 0.05 the update is 0.2 long.
    record = trained(chain(1.0), torch.full((3, 1), 2.0), tmp_path, rate=0.05)
    reach = [1 - step * 0.2 for step in (0.0, 0.5, 1.0, 2.0, 4.0)]
    losses = [2 * w * w for w in reach]
    assert value(record, "loss_variation") == pytest.approx(max(losses) - min(losses), rel=1e-4)
    assert value(record, "gradient_predictiveness") == pytest.approx(4 * 0.8, rel=1e-4)
    assert value(record, "effective_smoothness") == pytest.approx(4.0, rel=1e-4)


def test_the_shift_of_a_linear_chain_arrives_as_it_left_and_a_square_doubles_it(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(256, 1)
    record = trained(chain(1.0, 3.0, 0.5), x, tmp_path / "linear", rate=0.01)
    for site in "01":
        assert value(record, "depth_amplification", site) == pytest.approx(1.0, rel=1e-3)
    assert value(record, "shift_from:0", "2") == pytest.approx(value(record, "shift_from:0", "0"), rel=1e-3)
    assert "shift_from:1" in record.quantities("2:output") and "shift_from:1" not in record.quantities("0:output")

    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = chain(1.0, 1.0)

        def forward(self, x):
            return self.last(self.first(x) ** 2)

    record = trained(Squared(), torch.full((4, 1), 1.0).cumsum(0), tmp_path / "squared", rate=1e-4)
    # h → (1 + ε) h moves h by ε in units of its root mean square, and h² by 2ε
    h = torch.arange(1.0, 5.0)
    units = (h.square().mean().sqrt() / h.std(correction=0)), (h**4).mean().sqrt() / h.square().std(correction=0)
    assert value(record, "depth_amplification", "first") == pytest.approx(float(2 * units[1] / units[0]), rel=1e-2)


def test_the_top_eigenvalue_is_that_of_the_whole_hessian(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(16, 2, dtype=torch.float64)
    record = trained(model, x, tmp_path, rate=0.1, steps=0, probes=("hessian",))
    assert not len(record.series(None, "top_hessian_eigenvalue"))  # the run ended before the experiment did
    fixed = FixedBatch(model, Probe((x,)), [], loss_fn=lambda y, _: y.square().mean() / 2, seed=0)
    (found,) = measures_named(["hessian"])["hessian"].run(fixed.bench(fixed.kept()))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    blocks = hessian(lambda p: functional_call(model, p, x).square().mean() / 2)(parameters)
    whole = torch.cat(
        [torch.cat([blocks[a][b].reshape(parameters[a].numel(), -1) for b in parameters], dim=1) for a in parameters]
    )
    values = torch.linalg.eigvalsh(whole)
    assert found.value == pytest.approx(float(values[values.abs().argmax()]), rel=5e-3)


def test_tied_and_parametrized_weights_move_together(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight
            self.last = nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))

        def forward(self, x):
            return self.last(self.second(self.first(x)))

    torch.manual_seed(0)
    model, x = Tied(), torch.randn(8, 2)
    fixed = FixedBatch(model, Probe((x,)), [], loss_fn=lambda y, _: y.square().mean(), seed=0)
    before, start = fixed.kept(), model(x).square().mean().item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    bench = fixed.bench(before)
    assert {layer.site.path: len(layer.own) for layer in bench.layers} == {"first": 1, "last": 3}
    loss = model(x).square().mean()
    truth = torch.autograd.grad(loss, list(model.parameters()))
    slope = bench.slope(bench.after)
    assert slope.loss == pytest.approx(loss.item())
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(slope.gradient, truth))
    assert bench.slope(bench.before).loss == pytest.approx(start) != slope.loss
    assert loss.item() == model(x).square().mean().item()


def test_a_loss_is_looked_for_and_the_held_gradient_is_said(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=10, probes=EXPERIMENTS) as watcher:
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.ones(3, 2)).sum().backward()
            optimizer.step()
    record = watcher.record
    assert record.meta["probe_gradient"] == "held" and record.meta["probes"] == list(EXPERIMENTS)
    assert list(record.series("2", "gradient_shift").steps) == [0, 10]  # by then a gradient had been seen
    assert not len(record.series(None, "loss_variation"))  # there is no loss to vary
    assert (record.series(None, "effective_smoothness").values > 0).all()


def test_experiments_run_where_they_are_named_or_in_turn_as_the_budget_affords(tmp_path, trainings, monkeypatch):
    cost = Account.cost.fget
    assert cost is not None

    def run(name, steps, **settings):
        trainings["mlp"].run(steps, watching=lambda m, o: watch(m, o, tmp_path / name, loss_fn=loss, **settings))
        return ns.Record(tmp_path / name)

    def loss(output, _):
        return output.square().mean()

    assert "effective_smoothness" not in run("plain", 12, every=1).quantities(None)
    assert "landscape" not in ns.Record(tmp_path / "plain").meta["probes"]
    assert "`probes=` names them" in ns.Record(tmp_path / "plain").meta["experiments"]
    monkeypatch.setattr(schedule, "LOAN", 10.0)  # on a busy machine too
    short = run("short", 200, budget=1e-6)  # on credit
    assert {"loss_variation", "effective_smoothness"} <= set(short.quantities(None))
    assert len(short.series("3", "gradient_shift")) and len(short.series("0", "depth_amplification"))
    assert not [event for event in short.events if "There is no" in event.text]
    monkeypatch.setattr(schedule, "LOAN", 0.0)
    monkeypatch.setattr(Account, "cost", property(lambda self: replace(cost(self), setup=0.0)))
    poor = run("poor", 40, budget=1e-6)
    assert "effective_smoothness" not in poor.quantities(None)
    notes = [event.text for event in poor.events if event.kind == "note"]
    assert len([note for note in notes if "or its budget too small, for up to" in note]) == 3
    still = trained(chain(1.0, 1.0), torch.ones(4, 1), tmp_path / "still", rate=0.0, probes=("landscape",))
    ended = trained(chain(1.0, 1.0), torch.ones(4, 1), tmp_path / "ended", rate=0.1, steps=0, probes=("landscape",))
    for record, why in (
        (still, "it failed, no update was made, or"),
        (ended, "the run ended before the step after it"),
    ):
        assert [why in event.text for event in record.events if event.kind == "note"] == [True]
    monkeypatch.setattr(Budgeted, "due", lambda self, step, cost: Due(*[step % 10 == 0] * 3))
    rich = run("rich", 62)
    assert list(rich.series("0", "depth_amplification").steps) == [10, 40]
    assert list(rich.series("3", "gradient_shift").steps) == [20, 50]
    assert list(rich.series(None, "loss_variation").steps) == [30, 60]
    assert list(rich.steps) == [0, 10, 20, 30, 40, 50, 60]  # the steps that end an experiment are not sampled
    assert list(rich.series(None, "overhead").steps) == list(rich.steps)


def test_experiments_take_half_of_the_half_of_the_fixed_batch():
    def due(spent, latest, elapsed=1000.0):
        return Budgeted(0.01).due(100, Cost(elapsed, experiment=Spending(spent, latest))).experiment

    assert due(0.0, 2.5) and due(1.5, 1.0) and not due(2.0, 1.0) and not due(0.0, 2.6)


@pytest.mark.parametrize("name", [*EXPERIMENTS, "hessian"])
def test_a_training_is_bitwise_the_same_with_each_experiment(name, trainings, same, faults, tmp_path):
    for kind in ("conv", "lstm"):
        alone = trainings[kind].run(12)
        watched = trainings[kind].run(
            12, watching=lambda m, o, k=kind: watch(m, o, tmp_path / k, every=5, probes=(name,))
        )
        for part, left in alone.items():
            assert same(left, watched[part]), (kind, part)
        assert faults(tmp_path / kind) == []


def test_an_experiment_that_fails_is_switched_off_alone(tmp_path, faults):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            if torch.is_grad_enabled():
                raise RuntimeError("there is no second derivative")
            return gradient * 2

    class Model(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x) ** 2)

    probes = ("hessian", "landscape")
    with pytest.warns(NormscopeWarning, match="Hessian failed"):
        record = trained(Model(2, 1), torch.ones(4, 2), tmp_path, rate=0.01, steps=51, probes=probes)
    assert len(faults(tmp_path)) == 3
    assert list(record.series(None, "effective_smoothness").steps) == [0, 10, 20, 30, 40, 50]


def test_layers_are_chosen_evenly_and_the_cost_is_told():
    assert spread(list(range(5)), 8) == [0, 1, 2, 3, 4]
    assert spread(list(range(50)), 8)[0] == 0 and spread(list(range(50)), 8)[-1] == 49
    assert len(set(spread(list(range(50)), 8))) == 8
    experiments = {name: kind for name, kind in measures().items() if issubclass(kind, Experiment)}
    assert {name: kind.passes for name, kind in experiments.items()} == {
        "gradient_shift": LAYERS + 1,
        "amplification": LAYERS + 1,
        "landscape": 5,
        "hessian": 40,
    }
    assert [name for name, kind in measures().items() if kind.on_request] == ["hessian"]


def test_a_deviation_is_that_of_the_eval_gap():
    x = torch.tensor([[0.0], [2.0]])
    assert deviation(Summary.of(x, 1), Summary.of(x + 3, 1)) == 3.0
