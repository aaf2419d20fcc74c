"""Norms fused with what stands behind them: the same function, parameters, buffers and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normscope as ns
from normscope.terms.errors import DataError, ModelError
from normscope.treat.treatments.fuse import apply


class Block(nn.Module):
    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.style == "iadd":
            out += x
        elif self.style == "method":
            out = out.add(x)
        else:
            out = x + out
        return F.relu(out) if self.style != "method" else out.relu()


def both(model, x):
    done = ns.fuse(model, x)
    sides = [copy.deepcopy(model), done.model]
    return done, sides


@pytest.mark.parametrize("style", ["iadd", "method", "sum"])
def test_a_residual_block_trains_alike(style):
    torch.manual_seed(0)
    model = nn.Sequential(Block(style), Block(style))
    x = torch.randn(4, 4, 6, 6)
    done, sides = both(model, x)
    assert [change.after for change in done.changes] == ["norm + relu", "norm + residual + relu"] * 2
    assert not done.skipped and done.error < 1e-6 and done.preserves == "exact"
    assert not any(isinstance(part, nn.ReLU | nn.BatchNorm2d) for part in done.model.modules())
    assert list(done.model.state_dict()) == list(model.state_dict())
    states = []
    for side in sides:
        optimizer = torch.optim.SGD(side.parameters(), 0.1, momentum=0.9)
        for step in range(3):
            torch.manual_seed(step)
            side(torch.randn(4, 4, 6, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(side.state_dict())
    torch.testing.assert_close(states[1], states[0])


def test_other_norms_and_activations():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.RMSNorm(8),
        nn.LeakyReLU(), nn.GroupNorm(2, 8), nn.LeakyReLU(0.2), nn.LayerNorm(8), nn.GELU("tanh"), ns.nn.LayerNorm(8),
        nn.ReLU(),
    )  # fmt: skip
    done, _ = both(model, torch.randn(5, 6))
    assert [change.site for change in done.changes] == ["1", "4", "6", "12"]
    alone = "no activation or sum takes its output alone"
    assert done.skipped == (("8", alone), ("10", alone))
    assert done.error < 1e-5


def test_what_is_seen_elsewhere_is_left():
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.twice, self.hooked = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.hooked.register_forward_hook(lambda *_: None)

        def forward(self, x):
            y = self.norm(x)
            z = self.twice(y.relu() + y).relu()
            return self.hooked(self.twice(z).relu()).relu()

    done, _ = both(Seen(), torch.randn(4, 3))
    assert not done.changes
    assert dict(done.skipped) == {
        "norm": "no activation or sum takes its output alone",
        "twice": "it is called more than once",
        "hooked": "it has hooks, which would see something else",
    }


def test_bad_input():
    class Looks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="Looks was to be read by torch") as caught:
        ns.fuse(Looks(), torch.ones(2))
    assert "do       fuse the parts whose forward does not branch on tensors" in str(caught.value)
    with pytest.raises(DataError, match="Norms were to be fused without an example"):
        apply(nn.BatchNorm1d(2))


class NormAct(nn.BatchNorm2d):
    """A norm that ends with its activation, as timm writes them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Dropping(nn.Module):
    """A part that asks in which mode it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = NormAct(4)

    def forward(self, x):
        return F.dropout(self.norm(x), 0.5) if self.training else self.norm(x)


def test_a_norm_that_holds_its_activation_is_one_layer_also_in_a_part_that_stays_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), Dropping(), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU())
    x = torch.randn(8, 3, 6, 6)
    done = ns.fuse(model, x)
    changed = {change.site: (change.before, change.after) for change in done.changes}
    held = ("NormAct", "norm + silu")
    assert changed == {"1": held, "2.norm": held, "3": ("BatchNorm2d", "norm + relu")}
    assert done.error < 1e-5
    for training in (True, False):
        answers = []
        for side in (copy.deepcopy(model).train(training), copy.deepcopy(done.model).train(training)):
            torch.manual_seed(1)
            answers.append(side(x))
        torch.testing.assert_close(*answers)


def test_code_that_asks_for_the_mode_at_the_root_is_refused():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.norm(x).relu()
            return self.one(x) if self.training else self.one(x) + self.two(x)

    with pytest.raises(ModelError, match="one graph in training, and another in evaluation"):
        ns.fuse(Heads(), torch.randn(8, 4))


def test_a_graph_that_answers_otherwise_is_refused():
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.norm(x).relu()
            return y if torch.is_grad_enabled() else 2 * y

    with pytest.raises(ModelError, match=r"torch\.fx does not see"):
        ns.fuse(Asking(), torch.randn(8, 4))
