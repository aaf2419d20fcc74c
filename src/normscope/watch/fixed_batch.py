"""`FixedBatch`: the same batch through the network again, on a replica, in both modes."""

from __future__ import annotations

import io
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import replace
from typing import Any, TextIO, TypeAlias
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from normscope.anatomy.batch import Probe, first_tensor, mapped
from normscope.anatomy.isolate import isolated
from normscope.anatomy.observe import Call, observe
from normscope.anatomy.walk import sites
from normscope.stats.summary import Summary
from normscope.terms.errors import ModelError
from normscope.terms.site import Site
from normscope.watch.attention import Attending
from normscope.watch.bench import Bench, Slope, Values, placed
from normscope.watch.entry import entries
from normscope.watch.hooks import saving_privately
from normscope.watch.measure import Distribution, Measure, Mode, Reading, Scalar, Sight, View
from normscope.watch.plan import Plan, input_of, root_of
from normscope.watch.replica import Replica
from normscope.watch.sample import readable, summary_of

LossFn = Callable[[Any, Any], Any]


class FixedBatch:
    """The held batch and the replica it runs on.

    Both passes begin with the same random state, the one of `seed`, at every step: the same dropout masks, so that
    what changed between two probes was changed by the parameters.

    Attributes:
        sites: what `anatomy.walk.sites` finds when the replica runs the batch.
        gradient: where the gradient came from at the last run: ``"loss_fn"``, ``"output.loss"``, ``"held"`` (the
            gradient that reached the model's output in the last live step) or ``"none"``.
        trouble: why the last run has no gradient although there is a loss, or None.

    Raises:
        ModelError: the model cannot be copied, or does not run on the batch.
        DataError: the batch does not fit the model.
    """

    def __init__(
        self, model: nn.Module, probe: Probe, measures: Iterable[Measure], *, loss_fn: LossFn | None, seed: int
    ) -> None:
        self.probe = probe
        self.gradient = "none"
        self.trouble: Exception | None = None
        self._measures = list(measures)
        self._criterion = Replica(loss_fn) if isinstance(loss_fn, nn.Module) else None
        self._loss_fn = self._criterion.model if self._criterion is not None else loss_fn
        self._seed = seed
        self._entered: list[float | None] | None = None
        self._latest: tuple[ref[Tensor], tuple[Any, ...], Sight] | None = None  # what was seen last
        self._replica = Replica(model)
        self._replica.refresh()
        with _apart(self._replica.model, None, seed):
            self.sites: tuple[Site, ...] = sites(self._replica.model, probe.detached())
        self.rest()
        self._home = _home(self._replica.model)
        self._plan = Plan.of(self._replica.model, self.sites)
        self._compares = any(measure.compares_batches for measure in self._measures) and any(
            site.spec is not None and "N" in site.spec.over for site in self.sites
        )
        self._known = {(site.path, site.call): (input_of(site), site, site.at("gradient")) for site in self.sites}

    @property
    def hooks_left_out(self) -> int:
        """How many hooks of the user's the fixed batch runs without."""
        return self._replica.hooks_left_out

    @property
    def fits(self) -> bool:
        """Whether the live model still is the model that was copied."""
        return self._replica.fits

    @property
    def is_one_of_many(self) -> bool:
        """Whether another process tells the same parameters of a model that is split over processes."""
        return self._replica.meeting is not None and not self._replica.meeting.is_first

    def rest(self) -> None:
        """Let go of what was seen, and gathered of a model that is split over processes, after each use."""
        self._latest = None
        self._replica.rest()

    def run(
        self, step: int, *, held: Tensor | None = None, scale: float = 1.0, batch: Probe | None = None
    ) -> list[Reading]:
        """Run both passes at the parameters as they are now, and tell what every measure says.

        Args:
            step: optimizer steps taken.
            held: a gradient of the model's output to use where there is no loss.
            scale: what to multiply the loss with while it is differentiated, against underflow in half precision.
            batch: the training batch of the step, for measures that compare it with the fixed one: a pass of its own.
        """
        view = View(step, self._replica.model)
        self.gradient, self.trouble = "none", None
        self._refresh()
        with _apart(self._replica.model, False, self._seed):
            self._show_root(view, "probe_eval", self._observed(view, "probe_eval", None))
        with _apart(self._replica.model, None, self._seed):
            pending = _Pending(self, view, scale)
            output = self._observed(view, "probe", pending)
            self._show_root(view, "probe", output)
            loss = self._differentiated(pending, output, held, scale)
        if batch is not None and self._compares:
            with _apart(self._replica.model, None, self._seed), suppress(ModelError):  # one sample more or less
                self._observed(view, "batch", None, batch)
        if batch is not None:
            self._show_data(batch)
        readings: list[Reading] = [] if loss is None else [Scalar(None, "probe_loss", loss)]
        for measure in self._measures:
            readings += measure.tell(view)
        return readings

    def kept(self) -> list[Tensor | None]:
        """Copies of the trainable parameters as they are now: what an experiment across an update begins from."""
        self._replica.refresh()
        return [None if place.parameter is None else place.parameter.detach().clone() for place in self._plan.places]

    def bench(self, before: Values, *, held: Tensor | None = None, scale: float = 1.0) -> Bench:
        """What runs the batch between the parameters `before` and those of now; `held` and `scale` as for `run`."""
        self._refresh()
        places = self._plan.places
        after = [None if place.parameter is None else place.parameter.detach() for place in places]
        return Bench(
            self.sites,
            places,
            [then if then is None or now is None else then.to(now) for then, now in zip(before, after)],
            after,
            slope=lambda values: self._slope(values, held, scale),
            outputs=self._outputs,
            curvature=lambda direction: self._curvature(after, direction, held),
            entries=self._entries,
        )

    def _entries(self) -> list[float | None]:
        if self._entered is None:
            model, parameters = self._replica.model, [place.parameter for place in self._plan.places]
            depths = {(site.path, site.call): site.depth for site in self.sites}
            with _apart(model, None, self._seed):
                self._entered = entries(
                    model, self.probe.detached(), parameters, lambda call: depths.get((call.path, call.call))
                )
        return self._entered

    def _refresh(self) -> None:
        for replica in (self._replica, self._criterion):
            if replica is not None:
                replica.refresh()
        before, now = self._home, _home(self._replica.model)
        if before != now:  # the model was moved or cast, and the training's batches with it
            self._home = now
            self.probe = _following(self.probe, before, now)

    def _slope(self, values: Values, held: Tensor | None, scale: float) -> Slope | None:
        with self._differentiable(values, held, scale) as (root, weight, parameters):
            if root is None:
                return None
            loss = float(root.detach()) if weight is None else None
            weight = torch.full_like(root, scale) if weight is None else weight
            found = _gradient(root, parameters, weight)
            dense = (value if value is None else value.to_dense() for value in found)
            return Slope(loss, [value if value is None else value.float() / scale for value in dense])

    def _curvature(self, values: Values, direction: Values, held: Tensor | None) -> Values | None:
        with self._differentiable(values, held, 1.0) as (root, weight, parameters):
            if root is None:
                return None
            slope = _gradient(root, parameters, weight, create_graph=True)
            along = sum((a * b).sum() for a, b in zip(slope, direction) if a is not None and b is not None)
            return _gradient(along, parameters) if isinstance(along, Tensor) else None

    @contextmanager
    def _differentiable(
        self, values: Values, held: Tensor | None, scale: float
    ) -> Iterator[tuple[Tensor | None, Tensor | None, list[nn.Parameter | None]]]:
        """One pass with `values` for parameters: what to differentiate, with which weight, and for what."""
        model = self._replica.model
        with _apart(model, None, self._seed), placed(model, self._plan.places, values) as parameters:
            with torch.enable_grad():
                output = self.probe.detached().run(model)
            root, weight = self._root(output, held, scale)
            yield (root if root is not None and root.requires_grad else None), weight, parameters

    def _outputs(self, values: Values) -> dict[str, tuple[Site, Summary]]:
        """The summary of each output with `values` for parameters, in order of execution."""
        found: dict[str, tuple[Site, Summary]] = {}

        def after(call: Call, inputs: tuple[Tensor, ...], output: Any) -> None:
            known = self._known.get((call.path, call.call))
            tensor = readable(first_tensor(output))
            if known is not None and tensor is not None:
                found[known[1].key] = known[1], summary_of(tensor, known[1].channel_axis)

        model = self._replica.model
        with _apart(model, None, self._seed), placed(model, self._plan.places, values):
            observe(model, after, self.probe.detached())
        return found

    def show(self, view: View, mode: Mode, site: Site, tensor: Tensor | None, module: nn.Module | None = None) -> None:
        """Let every measure see one tensor, and keep its summary."""
        values = readable(tensor)
        if values is None or tensor is None:
            return
        if site.channel_axis is not None and site.channel_axis < 0 and values.ndim != tensor.ndim:
            site = replace(site, channel_axis=site.channel_axis % tensor.ndim)
        if mode == "batch" and (site.role, site.what) != ("norm", "input"):
            return
        sight = Sight(site, mode, values, module)
        self._take_over(sight, tensor)
        for measure in self._measures:
            measure.see(sight)
        if mode != "batch" and site.what != "statistic":
            view.summaries[mode, site.key] = Distribution(site, mode, sight.summary)

    def _take_over(self, sight: Sight, tensor: Tensor) -> None:
        """Give an input the summary of the output that it is: the same object, in which nothing was written since."""
        latest, self._latest = self._latest, None
        if tensor.is_inference():
            return
        seen = sight.mode, sight.site.channel_axis, sight.site.what in ("input", "output"), tensor._version
        if latest is not None and latest[0]() is tensor and latest[1] == seen:
            sight.__dict__["summary"] = latest[2].summary
        self._latest = ref(tensor), seen, sight

    def _show_data(self, batch: Probe) -> None:
        """Let the measures that compare batches see the data themselves, at the input of the whole model."""
        modes: tuple[tuple[Mode, Probe], ...] = (("probe", self.probe), ("batch", batch))
        for mode, given in modes:
            tensor = first_tensor((given.args, given.kwargs))
            values = readable(tensor)
            if values is None or tensor is None or values.ndim < 2 or not values.is_floating_point():
                continue
            site = Site("", "input", channel_axis=1 if values.ndim > 3 else values.ndim - 1)
            for measure in self._measures:
                if measure.compares_batches:
                    measure.see(Sight(site, mode, values))

    def _observed(self, view: View, mode: Mode, pending: _Pending | None, batch: Probe | None = None) -> Any:
        running = root_of(self._replica.model, self.sites)  # the site that was entered last

        def before(call: Call, inputs: tuple[Tensor, ...]) -> None:
            nonlocal running
            known = self._known.get((call.path, call.call))
            running = known[1] if known is not None else Site(call.path, "output", call.call, "", call.role, call.kind)
            if known is not None and inputs:
                self.show(view, mode, known[0], inputs[0], call.module)

        def attend(weights: Tensor) -> None:
            self.show(view, mode, running.at("statistic", "attention"), weights)

        def after(call: Call, inputs: tuple[Tensor, ...], output: Any) -> None:
            known = self._known.get((call.path, call.call))
            if known is not None:
                tensor = first_tensor(output)
                self.show(view, mode, known[1], tensor, call.module)
                if pending is not None:
                    pending.expect(known[2], tensor)

        batch = (batch or self.probe).detached()  # an in-place function may overwrite its input
        training = False if mode == "probe_eval" else None
        with Attending(attend) if mode == "probe" else nullcontext():
            return observe(
                self._replica.model, after, batch, before=before, training=training, grad=pending is not None
            )

    def _show_root(self, view: View, mode: Mode, output: Any) -> None:
        site = root_of(self._replica.model, self.sites)
        if site.role == "other":  # otherwise it was seen as one of the sites
            self.show(view, mode, site, first_tensor(output))

    def _differentiated(self, pending: _Pending, output: Any, held: Tensor | None, scale: float) -> float | None:
        """Take the gradients; the loss, where there is one."""
        loss = None
        try:
            root, weight = self._root(output, held, scale)
            if root is None:
                return None
            if weight is None:
                loss = float(root.detach())
                weight = torch.full_like(root, scale)
            pending.differentiate(root, weight, self._plan)
        except Exception as error:  # a loss that fails must not cost the rest of the probe
            self.gradient, self.trouble = "none", error
        return loss

    def _root(self, output: Any, held: Tensor | None, scale: float) -> tuple[Tensor | None, Tensor | None]:
        """What is differentiated, and with which weight where it is no loss."""
        if self._loss_fn is not None:
            self.gradient = "loss_fn"
            with torch.enable_grad():
                return self._loss_fn(output, self.probe.target), None
        loss = loss_of(output)
        if loss is not None and loss.requires_grad:
            self.gradient = "output.loss"
            return loss, None
        main = first_tensor(output)
        if held is not None and main is not None and main.requires_grad and held.shape == main.shape:
            self.gradient = "held"
            return main, held.to(main.dtype) * scale
        return None, None


