"""`Probe`: a batch as the loader yields it, and the way a model is called with it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from normscope.terms.datum import Datum
from normscope.terms.errors import DataError

TAKES = "a tensor, an (inputs, target) pair, a dict of keyword arguments, or a Probe"


@dataclass(frozen=True, repr=False)
class Probe(Datum):
    """One batch, ready to be given to a model: ``model(*args, **kwargs)``.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        target: what a loss compares the output with, or None.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None

    @staticmethod
    def of(batch: Any) -> Probe:
        """The probe for a batch as a loader yields it.

        - a `Probe` is itself;
        - a tensor, or any single object that is no container, is the one argument: ``model(batch)``;
        - a mapping gives keyword arguments: ``model(**batch)``;
        - a list or tuple holds the inputs first and the target after: ``(inputs,)`` has none, ``(inputs, target)``
          has one, and of a longer one everything after the first is the target, as a tuple;
        - inputs that are themselves a list or tuple are several arguments, ``model(*inputs)``; inputs that are a
          mapping are keyword arguments. A named tuple and a `PackedSequence` are one argument.

        Raises:
            DataError: the batch is empty, or is nothing a model takes (None, text, a NumPy array).
        """
        if isinstance(batch, Probe):
            return batch
        if not _is_row(batch):
            return Probe(*_arguments(batch))
        if not batch:
            raise _unusable(batch, "an empty batch has no input")
        inputs, *rest = batch
        target = rest[0] if len(rest) == 1 else tuple(rest) or None
        return Probe(*_arguments(inputs), target=target)

    @property
    def batch_size(self) -> int | None:
        """The size of the first axis of the first input tensor; None without one."""
        for value in _leaves((self.args, self.kwargs)):
            if isinstance(value, PackedSequence):
                return int(value.batch_sizes[0])
            if isinstance(value, Tensor) and value.ndim:
                return int(value.shape[0])
        return None

    def run(self, model: nn.Module) -> Any:
        """The model's output on this batch. What the model itself raises comes through unchanged.

        Raises:
            DataError: the arguments do not fit the signature of ``model.forward``.
        """
        try:
            inspect.signature(model.forward).bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise DataError(
                f"A batch was given to {type(model).__name__}, which does not take it.",
                found=f"{self._call()}; {error}",
                because=f"forward{inspect.signature(model.forward)} has other parameters",
                do=f"give {TAKES}(args=(…), kwargs={{…}}, target=…) that spells the call",
            ) from None
        except ValueError:  # a forward without a readable signature, such as a compiled one
            pass
        return model(*self.args, **self.kwargs)

    def to(self, device: torch.device | str) -> Probe:
        """The same batch on `device`, target included; itself where nothing has to move."""
        return self._mapped(lambda tensor: tensor.to(device))

    def detached(self) -> Probe:
        """A copy that later changes of the original do not reach: detached clones on the same device."""
        return self._mapped(lambda tensor: tensor.detach().clone())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Probe:
        return Probe(mapped(self.args, change), mapped(dict(self.kwargs), change), mapped(self.target, change))

    def _call(self) -> str:
        told = [_told(value) for value in self.args] + [f"{name}={_told(v)}" for name, v in self.kwargs.items()]
        return f"model({', '.join(told)})"


def tensors(value: Any) -> tuple[Tensor, ...]:
    """Every tensor inside `value`, in order: through dicts, tuples, lists, dataclasses and packed sequences."""
    found = (leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf in _leaves(value))
    return tuple(leaf for leaf in found if isinstance(leaf, Tensor))


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a model's output is about: the first floating one with an axis, else the first; None without.

    A scalar comes second because a model that also returns its loss returns it first.
    """
    found = tensors(output)
    main = (tensor for tensor in found if tensor.ndim and (tensor.is_floating_point() or tensor.is_complex()))
    return next(main, found[0] if found else None)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` rebuilt with every tensor replaced by ``change(tensor)``; what holds no tensor is kept as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, PackedSequence):
        indices = (value.sorted_indices, value.unsorted_indices)
        moved = (None if index is None else change(index) for index in indices)
        return PackedSequence(change(value.data), value.batch_sizes, *moved)
    if isinstance(value, tuple | list):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        if not tensors(value):
            return value
        same = copy.copy(value)
        for name, item in value.items():
            same[name] = mapped(item, change)  # type: ignore[index]
        return same
    if _is_dataclass(value):
        same = copy.copy(value)
        for part in dataclasses.fields(value):
            object.__setattr__(same, part.name, mapped(getattr(value, part.name), change))
        return same
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor | PackedSequence):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif _is_dataclass(value):
        for part in dataclasses.fields(value):
            yield from _leaves(getattr(value, part.name, None))
    else:
        yield value


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_row(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and not hasattr(batch, "_fields")


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        if not inputs:
            raise _unusable(inputs, "an empty batch has no input")
        return (), {str(name): value for name, value in inputs.items()}
    if _is_row(inputs):
        return tuple(inputs), {}
    if inputs is None or isinstance(inputs, str | bytes | int | float):
        raise _unusable(inputs, "a model is called with tensors")
    if type(inputs).__module__ == "numpy":
        raise _unusable(inputs, "a model is called with tensors, and NumPy's dtype may not be the model's")
    return (inputs,), {}


def _unusable(batch: Any, because: str) -> DataError:
    return DataError(
        "A batch was given that no model can be called with.", found=_told(batch), because=because, do=f"give {TAKES}"
    )


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value) if value is None or isinstance(value, str | int | float) else type(value).__name__
