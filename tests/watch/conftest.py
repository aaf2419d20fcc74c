"""Small trainings of every kind, run with and without a watcher."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 12, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.head(torch.tanh(out[:, -1]))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@dataclass
class Training:
    """One training, the same every time it is run."""

    build: Callable[[], nn.Module]
    batch: Callable[[], torch.Tensor]
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    lr: float = 1e-2

    def start(self, seed=0):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        model = self.build()
        return model, self.optimizer(model.parameters(), lr=self.lr)

    def one_step(self, model, optimizer):
        x = self.batch()
        random.random(), np.random.rand()  # a loop that uses every source of randomness
        y = torch.randint(0, 3, (len(x),))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def run(self, steps=50, watching: Callable[[nn.Module, Any], Any] | None = None):
        """Everything that a training leaves behind."""
        model, optimizer = self.start()
        with watching(model, optimizer) if watching else nullcontext():
            losses = [self.one_step(model, optimizer).item() for _ in range(steps)]
        return {
            "losses": losses,
            "model": {name: value.clone() for name, value in model.state_dict().items()},
            "gradients": [p.grad for p in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "training": [module.training for module in model.modules()],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
        }


TRAININGS = {
    "mlp": Training(mlp, lambda: torch.randn(16, 8)),
    "conv": Training(conv, lambda: torch.randn(8, 3, 6, 6), torch.optim.SGD),
    "lstm": Training(Recurrent, lambda: torch.randn(8, 5, 6)),
    "encoder": Training(Encoder, lambda: torch.randint(0, 20, (8, 7))),
}


@pytest.fixture(params=TRAININGS)
def training(request):
    return TRAININGS[request.param]


@pytest.fixture
def trainings():
    return TRAININGS


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


@pytest.fixture
def same():
    return _same


@pytest.fixture
def faults():
    """The events of a record that tell of a fault, with their tracebacks."""

    def found(path):
        return [
            event.text + event.data.get("traceback", "") for event in ns.Record(path).events if event.kind == "fault"
        ]

    return found
