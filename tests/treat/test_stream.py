"""The choice follows what is measured: size, likeness, drift; each against its closed form."""

import math

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.anatomy.recognize import spec_of
from normscope.terms.finding import Prescription
from normscope.treat.stream import norm_for_stream
from normscope.treat.treatment import treat


def stream(batch, batches=40, shape=(3, 4, 4), like=0.0, drift=0.0, seed=0):
    """Batches whose samples share a part of variance `like`, around a mean that goes from 0 to `drift`."""
    turns = torch.Generator().manual_seed(seed)
    for k in range(batches):
        shared = torch.randn(1, shape[0], *[1] * (len(shape) - 1), generator=turns) * like**0.5
        own = torch.randn(batch, shape[0], *[1] * (len(shape) - 1), generator=turns) * (1 - like) ** 0.5
        yield own + shared + 0.1 * torch.randn(batch, *shape, generator=turns) + drift * k / batches


@pytest.mark.parametrize(
    ("batch", "ways", "norm"),
    [
        (32, {}, "BatchNorm"),
        (16, {}, "BatchNorm"),
        (8, {}, "BatchRenorm"),
        (4, {}, "BatchRenorm"),
        (2, {}, "GroupNorm+WS"),
        (1, {}, "GroupNorm+WS"),
        (2, {"shape": (5,)}, "OnlineNorm"),
        (32, {"like": 0.5}, "GroupNorm+WS"),
        (8, {"drift": 3.0}, "GroupNorm+WS"),
    ],
)
def test_the_choice_and_its_reason(batch, ways, norm):
    choice = norm_for_stream(stream(batch, **ways))
    assert choice.norm == norm and choice.batch_size == batch
    told = {"like": "samples of a batch are alike", "drift": "the stream drifts"}
    word = next((told[name] for name in ways if name in told), f"batches of {batch}")
    assert word in choice.reason


def test_likeness_is_the_intraclass_correlation_and_drift_the_distance_of_the_halves():
    for like in (0.0, 0.3, 0.7):
        found = norm_for_stream(stream(8, 400, (4,), like))
        assert found.likeness == pytest.approx(like, abs=0.06) and found.likeness_noise < 0.02
    steady = norm_for_stream(stream(8, 400, (4,)))
    assert abs(steady.likeness) < 4 * steady.likeness_noise and steady.drift < 4 * steady.drift_noise
    gone = torch.cat(list(stream(8, 400, (4,), drift=2.0))).double()
    apart = (gone[:1600].mean(0) - gone[1600:].mean(0)) / gone.std(0)
    assert norm_for_stream(gone.split(8)).drift == pytest.approx(apart.square().mean().sqrt().item())
    assert math.isnan(norm_for_stream(stream(1)).likeness)
    copies = [torch.full((4, 2), float(k)) for k in range(6)]
    assert norm_for_stream(copies).likeness == pytest.approx(1.0)


def test_steady_streams_are_hardly_ever_taken_for_others():
    wrong = [seed for seed in range(60) if norm_for_stream(stream(8, 20, (4,), seed=seed)).norm != "BatchRenorm"]
    assert wrong == []


def test_the_treatment_converts_norms_over_the_batch_and_no_others():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)
    model = nn.Sequential(*layers)
    few = treat(model, Prescription("suit_stream"), data=list(stream(2)))
    assert spec_of(few.model[1]).over == frozenset("CS") and nn.utils.parametrize.is_parametrized(few.model[0])
    assert few.changes[0].after.startswith("GroupNorm+WS: batches of 2") and few.error is not None
    assert type(few.model[4]) is nn.GroupNorm and not nn.utils.parametrize.is_parametrized(few.model[3])
    some = treat(model, Prescription("suit_stream"), data=stream(8))
    assert spec_of(some.model[1]).train_from == "renormalized" and some.preserves == "exact"
    many = treat(model, Prescription("suit_stream"), data=list(stream(32)))
    assert many.changes == () and many.skipped[0][1].startswith("nothing to change: batches of 32")


def test_what_tells_too_little():
    with pytest.raises(ns.NormscopeError, match="tells too little"):
        norm_for_stream([torch.randn(4, 3)])
    with pytest.raises(ns.NormscopeError, match="tells too little"):
        norm_for_stream([torch.ones(4, 3)] * 3)
    with pytest.raises(ns.NormscopeError, match="something else than tensors"):
        norm_for_stream([{"x": 1}, {"x": 2}])
    with pytest.raises(ns.NormscopeError, match="without any of it"):
        treat(nn.Sequential(nn.BatchNorm1d(3)), Prescription("suit_stream"))