class _Pending:
    """The gradients that a training-mode pass will give."""

    def __init__(self, batch: FixedBatch, view: View, scale: float) -> None:
        self._batch, self._view, self._scale = batch, view, scale

    def expect(self, site: Site, tensor: Tensor | None) -> None:
        """Summarize the gradient that will reach `tensor` as it is now: later in-place changes do not matter."""
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(lambda value: self._show(site, value))

    def differentiate(self, root: Tensor, weight: Tensor, plan: Plan) -> None:
        """Run the backward pass of the replica; nothing is accumulated anywhere."""
        places = [place for place in plan.places if place.parameter is not None]
        parameters = [place.parameter for place in places]
        if not parameters or not root.requires_grad:
            self._batch.gradient = "none"
            return
        found = torch.autograd.grad(root, parameters, weight, allow_unused=True)  # pyright: ignore
        for place, value in zip(places, found):
            self._show(place.gradient, value, place.owner)

    def _show(self, site: Site, value: Tensor | None, owner: nn.Module | None = None) -> None:
        if value is not None:
            value = value if self._scale == 1.0 else value.float() / self._scale
            self._batch.show(self._view, "probe", site, value, owner)


def _gradient(
    root: Tensor, parameters: Sequence[Tensor | None], weight: Tensor | None = None, *, create_graph: bool = False
) -> Values:
    """The gradient of `root` for each of `parameters`; None where there is none."""
    there = [parameter for parameter in parameters if parameter is not None]
    found = iter(torch.autograd.grad(root, there, weight, create_graph=create_graph, allow_unused=True))
    return [None if parameter is None else next(found) for parameter in parameters]


