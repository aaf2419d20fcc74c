"""Norms in front of activations: modules, functions, shared activations, images and sequences, and refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normscope as ns
from normscope.anatomy.recognize import spec_of
from normscope.terms.finding import Prescription
from normscope.treat.surgery import Followed
from normscope.treat.treatment import treat


def insert(model, *sites, data=None, **arguments):
    return treat(model, Prescription("insert_norm", sites, arguments), data=data)


def deep(depth=3, activation=nn.Tanh):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(5, 5), activation())]
    return nn.Sequential(*layers, nn.Linear(5, 2))


def test_every_activation_between_layers_gets_a_norm():
    treated = insert(deep())
    assert [change.site for change in treated.changes] == ["1", "3", "5"] and treated.preserves == "nothing"
    assert treated.changes[0].after == "BatchNorm(5) → Tanh"
    for place in (1, 3, 5):
        norm, activation = treated.model[place]
        assert spec_of(norm).train_from == "batch" and isinstance(activation, nn.Tanh)
    treated.model(torch.randn(4, 5)).sum().backward()
    treated.model(torch.randn(4, 3, 5))  # a layer's features are last, however many axes come before
    assert insert(treated.model).changes == ()


def test_the_input_of_the_activation_is_normalized():
    model = insert(deep(), data=torch.randn(64, 5)).model
    seen = []
    model[3].activation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.train()(torch.randn(64, 5) * 100)
    assert torch.allclose(seen[0].mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(seen[0].var(0, correction=0), torch.ones(5), atol=1e-2)


def test_only_the_named_sites_by_any_of_their_names():
    assert [c.site for c in insert(deep(), "3").changes] == ["3"]
    assert [c.site for c in insert(deep(), "3:output").changes] == ["3"]
    assert [c.site for c in insert(deep(), "2").changes] == ["3"]  # a layer stands for the activation that it feeds
    assert [c.site for c in insert(deep(), "2", "3").changes] == ["3"]
    last = insert(deep(), "6")
    assert isinstance(last.model[6], Followed) and last.changes[0].after == "BatchNorm(2) → Linear"
    nested = nn.Sequential(deep(2), nn.Tanh(), nn.Linear(2, 2))
    assert [c.site for c in insert(nested, "0").changes] == ["0.1", "0.3"]


def test_what_the_model_returns_and_what_a_norm_feeds_are_left_out():
    model = nn.Sequential(
        nn.Linear(3, 3),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Linear(3, 3),
        nn.Dropout(),
        nn.ReLU(),
        nn.Linear(3, 1),
        nn.Sigmoid(),
        nn.Flatten(),
    )
    treated = insert(model)
    assert [change.site for change in treated.changes] == ["5"]
    assert insert(model, "2").skipped == (("2", "a norm stands there already"),)
    assert [change.site for change in insert(model, "7").changes] == ["7"]
    assert insert(model, "1").skipped[0][1] == "it is neither an activation nor a layer that feeds one"
    assert insert(nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1), nn.Linear(2, 2))).changes == ()


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 4)
        self.again = nn.Linear(4, 4)
        self.act = nn.Tanh()
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        x = self.act(self.fc(x))
        x = self.act(self.again(x))
        return self.out(F.relu(x + torch.tanh(x))) + self.fc.weight.mean()


def test_a_function_and_a_shared_activation_get_their_norm_behind_the_layer():
    x = torch.randn(8, 5)
    treated = insert(Functional(), data=x)
    assert [change.site for change in treated.changes] == ["act", "act"]
    assert isinstance(treated.model.fc, Followed) and isinstance(treated.model.again, Followed)
    assert insert(Functional(), "/relu", data=x).skipped == (("/relu", "no single layer feeds it, but `/add`"),)
    assert treated.model(x).shape == (8, 1)
    assert insert(treated.model, data=x).changes == ()
    only = insert(Functional(), "act#1", data=x)
    assert isinstance(only.model.again, Followed) and isinstance(only.model.fc, nn.Linear)
    after = insert(Functional(), "act", data=x, position="after")
    assert "only an activation module that is called once" in after.skipped[0][1]


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = self.fc(x)
        return self.out(torch.relu(h)) + h.sum()


def test_a_layer_that_is_used_elsewhere_too_is_refused():
    assert insert(Branch()).skipped == (("/relu", "`fc`, which feeds it, is used elsewhere too"),)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_images(memory):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    x = torch.randn(4, 3, 12, 12).to(memory_format=memory)
    model(x)
    for data in (None, x):
        treated = insert(model, data=data, norm="GroupNorm")
        assert [change.after for change in treated.changes] == ["GroupNorm(3 groups of 2) → ReLU"] * 2
        assert treated.model(x).shape == (4, 2)


def test_after_the_activation():
    treated = insert(deep(), position="after")
    assert treated.changes[0].after == "Tanh → BatchNorm(5)" and isinstance(treated.model[1][0], nn.Tanh)
    with pytest.raises(ns.NormscopeError, match="position that does not exist"):
        insert(deep(), position="above")
    with pytest.raises(ns.NormscopeError, match="norm that does not exist"):
        insert(deep(), norm="BatchNrom")


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = deep(2)

    def forward(self, x):
        return self.layers(x) if x.sum() > 0 else self.layers(-x)


class Reshaped(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def test_what_needs_data_says_so():
    with pytest.raises(ns.NormscopeError, match="has to follow the data through Counting") as needed:
        insert(Counting())
    assert isinstance(needed.value, ValueError) and "pass data" in needed.value.do
    assert len(insert(Counting(), data=torch.rand(4, 5)).changes) == 2
    model = nn.Sequential(nn.Conv2d(3, 2, 3), Reshaped(), nn.ReLU(), nn.Linear(8, 1))
    assert insert(model).skipped == (("2", "the number of its channels is not known without data"),)
    assert insert(model, data=torch.randn(2, 3, 4, 4)).changes[0].after == "BatchNorm(8) → ReLU"


def test_instance_norm_needs_positions():
    assert "no positions" in insert(deep(), norm="InstanceNorm", data=torch.randn(4, 5)).skipped[0][1]


def test_dtype_device_and_mode_are_those_of_the_place():
    treated = insert(deep().double().eval(), data=torch.randn(4, 5, dtype=torch.float64)).model
    assert treated[1].norm.weight.dtype == torch.float64 and not treated[1].norm.training
    assert insert(deep().to("meta")).model[1].norm.weight.device.type == "meta"


def test_treated_models_compile_and_copy():
    x = torch.randn(8, 5)
    model = insert(Functional(), data=x).model.eval()
    assert torch.allclose(torch.compile(model, backend="eager")(x), model(x), atol=1e-6)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
