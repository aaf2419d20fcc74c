"""Weights at the scale that their activation asks for, checked against torch's own initializers and by the signal."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import normscope as ns
from normscope.terms.finding import Prescription
from normscope.treat.treatment import treat


def reinitialize(model, *sites, data=None, **arguments):
    return treat(model, Prescription("reinitialize", sites, {"seed": 0, **arguments}), data=data)


def std(tensor):
    return tensor.detach().std().item()


def test_the_gain_follows_from_the_activation():
    model = nn.Sequential(
        nn.Linear(400, 300),
        nn.BatchNorm1d(300),
        nn.Dropout(),
        nn.ReLU(),
        nn.Linear(300, 200),
        nn.Tanh(),
        nn.Linear(200, 300),
    )
    treated = reinitialize(model)
    first, second, last = (treated.model[place] for place in (0, 4, 6))
    assert std(first.weight) == pytest.approx(math.sqrt(2 / 400), rel=0.03)
    assert std(second.weight) == pytest.approx(5 / 3 * math.sqrt(2 / 500), rel=0.03)
    assert std(last.weight) == pytest.approx(math.sqrt(2 / 500), rel=0.03)
    assert not first.bias.any() and treated.preserves == "nothing" and treated.error is None
    assert [change.after.split(":")[0] for change in treated.changes] == [
        "he, gain 1.41 before relu",
        "xavier, gain 1.67 before tanh",
        "xavier, gain 1",
    ]
    assert torch.equal(treated.model[1].weight, model[1].weight)


def test_a_deep_network_keeps_its_signal():
    layers = [layer for _ in range(30) for layer in (nn.Linear(128, 128), nn.ReLU())]
    model = nn.Sequential(*layers)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=1.0)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    assert model(x).std() > 1e20
    assert 0.1 < reinitialize(model).model(x).std() < 10


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(16, 64, 3), 16 * 9),
        (nn.Conv2d(32, 64, 3, groups=4), 8 * 9),
        (nn.Conv1d(32, 64, 5), 160),
        (nn.ConvTranspose2d(64, 16, 4, stride=2), 64 * 16 / 4),
    ],
)
def test_fan_in_of_convolutions(layer, fan_in):
    treated = reinitialize(nn.Sequential(layer, nn.ReLU(), nn.Flatten()))
    assert std(treated.model[0].weight) == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)


def test_the_same_seed_gives_the_same_weights_and_none_follows_torch():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    one, other = reinitialize(model).model, reinitialize(model).model
    assert torch.equal(one[0].weight, other[0].weight) and not torch.equal(one[0].weight, one[2].weight)
    assert not torch.equal(one[0].weight, reinitialize(model, seed=1).model[0].weight)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(reinitialize(model, seed=None).model[0].weight)
    assert torch.equal(*drawn)


def test_only_the_named_sites():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    assert [c.site for c in reinitialize(model, "2").changes] == ["2"]
    assert [c.site for c in reinitialize(model, "1").changes] == ["0"]  # an activation stands for what feeds it
    assert [c.site for c in reinitialize(model, "1:output", "4").changes] == ["0", "4"]
    with pytest.raises(ns.NormscopeError, match="asked for at `7`"):
        reinitialize(model, "7")
    with pytest.raises(ns.NormscopeError, match="method that does not exist"):
        reinitialize(model, method="kaiming")


def test_orthogonal():
    weight = reinitialize(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), method="orthogonal").model[0].weight
    assert torch.allclose(weight @ weight.T, (5 / 3) ** 2 * torch.eye(8), atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_are_orthogonal_gate_by_gate(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = kind(64, 16, num_layers=2, bidirectional=True), nn.Linear(32, 1)

        def forward(self, x):
            return self.out(self.cell(x)[0])

    cell = reinitialize(Net(), data=torch.randn(3, 2, 64)).model.cell
    for gate in cell.weight_hh_l1_reverse.split(16):
        assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)
    assert std(cell.weight_ih_l0) == pytest.approx(math.sqrt(2 / 80), rel=0.1)
    assert not cell.bias_ih_l0.any() and not cell.bias_hh_l1.any()


def test_attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(64, 4, batch_first=True)

        def forward(self, x):
            return self.attend(x, x, x)[0]

    attend = reinitialize(Net(), data=torch.randn(2, 3, 64)).model.attend
    assert std(attend.in_proj_weight) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert std(attend.out_proj.weight) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert not attend.in_proj_bias.any() and not attend.out_proj.bias.any()


class OneWay(nn.Module):
    def forward(self, x):
        return x.abs()


def test_reparametrized_and_shared_weights():
    normed = parametrizations.weight_norm(nn.Linear(300, 300))
    nn.init.ones_(normed.parametrizations.weight.original0)
    treated = reinitialize(nn.Sequential(normed, nn.ReLU()))
    assert std(treated.model[0].weight) == pytest.approx(math.sqrt(2 / 300), rel=0.03)
    one_way = nn.Linear(3, 3)
    nn.utils.parametrize.register_parametrization(one_way, "weight", OneWay())
    assert "cannot be inverted" in reinitialize(nn.Sequential(one_way, nn.ReLU())).skipped[0][1]

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.hidden, self.out = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(torch.tanh(self.hidden(self.embed(x))))

    treated = reinitialize(Language(), data=torch.zeros(2, 3, dtype=torch.long))
    assert [c.site for c in treated.changes] == ["hidden"]
    assert [why for _, why in treated.skipped] == [
        "no rule gives the scale of Embedding",
        "its weight is that of an embedding",
    ]