_Home: TypeAlias = "tuple[torch.device, torch.dtype]"


def _following(probe: Probe, before: _Home | None, now: _Home | None) -> Probe:
    """`probe`, what lay on the one device on the other, and what was of the one floating type of the other."""
    if before is None or now is None:
        return probe

    def follow(tensor: Tensor) -> Tensor:
        device = now[0] if tensor.device == before[0] else tensor.device
        return tensor.to(device, now[1] if tensor.dtype == before[1] else tensor.dtype)

    return Probe(*(mapped(part, follow) for part in (probe.args, dict(probe.kwargs), probe.target)))


def _home(model: nn.Module) -> _Home | None:
    """Where the first floating parameter lies, and of which type it is."""
    floating = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    return next(((parameter.device, parameter.dtype) for parameter in floating), None)


def loss_of(output: Any) -> Tensor | None:
    """The loss that a model gives with its output (``output.loss``, ``output["loss"]``); None when it gives none."""
    try:
        loss = output["loss"] if isinstance(output, dict) else getattr(output, "loss", None)
    except KeyError:
        return None
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


@contextmanager
def _apart(model: nn.Module, training: bool | None, seed: int) -> Iterator[None]:
    """`isolated`, with every random state set to `seed` inside, and nothing printed twice."""
    with redirect_stdout(_Muted(sys.stdout)), saving_privately(), isolated(model, training=training):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        _seed_torch(seed)
        yield


def _seed_torch(seed: int) -> None:
    """As `torch.manual_seed`, which writes the whole stack down for a GPU that might come, where there is none."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class _Muted(io.TextIOBase):
    """Standard output without what this thread writes: what the model prints, it prints on the training batch."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._thread = out, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._out.write(text)

    def flush(self) -> None:
        self._out.flush()
