"""`Scene`: an example for rules that read a record, a tiny real training under watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment
from normscope.record.reader import Record
from normscope.terms.datum import Datum

Data = tuple[Tensor, Tensor]


def clusters(samples: int = 512, features: int = 32, classes: int = 8) -> Data:
    """Points around `classes` centres: inputs (samples, features) of unit variance, labels (samples,)."""
    centres = torch.randn(classes, features)
    labels = torch.arange(samples) % classes
    return (centres[labels] + torch.randn(samples, features)) / 2**0.5, labels


def stripes(samples: int = 256, size: int = 8, classes: int = 4) -> Data:
    """Noisy images of stripes at `classes` angles: (samples, 1, size, size) of about unit variance, labels."""
    labels = torch.arange(samples) % classes
    angle = labels * torch.pi / classes
    across = torch.arange(size, dtype=torch.float32)
    wave = angle.cos()[:, None, None] * across[:, None] + angle.sin()[:, None, None] * across
    phase = 6 * torch.rand(samples, 1, 1)
    return ((2 * wave + phase).sin() + 0.7 * torch.randn(samples, size, size)).unsqueeze(1), labels


def sgd(rate: float, momentum: float = 0.9) -> Callable[[Iterable[Tensor]], Optimizer]:
    """Plain SGD with this learning rate, for the parameters it is given."""
    return lambda parameters: SGD(parameters, lr=rate, momentum=momentum)


@dataclass(frozen=True, repr=False)
class Scene(Datum):
    """A training, small enough to be run in a test: the subject is the case of its record.

    Attributes:
        build: makes the model, after the seed is set.
        sites: module paths that a finding must name.
        data: makes inputs and labels, after the seed is set.
        optimizer: makes the optimizer for the parameters.
        steps: optimizer steps.
        batch: samples in a step; the first batch of the data is the probe.
        every: each so many steps are sampled.
        loss: compares the output with the labels.
        sorted: whether batches come in the order of the labels, instead of at random.
        clear: whether gradients are cleared before each step.
        probes: which measures of the fixed batch are taken; the usual ones when None.
        at_hand: whether the model, the fixed batch, the loss and the optimizer are there to try causes on.
        seed: of the one random state behind all of it.
    """

    build: Callable[[], nn.Module]
    sites: tuple[str, ...] = ()
    data: Callable[[], Data] = clusters
    optimizer: Callable[[Iterable[Tensor]], Optimizer] = field(default_factory=lambda: sgd(0.05))
    steps: int = 40
    batch: int = 32
    every: int = 4
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    sorted: bool = False
    clear: bool = True
    probes: tuple[str, ...] | None = None
    at_hand: bool = False
    seed: int = 0

    def record(self, path: str | PathLike[str]) -> Record:
        """Train under watch, and give the record. The caller's random state stays as it is."""
        return self._trained(path).record

    def subject(self, folder: str | PathLike[str]) -> Case:
        """The case of a record written to `folder`."""
        case = self._trained(folder)
        return case if self.at_hand else Case(case.record)

    def _trained(self, path: str | PathLike[str]) -> Case:
        from normscope.watch.session import watch  # who reads a record needs no watcher

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            inputs, labels = self.data()
            model = self.build()
            optimizer = self.optimizer([one for one in model.parameters() if one.requires_grad])
            probe = inputs[: self.batch], labels[: self.batch]
            options: dict[str, Any] = {"loss_fn": self.loss, "every": self.every, "probes": self.probes}
            with watch(model, optimizer, path, probe=probe, **options) as watcher:
                for chosen in self._batches(labels):
                    if self.clear:
                        optimizer.zero_grad()
                    loss = self.loss(model(inputs[chosen]), labels[chosen])
                    loss.backward()
                    optimizer.step()
                    watcher.loss(loss.item())
        return Case(Record(path), Experiment(model, probe, self.loss, optimizer))

    def _batches(self, labels: Tensor) -> Iterator[Tensor]:
        order = labels.flatten().argsort() if self.sorted else None
        for step in range(self.steps):
            if order is None:
                yield torch.randint(len(labels), (self.batch,))
            else:
                yield order[torch.arange(step * self.batch, (step + 1) * self.batch) % len(labels)]
