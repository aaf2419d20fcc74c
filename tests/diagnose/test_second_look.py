"""Branches of rules that ask a copy: a case in which each speaks, and one in which it is silent."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.engine import rule
from normscope.diagnose.rehearsal import carried_over, rehearsed
from normscope.diagnose.scene import Scene, clusters, sgd
from normscope.diagnose.track import Track


class Rows(nn.Module):
    """A recurrent layer over four rows of eight."""

    def __init__(self, kind=nn.RNN, change=None):
        super().__init__()
        self.body, self.head = kind(8, 24, batch_first=True), nn.Linear(24, 8)
        with torch.no_grad():
            if change is not None:
                change(self.body)

    def forward(self, x):
        return self.head(self.body(x.unflatten(1, (4, 8)))[0][:, -1])


class Listed(nn.Module):
    """A layer in a plain list."""

    def __init__(self, held):
        super().__init__()
        self.head, layers = nn.Linear(32, 8), [nn.Linear(32, 32)]
        self.layers = nn.ModuleList(layers) if held else layers

    def forward(self, x):
        return self.head(self.layers[0](x).relu())


def stack(*end):
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8), *end)


def loud(norm=100.0):
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 8))
    nn.init.constant_(model[1].weight, norm)
    return model


def numbers(scale):
    inputs, _ = clusters()
    return inputs, scale * inputs[:, :1] * inputs[:, 1:2]


def one(*end):
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1), *end)


def grouped(factor):
    def build(parameters):
        first, second, *rest = parameters
        return torch.optim.SGD([{"params": [first, second], "lr": 0.05 * factor}, {"params": rest}], lr=0.05)

    return build


def by_hand(output, target):
    return -output.softmax(1).log().gather(1, target[:, None]).mean()


def adam(betas):
    return lambda parameters: torch.optim.Adam(parameters, 0.01, betas=betas)


def scaled(body):
    body.weight_hh_l0.mul_(4)


def shut(body):
    body.bias_ih_l0.chunk(4)[0].fill_(-12)


CASES = {
    "recurrent weights": ("poor_initialization", "gain", lambda: Rows(change=scaled), Rows, {}),
    "gate": ("poor_initialization", "gate", lambda: Rows(nn.LSTM, shut), partial(Rows, nn.LSTM), {}),
    "scale of a norm": ("poor_initialization", "scale", loud, partial(loud, 1.0), {}),
    "plain list": ("unmoved_layer", "unlisted", partial(Listed, False), partial(Listed, True), {}),
    "bounded end": ("restricted_output", "least_loss", lambda: stack(nn.Hardtanh(-0.01, 0.01)), stack, {"steps": 60}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_told_from_its_sound_twin(name, tmp_path):
    ruled, quantity, sick, sound, options = CASES[name]
    options = {"steps": 12, **options, "at_hand": True}
    (found, *_) = rule(ruled).check(Scene(sick, **options).subject(tmp_path / "sick"))
    assert found.evidence.quantity == quantity
    assert not list(rule(ruled).check(Scene(sound, **options).subject(tmp_path / "sound")))


@pytest.mark.parametrize(
    ("ruled", "quantity", "sick", "sound"),
    [
        ("uneven_updates", "rates", {"optimizer": grouped(1e-4)}, {"optimizer": grouped(0.5)}),
        ("rate_too_high", "momentum", {"optimizer": adam((0.9995, 0.9))}, {"optimizer": adam((0.9, 0.999))}),
        ("nonfinite_values", "pole", {"data": lambda: (400 * clusters()[0], clusters()[1]), "loss": by_hand}, {}),
    ],
)
def test_a_training_is_told_from_its_sound_twin(ruled, quantity, sick, sound, tmp_path):
    (found, *_) = rule(ruled).check(Scene(stack, steps=60, at_hand=True, **sick).subject(tmp_path / "sick"))
    assert found.evidence.quantity == quantity
    assert not list(rule(ruled).check(Scene(stack, steps=60, at_hand=True, **sound).subject(tmp_path / "sound")))


def test_targets_next_to_nothing_are_told_from_outputs_too_large(tmp_path):
    found = {}
    for scale in (1e-6, 1.0):
        scene = Scene(one, data=partial(numbers, scale), loss=mse_loss, steps=12, at_hand=True)
        case = scene.subject(tmp_path / f"{scale}")
        asked = (rule(name) for name in ("unstandardized_target", "poor_initialization"))
        found[scale] = [each for one_rule in asked for each in one_rule.check(case)]
    assert [each.name for each in found[1e-6]] == ["unstandardized_target"]
    assert found[1e-6][0].evidence.quantity == "size"
    assert not found[1.0]


def test_a_norm_that_never_saw_a_batch_is_no_norm():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    assert not list(rule("half_frozen").check(Blueprint(model, trained=True)))  # a fresh one, beside another's record
    nn.init.constant_(model[1].weight, 1.1)  # type: ignore[arg-type]
    (found,) = rule("half_frozen").check(Blueprint(model, trained=True))
    assert (found.severity, found.sites) == ("error", ("1",))
    model(torch.randn(8, 4))
    assert not list(rule("half_frozen").check(Blueprint(model, trained=True)))
    assert not list(rule("half_frozen").check(Blueprint(nn.Sequential(nn.BatchNorm1d(4)))))


def test_softmaxes_between_layers_are_told_from_those_that_weigh():
    layers = [layer for _ in range(2) for layer in (nn.Linear(4, 4), nn.Softmax(1))]
    (found,) = rule("unnormalized_saturating_stack").check(Blueprint(nn.Sequential(*layers, nn.Linear(4, 2))))
    assert found.sites == ("1", "3")
    assert found.evidence.value == pytest.approx(1 / 4)
    at_the_end = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1))
    assert not list(rule("unnormalized_saturating_stack").check(Blueprint(at_the_end)))


def test_a_rehearsal_learns_at_the_rate_that_suits(tmp_path):
    case = Scene(stack, optimizer=sgd(1e-4), steps=90, every=8, at_hand=True).subject(tmp_path)
    assert case.hardly_learns
    assert rehearsed(case) == pytest.approx(0, abs=0.1)
    assert rehearsed(case, 1e3) > 0.5
    before = [one.clone() for one in case.experiment.model.parameters()]
    assert rehearsed(case, 10.0, anew=False) is not None
    assert all(torch.equal(one, other) for one, other in zip(before, case.experiment.model.parameters()))


@pytest.mark.parametrize(("rate", "name"), [(3e-3, "rate_too_low"), (300.0, "rate_too_high")])
def test_where_nothing_is_found_copies_tell_the_rate(rate, name, tmp_path):
    case = Scene(stack, optimizer=sgd(rate, 0.0), steps=90, every=8, at_hand=True).subject(tmp_path)
    found = list(rule(name).second(case))
    assert [each.name for each in found] == [name]
    assert found[0].relief > 0.3
    assert cross_entropy is case.experiment.loss_fn


def shuffled():
    inputs, labels = clusters()
    return inputs, labels[torch.randperm(len(labels))]


def test_one_half_of_a_batch_teaches_the_other_where_targets_belong_to_inputs(tmp_path):
    found = {}
    for data in (clusters, shuffled):
        scene = Scene(stack, data=data, optimizer=sgd(0.1), steps=12, batch=64, at_hand=True)
        found[data] = carried_over(scene.subject(tmp_path / data.__name__))
    assert found[clusters] > 0.2
    assert found[shuffled] < 0.05


@pytest.mark.parametrize(("rate", "data", "told"), [(2e-3, clusters, False), (0.03, shuffled, True)])
def test_a_run_that_is_slow_is_not_told_that_its_targets_are_wrong(rate, data, told, tmp_path):
    case = Scene(stack, data=data, optimizer=sgd(rate), steps=60, batch=64, at_hand=True).subject(tmp_path)
    case.__dict__["fallen"] = 0.0  # as where the run has not learned, whatever its targets
    assert bool(list(rule("unrelated_targets").check(case))) is told


def test_a_decay_that_leaves_nothing_to_learn_is_no_wrong_target(tmp_path):
    def decayed(parameters):
        return torch.optim.SGD(parameters, 0.02, weight_decay=40.0)

    case = Scene(stack, optimizer=decayed, steps=60, batch=64, at_hand=True).subject(tmp_path)
    assert carried_over(case) == pytest.approx(0, abs=0.01)
    assert carried_over(case, plain=True) > 0.1


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x):
        with torch.no_grad():
            hidden = self.first(x).relu()
        return self.second(hidden)


def test_a_graph_that_ends_before_a_layer_is_a_cause_by_itself(tmp_path):
    (found,) = rule("unmoved_layer").check(Scene(Cut, steps=16).subject(tmp_path))
    assert (found.sites, found.evidence.quantity) == (("first",), "graph")
    assert found.evidence.quantity in rule("unmoved_layer").roots


def rounded(output, target):
    return cross_entropy(output.round(), target)


def test_where_every_gradient_is_zero_layers_are_cut_off_and_no_rate_is_too_low(tmp_path):
    case = Scene(stack, loss=rounded, steps=60).subject(tmp_path)
    assert case.ungraded
    assert not list(rule("rate_too_low").check(case))
    (found,) = rule("unmoved_layer").check(case)
    assert (found.severity, found.sites) == ("error", ("0", "2"))


def divided(by):
    inputs, labels = clusters()
    return inputs / by, labels


def normed():
    return nn.Sequential(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))


@pytest.mark.parametrize(("by", "told"), [(1e5, True), (1.0, False)])
def test_beside_a_dominant_eps_deviations_say_nothing_of_domains(by, told, tmp_path):
    scene = Scene(normed, data=partial(divided, by), optimizer=sgd(1e-4), steps=60, at_hand=True)
    case = scene.subject(tmp_path)
    assert [each.name for each in rule("dominant_eps").check(case)] == ["dominant_eps"] * told
    assert not list(rule("mixed_domains").check(case))
    assert not list(rule("stale_running_stats").check(case))
    case.__dict__.update(fallen=0.9, output_gap=Track.of([0], [3.0]))  # it thrives in training mode alone
    assert [each.severity for each in rule("dominant_eps").check(case)] == ["warning"] * told


def salary():
    inputs, labels = clusters()
    return torch.cat([inputs[:, 1:], 1e6 + 1e5 * inputs[:, :1]], 1), labels


def test_one_feature_of_a_far_larger_unit_is_no_lone_element(tmp_path):
    def build():
        return nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 8))

    case = Scene(build, data=salary, steps=24).subject(tmp_path)
    assert not list(rule("lone_element").check(case))
    assert [each.sites for each in rule("unlike_units").check(case)] == [("0",)]


def by_chance(output, target):
    return cross_entropy(output, target[torch.randperm(len(target))])


def test_a_loss_that_chance_decides_is_told(tmp_path):
    case = Scene(stack, loss=by_chance, steps=12, at_hand=True).subject(tmp_path)
    (found,) = rule("unheard_targets").check(case)
    assert found.evidence.quantity == "chance"


def test_dropout_is_too_much_where_a_copy_without_it_learns(tmp_path):
    def build(rate):
        return nn.Sequential(nn.Dropout(rate), *stack())

    for rate, told in ((0.93, True), (0.1, False)):
        scene = Scene(partial(build, rate), optimizer=sgd(0.1), steps=90, every=8, at_hand=True)
        found = list(rule("excessive_dropout").check(scene.subject(tmp_path / f"{rate}")))
        assert bool(found) is told


def test_what_takes_the_differences_away_before_the_first_layer_is_a_constant_input(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = stack()

        def forward(self, x):
            return self.body(0 * x)

    (found,) = rule("constant_input").check(Scene(Masked, steps=24, every=2, at_hand=True).subject(tmp_path))
    assert found.sites == ("body.0",)
