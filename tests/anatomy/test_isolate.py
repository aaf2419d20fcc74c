"""A model that was looked at is bitwise what it was."""

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from normscope.anatomy.batch import tensors
from normscope.anatomy.flow import symbolic, trace
from normscope.anatomy.isolate import isolated, unwrapped
from normscope.anatomy.observe import observe
from normscope.anatomy.walk import sites
from normscope.terms.errors import ModelError


def nothing(*_):
    pass


LOOKS = {
    "sites": sites,
    "sites at rest": lambda model, batch: sites(model),
    "trace": trace,
    "symbolic": lambda model, batch: symbolic(model),
    "observe, training": lambda model, batch: observe(model, nothing, batch, training=True),
    "observe, gradients": lambda model, batch: observe(model, nothing, batch, grad=True),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_a_look_changes_nothing(case, picture, look, mode):
    model, batch = case
    model.train(mode)
    before = picture(model)
    look(model, batch)
    assert picture(model) == before


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_training_step_after_a_look_is_the_one_without(case, look):
    model, batch = case
    other = copy.deepcopy(model)
    look(model, batch)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    outputs = []
    for each in (model, other):
        torch.set_rng_state(state[0])
        random.setstate(state[1])
        np.random.set_state(state[2])
        each.zero_grad()
        output = trace_free_run(each, batch)
        if output:
            output[0].float().pow(2).sum().backward()
        outputs.append([*output, *(p.grad for p in each.parameters() if p.grad is not None), *each.buffers()])
    assert outputs[0] and len(outputs[0]) == len(outputs[1])
    assert all(torch.equal(one, two) for one, two in zip(*outputs))


def trace_free_run(model, batch):
    from normscope.anatomy.batch import Probe

    return list(tensors(Probe.of(batch).run(model))) or [tensors(model.last)[0]]


def test_the_same_holds_when_the_forward_raises(picture):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.inner = nn.Linear(3, 4)

        def forward(self, x):
            return self.inner(self.inner(F.dropout(self.norm(x))))

    model, x = nn.Sequential(Breaks()), torch.randn(4, 3)
    before = picture(model)
    for look in (sites, trace, LOOKS["observe, training"]):
        with pytest.raises(ModelError) as error:
            look(model, x)
        assert picture(model) == before
    assert str(error.value) == (
        "Sequential was run on a batch and raised.\n"
        "  found    RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x4 and 3x4) at `0.inner`\n"
        "  because  the model and the batch do not fit each other, or the model's forward has a fault\n"
        "  do       give a tensor, an (inputs, target) pair, a dict of keyword arguments, or a Probe with which "
        "model(…) runs"
    )
    assert isinstance(error.value.__cause__, RuntimeError)


def test_the_same_holds_when_the_observer_raises(picture):
    class Mine(Exception):
        pass

    def fail(*_):
        raise Mine

    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3)
    before = picture(model)
    for where in ({"on_call": fail}, {"on_call": nothing, "before": fail}):
        with pytest.raises(Mine):
            observe(model, probe=x, **where)
        assert picture(model) == before


def test_a_lazy_model_is_refused_and_left_lazy():
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with pytest.raises(ModelError, match="before it has its parameters") as error:
        sites(model, torch.randn(4, 2))
    assert "LazyLinear without shapes at `0`" in str(error.value)
    assert isinstance(model[0], nn.LazyLinear)
    assert [site.role for site in sites(model)] == ["producer", "norm"]


def test_frozen_parts_of_a_training_model_stay_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    with isolated(model, training=True):
        assert model.training and not model[1].training
    model.eval()
    with isolated(model, training=True):
        assert model[1].training
    assert not model[1].training


