"""The bench: the data, the device, and the one training loop of all claims."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.claims import data
from normscope.record.reader import Record
from normscope.terms.datum import Datum
from normscope.watch.session import watch

T = TypeVar("T")
Order = Literal["shuffled", "sorted"]
After = Callable[[nn.Module, int], Any]
Around = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Any]]
_HOPELESS = 1e4  # a loss beyond this, or not finite, is a training that broke off


@dataclass(frozen=True, repr=False)
class Curve(Datum):
    """What a training gave: one value an epoch, epoch 0 being the untrained network for `accuracy`.

    Attributes:
        loss: the mean training loss of each epoch.
        accuracy: on the test split in evaluation mode, before the first epoch and after each.
        diverged: whether the loss left all bounds; the curves are then filled with NaN.
        seconds: of the training, without the evaluations.
    """

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    diverged: bool
    seconds: float

    @property
    def final(self) -> float:
        """The last accuracy; of a training that broke off, that of guessing."""
        return 0.1 if self.diverged else self.accuracy[-1]

    def epochs_to(self, accuracy: float) -> float:
        """After how many epochs the accuracy is reached, interpolated; one more than there were where it never is."""
        for epoch, (before, after) in enumerate(zip(self.accuracy, self.accuracy[1:])):
            if after >= accuracy:
                return epoch + max(0.0, (accuracy - before) / (after - before)) if before < accuracy else float(epoch)
        return float(len(self.accuracy))


@dataclass(frozen=True, repr=False)
class Bench(Datum):
    """Where claims are run.

    Attributes:
        source: where the images come from: "" for scikit-learn's digits, else a folder (`normscope.claims.data`).
        device: where networks are trained.
    """

    source: str = ""
    device: str = "cpu"

    @cached_property
    def images(self) -> data.Split:
        """The images of `source`, on the device."""
        return data.images(self.source).to(self.device)

    def train(
        self,
        build: Callable[[], nn.Module],
        *,
        seed: int,
        rate: float,
        epochs: int,
        batch: int = 64,
        momentum: float = 0.9,
        order: Order = "shuffled",
        split: data.Split | None = None,
        loss_of: Callable[..., Tensor] = cross_entropy,
        after_step: After | None = None,
        around: Around = lambda model, optimizer: nullcontext(),
    ) -> tuple[nn.Module, Curve]:
        """Train by SGD what `build` makes under `seed`; arms of one seed see the same batches in the same order.

        Args:
            build: makes the network; arms whose layers draw the same numbers start from the same weights.
            seed: of the weights, the order of the data and the random state of the training.
            rate: the learning rate.
            epochs: passes over the training split; a last batch that is not full is left out.
            batch: samples a step.
            momentum: of SGD.
            order: ``"shuffled"`` anew each epoch, or ``"sorted"`` by class.
            split: the data; the bench's images when left out.
            loss_of: (output, target) → loss.
            after_step: told (network, step) after each step, with the gradients still there.
            around: the context in which the training runs.
        """
        split = split or self.images
        torch.manual_seed(seed)
        model = build().to(self.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
        turns = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        losses, accuracies = [], [accuracy(model, split)]
        seconds, step = 0.0, 0
        with around(model, optimizer):
            for _ in range(epochs):
                started, total = time.perf_counter(), []
                for chosen in batches(split.y, batch, order, turns):
                    loss = loss_of(model(split.x[chosen]), split.y[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total.append(loss.detach())
                    if after_step is not None:
                        after_step(model, step)
                    step += 1
                seconds += time.perf_counter() - started
                losses.append(torch.stack(total).mean().item())
                if not math.isfinite(losses[-1]) or losses[-1] > _HOPELESS:
                    missing = epochs - len(losses)
                    losses[-1:] = [math.nan] * (missing + 1)
                    return model, Curve(tuple(losses), (*accuracies, *[math.nan] * (missing + 1)), True, seconds)
                accuracies.append(accuracy(model, split))
        return model, Curve(tuple(losses), tuple(accuracies), False, seconds)

    def follow(
        self,
        build: Callable[[], nn.Module],
        read: Callable[[Record], T],
        *,
        at: Callable[[int], bool],
        probe: Tensor | tuple[Tensor, Tensor],
        measures: tuple[str, ...] = ("activation",),
        live: bool = False,
        **training: Any,
    ) -> tuple[Curve, T]:
        """The same training under `normscope.watch`, and what `read` finds in the record.

        Args:
            build: as for `train`.
            read: from the record, which is gone afterwards.
            at: the steps to look at; the first one always is, and the last one counts as any other (`last_step`).
            probe: the fixed batch, with its labels where gradients are wanted.
            measures: of the fixed batch.
            live: whether the training batches are looked at too.
            **training: as for `train`.
        """
        with tempfile.TemporaryDirectory() as folder:

            def around(model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
                return watch(
                    model,
                    optimizer,
                    folder,
                    probe=probe,
                    loss_fn=cross_entropy,
                    every=at,
                    live=live,
                    probes=measures,
                    seed=training["seed"],
                )

            _, curve = self.train(build, around=around, **training)
            return curve, read(Record(folder))

    def last_step(self, epochs: int, batch: int = 64) -> int:
        """The number of a training's last step on the bench's images, the first being 0."""
        return len(self.images.y) // batch * epochs - 1


def batches(labels: Tensor, size: int, order: Order, turns: torch.Generator) -> tuple[Tensor, ...]:
    """The places of each full batch of one epoch."""
    places = torch.randperm(len(labels), generator=turns)
    if order == "sorted":
        places = places[labels.cpu()[places].argsort(stable=True)]
    full = len(places) // size * size
    return places[:full].to(labels.device).split(size)


@torch.no_grad()
def accuracy(model: nn.Module, split: data.Split) -> float:
    """The share of the test split that is named right in evaluation mode; the training mode is put back."""
    training = model.training
    model.eval()
    right = [(model(x).argmax(1) == y).sum() for x, y in zip(split.test_x.split(512), split.test_y.split(512))]
    model.train(training)
    return torch.stack(right).sum().item() / len(split.test_y)
