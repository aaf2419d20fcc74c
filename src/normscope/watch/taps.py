"""`Taps`: hooks on the live model that take samples from one forward pass and the backward pass that follows it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
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


class Taps:
    """Samples of inputs, outputs and their gradients at the sites of `plan`, in the order in which they passed.

    A sample is copied when a hook sees its tensor: an in-place function may overwrite it at once. Functions between the
    modules have no hooks; only the fixed batch shows them.

    Attributes:
        forward: inputs and outputs.
        backward: gradients of outputs, as they came (scaled, under a gradient scaler).
        reached: whether a backward pass has reached the observed forward pass.
        loss: what that backward pass began from, if it was a scalar.
        root_gradient: a copy of the whole gradient of the model's output, where `hold` asked for it.
    """

    def __init__(self, model: nn.Module, plan: Plan, guard: Guard, *, hold: Callable[[Tensor], bool]) -> None:
        self._plan, self._guard, self._hold = plan, guard, hold
        self._sites = plan.calls
        self._root = root_of(model, plan.sites)
        self._handles: list[RemovableHandle] = []
        self._generation = 0  # of the observed forward pass: gradients of an earlier one are not for us
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
    def unseen(self) -> list[str]:
        """Paths of the hooked modules of whose inputs and outputs nothing was sampled."""
        seen = {row.site.path for row in self.forward}
        return [path for path in self._plan.modules if self._handles and path not in seen]

    def detach(self) -> None:
        """Take the hooks off; what is still to come is not seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._generation += 1
        self.running = False

    @property
    def overflowed(self) -> bool:
        """Whether a gradient that was seen is not finite."""
        return any(_broken(row) for row in self.backward.values())

    def begin(self, given: Any = ()) -> None:
        """A forward pass begins on the arguments `given`. What was seen before is forgotten."""
        self._generation += 1
        self._calls: Counter[str] = Counter()
        self._again: Counter[str] = Counter()
        self._without_gradient: set[str] = set()
        self._thread = threading.get_ident()
        self.forward: list[Row] = []
        self._latest: tuple[ref[Tensor], int, Row] | None = None  # what was kept last
        self.backward: dict[str, Row] = {}
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
        if self._is_observed(path, module) and self._calls[path] < len(self._sites[path]):
            self._keep(
                self._sites[path][self._calls[path]][0],
                args[0] if args and type(args[0]) is Tensor else first_tensor((args, kwargs)),
            )

    def _leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        observed = self._is_observed(path, module)
        calls = self._calls if observed else self._again
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
                self._without_gradient.add(site.key)
        if observed or site.key in self._without_gradient:
            # Reentrant checkpointing runs a part without gradients first, and again, with them, when they are needed.
            self._follow(gradient, tensor)

    def _is_observed(self, path: str, module: nn.Module) -> bool:
        """Whether this call belongs to the observed pass: no copy of the module's, no other thread's."""
        return self.running and module is self._plan.modules[path] and threading.get_ident() == self._thread

    def _keep(self, site: Site, tensor: Tensor | None) -> None:
        row = self._seen_before(site, tensor) or row_of(site, tensor)
        if row is not None and tensor is not None:
            self.forward.append(row)
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
        generation = self._generation

        def arrive(gradient: Tensor) -> None:
            if generation == self._generation:
                out_of_sight(self._guard, "taps", self._arrive, site, gradient, root)

        handle = tensor.register_hook(arrive)
        if tensor.is_leaf:  # it outlives the pass, and so would the hook
            self._handles.append(handle)

    def _arrive(self, site: Site, gradient: Tensor, root: bool) -> None:
        if is_inner_gradient(self._thread):
            return
        if not self.reached:
            self.reached = True
            root_of_pass = loss_in_backward(self._thread)
            self.loss = self.loss if root_of_pass is None else root_of_pass
        if site.key not in self.backward:
            row = row_of(site, gradient, keep=True)  # it may have to be unscaled
            if row is not None:
                self.backward[site.key] = row
        if root and self.root_gradient is None and self._hold(gradient):
            self.root_gradient = gradient.detach().clone()


def _broken(row: Row) -> bool:
    """Whether a value that was read is not finite."""
    if row.digest is not None:
        return row.digest.nonfinite > 0
    return row.sample is not None and not bool(row.sample.isfinite().all())