def test_a_mode_is_a_flag_and_not_the_call_of_train():
    class Merges(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("a change of mode may rewrite weights")

    model = Merges(2, 2)
    with isolated(model, training=False):
        assert not model.training
    assert model.training


def test_shared_buffers_stay_shared_inside():
    model = nn.Module()
    model.one, model.two = nn.Module(), nn.Module()
    shared = torch.zeros(2)
    model.one.register_buffer("state", shared)
    model.two.register_buffer("state", shared)
    with isolated(model):
        model.one.state += 1
        assert model.two.state is model.one.state is not shared
    assert model.one.state is shared and not shared.any()


def test_a_generator_of_the_model_is_put_back():
    model = nn.Identity()
    model.source = torch.Generator().manual_seed(3)
    state = model.source.get_state()
    with isolated(model):
        torch.rand(3, generator=model.source)
    assert torch.equal(model.source.get_state(), state)


def test_the_state_of_another_accelerator_is_put_back(monkeypatch):
    class Device:
        state = "before"
        get_rng_state = classmethod(lambda cls: cls.state)
        set_rng_state = classmethod(lambda cls, state: setattr(cls, "state", state))

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: Device)
    with isolated(nn.Identity()):
        Device.state = "after"
    assert Device.state == "before"


def test_the_next_step_under_autocast_has_its_gradients():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.set_autocast_cache_enabled(True)
        with isolated(model):
            assert not torch.is_autocast_cache_enabled()
        assert torch.is_autocast_cache_enabled()
        observe(model, nothing, torch.randn(3, 4))
        model(torch.randn(3, 4)).sum().backward()
    assert model[0].weight.grad is not None


def test_checkpointed_parts_run_again_inside_the_isolation(picture):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    model, x = Checkpointed().train(), torch.randn(4, 3)
    before = picture(model)
    with isolated(model, training=True):
        output = observe(model, nothing, x, grad=True)
        gradients = torch.autograd.grad(output.sum(), list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert picture(model) == before


def test_wrappers_are_seen_through():
    model = nn.Linear(2, 2)
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(model)) is model
    assert sites(torch.compile(nn.Sequential(model)), torch.randn(3, 2))[0].path == "0"


def test_compiled_parts_run_eagerly_and_are_not_compiled_again():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend=backend), nn.Tanh())
    x = torch.randn(3, 2)
    model(x)
    assert len(compiled) == 1
    kinds = [site.kind for site in sites(model, x)]
    model(x)
    assert kinds == ["Linear", "ReLU", "Tanh"] and len(compiled) == 1


def test_scripted_parts_keep_their_buffers_and_modes():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    model, x = nn.Sequential(scripted, nn.Linear(2, 2)), torch.randn(4, 2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    observe(model, nothing, x, training=True)
    assert [site.path for site in sites(model, x)] == ["1"]
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    with isolated(model.train(), training=False):
        assert not scripted.training
    assert scripted.training and all(torch.equal(b, before[name]) for name, b in model.named_buffers())


class Caching(nn.Module):
    """Keeps what it computed in containers, as attention layers keep their biases and decoders their keys."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.cache, self.steps, self.seen, self.last = {"deep": {}}, [torch.zeros(())], set(), deque(maxlen=2)
        self.cache["itself"] = self.cache

    def forward(self, x):
        y = self.layer(x)
        self.steps[0] += 1
        self.cache["deep"][str(x.device)] = y
        self.steps.append(y)
        self.seen.add(len(self.steps))
        self.last.append(y)
        return y


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_caches_in_containers_are_put_back(look):
    model, batch = Caching(), torch.zeros(2, 4)
    model(batch)
    held = model.cache, model.cache["deep"], dict(model.cache["deep"]), list(model.steps), set(model.seen)
    last, count = list(model.last), model.steps[0].clone()
    look(model, batch)
    assert model.cache is held[0]
    assert model.cache["deep"] is held[1]
    assert model.cache["deep"]["cpu"] is held[2]["cpu"]
    assert all(now is then for now, then in zip(model.steps, held[3], strict=True))
    assert model.steps[0] == count
    assert model.seen == held[4]
    assert all(now is then for now, then in zip(model.last, last, strict=True))
