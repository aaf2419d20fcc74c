"""What running copies of a model says of its wiring, against what is known of it by its making."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.diagnose.counterfactual import Experiment
from normscope.diagnose.wiring import feeds_itself, heard, reach, samples_first, twice, unlisted


def experiment(model, inputs=None, targets=None):
    torch.manual_seed(0)
    inputs = torch.randn(16, 6) if inputs is None else inputs
    targets = torch.arange(len(inputs)) % 3 if targets is None else targets
    return Experiment(model, (inputs, targets), cross_entropy)


@pytest.mark.parametrize(
    ("end", "bounds"),
    [(nn.Sigmoid(), (0, 1)), (nn.Hardtanh(-0.5, 2.0), (-0.5, 2.0)), (nn.ReLU(), None), (nn.Identity(), None)],
)
def test_the_reach_of_an_output_is_that_of_its_last_function(end, bounds):
    found = reach(experiment(nn.Sequential(nn.Linear(6, 3), end)), "0")
    assert found is None if bounds is None else found == pytest.approx(bounds, abs=1e-6)


def test_an_output_is_heard_through_what_it_reads_alone():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x):
            return self.layer(x[:, 1:3])

    _, slope = heard(experiment(Half()))
    assert (slope.amax(0) > 0).tolist() == [False, True, True, False, False, False]


def test_the_slope_is_that_of_a_linear_layer():
    model = nn.Linear(6, 3)
    tried = experiment(model)
    _, slope = heard(tried)
    assert slope.square().mean() == pytest.approx(model.weight.detach().square().sum(0).mean(), rel=0.5)
    assert torch.equal(slope[:, 0] > 0, torch.ones(16, dtype=torch.bool))


@pytest.mark.parametrize("chained", [True, False])
def test_a_module_feeds_itself_where_its_calls_are_chained(chained):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x):
            first = self.norm(x)
            return self.head(self.norm(first.tanh() if chained else 2 * x) + first)

    assert feeds_itself(experiment(Two()), "norm") is chained
    assert feeds_itself(experiment(nn.Sequential(nn.Linear(6, 3))), "0") is None


def test_a_second_call_shows_what_the_first_has_left():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.calls = nn.Linear(6, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.head(x) + self.calls

    model = Counting()
    one, other = twice(experiment(model))
    assert torch.allclose(other - one, torch.ones(16, 3))
    assert model.calls == 0
    one, other = twice(experiment(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))))
    assert torch.equal(one, other)


class Listed(nn.Module):
    """A layer in a list, and another that no gradient reaches."""

    def __init__(self, teacher=False):
        super().__init__()
        self.head, self.layers, self.teacher = nn.Linear(6, 3), {"all": [nn.Linear(6, 6)]}, teacher

    def forward(self, x):
        hidden = self.layers["all"][0](x)
        return self.head(hidden.detach() if self.teacher else hidden)


def test_layers_in_plain_containers_are_found_where_the_loss_reaches_them():
    assert list(unlisted(experiment(Listed()))) == ["layers.all.0"]
    assert not unlisted(experiment(Listed(teacher=True)))
    assert not unlisted(experiment(nn.Sequential(nn.Linear(6, 3))))


def test_the_axis_in_order_is_that_of_time():
    torch.manual_seed(0)
    walks = torch.randn(32, 12, 4).cumsum(1)
    assert samples_first(experiment(nn.Identity(), walks))
    assert not samples_first(experiment(nn.Identity(), walks.transpose(0, 1).contiguous()))
    assert not samples_first(experiment(nn.Identity(), torch.randn(32, 12, 4)))
