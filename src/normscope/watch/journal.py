"""`Journal`: what is told to the record. Each note once; the first value that is not finite, with its place."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from normscope.record.writer import Writer
from normscope.stats.compiled import prepare
from normscope.terms.errors import NormscopeWarning
from normscope.watch.measure import Distribution, Reading
from normscope.watch.sample import Told


class Journal:
    """Writes through `writer`.

    Attributes:
        writer: the record, from the writing side.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._said: set[str] = set()
        self._found: tuple[int, float] | None = None
        self._told_loss = False
        self._losses: list[tuple[int, Tensor]] = []  # on an accelerator
        self._known: dict[str, Any] = {}
        self._broken: set[str] = set()

    def say(self, text: str, *, step: int | None = None, warn: bool = False) -> None:
        """Note `text`, the first time that it is said; with `warn`, warn the user as well."""
        if text in self._said:
            return
        self._said.add(text)
        self.writer.event("note", text, step=step)
        if warn:
            self.warn(text)

    @staticmethod
    def warn(text: str) -> None:
        """Warn the user; where warnings are errors, this one still does not reach the training loop."""
        with suppress(NormscopeWarning):
            warnings.warn(text, NormscopeWarning, stacklevel=3)

    def skipped(self, step: int, why: str) -> None:
        """Note that a step did not update the parameters, or an attempt at it was given up."""
        self.writer.event("skipped", f"At step {step} {why}.", step=step)

    def live(self, step: int, told: Told) -> None:
        """Write what was seen of the training itself, in the order in which it was computed."""
        self.writer.block(step, "live", told.sites, told.digests)
        if broken := told.broken:
            key = broken[0].key
            self._not_finite("site", step, f"`{key}`", {"site": key})

    def readings(self, step: int, readings: Iterable[Reading]) -> None:
        """Write what was measured on the fixed batch."""
        for reading in readings:
            if isinstance(reading, Distribution):
                self.writer.summary(reading.site, step, reading.mode, reading.summary)
            else:
                self.writer.scalar(reading.site, step, reading.quantity, reading.value)

    def know(self, **values: Any) -> None:
        """Write what is known of the whole run, when it is news."""
        news = {name: value for name, value in values.items() if self._known.get(name) != value}
        if news:
            self._known.update(news)
            self.writer.meta(**news)

    def prepare(self, model: nn.Module) -> None:
        """Load the loops that summarize tensors on the CPU, where the model has any; the record says what serves."""
        if any(parameter.device.type == "cpu" for parameter in model.parameters()):
            missing = prepare()
            self.know(summaries="compiled" if missing is None else f"by torch ({missing})")

    def found_loss(self, step: int, value: float) -> None:
        """Keep a loss that was found, until it is clear that the user does not tell it."""
        self.settle()
        self._found = (step, value)

    def settle(self) -> None:
        """Write the loss that was found, if none was told."""
        if self._found is not None and not self._told_loss:
            self._write_loss(*self._found)
        self._found = None

    def loss(self, step: int, value: float | Tensor) -> None:
        """Write the loss of a step as the user tells it; from then on none that is found is written.

        One that lies on an accelerator waits for `read_losses`.
        """
        self._told_loss = True
        if isinstance(value, Tensor) and value.device.type != "cpu":
            self._losses.append((step, value.detach().clone()))
        else:
            self._write_loss(step, float(value.detach() if isinstance(value, Tensor) else value))

    def read_losses(self) -> None:
        """Write the losses that wait on an accelerator, read together."""
        if self._losses:
            values = torch.stack([value.reshape(()).float() for _, value in self._losses]).tolist()
            for (step, _), value in zip(self._losses, values):
                self._write_loss(step, value)
            self._losses.clear()

    def notes(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write numbers by name; what is no number is noted."""
        for name, value in scalars.items():
            if isinstance(value, str):
                self.say(f"{name}: {value}", step=step)
            else:
                self.writer.scalar(None, step, name, float(value))

    def _write_loss(self, step: int, value: float) -> None:
        self.writer.scalar(None, step, "loss", value)
        if not isfinite(value):
            self._not_finite("loss", step, "the loss", {"quantity": "loss"})

    def _not_finite(self, kind: str, step: int, where: str, data: Mapping[str, Any]) -> None:
        if kind not in self._broken:
            self._broken.add(kind)
            self.writer.event("nonfinite", f"At step {step} {where} is no longer finite.", step=step, data=data)
