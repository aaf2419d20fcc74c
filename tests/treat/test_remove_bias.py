"""A bias goes only where the norm behind it cancels it, in both modes, and the proof is made."""

import copy

import pytest
import torch
from torch import nn

from normscope.terms.finding import Prescription
from normscope.treat.measure import difference
from normscope.treat.treatment import treat


def remove(model, *sites, data=None):
    return treat(model, Prescription("remove_bias", sites), data=data)


def learned(model):
    torch.manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double()


CANCELLED = [
    (nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)), (6, 3, 9, 9)),
    (nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.InstanceNorm2d(4)), (6, 3, 5, 5)),
    (nn.Sequential(nn.Conv1d(3, 4, 3, groups=1), nn.BatchNorm1d(4)), (6, 3, 9)),
    (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (6, 3)),
    (nn.Sequential(nn.Conv3d(2, 4, 3, dilation=2), nn.GroupNorm(4, 4)), (6, 2, 7, 7, 7)),
]


@pytest.mark.parametrize(("model", "shape"), CANCELLED)
def test_a_cancelled_bias_goes_and_both_modes_stay(model, shape):
    model, x = learned(copy.deepcopy(model)), torch.randn(shape, dtype=torch.float64)
    treated = remove(model, data=x)
    assert treated.model[0].bias is None and treated.preserves == "exact" and treated.error < 1e-12
    assert "bias" not in dict(treated.model[0].named_parameters())
    for training in (False, True):
        one, other = (copy.deepcopy(each).train(training) for each in (model, treated.model))
        assert difference(other(x), one(x)) < 1e-12
    assert remove(treated.model, data=x).changes == ()


KEPT = [
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), (2, 3, 5, 5), "does not subtract the mean of each channel"),
    (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), (2, 3), "does not subtract the mean of each channel"),
    (nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4)), (2, 3), "does not subtract the mean of each channel"),
    (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (5, 4, 3), "the output of the norm moves by"),
    (nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4)), (2, 3), "something stands between it and `2`"),
]


@pytest.mark.parametrize(("model", "shape", "why"), KEPT)
def test_a_bias_that_counts_stays(model, shape, why):
    treated = remove(learned(copy.deepcopy(model)), data=torch.randn(shape, dtype=torch.float64))
    assert treated.changes == () and treated.model[0].bias is not None and why in treated.skipped[0][1]


def test_without_data_only_what_any_input_proves():
    assert len(remove(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).changes) == 1
    treated = remove(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    assert treated.skipped[0][1].endswith("pass data")


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        h = self.conv(x)
        return self.norm(h) + h


class Twice(Branch):
    def forward(self, x):
        return self.other(self.conv(self.norm(self.conv(x))))


@pytest.mark.parametrize(("kind", "why"), [(Branch, "goes elsewhere"), (Twice, "called more than once")])
def test_a_layer_that_is_not_the_norms_alone_keeps_its_bias(kind, why):
    assert why in remove(kind(), data=torch.randn(2, 3, 4, 4)).skipped[0][1]


def test_only_the_named_sites():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert [c.site for c in remove(model, "2").changes] == ["2"]
    assert [c.site for c in remove(model, "1").changes] == ["0"]
