"""What a newcomer may try: every wrong call is refused in four lines that say what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import normscope as ns

WHOLE = torch.ones(8, 4, dtype=torch.long)


def x(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


# the call, and what the error says
CALLS = {
    # the catalog and what is built from it
    "a name misspelt": (lambda: ns.catalog["GrupNorm"], "did you mean GroupNorm"),
    "a name in small letters": (lambda: ns.catalog["layernorm"], "did you mean LayerNorm"),
    "a number for a name": (lambda: ns.catalog[3], "The catalog has BatchNorm"),
    "a norm without a description": (lambda: ns.catalog["SwitchableNorm"], "make it with normscope.nn.SwitchableNorm"),
    "build: a name misspelt": (lambda: ns.nn.build("GrupNorm", 6), "did you mean GroupNorm"),
    "build: 32 groups of 6": (lambda: ns.nn.build("GroupNorm", 6), "choose a divisor of 6: 1, 2, 3, 6"),
    "build: a class": (lambda: ns.nn.build(nn.BatchNorm2d, 6), "BatchNorm2d, a class"),
    "build: channels as a word": (lambda: ns.nn.build("BatchNorm", "6"), "pass a whole number"),
    "build: of weights": (lambda: ns.nn.build(ns.catalog["BatchNorm"].but(weights="cosine"), 6), "weight_norm.layer"),
    "spec: an axis": (lambda: ns.NormSpec("NHW", "batch", "batch"), "named N .batch., C .channels. and S"),
    "spec: a source": (lambda: ns.NormSpec("NS", "bach", "batch"), "choose 'input', 'batch'"),
    "spec: a field": (lambda: ns.catalog["BatchNorm"].but(epsilon=1), "did you mean eps"),
    "spec: momentum of Keras' kind": (lambda: ns.nn.BatchNorm2d(3, momentum=99), "a number from 0 to 1"),
    "spec: momentum as a word": (lambda: ns.nn.BatchNorm2d(3, momentum="0.1"), "a number from 0 to 1"),
    "spec: a negative eps": (lambda: ns.nn.LayerNorm(3, eps=-1), "use eps ≥ 0"),
    "spec: an activation": (
        lambda: ns.nn.build(ns.catalog["BatchNorm"].but(activation="rellu"), 3)(x(4, 3)), "named as in torch.nn.func"
    ),
    "spec_of: a class": (lambda: ns.spec_of(nn.BatchNorm2d), "pass the layer itself"),
    "spec_of: a name": (lambda: ns.spec_of("GroupNorm"), "pass the layer itself"),
    # the function
    "normalize: a list": (lambda: ns.functional.normalize([1.0], "BatchNorm"), "torch.as_tensor"),
    "normalize: whole numbers": (lambda: ns.functional.normalize(WHOLE, "LayerNorm"), r"pass input.float\(\)"),
    "normalize: no samples": (lambda: ns.functional.normalize(x(8), "BatchNorm"), r"pass x\[None\]"),
    "normalize: a weight": (lambda: ns.functional.normalize(x(8, 3), "LayerNorm", weight=x(4)), r"pass \(3,\)"),
    "normalize: no statistics": (
        lambda: ns.functional.normalize(x(4, 3), "BatchNorm", training=False), "pass state=.*running_mean"
    ),
    "normalize: a matrix": (lambda: ns.functional.normalize(x(8, 3), "IterNorm"), "use normscope.nn.Decorrelated"),
    # sizes
    "features as a word": (lambda: ns.nn.BatchNorm2d("3"), "pass a whole number"),
    "features below nothing": (lambda: ns.nn.BatchNorm2d(-3), "pass a whole number"),
    "half a feature": (lambda: ns.nn.LayerNorm(3.5), "pass a whole number"),
    "groups and channels exchanged": (lambda: ns.nn.GroupNorm(64, 8), "choose a divisor of 8"),
    "no groups": (lambda: ns.nn.GroupNorm(0, 8), "at least one"),
    "32 groups by default": (lambda: ns.nn.BatchChannelNorm(3), "choose a divisor of 3"),
    "no virtual batch": (lambda: ns.nn.GhostBatchNorm(3, 0), "use 1 or more"),
    "bounds that do not grow": (lambda: ns.nn.BatchRenorm(6, r_max=3.0), r"such as r_max=\(3.0, 5_000, 40_000\)"),
    "bounds without an end": (lambda: ns.nn.BatchRenorm(6, r_max=(3.0, 1)), "limit, first batch, last batch"),
    "a decay that does not forget": (lambda: ns.nn.OnlineNorm(6, decay_forward=2.0), "give numbers from 0 up to"),
    "no iteration": (lambda: ns.nn.IterNorm(4, iterations=0), "use iterations ≥ 1"),
    "no time step": (lambda: ns.nn.TemporalBatchNorm(6, 0), "use max_steps ≥ 1"),
    "no neighbours": (lambda: ns.nn.LocalResponseNorm(0), "use size ≥ 1"),
    "a layout": (lambda: ns.nn.DynamicTanh(6, layout="nchw"), 'choose "channels_first" or "channels_last"'),
    "a cast": (lambda: ns.nn.RMSNorm(3, cast="early"), "choose 'output', 'normalized'"),
    "a field of RMSNorm": (lambda: ns.nn.RMSNorm(3, castt="normalized"), "did you mean cast"),
    # inputs
    "an array": (lambda: ns.nn.BatchNorm2d(3)(np.zeros((2, 3, 4, 4))), "torch.as_tensor"),
    "None": (lambda: ns.nn.GroupNorm(1, 3)(None), "found    input=NoneType"),
    "complex numbers": (lambda: ns.nn.BatchNorm1d(4)(WHOLE.cfloat()), "torch.complex64"),
    "doubles to floats": (lambda: ns.nn.BatchNorm1d(3)(x(4, 3).double()), r"or convert the layer: layer.to\(torch.f"),
    "doubles to floats, in use": (lambda: ns.nn.BatchNorm1d(3).eval()(x(4, 3).double()), r"input.to\(torch.float32\)"),
    "other channels": (lambda: ns.nn.FrozenBatchNorm(3)(x(2, 4, 3, 3)), r"pass \(N, 3, \*\)"),
    "another rank": (lambda: ns.nn.BatchNorm2d(3)(x(2, 3)), "with 4 axes"),
    "another length": (lambda: ns.nn.RMSNorm(3)(x(4, 5)), r"pass \(N, \*, 3\)"),
    "a vector": (lambda: ns.nn.GroupNorm(2, 6)(x(6)), r"pass \(N, 6, \*\)"),
    "one number a channel": (lambda: ns.nn.BatchNorm1d(3)(x(1, 3)), "one cell a statistic"),
    "one cell to whiten": (lambda: ns.nn.DecorrelatedBatchNorm(4)(x(1, 4)), "train on more samples"),
    "response of other channels": (lambda: ns.nn.FilterResponseNorm(6)(x(2, 5, 3, 3)), r"pass \(N, 6, \*\)"),
    "EvoNorm of a vector": (lambda: ns.nn.EvoNormB0(6)(x(6)), "made for 6 channels on axis 1"),
    "EvoNorm of other channels": (lambda: ns.nn.EvoNormS0(6, 2)(x(2, 4, 3, 3)), "made for 6 channels on axis 1"),
    "a mixture of other channels": (lambda: ns.nn.SwitchableNorm(6)(x(2, 5, 3, 3)), "made for 6 channels on axis 1"),
    "channels first": (lambda: ns.nn.DynamicTanh(6)(x(2, 6, 3)), r"pass \(N, \*, 6\)"),
    "moments of other channels": (lambda: ns.nn.PositionalNorm(3).moments(x(2, 4, 3)), r"pass \(N, 3, \*\)"),
    "neighbours without positions": (lambda: ns.nn.LocalResponseNorm(3)(x(3, 4)), "input.unsqueeze"),
    # masks, lengths, residuals
    "a mask that does not fit": (
        lambda: ns.nn.BatchNorm1d(3)(x(4, 3, 5), torch.ones(4, 4, dtype=torch.bool)), r"mask of shape \(4, 5\)"
    ),
    "a mask of floats": (lambda: ns.nn.BatchNorm1d(3)(x(4, 3, 5), torch.ones(4, 5)), r"mask of shape \(4, 5\)"),
    "lengths in a list": (lambda: ns.nn.BatchNorm1d(3)(x(4, 3, 5), [5, 4, 3, 2]), r"pass torch.tensor\(mask\)"),
    "lengths beyond the input": (
        lambda: ns.nn.BatchNorm1d(3)(x(2, 3, 5), torch.tensor([6, 1])), "whole numbers from 0 to 5"
    ),
    "lengths below nothing": (lambda: ns.nn.IterNorm(3)(x(2, 3, 5), torch.tensor([-1, 1])), "lengths=-1 to 1"),
    "a residual that does not fit": (
        lambda: ns.nn.LayerNorm(5)(x(4, 3, 5), None, x(4, 3, 4)), "a tensor of the input's shape"
    ),
    # sequences
    "a sequence of other features": (lambda: ns.nn.TemporalBatchNorm(3)(x(4, 2, 5)), r"pass \(T, N, 3\)"),
    "a mask the other way": (
        lambda: ns.nn.TemporalBatchNorm(3)(x(4, 2, 3), torch.ones(2, 4, dtype=torch.bool)), r"mask of shape \(4, 2\)"
    ),
    "lengths beyond the steps": (
        lambda: ns.nn.TemporalBatchNorm(3)(x(4, 2, 3), torch.tensor([5, 2])), "whole numbers from 0 to 4"
    ),
    "one sequence": (lambda: ns.nn.LSTM(3, 4, norm="batch")(x(3, 1, 3)), "train on two sequences or more"),
    "one sequence alone": (lambda: ns.nn.TemporalBatchNorm(6)(x(3, 1, 6)), "train on two sequences or more"),
    "LSTM: one state": (lambda: ns.nn.LSTM(3, 4)(x(2, 2, 3), x(1, 2, 4)), r"pass 2 of shape \(1, 2, 4\)"),
    "GRU: two states": (lambda: ns.nn.GRU(3, 4)(x(2, 2, 3), (x(1, 2, 4), x(1, 2, 4))), "pass 1 of shape"),
    "packed sequences of other features": (
        lambda: ns.nn.LSTM(3, 4, norm="layer")(pack_padded_sequence(x(4, 2, 5), [4, 2])), r"pass \(T, N, 3\)"
    ),
    "a norm inside": (lambda: ns.nn.RNN(3, 4, norm="group"), 'choose None, "batch", "layer"'),
    # weights
    "weights of a name": (lambda: ns.nn.weight_norm("layer"), "pass the layer itself"),
    "weights of a class": (lambda: ns.nn.cosine(nn.Linear), "Linear, a class"),
    "weights of nothing": (lambda: ns.nn.weight_standardization(nn.ReLU()), "it has none"),
    "a bias": (lambda: ns.nn.weight_norm(nn.Linear(2, 2), "bias"), "name a weight of this layer: weight"),
    "weights misspelt": (lambda: ns.nn.centered_weight_norm(nn.Linear(2, 2), "weigth"), "this layer: weight"),
    "no power iteration": (lambda: ns.nn.spectral_norm(nn.Linear(2, 2), n_power_iterations=0), "≥ 1"),
    "cosines of another length": (lambda: ns.nn.CosineLinear(3, 2)(x(4, 5)), r"pass \(\*, 3\)"),
    "cosines of other channels": (lambda: ns.nn.CosineConv2d(3, 2, 3)(x(2, 4, 5, 5)), r"pass \(N, 3, \*, \*\)"),
    # starting weights
    "a start of a name": (lambda: ns.nn.init.he("model"), "pass the layer itself"),
    "a start for an unknown activation": (lambda: ns.nn.init.xavier(nn.Linear(2, 2), "reluu"), "choose one of"),
    "a start with nothing to fit": (lambda: ns.nn.init.lsuv(nn.ReLU(), x(3, 5)), "nothing to fit"),
    "Fixup of a model": (lambda: ns.nn.init.fixup(nn.Linear(2, 2)), "pass the branches alone"),
    "Fixup of nothing": (lambda: ns.nn.init.fixup([]), "pass the branches alone"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused_in_words(name):
    call, told = CALLS[name]
    with pytest.raises(ns.NormscopeError, match=told) as caught:
        call()
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["found", "because", "do"]


LAYERS = {
    "BatchNorm1d": ns.nn.BatchNorm1d(4), "BatchRenorm": ns.nn.BatchRenorm(4), "GhostBatchNorm": ns.nn.GhostBatchNorm(4),
    "OnlineNorm": ns.nn.OnlineNorm(4), "LayerNorm": ns.nn.LayerNorm(4), "LayerNorm2d": ns.nn.LayerNorm2d(4),
    "InstanceNorm1d": ns.nn.InstanceNorm1d(4), "GroupNorm": ns.nn.GroupNorm(2, 4),
    "PositionalNorm": ns.nn.PositionalNorm(4), "FilterResponseNorm": ns.nn.FilterResponseNorm(4),
    "EvoNormB0": ns.nn.EvoNormB0(4), "EvoNormS0": ns.nn.EvoNormS0(4, 2), "SwitchableNorm": ns.nn.SwitchableNorm(4),
    "BatchChannelNorm": ns.nn.BatchChannelNorm(4, 2), "IterNorm": ns.nn.IterNorm(4), "RMSNorm": ns.nn.RMSNorm(4),
    "DecorrelatedBatchNorm": ns.nn.DecorrelatedBatchNorm(4), "LocalResponseNorm": ns.nn.LocalResponseNorm(3),
    "DynamicTanh": ns.nn.DynamicTanh(4), "TemporalBatchNorm": ns.nn.TemporalBatchNorm(4), "LSTM": ns.nn.LSTM(4, 4),
    "GRU": ns.nn.GRU(4, 4, norm="layer"), "RNN": ns.nn.RNN(4, 4, norm="rms"), "CosineLinear": ns.nn.CosineLinear(4, 2),
    "CosineConv1d": ns.nn.CosineConv1d(4, 2, 1), "FrozenBatchNorm": ns.nn.FrozenBatchNorm(4),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # torch's own
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_refuses_lists_and_whole_numbers(name):
    with pytest.raises(ns.NormscopeError, match=f"{name} was given something else than a tensor"):
        LAYERS[name]([1.0, 2.0])
    with pytest.raises(ns.NormscopeError, match=r"pass input.float\(\)"):
        LAYERS[name](WHOLE.unsqueeze(1).expand(8, 4, 4).contiguous())


def test_a_catalog_is_a_mapping():
    assert ns.catalog.get("GrupNorm") is None and "GrupNorm" not in ns.catalog
    assert len(ns.catalog) == len(list(ns.catalog)) and dict(ns.catalog)["IterNorm"].iterations == 5
    assert ns.nn.build("LayerNorm2d", 6)(x(2, 6, 3)).shape == (2, 6, 3)
