"""`NormSpec`: a normalization is a description.

``h = f(g · (x − μ)/σ + b)``. Which cells share μ and σ, where μ and σ come from, what σ is, and what stands around
the formula are fields. Two normalizations that differ, differ here; no class anywhere changes a default in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from normscope.terms.datum import Datum
from normscope.terms.errors import SpecError

Axis = Literal["N", "C", "S"]
Source = Literal[
    "input",  # statistics of this input's own cells, sample by sample (LayerNorm, GroupNorm, InstanceNorm)
    "batch",  # statistics over this batch
    "running",  # an exponential average of batch statistics
    "cumulative",  # the plain average of all batch statistics so far
    "population",  # merged over a whole data set, within- plus between-batch
    "renormalized",  # batch statistics corrected to the running ones (Ioffe 2017)
    "ghost",  # statistics over virtual batches smaller than the batch
    "synchronized",  # statistics over the batch of every process
    "online",  # statistics of a stream, one sample at a time (Chiley et al. 2019)
    "given",  # constants that the user supplies (frozen)
    "none",  # nothing is measured (DynamicTanh, a weight reparametrization alone)
]
Scale = Literal["std", "rms", "l1", "l2", "max", "whiten"]
EpsPlace = Literal["inside", "outside", "floor"]  # sqrt(v + eps) | sqrt(v) + eps | max(sqrt(v), eps)
Cast = Literal["output", "normalized"]  # where float32 goes back to the input's dtype: last, or before the weight
Layout = Literal["channels_first", "channels_last"]
Reparametrization = Literal["weight_norm", "standardized", "spectral", "cosine", "centered_weight_norm"]

AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True, repr=False)
class NormSpec(Datum):
    """One normalization, described. Equal descriptions compute equal functions.

    Attributes:
        over: the axes whose cells share statistics, a subset of ``{"N", "C", "S"}``: batch, channels, positions.
        train_from: where the statistics come from while training.
        infer_from: where they come from at inference. Both are required: there is no silent default.
        groups: into how many groups the channels are split, when statistics run over ``"C"``; ``channels`` means one
            channel a group and is written by leaving ``"C"`` out of `over`.
        layout: where the channel axis of the input stands, after the batch or last.
        center: whether μ is subtracted.
        scale: what σ is; None leaves the scale alone.
        eps: the guard of the division; None is the machine epsilon of the dtype in which the statistics are taken
            (torch.nn.RMSNorm's default).
        eps_place: ``"inside"`` the root, ``"outside"`` it, or as a ``"floor"`` of σ.
        affine: whether there is a learned weight g.
        bias: whether there is a learned offset b.
        weight_offset: added to the stored weight (1.0 in Gemma's RMSNorm, whose weight starts at zero).
        cast: in half precision, whether x̂ returns to the input's dtype before the weight ("normalized") or after
            everything ("output").
        momentum: weight of the newest batch in running statistics, in torch's meaning; None for sources without.
        unbiased: whether running statistics hold the unbiased variance (torch) or the biased one (Keras, flax).
        accumulate: how many batches in a row (micro-batches of gradient accumulation) are merged into one update of
            the running statistics.
        virtual_batch: samples in a virtual batch, for ``train_from="ghost"``.
        corrections: for ``train_from="renormalized"``, the bounds of r and d as ``(limit, first step, last step)``:
            the bound grows linearly from plain batch normalization (r = 1, d = 0) at the first step to its limit at
            the last (Ioffe 2017, section 3).
        iterations: for ``scale="whiten"``, Newton steps towards the inverse root of the covariance; None is the exact
            root.
        decay: for ``train_from="online"``, the decay of the stream's statistics and that of the control of the
            gradient (Chiley et al. 2019, section 3).
        weights: how the layer's weights are reparametrized, if at all.
        activation: the f of the formula, by torch's functional name, or "gelu_tanh" (GELU by tanh), or None.
    """

    over: frozenset[str]
    train_from: Source
    infer_from: Source
    groups: int = 1
    layout: Layout = "channels_first"
    center: bool = True
    scale: Scale | None = "std"
    eps: float | None = 1e-5
    eps_place: EpsPlace = "inside"
    affine: bool = True
    bias: bool = True
    weight_offset: float = 0.0
    cast: Cast = "output"
    momentum: float | None = None
    unbiased: bool = True
    accumulate: int = 1
    virtual_batch: int | None = None
    corrections: tuple[tuple[float, int, int], tuple[float, int, int]] | None = None
    decay: tuple[float, float] | None = None
    iterations: int | None = None
    weights: Reparametrization | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "over", _axes(self.over))
        for name, allowed in (
            ("train_from", get_args(Source)),
            ("infer_from", get_args(Source)),
            ("scale", (*get_args(Scale), None)),
            ("eps_place", get_args(EpsPlace)),
            ("layout", get_args(Layout)),
            ("cast", get_args(Cast)),
            ("weights", (*get_args(Reparametrization), None)),
        ):
            _one_of(name, getattr(self, name), allowed)
        if self.groups < 1 or (self.groups > 1 and "C" not in self.over and self.scale != "whiten"):
            raise SpecError(
                f"A normalization was described with {self.groups} groups of channels.",
                found={"groups": self.groups, "over": "".join(sorted(self.over))},
                because="groups split the channels that share statistics, so there must be at least one, over 'C'",
                do="add 'C' to `over`, or leave `groups` at 1",
            )
        if self.accumulate < 1 or (self.virtual_batch is not None and self.virtual_batch < 1):
            raise SpecError(
                "A normalization was described with an empty batch.",
                found={"accumulate": self.accumulate, "virtual_batch": self.virtual_batch},
                because="both count: batches of one update, and samples of one virtual batch",
                do="use 1 or more",
            )
        if not (self.momentum is None or (isinstance(self.momentum, float | int) and 0 <= self.momentum <= 1)):
            raise SpecError(
                "A normalization was described with a momentum that is no share.",
                found={"momentum": repr(self.momentum)},
                because="it is the weight of the newest batch in an average, in torch's meaning (Keras' is 1 − that)",
                do="use a number from 0 to 1, such as 0.1, or None for the plain average of all batches",
            )
        if self.eps is not None and not (isinstance(self.eps, float | int) and self.eps >= 0):
            raise SpecError(
                "A normalization was described with a negative eps, or one that is no number.",
                found={"eps": self.eps},
                because="eps guards a division by zero; a negative one causes it",
                do="use eps ≥ 0, 1e-5 for most norms",
            )

    @property
    def per_sample(self) -> bool:
        """Whether a sample's output depends on that sample alone, in training and at inference."""
        return {self.train_from, self.infer_from} <= {"input", "none"} and "N" not in self.over

    @property
    def keeps_state(self) -> bool:
        """Whether the layer carries statistics from one batch to the next."""
        return bool({self.train_from, self.infer_from} - {"input", "batch", "ghost", "synchronized", "none"})

    def but(self, **changes: Any) -> NormSpec:
        """The same description with `changes`.

        >>> batch = NormSpec(over=frozenset("NS"), train_from="batch", infer_from="running")
        >>> batch.but(eps=1e-3).eps
        0.001
        """
        unknown = changes.keys() - self.__dataclass_fields__.keys()
        if unknown:
            wrong = min(unknown)
            near = get_close_matches(wrong, self.__dataclass_fields__, 1)
            raise SpecError(
                f"A description was asked to change in `{wrong}`.",
                found={wrong: repr(changes[wrong])},
                because="a description has no such field",
                do=(f"did you mean {near[0]}? " if near else "") + f"It has {', '.join(self.__dataclass_fields__)}",
            )
        return replace(self, **changes)


def _axes(over: Iterable[str]) -> frozenset[str]:
    axes = frozenset(over)
    if not axes <= set(AXES):
        raise SpecError(
            "A normalization was described over axes that do not exist.",
            found={"over": sorted(axes)},
            because="axes are named N (batch), C (channels) and S (positions)",
            do='give a subset of {"N", "C", "S"}, such as over="NS" for batch normalization',
        )
    return axes


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SpecError(
            f"A normalization was described with {name}={value!r}.",
            found={name: repr(value)},
            because=f"{name} is one of a closed list",
            do="choose " + ", ".join(repr(item) for item in allowed),
        )
