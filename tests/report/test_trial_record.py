"""A record that holds a trial and no step is a page all the same."""

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.terms.finding import Prescription

pytest.importorskip("altair")


def test_a_trial_saved_by_itself_is_shown(tmp_path):
    x = torch.randn(32, 8)

    def build():
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def step(model, optimizer, number):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    def both(seed):
        model = build()
        return model, torch.optim.SGD(model.parameters(), 0.1)

    norm = Prescription("insert_norm", ("1",), {"norm": "BatchNorm"}, words="a norm before tanh")
    ns.trial(both, step, [norm], steps=4, seeds=range(2), path=tmp_path / "trial")
    page = ns.report(tmp_path / "trial", tmp_path / "trial.html").read_text()
    assert "The record holds no sampled step." in page
    assert "2 seeds, 4 steps in each arm" in page
