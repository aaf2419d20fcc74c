"""Causes that look alike in one quantity are told apart by another."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normscope as ns
from normscope.diagnose.scene import clusters


def trained(path, *, owned=slice(None), early=False, norm=False, domains=False, steps=60):
    """The names of what is found in a small training with something odd about its loop."""
    torch.manual_seed(0)
    inputs, labels = clusters()
    if domains:  # each second batch is brighter, and each second step is sampled
        inputs = torch.cat([inputs[:256], 3 * inputs[256:] + 6])
    middle = [nn.BatchNorm1d(32)] if norm else []
    model = nn.Sequential(nn.Linear(32, 32), *middle, nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.SGD([*model.parameters()][owned], lr=0.02)
    probe = inputs[:64], labels[:64]
    with ns.watch(model, optimizer, path, probe=probe, loss_fn=cross_entropy, every=4) as watcher:
        for step in range(steps):
            chosen = torch.randint(256, (32,)) + (256 * (step % 2) if domains else 0)
            loss = cross_entropy(model(inputs[chosen]), labels[chosen])
            if not early:
                optimizer.zero_grad()
            loss.backward()
            if early:
                optimizer.zero_grad()
            optimizer.step()
            watcher.loss(loss.item())
    return ns.diagnose(path)


def test_gradients_that_nobody_clears_or_uses_are_not_called_accumulated(tmp_path):
    names = [one.name for one in trained(tmp_path, owned=slice(-2, None))]
    assert "accumulated_gradient" not in names
    assert "unmoved_layer" in names


def test_gradients_cleared_before_the_step_are_told_from_a_cut_graph(tmp_path):
    primary = trained(tmp_path, early=True).primary
    assert (primary.name, primary.severity) == ("unmoved_layer", "error")
    assert "has no gradient when the optimizer steps" in primary.message
    assert "before `loss.backward()`" in primary.prescriptions[0].words


def test_domains_between_the_sampled_steps_show_in_what_the_norm_averages(tmp_path):
    mixed = next(one for one in trained(tmp_path / "two", norm=True, domains=True, steps=120) if one.code == "NS305")
    assert mixed.sites == ("1",)
    assert "of another kind" in mixed.message
    assert not [one for one in trained(tmp_path / "one", norm=True, steps=120) if one.severity != "note"]
