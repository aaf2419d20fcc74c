"""Programs that nobody had in mind: none is disturbed by a bit, none has a fault, and the record is right."""

import copy
import io
import pickle
import random
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.watch.session import watch


def mlp():
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)
    )


def batch():
    return torch.randn(8, 6), torch.randint(0, 3, (8,))


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def two_optimizers(model, watching):
    first, second = torch.optim.SGD(model[:2].parameters(), lr=0.1), torch.optim.Adam(model[4:].parameters())
    with watching(model, first):
        for _ in range(4):
            second.zero_grad()
            step(model, first, *batch())
            second.step()
    return second


def parts_in_random_order(_, watching):
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.head = nn.ModuleList(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 3)

        def forward(self, x):
            for part in random.sample(list(self.parts), random.randint(1, 4)):
                x = torch.relu(part(x))
            return self.head(x)

    model = Shuffled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(4):
            step(model, optimizer, *batch())
    return model


def scripted(model, watching):
    model = nn.Sequential(torch.jit.script(model[:3]), model[6:])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(3):
            step(model, optimizer, *batch())
    return model


def cast(model, watching):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model.to(dtype)
            for _ in range(2):
                x, y = batch()
                step(model, optimizer, x.to(dtype), y)


def rebuilt(model, watching):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for number in range(6):
            if number == 2:
                model.insert(5, nn.Linear(12, 12))
                optimizer.add_param_group({"params": model[5].parameters()})
            if number == 4:
                model[2] = nn.Identity()
                del model[3]
            step(model, optimizer, *batch())


def halved_after_an_error(model, watching):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            hidden = self.body[:4](x)
            if len(x) > 6:
                raise RuntimeError("out of memory")
            return self.body[4:](hidden)

    small = Small()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    with watching(small, optimizer):
        for size in (6, 8, 6):
            x, y = batch()
            optimizer.zero_grad()
            try:
                F.cross_entropy(small(x[:size]), y[:size]).backward()
            except RuntimeError:
                for half in (slice(0, 4), slice(4, 8)):
                    (F.cross_entropy(small(x[half]), y[half]) / 2).backward()
            optimizer.step()


def saved_and_copied_in_the_midst(model, watching):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(3):
            x, y = batch()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            for twin in (torch.load(file, weights_only=False), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                twin(x).sum().backward()
            loss.backward()
            optimizer.step()


def sharpness_aware(model, watching):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(3):
            x, y = batch()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            moves = [0.01 * parameter.grad / parameter.grad.norm().clamp(min=1e-9) for parameter in model.parameters()]
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), moves)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), moves)
            optimizer.step()


def without_backward(model, watching):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(3):
            x, y = batch()
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter.grad = gradient
            optimizer.step()


def sparse(_, watching):
    model = nn.Sequential(nn.EmbeddingBag(20, 6, sparse=True), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer):
        for _ in range(3):
            step(model, optimizer, torch.randint(0, 20, (8, 4)), torch.randint(0, 3, (8,)))
    return model


PROGRAMS = [
    two_optimizers,
    parts_in_random_order,
    scripted,
    cast,
    rebuilt,
    halved_after_an_error,
    saved_and_copied_in_the_midst,
    sharpness_aware,
    without_backward,
    sparse,
]
PROBES = ("activation", "gradient", "dead", "scale_invariance", "gradient_shift", "landscape", "amplification")


def loss(output, _):
    return output.float().square().mean()


def run(program, watching):
    torch.manual_seed(0)
    random.seed(0)
    model = mlp()
    left = program(model, watching)
    states = [thing.state_dict() for thing in (model, left) if thing is not None]
    gradients = [parameter.grad for parameter in model.parameters()]
    return states, gradients, torch.get_rng_state(), random.getstate()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_an_odd_program_is_not_disturbed_and_has_no_fault(program, same, faults, tmp_path):
    alone = run(program, lambda model, optimizer: nullcontext())
    told = run(program, lambda m, o: watch(m, o, tmp_path, every=lambda step: True, probes=PROBES, loss_fn=loss))
    assert same(_dense(alone), _dense(told))
    assert faults(tmp_path) == []
    record = ns.Record(tmp_path)
    assert list(record.steps) == list(record.series(None, "loss").steps) == list(range(len(record.steps)))
    assert list(record.series(None, "probe_loss").steps) == list(record.steps)
    smoothness = record.series(None, "effective_smoothness")
    assert len(smoothness) == len(record.steps) - (3 if program is rebuilt else 1) and (smoothness.values > 0).all()
    assert not [event.text for event in record.events if event.text.startswith("There is no fixed batch")]


def test_micro_batches_after_a_forward_that_raised_are_one_batch(tmp_path):
    run(halved_after_an_error, lambda m, o: watch(m, o, tmp_path, every=1))
    record = ns.Record(tmp_path)
    assert [record.summary("body.0:input", number).size for number in range(3)] == [36, 48, 36]
    assert not [site.key for site in record.sites if site.call]


def test_parameters_of_scripted_parts_are_seen_and_their_fixed_batch_learns_with_them(tmp_path):
    run(scripted, lambda m, o: watch(m, o, tmp_path, every=lambda step: True, probes=PROBES))
    record = ns.Record(tmp_path)
    assert (record.series("0.0@weight:update", "update_ratio").values > 0).all()
    assert (record.shift("1.6:input").values > 0).all()  # what the scripted part gives has moved
    sizes = {record.summary(f"0.0@weight:{what}", 1).size for what in ("parameter", "gradient", "update")}
    assert sizes == {72} and record.summary("0.0@weight:gradient", 1, "probe").size == 72


def _dense(value):
    if isinstance(value, torch.Tensor):
        return value.to_dense()
    if isinstance(value, dict):
        return {key: _dense(item) for key, item in value.items()}
    return [_dense(item) for item in value] if isinstance(value, list | tuple) else value
