"""`Discovery`: finds the models and optimizers of a script that nobody has pointed out, and watches them."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from normscope.anatomy.isolate import unwrapped
from normscope.record.writer import Writer
from normscope.watch.callers import kwargs_of_call
from normscope.watch.guard import Guard
from normscope.watch.hooks import RootHook, in_backward, in_transform
from normscope.watch.optimizers import owned
from normscope.watch.session import Every, Watcher, watch

PATIENCE = 3
"""Optimizer steps after which parameters that no called module owns are taken to be loose."""


class Discovery:
    """A context in which every training is watched.

    Torch's global hooks tell of each module that is called and each optimizer that steps. A module that is called in
    training mode with gradients, outside of a watched one, and whose parameters an optimizer owns, is a model; so is
    one that is called in evaluation mode even after an optimizer has stepped. One that owns everything the optimizers
    step is recorded at `path` itself, any other in a folder below it, by its class.
    Once every stepped parameter is watched the hook on modules goes; that on optimizers stays, for a later training.

    Attributes:
        watchers: what was found, in order.
    """

    def __init__(self, path: str | os.PathLike[str], *, budget: float = 0.01, every: Every = "auto") -> None:
        self.path = Path(path).absolute()  # the script may change directory
        self.watchers: list[Watcher] = []
        self._budget = budget
        self._every: Every = every
        self._inner: set[int] = set()  # modules that are watched, or belong to one that was called
        self._calls = 0
        self._strangers: WeakSet[Optimizer] = WeakSet()  # optimizers from before the script
        self._optimizers: WeakSet[Optimizer] = WeakSet()
        self._introduced: WeakSet[Optimizer] = WeakSet()  # to all watchers there are
        self._steps = 0
        self._crash: BaseException | None = None
        self._guard = Guard(self._record_fault)
        self._on_modules: RemovableHandle | None = None
        self._on_optimizers: RemovableHandle | None = None

    def __enter__(self) -> Discovery:
        # Torch warns that a global hook is called for the compiled wrapper as well; ours means to be.
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        self._strangers = WeakSet(_living_optimizers())
        self._on_optimizers = register_optimizer_step_pre_hook(self._stepping)
        self._search()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every record, and say why where there is none."""
        self._rest()
        if self._on_optimizers is not None:
            self._on_optimizers.remove()
        for watcher in self.watchers:
            watcher.close()
        if all(watcher.path != self.path for watcher in self.watchers):
            self._guard("record", self._leave_word)

    def crashed(self, error: BaseException) -> None:
        """Keep what ended the process in every record."""
        self._crash = error
        for watcher in self.watchers:
            watcher.crashed(error)

    def _search(self) -> None:
        if self._on_modules is None:
            self._steps = 0
            self._on_modules = register_module_forward_pre_hook(RootHook(self._called))

    def _rest(self) -> None:
        if self._on_modules is not None:
            self._on_modules.remove()
            self._on_modules = None

    def _called(self, compiled: bool, module: nn.Module, args: Any) -> None:
        if id(module) not in self._inner and torch.is_grad_enabled() and not in_backward() and not in_transform():
            self._guard("discovery", self._consider, compiled, module, args)

    def _consider(self, compiled: bool, module: nn.Module, args: Any) -> None:
        """Watch `module`, which was called from outside of every other, if it is a model that learns."""
        self._inner.update(id(part) for part in module.modules() if part is not module)
        model = unwrapped(module)
        own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if not own or not (model.training or self._steps):  # before any update it may well be evaluated first
            return
        self._look_for_optimizers()
        stepped = owned(self._optimizers)
        if not own & stepped:
            return
        watcher = watch(module, path=self._place(model, own, stepped), budget=self._budget, every=self._every)
        self._inner.add(id(module))
        self.watchers.append(watcher)
        self._introduce(watcher, own, self._optimizers)
        self._introduced.clear()
        watcher.joined(compiled, module, args, kwargs_of_call())
        if stepped <= self._watched():
            self._rest()

    def _look_for_optimizers(self) -> None:
        """Ask the garbage collector, at the first, second, fourth, eighth … call of a model that might learn."""
        self._calls += 1
        if self._calls & (self._calls - 1) == 0 or self._optimizers:
            self._optimizers.update(found for found in _living_optimizers() if found not in self._strangers)

    def _place(self, model: nn.Module, own: set[int], stepped: set[int]) -> Path:
        taken = {watcher.path for watcher in self.watchers}
        if stepped <= own and not taken:
            return self.path
        name = type(model).__name__
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        return next(place for place in (self.path / name for name in names) if place not in taken)

    def _introduce(self, watcher: Watcher, own: set[int], optimizers: Iterable[Optimizer]) -> None:
        """Have `watcher` count the steps of those of `optimizers` that own any of its model, that of most first."""
        shares = [(len(own & owned([optimizer])), optimizer) for optimizer in optimizers]
        having = sorted((each for each in shares if each[0]), key=lambda each: -each[0])
        if having:
            watcher.adopt(*(optimizer for _, optimizer in having), late=watcher.has_optimizer)

    def _stepping(self, optimizer: Optimizer, *_: Any) -> None:
        self._guard("discovery", self._meet, optimizer)

    def _meet(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step: one that is new may own a watched model, or one yet to be found."""
        self._steps += 1
        if self._on_modules is not None and self._steps > PATIENCE * max(1, len(self._optimizers)):
            self._rest()
            self._tell_loose()
        if any(optimizer is known for known in self._introduced):
            return
        self._introduced.add(optimizer)
        self._optimizers.add(optimizer)
        for watcher in self.watchers:
            self._introduce(watcher, watcher.parameters, [optimizer])
        if not owned([optimizer]) <= self._watched():
            self._search()

    def _watched(self) -> set[int]:
        return set().union(*(watcher.parameters for watcher in self.watchers))

    def _tell_loose(self) -> None:
        loose = len(owned(self._optimizers) - self._watched())
        for watcher in self.watchers:
            watcher.note(
                discovery=f"{loose} parameters that are trained belong to no module that was called as a model"
            )

    def _record_fault(self, kind: str, text: str, **more: Any) -> None:
        for watcher in self.watchers:
            watcher.note(discovery=text)

    def _leave_word(self) -> None:
        """Say at `path` itself why there is no training recorded there; a crash, if no model's record tells of it."""
        names = ", ".join(watcher.path.name for watcher in self.watchers)
        with Writer(self.path) as writer:
            if len(self.watchers) > 1:
                writer.event("note", f"Several models were trained; their records are in the folders {names} here.")
            elif self.watchers:
                text = "Parameters outside of the one model that was found are trained as well; its record is in"
                writer.event("note", f"{text} the folder {names} here.")
            else:
                writer.event("note", "No training was seen: no module was called with gradients and then updated.")
                if self._crash is not None:
                    writer.event("crash", f"{type(self._crash).__name__}: {self._crash}")


def _living_optimizers() -> list[Optimizer]:
    # By type(), not isinstance(): that would ask every object in the process for its __class__, and proxies answer.
    return [
        found for found in gc.get_objects() if issubclass(type(found), Optimizer) and hasattr(found, "param_groups")
    ]
