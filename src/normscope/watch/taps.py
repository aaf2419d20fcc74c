"""`Taps`: hooks on the live model that take samples from one forward pass and the backward pass that follows it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normscope.anatomy.batch import first_tensor
from normscope.terms.site import Site
from normscope.watch.callers import calling_place, is_inner_gradient, loss_in_backward
from normscope.watch.guard import Guard
from normscope.watch.hooks import Hook, after_forward, before_forward, in_backward, out_of_sight
from normscope.watch.plan import Plan, input_of, root_of
from normscope.watch.sample import Row, row_of

PASSES = 8
"""Forward passes that are kept until a backward pass tells which of them count; rounds of a step that are looked at."""


class _Pass:
    """One forward pass of the model, and the gradients that came back to it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.without_gradient: set[int] = set()  # identities of the plan's sites, as below
        self.forward: list[Row] = []
        self.backward: dict[int, Row] = {}
        self.reached = False
        self.forgotten = False  # its gradients are not for us


class _Round:
    """Forward passes, and the one backward pass that reaches them.

    Attributes:
        place: where in the program the model is called for it.
        brief: whether its loss alone is looked at.
        thrown_away: whether its gradients were cleared before the update.
    """

    def __init__(self, place: Hashable, brief: bool) -> None:
        self.place, self.brief = place, brief
        self.passes: list[_Pass] = []
        self.reached = self.thrown_away = False
        self.loss: Tensor | None = None

    @property
    def told(self) -> list[_Pass]:
        """The passes that were reached; where none was, the last."""
        return [seen for seen in self.passes if seen.reached] or self.passes[-1:]


