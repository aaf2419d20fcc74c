"""`Case`: what a rule sees of a run. The numerics live here, so that a rule reads like the sentence it tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from normscope.diagnose.layers import Layers
from normscope.diagnose.run import Run
from normscope.diagnose.symptoms import variation
from normscope.diagnose.track import Track
from normscope.stats.moments import Moments
from normscope.stats.summary import Summary
from normscope.terms.activations import activation_named
from normscope.terms.site import Site

if TYPE_CHECKING:
    from normscope.diagnose.counterfactual import Experiment

BALANCED = 1e-4
"""A gradient's mean over its size: near the 1e-8 of rounding, far from what a sum that need not be zero leaves."""

LONG = 80
"""Twice the steps in which a copy learns one batch by heart: a shorter run has had no time."""

DRIFT_STEPS = 10
"""The stretch over which movement is measured: the memory of momentum 0.9 and of a running average at 0.1."""


@dataclass(frozen=True, repr=False, eq=False)
class Case(Run):
    """A run as a practitioner asks about it: its layers, what becomes of the loss, what grows or dies along depth.

    Quantities come as a `Track` (one number over the steps) or as `Layers` (one number for each layer at each step).
    `experiment` is the model with a batch to try causes on, where they are at hand.
    """

    experiment: Experiment | None = field(default=None, repr=False)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The output of every norm, producer and activation that ran, in execution order."""
        return tuple(
            site for site in self.tensors.values() if site.what == "output" and site.depth >= 0 and site.role != "other"
        )

    @cached_property
    def producers(self) -> tuple[Site, ...]:
        """The outputs of linear layers, convolutions, recurrences and embeddings."""
        return tuple(site for site in self.sites if site.role == "producer")

    @cached_property
    def norms(self) -> tuple[Site, ...]:
        """The outputs of normalizations."""
        return tuple(site for site in self.sites if site.role == "norm")

    @cached_property
    def hidden_activations(self) -> tuple[Site, ...]:
        """The outputs of activation functions with something behind them: not those that end the network."""
        found = tuple(site for site in self.sites if site.role == "activation")
        if self.answer is None:
            return found
        last = max((site.depth for site in self.sites if site.role != "activation"), default=self.answer.depth)
        return tuple(site for site in found if site.depth < last)

    @property
    def normalizes_over_batch(self) -> bool:
        """Whether some norm takes its statistics over the batch in training and from elsewhere at inference."""
        return any(site.spec and "N" in site.spec.over and site.spec.keeps_state for site in self.norms)

    def values_per_channel(self, site: Site) -> int:
        """Samples times positions behind each channel of an output on the probe; 0 when it was not probed."""
        moments = self._moments(site)
        return int(moments.count.max()) if moments is not None and moments.count.size else 0

    def channels(self, site: Site) -> int:
        """Channels (features, units) of an output on the probe; 0 when it was not probed."""
        moments = self._moments(site)
        return moments.count.size if moments is not None else 0

    def guard(self, norm: Site) -> Track:
        """The eps of a norm over the variance of what it reads (of the median channel, for one that takes each alone).

        Above 1 the norm divides by its eps more than by what it measures. Empty without an eps.
        """
        told = self.summaries(norm.at("input"), "probe")
        eps = norm.spec.eps if norm.spec else None
        if not eps or norm.spec is None:
            return Track.of((), ())
        eps = eps if norm.spec.eps_place == "inside" else eps**2
        by_channel = "N" in norm.spec.over
        variances = [
            float(np.median(one.channels.var)) if by_channel and one.channels is not None else one.std**2
            for _, one in told
        ]
        return Track.of((step for step, _ in told), (eps / v if v > 0 else np.nan for v in variances))

    @cached_property
    def ungraded(self) -> bool:
        """Whether backward passes reached parameters, and every gradient was zero at every step."""
        weights = [one for path in {site.path for site in self.producers} for one in self.parameters(path)]
        slopes = [self.root_mean_square(one.at("gradient", one.name)).values for one in weights]
        return any(len(one) for one in slopes) and all(bool((one == 0).all()) for one in slopes)

    @cached_property
    def batch_size(self) -> int | None:
        """Samples in a training batch: the values behind a channel of the last layer; None when they are unknown.

        Where the last layer keeps positions (a dense prediction), it is samples times positions.
        """
        for site in reversed(self.producers):
            channels, live = self.channels(site), self.newest(site, "live")
            if channels and live is not None:
                return live.size // channels
        return None

    # over the steps --------------------------------------------------------------------------------------------------

    @cached_property
    def loss(self) -> Track:
        """The training loss, where it is finite."""
        return self.scalar(None, "loss")

    @cached_property
    def diverged(self) -> bool:
        """Whether the loss was NaN or infinite at some step."""
        known = "loss" in self.record.quantities(None)
        return known and not np.isfinite(self.record.series(None, "loss").values).all()

    @cached_property
    def chance(self) -> float | None:
        """The loss of a network that knows nothing; None where that is not known.

        log C for a cross-entropy over C classes, which is known by its gradient: it adds up to zero over the outputs of
        the last layer. For an error, which is 0 where the output is the target, that of the mean of the fixed batch's
        targets, where the loss is at hand.
        """
        if self.experiment is not None and (error := self.experiment.error_of_the_mean()) is not None:
            return error
        last = self.sites[-1] if self.sites else None
        if last is None or last.role != "producer" or self.channels(last) < 2:
            return None
        balance = self.balance(last)
        known = len(balance) > 0 and float(np.median(balance.values)) < BALANCED
        if not known:
            return None
        told = self.experiment.loss_of_nothing() if self.experiment is not None else None
        return told if told is not None and told > 0 else float(np.log(self.channels(last)))

    @cached_property
    def fallen(self) -> float | None:
        """The share of its start that the loss has lost, beyond its noise; of chance, where it started above that."""
        fallen, end = self.loss.fallen, self.loss.late().last
        if not fallen or self.chance is None or not float(self.loss.values[:3].min()) > self.chance:
            return fallen
        return max(0.0, 1 - end / self.chance)

    @property
    def learns(self) -> bool | None:
        """Whether the loss has fallen by a tenth of itself and beyond its noise; None when it is unknown."""
        return None if self.fallen is None else self.fallen > 0.1

    @property
    def thrives(self) -> bool:
        """Whether the loss is known to have fallen to less than half of where it started, or of chance."""
        return (self.fallen or 0.0) > 0.5

    @property
    def hardly_learns(self) -> bool:
        """Whether a run of `LONG` steps and more is known to have lost less than half of its loss."""
        length = int(self.steps[-1] - self.steps[0]) + 1
        known = length >= LONG and len(self.loss) >= 12 and self.fallen is not None
        return known and not self.thrives and not self.diverged

    @cached_property
    def plateau(self) -> float:
        """The share of the run before the loss had lost a tenth of its start, smoothed over five steps."""
        values = self.loss.values
        if len(values) < 6:
            return 0.0
        smooth = np.median(np.lib.stride_tricks.sliding_window_view(values, 5), axis=1)
        lower = np.flatnonzero(smooth < smooth[0] - 0.1 * abs(smooth[0]))
        return float(lower[0]) / len(smooth) if len(lower) else 1.0

    @cached_property
    def output_gap(self) -> Track:
        """How far evaluation mode's output lies from training mode's, in deviations: of the whole model."""
        return self.scalar(Site(""), "eval_gap")

    def opening(self, norm: Site) -> Track:
        """By how much further apart the modes are behind a norm than before it, in deviations; at most 0 in most."""
        before, after = self._apart(norm.at("input")), self._apart(norm)
        steps = [step for step in after if step in before]
        return Track.of(steps, (after[step] - before[step] for step in steps))

    def _apart(self, tensor: Site) -> dict[int, float]:
        evaluation = dict(self.summaries(tensor, "probe_eval"))
        training = self.summaries(tensor, "probe")
        return {step: moved(summary, evaluation[step]) for step, summary in training if step in evaluation}

    @cached_property
    def drift(self) -> Layers:
        """How far the inputs of hidden activations move in ten steps, in deviations, between neighbouring probes.

        Of activations that no norm feeds. The root mean square over units of √(Δμ² + Δσ²), over the deviation of all
        units and samples together. Where probes are more than ten steps apart, the distance is divided by as many
        tens, which is less than the whole path.
        """
        rows: dict[str, Track] = {}
        for site in self.hidden_activations:
            told = [] if self.follows_norm(site) else self.summaries(site.at("input"), "probe")
            moves = [
                moved(before, after) * min(1.0, DRIFT_STEPS / (step - earlier))
                for (earlier, before), (step, after) in pairwise(told)
            ]
            if moves:
                rows.setdefault(site.path, Track.of((step for step, _ in told[1:]), moves))
        return Layers.of(rows)

    def moves(self, parameter: Site) -> Track:
        """The root mean square of a parameter's updates; empty where the optimizer does not own it."""
        return self.root_mean_square(parameter.at("update", parameter.name))

    @cached_property
    def answer(self) -> Site | None:
        """The activation that ends the network; None where a layer or a norm does, or something that is no site.

        What the model gives is then of another size than what its last activation gives, or lies elsewhere.
        """
        last = self.sites[-1] if self.sites else None
        if last is None or last.role != "activation":
            return None
        own, given = (dict(self.summaries(site, "probe")) for site in (last, Site("")))
        alike = (_same(own[step], given[step]) for step in own if step in given)
        return last if next(alike, True) else None

    def balance(self, site: Site) -> Track:
        """|mean| over root mean square of the gradient at an output: next to 0 where a softmax reads it.

        A softmax does not see a constant that is common to the classes, so its gradient adds up to zero over them.
        """
        for source in ("live", "probe"):
            mean, size = (read(site.at("gradient"), source) for read in (self._mean, self.root_mean_square))
            if len(mean) and len(mean) == len(size):
                return Track.of(mean.steps, np.abs(mean.values) / np.where(size.values > 0, size.values, np.nan))
        return Track.of((), ())

    def _mean(self, tensor: Site, source: str) -> Track:
        return self.over(tensor, "mean", source)

    def saturation(self, site: Site) -> Track:
        """The share of an activation's input that lies beyond its function's saturation points."""
        function = activation_named(site.kind)
        if function is None or not function.saturates:
            return Track.of((), ())
        told = self.summaries(site.at("input"))
        return Track.of((s for s, _ in told), (one.sketch.outside(function.low, function.high) for _, one in told))

    def dead(self, site: Site) -> Track:
        """The share of an activation's units that are constant over the probe, where their output is finite."""
        track = self.scalar(site, "dead")
        broken = self.over(site, "nonfinite", "probe")
        finite = ~np.isin(track.steps, broken.steps[broken.values > 0])
        return Track.of(track.steps[finite], track.values[finite])

    # along depth -----------------------------------------------------------------------------------------------------

    @cached_property
    def sensitivity(self) -> Layers:
        """‖W‖·‖∂L/∂W‖ of every trained producer: how much the loss moves for a relative change of its weights.

        It does not change when a layer's weights are scaled and the next layer's scaled back, as gradients alone do.
        """
        rows: dict[str, Track] = {}
        for site in self.producers:
            weights = [one for one in self.parameters(site.path) if "weight" in one.name]
            tracks = [track for one in weights if len(track := self._sensitivity(one))]
            if tracks and site.path not in rows:
                rows[site.path] = _sum_of_squares(tracks)
        return Layers.of(rows)

    @cached_property
    def update_ratio(self) -> Layers:
        """‖ΔW‖/‖W‖ of every producer's weights, for one optimizer step."""
        rows: dict[str, Track] = {}
        for site in self.producers:
            for one in self.parameters(site.path):
                track = self.scalar(one.at("update", one.name), "update_ratio")
                if "weight" in one.name and len(track) and site.path not in rows:
                    rows[site.path] = track
        return Layers.of(rows)

    @cached_property
    def variation(self) -> Layers:
        """The deviation of every producer's output between samples of the probe, over its root mean square.

        Its square is one minus the correlation of two samples' activations (Schoenholz et al. 2017),
        averaged over pairs.
        """
        rows: dict[str, Track] = {}
        for site in self.producers:
            told = [(step, one.channels) for step, one in self.summaries(site, "probe") if one.channels is not None]
            shares = [variation(channels) for _, channels in told]
            if told:
                rows.setdefault(site.path, Track.of((step for step, _ in told), shares))
        return Layers.of(rows)

    @cached_property
    def magnitude(self) -> Layers:
        """The root mean square of every producer's output."""
        rows: dict[str, Track] = {}
        for site in self.producers:
            told = self.summaries(site)
            if told:
                rows.setdefault(site.path, Track.of((step for step, _ in told), (one.rms for _, one in told)))
        return Layers.of(rows)

    # where to treat --------------------------------------------------------------------------------------------------

    def follows_norm(self, activation: Site) -> bool:
        """Whether a normalization already makes what this activation reads."""
        feeder = self.feeder(activation)
        return feeder is not None and feeder.role == "norm"

    def feeder(self, activation: Site) -> Site | None:
        """The norm or producer whose output this activation reads; None when something else does."""
        before = (site for site in reversed(self.sites) if site.depth < activation.depth)
        nearest = next((site for site in before if site.role != "activation"), None)
        return nearest if nearest is not None and nearest.feeds else None

    def producers_before(self, activations: Iterable[Site]) -> tuple[str, ...]:
        """The paths of the layers whose output reaches these activations first, through a norm or not."""
        found: dict[str, None] = {}
        for activation in activations:
            before = (site for site in reversed(self.producers) if site.depth < activation.depth)
            nearest = next(before, None)
            if nearest is not None:
                found[nearest.path] = None
        return tuple(found)

    # reading ---------------------------------------------------------------------------------------------------------

    def _moments(self, site: Site) -> Moments | None:
        """The moments per channel of an output at the last probe."""
        last = self.newest(site, "probe")
        return last.channels if last is not None else None

    def _sensitivity(self, weight: Site) -> Track:
        slopes = self.summaries(weight.at("gradient", weight.name), "live")
        values = dict(self.summaries(weight, "live"))
        return Track.of(
            (step for step, _ in slopes),
            (slope.rms * values[step].rms * slope.size if step in values else np.nan for step, slope in slopes),
        )


def _same(one: Summary, other: Summary) -> bool:
    """Whether two summaries can be of the same numbers."""
    return one.size == other.size and bool(np.isclose(one.rms, other.rms, rtol=1e-3, atol=0))


def moved(before: Summary, after: Summary) -> float:
    """How far the units of a layer have moved, in deviations of the whole layer; NaN where that is constant.

    The root mean square over units of √(Δμ² + Δσ²): the 2-Wasserstein distance of Gaussians, unit by unit.
    """
    old, new = before.channels, after.channels
    if old is None or new is None or old.mean.shape != new.mean.shape or not before.std > 0:
        return float("nan")
    return float(np.sqrt(np.mean((new.mean - old.mean) ** 2 + (new.std - old.std) ** 2))) / before.std


def _sum_of_squares(tracks: list[Track]) -> Track:
    first = tracks[0]
    total = np.zeros(len(first))
    for track in tracks:
        at = dict(zip(track.steps, track.values))
        total += np.array([at.get(step, 0.0) for step in first.steps]) ** 2
    return Track.of(first.steps, np.sqrt(total))
