"""Models of every kind that users bring, each with a batch, and a bitwise picture of all that must not change."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Batch norms, in-place activations, a residual sum in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.conv(x))
        y += x
        return self.head(F.relu_(y).mean((2, 3)))


class Functional(nn.Module):
    """Functional activations, one module called twice and registered twice, one never called, state in attributes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.last = nn.Linear(6, 3)
        self.idle = nn.Linear(2, 2)
        self.calls = 0
        self.seen = torch.zeros(6)

    def forward(self, x):
        self.calls += 1
        self.seen += x.detach().mean(0)
        self.cache = x
        x = torch.tanh(self.first(x))
        x = self.again(F.dropout(x, 0.5, self.training)).sigmoid()
        return F.softmax(self.last(x) + random.random() + float(np.random.rand()), -1)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    states: dict[str, Tensor]


class Dataclass(nn.Module):
    """Called with keyword arguments, integers in, a dataclass out."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 10)

    def forward(self, *, tokens, mask=None, labels=None):
        states, last = self.rnn(self.embed(tokens))
        if mask is not None:
            states = states * mask[..., None]
        logits = self.head(F.gelu(self.norm(states)))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return Output(loss, logits, {"last": last})


class Packed(nn.Module):
    """Two inputs, a packed sequence inside, nothing out but what it keeps."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 5, dropout=0.5, num_layers=2)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        self.last = self.rnn(packed)[0]


def _mlp():
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(6, 8), drop=nn.Dropout(0.3), norm=nn.BatchNorm1d(8), act=nn.Tanh(), fc2=nn.Linear(8, 2)
        )
    )


def _encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


MODELS = {
    "mlp": (_mlp, lambda: (torch.randn(5, 6), torch.zeros(5))),
    "convnet": (ConvNet, lambda: torch.randn(4, 3, 6, 6)),
    "lstm": (lambda: nn.LSTM(4, 5, num_layers=2, dropout=0.2), lambda: torch.randn(7, 3, 4)),
    "encoder": (_encoder, lambda: torch.randn(2, 5, 8)),
    "functional": (Functional, lambda: torch.randn(5, 6)),
    "dataclass": (Dataclass, lambda: {"tokens": torch.randint(10, (2, 5)), "labels": torch.randint(10, (2, 5))}),
    "packed": (Packed, lambda: ((torch.randn(6, 3, 4), torch.tensor([2, 6, 3])), None)),
}


@pytest.fixture(params=MODELS)
def case(request):
    """(model in training mode with gradients from a step before, its batch)"""
    torch.manual_seed(0)
    build, batch = MODELS[request.param]
    model = build()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, batch()


@pytest.fixture
def model_named():
    def named(name):
        torch.manual_seed(0)
        build, batch = MODELS[name]
        return build(), batch()

    return named


@pytest.fixture
def picture():
    """A function: everything in and around a model that a look at it must leave alone, as bytes and identities."""

    def taken(model: nn.Module) -> list[object]:
        def bits(tensor):
            return tensor if tensor is None else (id(tensor), tensor.detach().cpu().contiguous().numpy().tobytes())

        told: list[object] = [random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()]
        told += [torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), torch.is_inference_mode_enabled()]
        for path, module in model.named_modules():
            hooks = {name: list(value) for name, value in vars(module).items() if name.endswith("_hooks")}
            told.append((path, type(module), module.training, sorted(vars(module)), hooks))
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    told.append((path, name, bits(value)))
                elif not isinstance(value, dict):
                    told.append((path, name, id(value) if not isinstance(value, int | float) else value))
        for name, parameter in model.named_parameters():
            told.append((name, bits(parameter), parameter.requires_grad, bits(parameter.grad)))
        told += [(name, bits(buffer)) for name, buffer in model.named_buffers()]
        return told

    return taken