class Taps:
    """Samples of inputs, outputs and their gradients at the sites of `plan`, in the order in which they passed.

    A sample is copied when a hook sees its tensor: an in-place function may overwrite it at once. Functions between the
    modules have no hooks; only the fixed batch shows them.

    A model may be called several times before one backward pass (a discriminator, on what is real and what is not):
    the passes that it reaches are all told, the second as further calls of the same modules. Where it reaches none,
    the last pass is told. Further backward passes before the update are further rounds: when the model is called from
    another place in the program, as further calls; when it is called from the same place again, as micro-batches are,
    under the same sites, to be merged. Of more than `PASSES` rounds the first are told, and the loss of all.

    Attributes:
        plan: where to look.
        reached: whether a backward pass has reached the latest forward pass.
        root_gradient: a copy of the whole gradient of the model's output, where `hold` asked for it.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        guard: Guard,
        *,
        hold: Callable[[Tensor], bool],
        cleared: Callable[[], bool],
    ) -> None:
        self.plan, self._guard, self._hold, self._cleared = plan, guard, hold, cleared
        self._sites = plan.calls
        self._root = root_of(model, plan.sites)
        self._root_sites = input_of(self._root), self._root.at("gradient")
        self._handles: list[RemovableHandle] = []
        self._leaves: list[RemovableHandle] = []
        self._rounds: list[_Round] = []
        self._latest: tuple[ref[Tensor], int, Row] | None = None  # what was kept last
        self._thread = 0
        self.running = False
        self.root_gradient: Tensor | None = None

    def attach(self) -> None:
        """Hook the modules."""
        for path, module in self.plan.modules.items():
            quiet = _leaves_its_input_alone(module)
            if not quiet:
                self._handles.append(before_forward(module, Hook(partial(self._guard, "taps", self._enter, path))))
            self._handles.append(after_forward(module, Hook(partial(self._guard, "taps", self._leave, path, quiet))))

    @property
    def attached(self) -> bool:
        """Whether the modules are hooked."""
        return bool(self._handles)

    @property
    def rounds(self) -> list[tuple[list[Row], list[Row]]]:
        """Of each round: inputs and outputs; gradients of outputs as they came (scaled, under a gradient scaler)."""
        return [
            (
                [row for seen, calls in told for row in _later(seen.forward, calls)],
                [row for seen, calls in told for row in _later(seen.backward.values(), calls)],
            )
            for told in self._told()
        ]

    def _told(self) -> list[list[tuple[_Pass, Counter[str]]]]:
        """Of each round that counts: its passes, each with the calls of every path before it."""
        counted = [seen for seen in self._rounds if not (seen.brief or seen.thrown_away)]
        reached = [seen for seen in counted if seen.reached]
        if len(reached or counted[-1:]) == 1 and len(alone := (reached or counted)[-1].told) == 1:
            return [[(alone[0], Counter())]]
        found: list[list[tuple[_Pass, Counter[str]]]] = []
        begins: dict[Hashable, Counter[str]] = {}
        root, most = Counter({self._root.path: 1}), Counter()
        for seen in reached or counted[-1:]:
            calls = begins.setdefault(seen.place, most)
            found.append([])
            for each in seen.told:
                found[-1].append((each, calls))
                calls = calls + each.calls + root
            most = most | calls
        return found

    @property
    def loss(self) -> Tensor | None:
        """What the backward passes began from, where they were scalars: the sum over the rounds."""
        counted = [seen for seen in self._rounds if not seen.thrown_away]
        reached = [seen for seen in counted if seen.reached]
        losses = [seen.loss for seen in reached or counted[-1:]]
        known = [loss for loss in losses if loss is not None]
        return sum(known[1:], known[0]) if known and len(known) == len(losses) else None

    @property
    def unseen(self) -> list[str]:
        """Paths of the hooked modules of whose inputs and outputs nothing was sampled."""
        seen = {row.site.path for forward, _ in self.rounds for row in forward}
        return [path for path in self.plan.modules if self._handles and path not in seen]

    def rest(self) -> None:
        """What is still to come is not seen, until a forward pass begins again."""
        for handle in self._leaves:
            handle.remove()
        self._leaves.clear()
        self.forget()
        self._latest = None
        self.running = False

    def detach(self) -> None:
        """Rest, and take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.rest()

    def forget(self) -> None:
        """What was seen so far leads to no update."""
        for seen in self._rounds:
            for each in seen.passes:
                each.forgotten = True
        self._rounds = []
        self.root_gradient = None

    @property
    def reached(self) -> bool:
        return bool(self._rounds) and self._rounds[-1].reached

    @property
    def overflowed(self) -> bool:
        """Whether a gradient that was seen is not finite."""
        return _overflowed(self._rounds)

    @property
    def wasted(self) -> bool:
        """Whether a gradient that was cleared before the update was not finite."""
        return _overflowed(seen for seen in self._rounds if seen.thrown_away)

    def begin(self, given: Any = ()) -> None:
        """A forward pass begins on the arguments `given`: of a new round, when a backward pass reached the last one."""
        if self.reached or not self._rounds:
            self._rounds.append(_Round(calling_place(), len(self._rounds) >= PASSES))
        passes = self._rounds[-1].passes
        if self.running:  # the pass before was broken off
            passes.pop().forgotten = True
            if not passes:
                self._rounds[-1].place = calling_place()
        for old in passes[: 1 - PASSES]:
            old.forgotten = True
        self._now = _Pass()
        passes[:] = [*passes[1 - PASSES :], self._now]
        self._thread = threading.get_ident()
        self._latest = None
        self.running = True
        if self._root.role != "other" and not self._rounds[-1].brief:
            self._keep(self._root_sites[0], first_tensor(given))

    def end(self, output: Any = None, loss: Tensor | None = None) -> None:
        """The forward pass is over; `loss` is what the model itself says it is, until the backward pass tells more."""
        self.running = False
        main, seen = first_tensor(output), self._rounds[-1]
        seen.loss = loss
        if main is not None:
            if not seen.brief:
                self._keep(self._root, main)
            self._follow(self._root_sites[1], main, root=True)

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._is_observed(path, module):
            return
        sites, call = self._sites[path], self._now.calls[path]
        if call < len(sites):
            self._keep(sites[call][0], args[0] if args and type(args[0]) is Tensor else first_tensor((args, kwargs)))

    def _leave(self, path: str, quiet: bool, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        observed = self._is_observed(path, module)
        if not (observed or in_backward()):
            return
        seen, sites = self._now, self._sites[path]
        calls = seen.calls if observed else seen.again
        call = calls[path]
        if call >= len(sites):
            return
        into, site, gradient = sites[call]
        calls[path] = call + 1
        if quiet and observed and not module.__dict__.get("inplace"):
            self._keep(into, args[0] if args and type(args[0]) is Tensor else first_tensor((args, kwargs)))
        tensor = output if type(output) is Tensor else first_tensor(output)
        if tensor is None:
            return
        learns = tensor.requires_grad
        if observed:
            self._keep(site, tensor)
            if not learns:
                seen.without_gradient.add(id(site))
        if learns and (observed or id(site) in seen.without_gradient):
            # Reentrant checkpointing runs a part without gradients first, and again, with them, when they are needed.
            self._follow(gradient, tensor)

    def _is_observed(self, path: str, module: nn.Module) -> bool:
        """Whether this call belongs to the observed pass: no copy of the module's, no other thread's."""
        return (
            self.running
            and not self._rounds[-1].brief
            and module is self.plan.modules[path]
            and threading.get_ident() == self._thread
        )

    def _keep(self, site: Site, tensor: Tensor | None) -> None:
        if tensor is None:
            return
        # One module's output is the next one's input: the same object, in which nothing was written since.
        latest = self._latest
        if latest is not None and latest[0]() is tensor and latest[1] == tensor._version:
            self._now.forward.append(latest[2].at(site))
            return
        row = row_of(site, tensor)
        if row is not None:
            self._now.forward.append(row)
            self._latest = None if tensor.is_inference() else (ref(tensor), tensor._version, row)

    def _follow(self, site: Site, tensor: Tensor, *, root: bool = False) -> None:
        if not tensor.requires_grad:
            return
        seen, of = self._now, self._rounds[-1]

        def arrive(gradient: Tensor) -> None:
            if not seen.forgotten:
                out_of_sight(self._guard, "taps", self._arrive, of, seen, site, gradient, root)

        handle = tensor.register_hook(arrive)
        if tensor.is_leaf:  # it outlives the pass, and so would the hook
            self._leaves.append(handle)

    def _arrive(self, of: _Round, seen: _Pass, site: Site, gradient: Tensor, root: bool) -> None:
        if is_inner_gradient(self._thread):
            return
        seen.reached = True
        if not of.reached:
            of.reached = True
            root_of_pass = loss_in_backward(self._thread)
            of.loss = of.loss if root_of_pass is None else root_of_pass
            if of is not self._rounds[0] and self._cleared():
                for earlier in self._rounds[: self._rounds.index(of)]:
                    earlier.thrown_away = True
        if id(site) not in seen.backward and not of.brief:
            row = row_of(site, gradient)
            if row is not None:
                seen.backward[id(site)] = row
        if root and self.root_gradient is None and self._hold(gradient):
            self.root_gradient = gradient.detach().clone()


def _leaves_its_input_alone(module: nn.Module) -> bool:
    """Whether what `module` was called with can be read after the call: of torch's own layers, unless they say else."""
    plain = type(module).__module__.startswith("torch.nn.modules.") and "forward" not in module.__dict__
    return plain and not module._modules and not getattr(module, "inplace", False)


def _later(rows: Iterable[Row], calls: Counter[str]) -> Iterable[Row]:
    """The rows of passes before which each path was called so often."""
    return [row.at(_site_later(row.site, calls[row.site.path])) for row in rows] if calls else rows


@lru_cache(maxsize=65536)
def _site_later(site: Site, calls: int) -> Site:
    return replace(site, call=site.call + calls) if calls else site


def _overflowed(rounds: Iterable[_Round]) -> bool:
    return any(not row.finite for of in rounds for seen in of.told for row in seen.backward.values())
