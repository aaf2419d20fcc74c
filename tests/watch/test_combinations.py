"""Several ways of training at once: none is disturbed by a bit, none has a fault, and the numbers are right."""

import copy
from contextlib import nullcontext, suppress

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import normscope as ns
from normscope.watch.session import watch


def mlp():
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(inplace=True), nn.Linear(12, 3))


def batch(n=8):
    return torch.randn(n, 6), torch.randint(0, 3, (n,))


def train(model, called, optimizer, watching, steps=5, around=nullcontext):
    with watching(called, optimizer):
        for _ in range(steps):
            x, y = batch()
            optimizer.zero_grad()
            with around():
                F.cross_entropy(called(x), y).backward()
            optimizer.step()
    return model


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second, self.head = (
            nn.Linear(6, 12),
            nn.LayerNorm(12),
            nn.Linear(12, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x):
        x = checkpoint(lambda x: torch.relu(self.second(self.norm(x))), self.first(x), use_reentrant=False)
        return self.head(x)


def scaled_gathered_and_checkpointed(watching):
    """The third step overflows in its second micro-batch and is begun again."""
    model = Checkpointed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with watching(model, optimizer):
        for number in range(6):
            for part in range(3):
                x, y = batch()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(x * (1e38 if (number, part) == (2, 1) else 1.0)), y) / 3
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return model


def compiled_and_scaled(watching):
    torch._dynamo.reset()
    model = mlp()
    called = torch.compile(model, backend="eager")
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=256.0)
    with watching(called, optimizer):
        for _ in range(5):
            x, y = batch()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(called(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return model


def two_shapes_in_one_step(watching):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(5):
            (x, y), (z, w) = batch(8), batch(5)
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + F.cross_entropy(model(z), w)).backward()
            optimizer.step()
    return model


def differentiated_twice(watching):
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model, optimizer):
        for _ in range(5):
            x, y = batch()
            F.cross_entropy(model(x), y).backward(create_graph=True)
            sum(parameter.grad.square().sum() for parameter in model.parameters()).backward(retain_graph=True)
            optimizer.step()
            for parameter in model.parameters():
                parameter.grad = None
    return model


def reparametrized(watching):
    """Spectral norm moves its vectors each time that a weight is asked for; within `cached` once."""
    model = mlp()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[3])
    return train(model, model, torch.optim.SGD(model.parameters(), lr=0.1), watching, around=parametrize.cached)


def replaced_in_the_midst(watching):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    start = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with watching(model, optimizer):
        for number in range(7):
            x, y = batch()
            if number == 2:
                model.load_state_dict(start[0]), optimizer.load_state_dict(start[1])
            if number == 4:
                model.load_state_dict({name: value.clone() for name, value in start[0].items()}, assign=True)
                optimizer.param_groups[0]["params"] = list(model.parameters())
                optimizer.state.clear()
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(model[0].weight.dtype)), y).backward()
            if number == 5:
                model.double()  # between the backward pass and the update
            optimizer.step()
    return model


class Yielding(nn.Module):
    def forward(self, x):
        yield x
        yield x + 1


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        self.kept = self.layer(x)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.silent, self.yielding, self.head = Silent(), Yielding(), nn.Linear(6, 3)

    def forward(self, x):
        self.silent(x)
        if len(x) > 8:
            raise ValueError("too many")
        return self.head(sum(self.yielding(self.silent.kept)))


def generators_nothing_and_exceptions(watching):
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for size in (8, 9, 8, 8):
            x, y = batch(size)
            optimizer.zero_grad()
            try:
                F.cross_entropy(model(x), y).backward()
            except ValueError:
                continue
            optimizer.step()
    return model


class Angry(torch.optim.SGD):
    """Its step is inside that of a class with hooks of its own; the second one raises."""

    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 2:
            raise RuntimeError("not now")
        return super().step(closure)


def an_optimizer_of_a_class_below_another(watching):
    torch.optim.SGD([torch.ones(1, requires_grad=True)])  # whose class is hooked then
    model = mlp()
    optimizer = Angry(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(5):
            x, y = batch()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with suppress(RuntimeError):
                optimizer.step()
    return model


PROGRAMS = {
    scaled_gathered_and_checkpointed: 5,
    compiled_and_scaled: 5,
    two_shapes_in_one_step: 5,
    differentiated_twice: 5,
    reparametrized: 5,
    replaced_in_the_midst: 7,
    generators_nothing_and_exceptions: 3,
    an_optimizer_of_a_class_below_another: 4,
}


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_combination_is_not_disturbed_and_has_no_fault(program, same, faults, tmp_path):
    torch.manual_seed(0)
    alone = program(lambda model, optimizer: nullcontext()).state_dict(), torch.get_rng_state()
    torch.manual_seed(0)
    told = program(lambda model, optimizer: watch(model, optimizer, tmp_path, every=1))
    assert same(alone, (told.state_dict(), torch.get_rng_state()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in told.modules())
    record = ns.Record(tmp_path)
    assert faults(tmp_path) == [] and list(record.steps) == list(range(PROGRAMS[program]))
    assert f"after {PROGRAMS[program]} steps" in record.events[-1].text
    assert list(record.series(None, "loss").steps) == list(record.steps)
    moved = {site.key for site in record.sites if site.what == "update"}
    assert moved == {site.key.replace(":parameter", ":update") for site in record.sites if site.what == "parameter"}


def test_the_numbers_of_micro_batches_that_are_scaled_and_checkpointed(tmp_path):
    """w·x with w = 2: micro-batches of 1 and 3, each a half of the loss, and a scale of 256."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.layer.weight, 2.0)

        def forward(self, x):
            return checkpoint(self.layer, x, use_reentrant=False)

    model = Model()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.25), torch.amp.GradScaler("cpu", init_scale=256.0)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for x in (1.0, 3.0):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.full((4, 1), x)).float().mean() / 2
            scaler.scale(loss).backward()
        scaler.step(optimizer)
    record = watcher.record
    assert (record.summary("layer:input", 0).mean, record.summary("layer:input", 0).size) == (2.0, 8)
    assert (record.summary("layer:output", 0).low, record.summary("layer:output", 0).high) == (2.0, 6.0)
    assert (record.summary("layer:gradient", 0).mean, record.summary("layer:gradient", 0).size) == (1 / 8, 8)
    assert record.summary("layer@weight:gradient", 0).mean == 2.0  # (1 + 3) / 2
    assert record.summary("layer@weight:update", 0).mean == -0.5
    assert list(record.series("layer@weight:update", "update_ratio").values) == [0.25]
    assert list(record.series(None, "loss").values) == [4.0]
    assert not [site.key for site in record.sites if site.call]
