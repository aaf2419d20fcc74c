"""The numbers behind the rules, against cases that can be worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case, moved
from normscope.diagnose.layers import Layers, collapsed, starved, starved_layers
from normscope.diagnose.run import spread
from normscope.diagnose.scene import Scene
from normscope.diagnose.track import PERSISTENCE, Track
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.site import Site

positive = st.floats(1e-12, 1e12)


def track(*values):
    return Track.of(range(0, 10 * len(values), 10), values)


# one number over the steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "since"),
    [
        ([1, 1, 1, 1], 0),
        ([0, 1, 1, 1], 10),
        ([1, 1, 1, 0], None),  # it went away
        ([0, 0, 1, 1], None),  # two samples are not enough
        ([1, 0, 1, 1, 1], 20),
        ([1, 1], 0),  # all that there is
        ([], None),
    ],
)
def test_an_ailment_must_last_to_the_end(values, since):
    assert track(*values).since(above=0.5) == since
    assert track(*(-np.asarray(values, dtype=float))).since(below=-0.5) == since


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_since_is_the_start_of_an_unbroken_stretch_to_the_end(values, threshold):
    whole = track(*values)
    since = whole.since(above=threshold)
    if since is not None:
        assert all(value > threshold for value in whole.after(since).values)
        assert len(whole.after(since)) >= min(PERSISTENCE, len(values))
        before = [value for step, value in zip(whole.steps, values) if step < since]
        assert not before or before[-1] <= threshold


def test_what_is_not_finite_was_not_measured():
    assert list(track(1.0, np.nan, np.inf, 2.0).steps) == [0, 30]
    assert np.isnan(track(np.nan).last)


def test_how_far_a_loss_has_fallen():
    assert track(2.0, 2.0, 2.0, *[1.0] * 10).fallen == pytest.approx(0.5)
    assert track(2.0, 900.0, 50.0, *[1.9] * 10).fallen == pytest.approx(0.05)  # a spike is no height to fall from
    assert track(*[2.3, 2.2, 2.4, 2.3, 2.2, 2.4, 2.3, 2.2, 2.4]).fallen == 0.0
    assert track(1.0, 1.0).fallen is None


def test_how_long_it_was_so_from_the_start():
    assert track(0, 0, 1, 0).starts(below=0.5) == 2
    assert track(0, 0).starts(below=0.5) == 2


def test_the_steps_that_are_read_hold_the_first_and_the_last():
    chosen = spread(np.arange(0, 1000, 10), 16)
    assert len(chosen) == 16
    assert chosen[0] == 0
    assert list(chosen[-3:]) == [970, 980, 990]
    assert list(spread(np.arange(5), 16)) == [0, 1, 2, 3, 4]


# along depth ---------------------------------------------------------------------------------------------------------


@given(st.lists(positive, min_size=2, max_size=12), positive)
def test_starvation_does_not_depend_on_the_unit(values, unit):
    column = np.array(values)
    assert starved(column) == pytest.approx(starved(column * unit))


@given(st.lists(positive, min_size=2, max_size=12))
def test_a_network_whose_first_layer_is_the_best_fed_is_not_starved(values):
    assert starved(np.sort(np.array(values))[::-1]) >= 1


def test_a_gradient_that_dies_by_a_factor_a_layer_starves_the_first_ones():
    column = 0.1 ** np.arange(10.0)[::-1]
    assert starved(column) == pytest.approx(1e-5)  # the first layer, 1e-9, against the median of nine behind it, 1e-4
    assert starved_layers(column, 0.0025) == 6  # 1e-4 against 0.055; the seventh has 1e-3 against 0.1


def test_silent_branches_beside_a_fed_stem_and_frozen_layers_starve_nothing():
    assert starved(np.array([1.0, 1e-9, 1e-9, 1.0, 1e-9, 1.0])) >= 1
    assert starved(np.array([np.nan, 1.0, 1.0])) >= 1
    assert starved(np.zeros(4)) == 1


def test_a_signal_has_collapsed_only_when_it_does_not_come_back():
    assert collapsed(np.array([1.0, 0.1, 1e-4, 1e-5]), 1e-3) == 2
    assert collapsed(np.array([1.0, 1e-5, 1.0]), 1e-3) == 3  # a side branch
    assert collapsed(np.array([1e-5, 1e-5]), 1e-3) == 0


def test_layers_line_up_tracks_of_different_steps():
    layers = Layers.of({"a": track(1.0, 2.0), "b": Track.of([10], [5.0])})
    assert layers.steps.tolist() == [0, 10]
    assert np.isnan(layers.values[1, 0])
    assert layers.at("b").values.tolist() == [5.0]
    assert layers.typical().values.tolist() == [1.0, 3.5]
    assert layers.behind().values.tolist() == [5.0]
    assert len(Layers.of({})) == 0


# from a record -------------------------------------------------------------------------------------------------------


def site(path, kind, role, depth, **more):
    return Site(path, kind=kind, role=role, depth=depth, channel_axis=1, **more)


@pytest.fixture
def case(tmp_path):
    """Two layers written by hand: weights of norm 2 and 6, gradients of norm 3 and 0.5, tanh with known inputs."""
    first = site("first", "Linear", "producer", 0, feeds="tanh")
    tanh = site("tanh", "Tanh", "activation", 1)
    last = site("last", "Linear", "producer", 2)
    with Writer(tmp_path) as writer:
        for step in (0, 10, 20):
            for layer, weight, gradient in ((first, 1.0, 1.5), (last, 3.0, 0.25)):
                values = np.full((2, 2), 1.0)
                writer.summary(layer.at("parameter", "weight"), step, "live", Summary.of(values * weight))
                writer.summary(layer.at("gradient", "weight"), step, "live", Summary.of(values * gradient))
                writer.scalar(layer.at("update", "weight"), step, "update_ratio", gradient / weight)
            inputs = np.array([[-5.0, 0.0], [5.0, 1.0], [-5.0, 0.0], [5.0, 1.0]]) + step / 10
            for source in ("live", "probe"):
                writer.summary(first, step, source, Summary.of(inputs, 1))
                writer.summary(tanh.at("input"), step, source, Summary.of(inputs, 1))
                writer.summary(tanh, step, source, Summary.of(np.tanh(inputs), 1))
                writer.summary(last, step, source, Summary.of(np.array([[3.0, 4.0]] * 3 + [[3.0, 8.0]]), 1))
            writer.scalar(tanh, step, "dead", 0.25)
            writer.scalar(None, step, "loss", 2.0)
    return Case(Record(tmp_path))


def test_a_layer_counts_by_the_norm_of_its_weights_times_that_of_their_gradient(case):
    assert case.sensitivity.paths == ("first", "last")
    np.testing.assert_allclose(case.sensitivity.values[:, 0], [2 * 3, 6 * 0.5])
    np.testing.assert_allclose(case.sensitivity.flood().values, 2.0)
    np.testing.assert_allclose(case.update_ratio.values[:, 0], [1.5, 0.25 / 3])


def test_saturation_is_counted_at_the_functions_own_points(case):
    (tanh,) = case.hidden_activations
    values = case.saturation(tanh).values
    assert values == pytest.approx([0.5, 0.5, 0.75], abs=0.01)  # at last -3, 7 and 3, but not 2, lie beyond 2.18
    assert case.dead(tanh).values.tolist() == [0.25] * 3


def test_variation_is_the_deviation_between_samples_over_the_size(case):
    energy = (9.0 + (16 * 3 + 64) / 4) / 2
    variance = (0.0 + 3.0) / 2
    assert case.variation.at("last").values == pytest.approx([(variance / energy) ** 0.5] * 3)


def test_drift_is_in_deviations_of_the_whole_layer_and_per_ten_steps(case):
    inputs = np.array([[-5.0, 0.0], [5.0, 1.0], [-5.0, 0.0], [5.0, 1.0]])
    assert case.drift.values[0] == pytest.approx([1 / inputs.std(), 1 / inputs.std()])


def test_movement_is_measured_unit_by_unit():
    before = np.array([[-1.0, 1.0], [-3.0, 3.0]])
    after = before[:, ::-1]  # the layer as a whole looks the same
    assert moved(Summary.of(before, 1), Summary.of(after, 1)) == pytest.approx(4 / before.std())
    assert np.isnan(moved(Summary.of(np.zeros((2, 2)), 1), Summary.of(after, 1)))


def test_the_batch_and_the_places_are_read_off_the_record(case):
    assert case.batch_size == 4
    assert case.channels(case.producers[0]) == 2
    assert case.depth_of("tanh") == 1
    assert case.depth_of("tanh:input") == 1
    assert case.depth_of("nowhere") is None
    assert case.feeder(case.hidden_activations[0]).path == "first"
    assert not case.follows_norm(case.hidden_activations[0])
    assert case.producers_before(case.hidden_activations) == ("first",)


def test_a_small_batch_gets_weights_first_and_a_norm_of_each_sample_after(case):
    told = [*remedies.cures(case, case.hidden_activations)]
    assert [(one.treatment, one.sites, dict(one.arguments)) for one in told] == [
        ("reinitialize", ("first",), {}),
        ("insert_norm", ("tanh",), {"norm": "GroupNorm"}),  # by hand the channels stand on axis 1, as in maps
    ]
    assert not [*remedies.cures(case, case.hidden_activations, anew=False)][1:]


def test_a_large_batch_gets_a_norm_over_it_first(case):
    case.__dict__["batch_size"] = 16
    told = [*remedies.cures(case, case.hidden_activations)]
    assert [(one.treatment, dict(one.arguments)) for one in told] == [
        ("insert_norm", {"norm": "BatchNorm"}),
        ("reinitialize", {}),
    ]


def test_sigmoids_in_small_batches_are_beyond_a_norm_and_beyond_new_weights(case):
    sigmoids = [replace(site, kind="Sigmoid") for site in case.hidden_activations]
    (only,) = remedies.cures(case, sigmoids)
    assert not only.treatment
    assert "nn.Tanh()" in only.words


def test_what_a_record_does_not_hold_is_an_empty_track(tmp_path):
    with Writer(tmp_path) as writer:
        writer.summary(site("only", "Tanh", "activation", 0), 0, "live", Summary.of(np.ones((2, 2))))
    case = Case(Record(tmp_path))
    assert case.batch_size is None
    assert case.learns is None
    assert not case.thrives
    for empty in (case.loss, case.output_gap, case.sensitivity.starvation(), case.drift.typical()):
        assert len(empty) == 0


class _Functional(nn.Module):
    """Layers without modules: only the activations are sites."""

    def __init__(self, last):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(32, 32) / 6) for _ in range(3))
        self.last = nn.Parameter(torch.randn(8, 32) / 6) if last else None

    def forward(self, x):
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x @ self.last.t() if self.last is not None else x


@pytest.mark.parametrize(("last", "hidden"), [(True, 3), (False, 2)])
def test_an_activation_ends_the_network_when_its_output_is_the_networks(tmp_path, last, hidden):
    case = Scene(lambda: _Functional(last), steps=4, every=1).subject(tmp_path)
    assert len(case.hidden_activations) == hidden
    assert (case.answer is None) == last


def test_a_prescription_is_typed_with_the_classes_and_the_channels_it_is_for():
    typed, pair = "nn.GroupNorm(32, channels)", ["layer2.0.bn", "layer2.1.bn"]
    words = remedies.replaced(["BatchNorm2d"] * 2, pair, typed, [64, 64])
    assert words == "replace `nn.BatchNorm2d(64)` in `layer2.0.bn`, `layer2.1.bn` by `nn.GroupNorm(32, 64)`"
    places = [f"layer{stage}.{block}.bn" for stage in (1, 2) for block in range(3)]
    assert remedies.few(places) == "`layer1.*.bn`, `layer2.*.bn`"
    assert remedies.few(["1", "3", "5", "7"]) == "`1`, `3`, `5` and 1 more"  # a star would mean everything
    assert remedies.few([*places, "stem", "head"]) == "`layer1.*.bn`, `layer2.*.bn`, `stem` and 1 more"
    mixed = remedies.replaced(["BatchNorm1d", "BatchNorm2d"], ["a", "b"], typed, [64, 8])
    assert mixed == "replace the batch normalization in `a`, `b` by `nn.GroupNorm(32, channels)`"
