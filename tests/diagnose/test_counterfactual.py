"""A cause is taken out of a copy, and the symptom measured again: each against a case solved by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normscope.anatomy.batch import Probe
from normscope.diagnose.counterfactual import Experiment, explains, tried
from normscope.diagnose.engine import diagnose, rule, rules
from normscope.diagnose.removals import REMOVALS, standardize
from normscope.diagnose.scene import Scene, clusters, sgd
from normscope.diagnose.symptoms import SYMPTOMS
from normscope.terms.finding import Diagnosis, Evidence, Finding, Prescription, Removal
from normscope.watch.session import watch


def batch(samples=64):
    torch.manual_seed(0)
    return clusters(samples)


def tanh(std=1.0, depth=3, bias=0.0):
    torch.manual_seed(1)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(32, 32)
        nn.init.normal_(linear.weight, std=std)
        nn.init.constant_(linear.bias, bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(32, 8))


def normed(momentum=0.1):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 8))


def test_weights_at_the_gain_take_saturation_away_and_batch_statistics_the_gap():
    found = Experiment(tanh(2.0), batch()).removal("initialization", "saturated")
    assert found is not None
    assert found.before > 0.6
    assert found.after < 0.2  # at the gain of tanh a seventh of the normal lies beyond its points
    assert found.relief == pytest.approx(1 - found.after / found.before)
    model = normed()
    with torch.no_grad():
        model[1].running_mean += 2.0
    for cause in ("modes", "running"):
        found = Experiment(model, batch()).removal(cause, "eval_gap")
        assert found is not None
        assert found.before > 0.5
        assert found.after < 0.05


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0])
def test_statistics_of_the_population_are_rid_of_whatever_stood_there(value):
    model = normed()
    model[1].running_var[0] = value
    found = Experiment(model, batch()).removal("running", "running_broken")
    assert found is not None and found.before > 0 and found.after == 0


def test_the_saturated_share_is_the_one_counted_by_hand():
    model, data = tanh(2.0), batch()
    x, shares = data[0], []
    for linear, function in zip(model[0:6:2], model[1:6:2]):
        z = linear(x)
        shares.append(float((z.abs() > 2.1783).float().mean()))
        x = function(z)
    found = Experiment(model, data).removal("input", "saturated")
    assert found is not None
    assert found.before == pytest.approx(sum(shares) / 3, abs=0.02)  # the sketch's bins are 6% wide


def test_what_was_measured_is_what_a_removal_compares():
    tried_on = Experiment(tanh(2.0), batch())
    found = tried_on.removal("initialization", "saturated")
    assert found is not None
    assert tried_on.measured("saturated") == found.before
    assert tried_on.measured("saturated", "initialization") == found.after
    assert math.isnan(Experiment(nn.Linear(3, 3), batch()).measured("saturated"))  # which the batch does not fit


def test_standardizing_takes_the_inputs_fault_away():
    inputs, labels = batch()
    found = Experiment(tanh(32**-0.5), (100 * inputs + 300, labels)).removal("input", "saturated")
    assert found is not None
    assert found.relief > 0.7
    told = standardize(100 * inputs + 300)
    assert torch.allclose(told.mean(0), torch.zeros(32), atol=1e-4)
    assert torch.allclose(told.std(0, correction=0), torch.ones(32), atol=1e-4)
    images = standardize(5 + torch.randn(8, 3, 4, 4))
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert standardize(torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_what_is_not_there_is_not_removed_and_what_fails_is_not_tried():
    assert Experiment(tanh(0.1), batch()).removal("input", "saturated") is None
    assert Experiment(nn.Linear(5, 5), batch()).removal("input", "saturated") is None


@pytest.mark.parametrize("cause", REMOVALS)
def test_the_model_its_mode_and_the_random_state_stay_as_they_are(cause):
    model, data = normed(), batch()
    model[2].eval()
    before = copy.deepcopy(model.state_dict()), [one.training for one in model.modules()], torch.get_rng_state()
    experiment = Experiment(model, data, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1))
    for symptom in SYMPTOMS:
        experiment.removal(cause, symptom)
    experiment.losses()
    assert all(torch.equal(one, before[0][name]) for name, one in model.state_dict().items())
    assert [one.training for one in model.modules()] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(one.grad is None for one in model.parameters())


def test_losses_are_those_of_one_step_of_each_size():
    model = nn.Linear(3, 1, bias=False)
    x, y = torch.randn(16, 3), torch.randn(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = Experiment(model, (x, y), F.mse_loss, optimizer).losses((1.0, 0.1))
    weight = model.weight.detach().double()
    slope = 2 * ((x.double() @ weight.T - y) * x.double()).mean(0, keepdim=True)
    for size, loss in found.items():
        stepped = weight - 0.5 * size * slope
        assert loss == pytest.approx(float(((x.double() @ stepped.T - y) ** 2).mean()), rel=1e-4)
    assert Experiment(model, (x, y), F.mse_loss).losses() == {}
    assert Experiment(model, (x, y), None, optimizer).losses() == {}


def finding(code, *prescriptions, severity="error"):
    name = rule(code).name
    return Finding(code, name, severity, ("1",), "3 things.", Evidence("x", 1.0, 0.0), 0, "", (), (), prescriptions)


def test_a_finding_says_what_went_away_and_useless_advice_comes_last():
    useless = Prescription("freeze", ("0",), words="freeze")
    useful = Prescription("insert_norm", words="norm")
    experiment = Experiment(tanh(2.0), batch())
    (found,) = tried([finding("NS202", useless, useful)], rules(), experiment)
    assert [one.words for one in found.prescriptions] == ["norm", "freeze"]
    assert found.relief > 0.8
    assert "With a norm before the activations, the share of saturated pre-activations goes from" in found.message


def test_a_cause_without_which_nothing_changes_is_a_note():
    """Every unit of a ReLU is dead by its bias; with the running statistics replaced, as dead as before."""
    model = normed()
    with torch.no_grad():
        model[1].running_var *= 100
        model[1].bias -= 100
    experiment = Experiment(model, batch())
    assert SYMPTOMS["dead"].measure(experiment._look(lambda model, probe: (model, probe))) == 1.0
    found = experiment.removal("running", "dead")
    assert found is not None
    assert found.relief == 0.0
    sham = rule("NS203")
    object.__setattr__(sham, "removal", "running")
    try:
        (told,) = tried([finding("NS203")], [sham], experiment)
    finally:
        object.__setattr__(sham, "removal", "scales")
    assert told.severity == "note"


def test_a_cause_explains_a_symptom_when_half_of_it_goes_with_it():
    experiment = Experiment(tanh(2.0), batch())
    assert explains(rule("NS206"), rule("NS202"), experiment) is True
    assert explains(rule("NS301"), rule("NS202"), experiment) is False
    assert explains(rule("NS206"), rule("NS202"), None) is None
    assert explains(rule("NS205"), rule("NS202"), experiment) is None


def test_a_watcher_can_be_diagnosed_and_says_what_its_findings_rest_on(tmp_path):
    inputs, labels = batch(256)
    model = tanh(2.0)
    optimizer = sgd(0.05)(model.parameters())
    probe = inputs[:32], labels[:32]
    with watch(model, optimizer, tmp_path, probe=probe, loss_fn=F.cross_entropy, every=4) as watcher:
        for _ in range(24):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs[:64]), labels[:64])
            loss.backward()
            optimizer.step()
            watcher.loss(loss.item())
    sure, read = diagnose(watcher), diagnose(tmp_path)
    assert next(one for one in sure if one.name == "saturated_activation").removals
    assert sure.basis == "the record, and causes taken out of a copy of the model"
    assert not next(one for one in read if one.name == "saturated_activation").removals
    assert read.basis.startswith("the record alone")
    assert Diagnosis.from_dict(sure.to_dict()) == sure


def test_relief():
    assert Removal("a", "b", 2.0, 0.5).relief == 0.75
    assert Removal("a", "b", 0.0, 0.5).relief == 0.0
    assert math.isclose(Removal("a", "b", 1.0, 2.0).relief, -1.0)


def test_a_prescription_that_is_not_to_be_carried_out_costs_nothing():
    words = Prescription("", words="only words")
    broken = Prescription("insert_norm", ("nowhere",), words="elsewhere")
    assert Experiment(tanh(2.0), Probe.of(batch())).effect(finding("NS202", words, broken), "saturated") == {}


def test_a_finding_says_that_steps_could_not_be_tried_and_what_is_missing(tmp_path):
    built = []
    scene = Scene(lambda: built.append(tanh(32**-0.5)) or built[-1], optimizer=sgd(3.0))
    record, model = scene.record(tmp_path), built[0]
    optimizer = torch.optim.SGD(model.parameters(), 3.0)
    told = diagnose(record, model=model, probe=batch(), optimizer=optimizer, select="rate_too_high")
    assert told[0].message.endswith(
        " Steps of other sizes were not tried, for the loss is not known here: "
        "`normscope.diagnose(…, loss_fn=…)` tries them."
    )
    both = diagnose(record, model=model, probe=batch(), loss_fn=F.cross_entropy, select="rate_too_high")
    assert both[0].message.endswith("the optimizer is not known here: `normscope.diagnose(…, optimizer=…)` tries them.")
    known = {"loss_fn": F.cross_entropy, "optimizer": optimizer}
    assert "were not tried" not in diagnose(record, model=model, probe=batch(), select="NS210", **known)[0].message
    assert "were not tried" not in diagnose(record, select="rate_too_high")[0].message  # nothing was to be tried


def test_what_a_loss_asks_of_any_output_is_tried_without_the_network():
    torch.manual_seed(0)
    inputs, labels = batch()
    told = Experiment(tanh(), (inputs, labels), F.cross_entropy)
    assert told.loss_of_nothing() == pytest.approx(math.log(8))
    assert told.error_of_the_mean() is None
    real = torch.randn(64, 8)
    squared = Experiment(tanh(), (inputs, real), F.mse_loss)
    assert squared.error_of_the_mean() == pytest.approx(float(real.var(0, correction=0).mean()))
    yes = (torch.arange(64) % 4 == 0).float()[:, None].expand(64, 8)
    bounded = Experiment(tanh(), (inputs, yes), F.binary_cross_entropy_with_logits).least(0.0, 1.0)
    assert bounded == pytest.approx(0.25 * math.log(1 + math.exp(-1)) + 0.75 * math.log(2), rel=1e-3)
    assert Experiment(tanh(), (inputs, yes), F.binary_cross_entropy_with_logits).least(-20.0, 20.0) < 1e-3


class Attending(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.first, self.share = nn.Linear(32, 32), share

    def forward(self, x):
        x = self.first(x)[:, None]
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.share)[:, 0]


class Calling(nn.Module):
    def __init__(self, *given, **named):
        super().__init__()
        self.inner, self.given, self.named = nn.Linear(32, 8), given, named

    def forward(self, x):
        return F.dropout(self.inner(x), *self.given, **self.named)


@pytest.mark.parametrize(
    ("model", "drops"),
    [
        (Calling(0.5), True),
        (Calling(), True),
        (Calling(0.5, True), True),
        (Calling(p=0.5, training=True), True),
        (Calling(0.0), False),
        (Calling(0.5, False), False),
        (Calling(0.5, training=False), False),
        (nn.Dropout(0.5), False),
        (Attending(0.1), True),
        (Attending(0.0), False),
    ],
)
def test_a_function_that_drops_in_evaluation_mode_is_found_where_it_is_called(model, drops):
    around = nn.Sequential(nn.Linear(32, 32), model)
    assert Experiment(around, batch()).dropping() == (("1",) if drops else ())


def test_asking_a_model_changes_neither_it_nor_the_random_state():
    model, (inputs, labels) = normed(), batch()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    told = Experiment(model, (inputs, labels), F.cross_entropy)
    assert torch.equal(told.answer(), copy.deepcopy(model).eval()(inputs))
    first, last = told.by_heart(40)
    assert last < first / 2
    assert set(told.traced()) == {"", "0", "1", "2", "3"}
    assert torch.equal(told.answer(lambda x: x * 0)[0], told.answer(lambda x: x * 0)[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
