"""`observe`: what is told, when, and with which tensors."""

import torch
from torch import nn

from normscope.anatomy.isolate import isolated
from normscope.anatomy.observe import observe


def test_tensors_are_told_before_they_are_overwritten():
    model = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(inplace=True))
    nn.init.constant_(model[0].weight, 5.0)
    x, before, after = torch.ones(4, 2), {}, {}
    observe(
        model,
        lambda call, inputs, output: after.update({call.path: output.clone()}),
        x,
        before=lambda call, inputs: before.update({call.path: inputs[0].clone()}),
    )
    assert torch.equal(before["1"], after["0"]) and bool(after["0"].gt(1).all())
    assert torch.equal(after["1"], torch.ones(4, 3)) and torch.equal(before["0"], x)


def test_the_output_is_that_of_the_model(case):
    model, batch = case
    model.eval()
    from normscope.anatomy.batch import Probe, tensors

    torch.manual_seed(3)
    seen = []
    output = observe(model, lambda call, inputs, output: seen.append(call.index), batch)
    with isolated(model), torch.no_grad():
        expected = Probe.of(batch).run(model)
    assert len(tensors(output)) == len(tensors(expected))
    assert seen == list(range(len(seen)))


def test_gradients_of_values_that_are_overwritten_later():
    """The edge that is kept at the call leads to the gradient of that value, not of what was written over it."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    edges, x = {}, torch.randn(5, 2)

    def keep(call, inputs, output):
        edges[call.path] = torch.autograd.graph.get_gradient_edge(output)

    with isolated(model, training=True):
        output = observe(model, keep, x, grad=True)
        found = torch.autograd.grad(output.sum(), list(edges.values()))
    plain = nn.Sequential(*model[:2], nn.ReLU(), model[3])
    values = [x]
    for module in plain:
        values.append(module(values[-1]))
    expected = torch.autograd.grad(values[-1].sum(), values[1:])
    assert all(torch.allclose(one, two) for one, two in zip(found, expected))
    assert model[0].weight.grad is None


def test_what_the_observer_computes_is_no_call_of_the_model():
    told = []
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    observe(model, lambda call, inputs, output: told.append((call.path, inputs[0].sigmoid())), torch.ones(1, 2))
    assert [path for path, _ in told] == ["0", "1"]


def test_the_parts_of_a_norm_with_an_activation_are_not_told():
    class BatchNormAct(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(2)
            self.act = nn.ReLU()

        def forward(self, x):
            return torch.add(self.act(super().forward(x)), 0)

    told = []
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Sequential(BatchNormAct()), nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))
    )
    observe(model, lambda call, *_: told.append((call.path, call.kind)), torch.randn(3, 2))
    assert told == [("0", "Linear"), ("1.0", "BatchNormAct"), ("2", "Linear")]


def test_modes():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    outputs = {mode: observe(model, lambda *_: None, torch.ones(64, 2), training=mode) for mode in (True, False, None)}
    assert (outputs[True] == 0).any() and (outputs[None] == 0).any() and not (outputs[False] == 0).any()


def test_a_forward_that_survives_an_error_inside_is_followed_on():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrong, self.right = nn.Linear(5, 5), nn.Linear(2, 2)

        def forward(self, x):
            try:
                return self.wrong(x)
            except RuntimeError:
                return torch.tanh(self.right(x))

    told = []
    observe(nn.Sequential(Tries()), lambda call, inputs, output: told.append(call.path), torch.ones(1, 2))
    assert told == ["0.right", "0/tanh"]


def test_numbering_starts_anew_with_each_run():
    model, calls = nn.Sequential(nn.Linear(2, 2)), []
    for _ in range(2):
        observe(model, lambda call, inputs, output: calls.append((call.index, call.call)), torch.ones(1, 2))
    assert calls == [(0, 0), (0, 0)]
