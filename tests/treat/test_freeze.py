"""Frozen norms stay as they are through model.train(), training and checkpoints, and come back as they were."""

import copy
import pickle

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.anatomy.recognize import spec_of
from normscope.terms.finding import Prescription
from normscope.treat.treatment import treat
from normscope.treat.treatments.freeze import freeze, unfreeze
from normscope.treat.treatments.recalibrate import recalibrate

KINDS = [nn.BatchNorm1d, lambda n: nn.BatchNorm1d(n, momentum=None), ns.nn.BatchNorm1d, nn.LayerNorm, nn.SyncBatchNorm]


def net(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm(4), nn.ReLU(), nn.Linear(4, 4), norm(4))
    for module in model:
        if getattr(module, "running_mean", None) is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def train(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model.train()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("norm", KINDS[:4])
def test_a_frozen_norm_survives_training(norm):
    model = net(norm)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = copy.deepcopy(model).eval()(torch.ones(2, 4))
    treated = freeze(model)
    assert treated.model is model and [change.site for change in treated.changes] == ["1", "4"]
    assert treated.preserves == "exact" and freeze(model).changes == ()
    model.train()
    assert model.training and not model[1].training and isinstance(model[1], type(norm(4)))
    assert torch.equal(model(torch.ones(2, 4)), wanted)
    train(model)
    after = model.state_dict()
    assert after.keys() == before.keys() and not torch.equal(after["0.weight"], before["0.weight"])
    assert all(torch.equal(after[key], before[key]) for key in before if key[0] in "14")


@pytest.mark.parametrize("norm", KINDS[:4])
def test_unfreezing_gives_back_what_there_was(norm):
    model, twin = net(norm), net(norm)
    twin.load_state_dict(model.state_dict())
    model[4].weight.requires_grad_(False)
    kinds, parameters = [type(module) for module in model], [id(p) for p in model.parameters()]
    attributes = set(vars(model[1]))
    freeze(model)
    model.train()
    assert [change.site for change in unfreeze(model).changes] == ["1", "4"]
    assert [type(module) for module in model] == kinds and [id(p) for p in model.parameters()] == parameters
    assert set(vars(model[1])) == attributes and spec_of(model[1]) == spec_of(twin[1])
    assert model[1].training and model[1].weight.requires_grad and not model[4].weight.requires_grad
    x = torch.randn(8, 4)
    assert torch.equal(model(x), twin.train()(x))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values()))


def test_only_what_is_chosen():
    assert [c.site for c in freeze(net(nn.BatchNorm1d), "4").changes] == ["4"]
    assert [c.site for c in freeze(net(nn.BatchNorm1d), lambda site: site.path == "1").changes] == ["1"]
    assert treat(net(nn.BatchNorm1d), Prescription("freeze", ("1",))).changes[0].after == "frozen BatchNorm1d"
    with pytest.raises(ns.NormscopeError):
        freeze(net(nn.BatchNorm1d), "5")


def test_frozen_models_copy_pickle_compile_and_load():
    model = net(nn.BatchNorm1d)
    plain = copy.deepcopy(model)
    freeze(model)
    model.train()
    x = torch.randn(8, 4)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.allclose(twin(x), model(x)) and not twin[1].training
    assert torch.allclose(torch.compile(model, backend="eager")(x), model(x))
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    twin = copy.deepcopy(model)
    unfreeze(twin)
    assert twin[1].weight.requires_grad and not model[1].weight.requires_grad


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, ns.nn.BatchNorm1d])
def test_it_reads_as_given_statistics_and_is_not_recalibrated(kind):
    model = net(kind).eval()
    freeze(model, "1")
    assert spec_of(model[1]).train_from == "given"
    mean = model[1].running_mean.clone()
    treated = recalibrate(model, torch.randn(8, 4))
    assert torch.equal(model[1].running_mean, mean) and treated.skipped[0][0] == "1"


def test_a_norm_without_statistics_cannot_hold_still():
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))
    assert freeze(model).skipped == (("0", "it keeps no statistics that could hold still"),)


def test_a_model_that_is_a_norm():
    treated = freeze(nn.BatchNorm2d(3))
    assert not treated.model.train().training and type(unfreeze(treated.model).model) is nn.BatchNorm2d
