"""`Taps`: hooks on the live model that take samples from one forward pass and the backward pass that follows it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normscope.anatomy.batch import first_tensor
from normscope.terms.site import Site
from normscope.watch.callers import is_inner_gradient, loss_in_backward
from normscope.watch.guard import Guard
from normscope.watch.hooks import Hook, after_forward, before_forward, in_backward, out_of_sight
from normscope.watch.plan import Plan, input_of, root_of
from normscope.watch.sample import Row, row_of

PASSES = 8
"""Forward passes of one step that are kept until a backward pass tells which of them count."""


class _Pass:
    """One forward pass of the model, and the gradients that came back to it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.without_gradient: set[str] = set()
        self.forward: list[Row] = []
        self.backward: dict[str, Row] = {}
        self.reached = False
        self.forgotten = False  # its gradients are not for us


class Taps:
    """Samples of inputs, outputs and their gradients at the sites of `plan`, in the order in which they passed.

    A sample is copied when a hook sees its tensor: an in-place function may overwrite it at once. Functions between the
    modules have no hooks; only the fixed batch shows them.

    A model may be called several times before one backward pass (a discriminator, on what is real and what is not):
    the passes that it reaches are all told, the second as further calls of the same modules. Where it reaches none,
    the last pass is told.

    Attributes:
        reached: whether a backward pass has reached an observed forward pass.
        loss: what that backward pass began from, if it was a scalar.
        root_gradient: a copy of the whole gradient of the model's output, where `hold` asked for it.
    """

    def __init__(self, model: nn.Module, plan: Plan, guard: Guard, *, hold: Callable[[Tensor], bool]) -> None:
        self._plan, self._guard, self._hold = plan, guard, hold
        self._sites = plan.calls
        self._root = root_of(model, plan.sites)
        self._handles: list[RemovableHandle] = []
        self._passes: list[_Pass] = []
        self.running = self.reached = False
        self.begin()
        self.end()

    def attach(self) -> None:
        """Hook the modules."""
        for path, module in self._plan.modules.items():
            self._handles += (
                before_forward(module, Hook(lambda *told, path=path: self._guard("taps", self._enter, path, *told))),
                after_forward(module, Hook(lambda *told, path=path: self._guard("taps", self._leave, path, *told))),
            )

    @property
    def forward(self) -> list[Row]:
        """Inputs and outputs."""
        return [_later(row, before[row.site.path]) for seen, before in self._told() for row in seen.forward]

    @property
    def backward(self) -> list[Row]:
        """Gradients of outputs, as they came (scaled, under a gradient scaler)."""
        return [_later(row, before[row.site.path]) for seen, before in self._told() for row in seen.backward.values()]

    def _told(self) -> list[tuple[_Pass, Counter[str]]]:
        """The passes that count, each with the calls of every path before it."""
        chosen = [seen for seen in self._passes if seen.reached] or self._passes[-1:]
        root = Counter({self._root.path: 1})
        calls = accumulate((seen.calls + root for seen in chosen), initial=Counter())
        return list(zip(chosen, calls))

    @property
    def unseen(self) -> list[str]:
        """Paths of the hooked modules of whose inputs and outputs nothing was sampled."""
        seen = {row.site.path for row in self.forward}
        return [path for path in self._plan.modules if self._handles and path not in seen]

    def detach(self) -> None:
        """Take the hooks off; what is still to come is not seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()
        self.running = False

    def _forget(self) -> None:
        for seen in self._passes:
            seen.forgotten = True
        self._passes = []

    @property
    def overflowed(self) -> bool:
        """Whether a gradient that was seen is not finite."""
        return any(_broken(row) for row in self.backward)

    def begin(self, given: Any = ()) -> None:
        """A forward pass begins on the arguments `given`. What a backward pass has reached before is forgotten."""
        if self.reached:
            self._forget()
        elif self.running:  # the pass before was broken off
            self._passes.pop().forgotten = True
        for old in self._passes[: 1 - PASSES]:
            old.forgotten = True
        self._now = _Pass()
        self._passes = [*self._passes[1 - PASSES :], self._now]
        self._thread = threading.get_ident()
        self._latest: tuple[ref[Tensor], int, Row] | None = None  # what was kept last
        self.running = True
        self.reached = False
        self.loss: Tensor | None = None
        self.root_gradient: Tensor | None = None
        if self._root.role != "other":
            self._keep(input_of(self._root), first_tensor(given))

    def end(self, output: Any = None) -> None:
        """The forward pass is over."""
        self.running = False
        main = first_tensor(output)
        if main is not None:
            self._keep(self._root, main)
            self._follow(self._root.at("gradient"), main, root=True)

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_observed(path, module) and self._now.calls[path] < len(self._sites[path]):
            self._keep(
                self._sites[path][self._now.calls[path]][0],
                args[0] if args and type(args[0]) is Tensor else first_tensor((args, kwargs)),
            )

    def _leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        observed = self._is_observed(path, module)
        seen = self._now
        calls = seen.calls if observed else seen.again
        if not (observed or in_backward()) or calls[path] >= len(self._sites[path]):
            return
        _, site, gradient = self._sites[path][calls[path]]
        calls[path] += 1
        tensor = output if type(output) is Tensor else first_tensor(output)
        if tensor is None:
            return
        if observed:
            self._keep(site, tensor)
            if not tensor.requires_grad:
                seen.without_gradient.add(site.key)
        if observed or site.key in seen.without_gradient:
            # Reentrant checkpointing runs a part without gradients first, and again, with them, when they are needed.
            self._follow(gradient, tensor)

    def _is_observed(self, path: str, module: nn.Module) -> bool:
        """Whether this call belongs to the observed pass: no copy of the module's, no other thread's."""
        return self.running and module is self._plan.modules[path] and threading.get_ident() == self._thread

    def _keep(self, site: Site, tensor: Tensor | None) -> None:
        row = self._seen_before(site, tensor) or row_of(site, tensor)
        if row is not None and tensor is not None:
            self._now.forward.append(row)
            self._latest = None if tensor.is_inference() else (ref(tensor), tensor._version, row)

    def _seen_before(self, site: Site, tensor: Tensor | None) -> Row | None:
        """One module's output is the next one's input: the same object, in which nothing was written since."""
        if tensor is None or self._latest is None:
            return None
        known, version, row = self._latest
        if known() is not tensor or tensor._version != version:
            return None
        return Row(site, row.size, row.sample, row.digest)

    def _follow(self, site: Site, tensor: Tensor, *, root: bool = False) -> None:
        if not tensor.requires_grad:
            return
        seen = self._now

        def arrive(gradient: Tensor) -> None:
            if not seen.forgotten:
                out_of_sight(self._guard, "taps", self._arrive, seen, site, gradient, root)

        handle = tensor.register_hook(arrive)
        if tensor.is_leaf:  # it outlives the pass, and so would the hook
            self._handles.append(handle)

    def _arrive(self, seen: _Pass, site: Site, gradient: Tensor, root: bool) -> None:
        if is_inner_gradient(self._thread):
            return
        seen.reached = True
        if not self.reached:
            self.reached = True
            root_of_pass = loss_in_backward(self._thread)
            self.loss = self.loss if root_of_pass is None else root_of_pass
        if site.key not in seen.backward:
            row = row_of(site, gradient, keep=True)  # it may have to be unscaled
            if row is not None:
                seen.backward[site.key] = row
        if root and self.root_gradient is None and self._hold(gradient):
            self.root_gradient = gradient.detach().clone()


def _later(row: Row, calls: int) -> Row:
    """The row of a call that comes so many calls later."""
    return row if calls == 0 else row._replace(site=_site_later(row.site, calls))


@lru_cache(maxsize=65536)
def _site_later(site: Site, calls: int) -> Site:
    return replace(site, call=site.call + calls)


def _broken(row: Row) -> bool:
    """Whether a value that was read is not finite."""
    if row.digest is not None:
        return row.digest.nonfinite > 0
    return row.sample is not None and not bool(row.sample.isfinite().all())
