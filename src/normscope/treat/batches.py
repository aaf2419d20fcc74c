"""The data that a treatment sees: one batch, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from normscope.anatomy.batch import Probe
from normscope.terms.errors import DataError


def batches(data: Any, model: nn.Module) -> Iterator[Probe]:
    """The batches of `data`, each on the device of `model`.

    A tensor, a mapping, a tuple or a `Probe` is one batch, by the convention of `Probe.of`; any other iterable holds
    batches. A list of tensors is one batch, as a loader collates it, when their dtypes or their numbers of axes differ
    (inputs and targets), or when there are two of one length and of different shapes; else it is a list of batches.

    Raises:
        DataError: `data` is no batch and no iterable of batches.
    """
    device = device_of(model)
    for batch in (data,) if _is_batch(data) else _iterated(data):
        probe = Probe.of(batch)
        yield probe if device is None else probe.to(device)


def first(data: Any, model: nn.Module) -> Probe:
    """The first of `batches`.

    Raises:
        DataError: there is none.
    """
    for probe in batches(data, model):
        return probe
    raise empty()


def empty() -> DataError:
    """The error for data without a batch."""
    return DataError(
        "A treatment was asked to measure on data and found none.",
        found="the data yields no batch",
        because="statistics of nothing do not exist",
        do="pass a batch or a loader with at least one batch; an iterator is empty after its first use",
    )


def device_of(model: nn.Module) -> torch.device | None:
    """The device on which all of `model` lives; None when it has no tensors, or several devices."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def _is_batch(data: Any) -> bool:
    if isinstance(data, Tensor | Mapping | tuple | Probe | PackedSequence):
        return True
    if not isinstance(data, list) or not all(isinstance(item, Tensor) and item.ndim for item in data):
        return False
    kinds = {(item.dtype, item.ndim) for item in data}
    pair = len(data) == 2 and len(data[0]) == len(data[1]) and data[0].shape != data[1].shape
    return len(kinds) > 1 or pair


def _iterated(data: Any) -> Iterable[Any]:
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return data
    raise DataError(
        "A treatment was given data that holds no batch.",
        found=type(data).__name__,
        because="it measures on a batch as the loader yields it, or on an iterable of batches",
        do="pass a tensor, an (inputs, target) pair, a dict, a normscope Probe, or a DataLoader",
    )
