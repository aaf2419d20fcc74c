"""`Optimizers`: those that train one model, and which of them have stepped in the training step that is running."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from math import nan
from typing import Any
from weakref import ref

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

_STEPS = sys.modules[Optimizer.__module__].__file__  # where the steps of all classes are wrapped


class Optimizers:
    """The optimizers of `model`; `before` is told of each that is about to step, `after` of each that has stepped.

    One may step inside the step of another (lookahead, a wrapper): it belongs to that step. The first is kept alive,
    for its settings are asked for when the training is over; of the others a run may make many, and they go with it.

    Attributes:
        first: the first that was adopted.
        stepped: the identities of those that have stepped since `begin`.
    """

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Optimizer, Any, Any], None],
        after: Callable[[Optimizer], None],
    ) -> None:
        self._model, self._before, self._after = model, before, after
        self._seen: list[ref[Optimizer]] = []
        self._running: list[Optimizer] = []
        self._hooks: list[RemovableHandle] = []
        self._late: Optimizer | None = None
        self._apart: set[int] = set()  # parameters with a rate of their own
        self.first: Optimizer | None = None
        self.stepped: set[int] = set()

    def adopt(self, optimizer: Optimizer, *, late: bool = False) -> None:
        """Follow `optimizer` as well, or what it wraps where it has no hooks; once is enough.

        late: whether the step that it is about to make belongs to a training step which is over.
        """
        while not hasattr(optimizer, "_optimizer_step_pre_hooks") and isinstance(_inner(optimizer), Optimizer):
            optimizer = _inner(optimizer)
        if any(optimizer is known for known in self.known):
            return
        self.first = self.first or optimizer
        self._seen.append(ref(optimizer))
        self._late = optimizer if late else None
        self._hooks += (optimizer.register_step_pre_hook(self._enter), optimizer.register_step_post_hook(self._leave))

    def release(self) -> None:
        """Follow none any more."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    def begin(self) -> None:
        """A training step begins, in which none has stepped."""
        self.stepped.clear()

    @property
    def known(self) -> list[Optimizer]:
        """Those that are followed, in the order in which they were adopted."""
        return [optimizer for seen in self._seen if (optimizer := seen()) is not None]

    @property
    def only(self) -> Optimizer | None:
        """The one that was adopted; None where there have been several."""
        return self.first if len(self._seen) == 1 else None

    @property
    def inside(self) -> bool:
        """Whether an optimizer is in its step."""
        return bool(self._running)

    @property
    def all_stepped(self) -> bool:
        """Whether all have stepped since `begin`."""
        return all(id(optimizer) in self.stepped for optimizer in self.known)

    @property
    def waiting(self) -> list[Optimizer]:
        """Those that have not stepped since `begin`."""
        return [optimizer for optimizer in self.known if id(optimizer) not in self.stepped]

    def elsewhere(self, optimizer: Optimizer | None) -> set[int]:
        """The identities of the parameters that others own, and `optimizer` does not."""
        if optimizer is None or len(self._seen) < 2:
            return set()
        return owned(other for other in self.known if other is not optimizer) - owned([optimizer])

    @property
    def rates(self) -> list[float]:
        """The learning rate of each: that of its first group; NaN where it has none."""
        return [_rate(group) for optimizer in self.known for group in optimizer.param_groups[:1]]

    def rates_apart(self) -> dict[int, float]:
        """By the identity of the parameter, the rates that are not the first of `rates`, or once were not."""
        common = next(iter(self.rates), nan)
        for optimizer in self.known:
            for group in optimizer.param_groups:
                if _rate(group) != common:
                    self._apart.update(map(id, group["params"]))
        if not self._apart:
            return {}
        groups = (group for optimizer in self.known for group in optimizer.param_groups)
        return {id(p): _rate(group) for group in groups for p in group["params"] if id(p) in self._apart}

    def missing(self) -> tuple[int, int]:
        """How many trainable parameters of the model none of them owns, and how many there are."""
        ours = [id(parameter) for parameter in self._model.parameters() if parameter.requires_grad]
        theirs = owned(self.known)
        return sum(key not in theirs for key in ours), len(ours)

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self._late:
            return
        if any(optimizer is running for running in self._running):
            if _calls(optimizer) > 1:  # the step of its class above it, which has hooks of its own
                self._running.append(optimizer)
                return
            self._running.clear()  # its last step ended with an exception
        self._before(optimizer, args, kwargs)
        self._running.append(optimizer)

    def _leave(self, optimizer: Optimizer, *_: Any) -> None:
        if optimizer is self._late:
            self._late = None
            return
        if self._running:
            self._running.pop()
        if any(optimizer is running for running in self._running):
            return
        self.stepped.add(id(optimizer))
        self._after(optimizer)


def _calls(optimizer: Optimizer) -> int:
    """How many steps of `optimizer` are running, one inside the other."""
    found, frame = 0, sys._getframe()
    while frame is not None:
        in_step = frame.f_code.co_filename == _STEPS and frame.f_code.co_name == "wrapper"
        found += in_step and any(value is optimizer for value in frame.f_locals.get("args", ())[:1])
        frame = frame.f_back
    return found


def _rate(group: dict[str, Any]) -> float:
    return float(group.get("lr", nan))


def _inner(optimizer: Optimizer) -> Any:
    return getattr(optimizer, "optimizer", None)


def owned(optimizers: Iterable[Optimizer]) -> set[int]:
    """The identities of the parameters that any of `optimizers` steps."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
