"""The scale at which weights were drawn is read off the first sample of a record, layer by layer."""

import math

import pytest
import torch
from torch import nn

from normscope.diagnose.case import Case
from normscope.diagnose.scales import drawn
from normscope.watch.session import watch


class Network(nn.Module):
    """A layer of each kind; a sum stands between the first one and its norm, none between the second and its own."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(8, 16) * 20)
        self.embed, self.first = nn.Linear(8, 16), nn.LayerNorm(16)
        self.conv, self.second = nn.Conv1d(16, 12, 3, groups=2, padding=1), nn.BatchNorm1d(12)
        self.rnn, self.head = nn.GRU(12, 10, batch_first=True, bidirectional=True), nn.Linear(20, 4)

    def forward(self, x):
        x = self.first(self.embed(x) + self.place)
        x = self.second(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.rnn(x)[0][:, -1])


def test_gains_are_those_of_the_weights_forward_and_backward(tmp_path):
    torch.manual_seed(0)
    model, x = Network(), torch.randn(16, 8, 8)
    # what a unit reads, and how many units read an input: by hand, for each weight
    fans = {
        "embed": (8, 16), "conv": (8 * 3, 6 * 3), "rnn@weight_ih_l0": (12, 30), "rnn@weight_hh_l0": (10, 30),
        "rnn@weight_ih_l0_reverse": (12, 30), "head": (20, 4),
    }  # fmt: skip
    weights = {f"{path}@{name}" if path == "rnn" else path: one.detach().clone()
               for path in ("embed", "conv", "rnn", "head")
               for name, one in model.get_submodule(path).named_parameters() if "weight" in name}  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path, every=1) as watcher:
        for _ in range(2):
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            watcher.loss(loss.item())
    found = {f"rnn@{one.name}" if one.site.path == "rnn" else one.site.path: one for one in drawn(Case(watcher.record))}
    for name, (inputs, units) in fans.items():
        size = float(weights[name].square().mean().sqrt())
        low, high = sorted((inputs, units))
        assert found[name].low == pytest.approx(size * math.sqrt(low), rel=1e-3)
        assert found[name].high == pytest.approx(size * math.sqrt(high), rel=1e-3)
    assert {name for name, one in found.items() if one.recurrent} == {"rnn@weight_hh_l0", "rnn@weight_hh_l0_reverse"}
    assert {name for name, one in found.items() if one.normed} == {"conv"}
    assert found[""].table
    assert found[""].low == pytest.approx(20, rel=0.2)
