"""Replacing at every path, inserting without breaking names, and giving everything back."""

import copy
import pickle

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.treat import surgery
from normscope.treat.snapshot import Snapshot


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.layers = nn.ModuleList([self.fc, nn.ModuleDict({"again": self.fc})])
        self.seq = nn.Sequential(nn.Tanh(), self.fc)

    def forward(self, x):
        return self.seq(self.layers[1]["again"](x)) @ self.fc.weight + self.fc.in_features


def test_a_module_is_replaced_wherever_it_is_registered():
    model, new = Tied(), nn.Linear(3, 3)
    told = []
    handle = model.fc.register_forward_hook(lambda *_: told.append(1))
    model.fc.eval()
    assert surgery.replace(model, model.fc, new) is model
    assert model.fc is new and model.layers[0] is new and model.layers[1]["again"] is new and model.seq[1] is new
    assert not new.training
    model(torch.zeros(1, 3))
    assert len(told) == 2
    handle.remove()
    model(torch.zeros(1, 3))
    assert len(told) == 2


def test_the_root_is_replaced_by_returning_another():
    model, new = nn.Linear(1, 1), nn.Linear(1, 1)
    assert surgery.replace(model, model, new) is new
    assert isinstance(surgery.remove(model, model), nn.Identity)


def test_a_followed_layer_answers_for_itself():
    torch.manual_seed(0)
    model, norm = Tied(), nn.BatchNorm1d(3)
    before, weight = model.state_dict(), model.fc.weight
    surgery.follow(model, model.fc, norm)
    assert isinstance(model.fc, surgery.Followed) and model.fc is model.seq[1] and model.fc.weight is weight
    x = torch.randn(8, 3)
    first = norm(nn.functional.linear(x, weight, model.fc.bias))
    assert model(x).shape == first.shape
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(twin.eval()(x), model.eval()(x))
    missing, unexpected = model.load_state_dict(before, strict=False)
    assert not unexpected and all(".norm." in key for key in missing)
    assert model.load_state_dict(model.state_dict()) and twin.load_state_dict(model.state_dict())
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.fc.nothing


def test_what_is_held_outside_of_the_registered_modules_is_found():
    model = Tied()
    assert surgery.unregistered(model, model.fc) is None
    model.seq.plain = {"list": [model.fc]}
    assert surgery.unregistered(model, model.fc) == "seq.plain"
    model.seq.plain = None
    model.bound = model.fc.forward
    assert surgery.unregistered(model, model.fc) == "bound"


def test_a_module_that_is_not_there():
    with pytest.raises(ns.NormscopeError) as missing:
        surgery.module_at(Tied(), "seq.7")
    assert "asked for at `seq.7`" in str(missing.value) and isinstance(missing.value, LookupError)


def test_a_snapshot_gives_back_the_same_objects_bit_for_bit():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    handle = model[0].register_forward_hook(lambda *_: None)
    model[0](torch.ones(1, 2)).sum().backward()
    weight, gradient = model[0].weight, model[0].weight.grad
    numbers, bias = weight.detach().clone(), model[0].bias
    kept = Snapshot(model)
    with torch.no_grad():
        weight.mul_(3)
    weight.data = torch.zeros(5)
    weight.requires_grad_(False)
    model[0].bias = None
    model[0].new = 3
    model[1].running_mean += 1
    model[1] = nn.Identity()
    model.zero_grad(set_to_none=True)
    model[0].register_forward_pre_hook(lambda *_: None)
    kept.restore()
    assert model[0].weight is weight and torch.equal(weight, numbers) and weight.requires_grad
    assert weight.grad is gradient and model[0].bias is bias and not hasattr(model[0], "new")
    assert isinstance(model[1], nn.BatchNorm1d) and (model[1].running_mean == 0).all()
    assert len(model[0]._forward_hooks) == 1 and not model[0]._forward_pre_hooks
    handle.remove()
    assert not model[0]._forward_hooks
