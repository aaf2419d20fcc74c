"""Which parameters decay."""

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.treat.parameter_groups import parameter_groups


def names(model, weight_decay=0.1):
    groups = parameter_groups(model, weight_decay)
    assert [group["weight_decay"] for group in groups] == [weight_decay, 0.0]
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in groups]


def test_norms_and_biases_do_not_decay_whatever_their_shape():
    model = nn.ModuleDict(
        {
            "fc": nn.Linear(4, 4),
            "conv": nn.Conv2d(3, 4, 1, bias=False),
            "rms": nn.RMSNorm((4, 4)),
            "bn": nn.BatchNorm2d(4),
            "dyt": ns.nn.DynamicTanh(4),
            "frn": ns.nn.FilterResponseNorm(4),
            "switch": ns.nn.SwitchableNorm(4),
            "lstm": nn.LSTM(4, 4),
            "embed": nn.Embedding(4, 4),
            "attend": nn.MultiheadAttention(4, 2),
            "normalized": type("NormalizedLinear", (nn.Linear,), {})(4, 4),
        }
    )
    decayed, spared = names(model)
    assert set(decayed) == {
        *("fc.weight", "conv.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "embed.weight", "normalized.weight"),
        *("attend.in_proj_weight", "attend.out_proj.weight"),
    }
    assert len(decayed) + len(spared) == len(list(model.parameters()))
    assert {
        "dyt.alpha",
        "frn.tau",
        "rms.weight",
        "switch.mean_weight",
        "lstm.bias_hh_l0",
        "attend.in_proj_bias",
    } <= set(spared)


def test_the_magnitude_of_weight_norm_does_not_decay():
    for reparametrize in (nn.utils.parametrizations.weight_norm, ns.nn.weight_norm):
        decayed, spared = names(nn.Sequential(reparametrize(nn.Linear(4, 3, bias=False))))
        assert decayed == ["0.parametrizations.weight.original1"]
        assert spared == ["0.parametrizations.weight.original0"]
    decayed, spared = names(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 1, bias=False))))
    assert decayed == ["0.parametrizations.weight.original"] and spared == []


def test_each_parameter_once_and_only_those_that_learn():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    assert names(model) == [["0.weight"], ["0.bias"]]
    torch.optim.AdamW(parameter_groups(model, 0.01)).step()
    with pytest.raises(ns.NormscopeError, match="weight decay that is none"):
        parameter_groups(model, -1.0)
