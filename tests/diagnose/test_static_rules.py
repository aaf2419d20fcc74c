"""The rules for a model at rest: quiet on sound architectures, exact on the numbers they tell."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.diagnose.engine import lint
from normscope.diagnose.gains import weight_gain

Norm = Callable[[int], Any]


def block(inside, outside, norm: Norm = nn.BatchNorm2d, zero=True):
    last = norm(outside)
    if zero and isinstance(last, nn.BatchNorm2d):
        nn.init.zeros_(last.weight)
    layers = [nn.Conv2d(inside, outside, 3, padding=1, bias=False), norm(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(outside, outside, 3, padding=1, bias=False), last)


class Residual(nn.Module):
    def __init__(self, norm: Norm = nn.BatchNorm2d, zero=True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU())
        self.first, self.second = block(8, 8, norm, zero), block(8, 16, norm, zero)
        self.short = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), norm(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = torch.relu(self.short(x) + self.second(x))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self, first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=first)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.LSTM(6, 16, 3, batch_first=True), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.norm(self.body(x)[0][:, -1]))


def perceptron(depth, function, norm=None):
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(16, 16, bias=norm is None), *([norm(16)] if norm else []), function()]
    return nn.Sequential(*layers, nn.Dropout(), nn.Linear(16, 3))


IMAGE, VECTOR, SERIES = torch.randn(4, 3, 8, 8), torch.randn(4, 16), torch.randn(4, 5, 16)
SOUND = {
    "residual": (Residual, IMAGE),
    "residual, group norm": (lambda: Residual(lambda width: nn.GroupNorm(4, width)), IMAGE),
    "pre-norm transformer": (lambda: Tokens(True), SERIES),
    "post-norm transformer": (lambda: Tokens(False), SERIES),
    "lstm": (Recurrent, torch.randn(4, 5, 6)),
    "relu": (lambda: perceptron(4, nn.ReLU), VECTOR),
    "gelu, layer norm": (lambda: perceptron(8, nn.GELU, nn.LayerNorm), VECTOR),
    "tanh": (lambda: perceptron(4, nn.Tanh), VECTOR),
    "sigmoid, batch norm": (lambda: perceptron(6, nn.Sigmoid, nn.BatchNorm1d), VECTOR),
    "selu": (lambda: perceptron(6, nn.SELU), VECTOR),
    "ours": (lambda: Residual(ns.nn.BatchNorm2d), IMAGE),
    "one layer": (lambda: nn.Linear(16, 3), VECTOR),
}


@pytest.mark.parametrize("seen", [False, True], ids=["read", "run"])
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_architecture_raises_no_alarm(name, seen):
    build, example = SOUND[name]
    found = lint(build(), batch_size=32, **({"example": example} if seen else {}))
    assert not found.faults
    assert [one.name for one in found if one.severity != "note"] == []


@pytest.mark.parametrize(
    ("layer", "std", "gain"),
    [
        (nn.Linear(64, 32), 0.25, 2.0),
        (nn.Conv2d(4, 8, 4), 0.125, 1.0),
        (nn.Conv2d(8, 8, 4, groups=2), 0.125, 1.0),
        (nn.ConvTranspose2d(16, 4, 2), 0.125, 1.0),  # each output is a sum over 16 inputs × 4 positions
        (nn.ConvTranspose2d(16, 4, 2, groups=4), 0.25, 1.0),  # … over 4 inputs × 4 positions
    ],
)
def test_the_gain_of_weights_is_their_deviation_times_the_root_of_the_fan_in(layer, std, gain):
    nn.init.constant_(layer.weight, std)  # the root mean square is exact then
    assert weight_gain(layer) == pytest.approx(gain)


def test_a_gain_is_what_a_layer_does_to_the_deviation_of_its_input():
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 64, 3, bias=False)
    nn.init.normal_(layer.weight, std=0.3)
    x = torch.randn(8, 16, 12, 12)
    assert (layer(x).std() / x.std()).item() == pytest.approx(weight_gain(layer), rel=0.05)


def test_a_shortcut_ends_a_stack():
    class Skipped(nn.Module):
        def __init__(self, skip):
            super().__init__()
            self.layers, self.skip = nn.ModuleList(nn.Linear(16, 16) for _ in range(20)), skip

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x)) + (x if self.skip else 0)
            return x

    (found,) = lint(Skipped(skip=False), select="NS118")
    assert len(found.sites) == 20
    assert found.evidence.value == pytest.approx((1 / 6) ** 10, rel=0.5)  # (1/√3)/√2 a layer
    assert not lint(Skipped(skip=True), select="NS118")


def test_one_batch_counted_twice_is_told_with_its_count():
    from torch.utils.checkpoint import checkpoint

    class Body(nn.Module):
        def __init__(self, norm, reentrant):
            super().__init__()
            self.inner, self.reentrant = nn.Sequential(nn.Linear(4, 4), norm(4)), reentrant

        def forward(self, x):
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)

    for reentrant in (False, True):
        (found,) = lint(Body(nn.BatchNorm1d, reentrant), select="NS105", example=torch.randn(4, 4))
        assert (found.sites, found.evidence.value, found.severity) == (("inner.1",), 2, "warning")
        assert not lint(Body(ns.nn.BatchNorm1d, reentrant), select="NS105", example=torch.randn(4, 4))


def test_linting_changes_no_statistic_and_leaves_no_gradient():
    model = Residual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lint(model, example=IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())


def test_the_ends_of_the_longer_branches_are_asked_to_start_at_zero():
    (found,) = lint(Residual(zero=False), select="NS115", example=IMAGE)
    assert set(found.sites) == {"first.4", "second.4"}  # not the norm of the shortcut
    assert not lint(Residual(zero=True), select="NS115", example=IMAGE)


def test_parameter_groups_satisfy_the_rule_about_decay():
    model = perceptron(3, nn.ReLU, nn.BatchNorm1d)
    plain = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    (found,) = lint(model, select="NS104", optimizer=plain)
    assert found.evidence.value == 3 * 2 * 16 + 3
    grouped = torch.optim.AdamW(ns.parameter_groups(model, 0.05))
    assert not lint(model, select="NS104", optimizer=grouped)


def test_frozen_by_half():
    model = perceptron(2, nn.ReLU, nn.BatchNorm1d)
    model[1].requires_grad_(False)
    (found,) = lint(model, select="NS113")
    assert (found.sites, found.severity) == (("1",), "warning")
    assert not lint(ns.freeze(model, where=lambda site: site.path == "1").model, select="NS113")
