"""`sites`: which places a model has, in which order, under which names."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normscope.anatomy.recognize import spec_of
from normscope.anatomy.walk import sites
from normscope.terms.site import Site


def told(found, *names):
    return [tuple(getattr(site, name) for name in names) for site in found]


def test_a_plain_stack(model_named):
    model, batch = model_named("mlp")
    assert sites(model, batch) == (
        Site("fc1", role="producer", kind="Linear", depth=0, channel_axis=-1),  # a norm comes between it and the tanh
        Site("norm", role="norm", kind="BatchNorm1d", depth=1, channel_axis=1, spec=spec_of(model.norm), feeds="tanh"),
        Site("act", role="activation", kind="Tanh", depth=2, channel_axis=1),
        Site("fc2", role="producer", kind="Linear", depth=3, channel_axis=-1),
    )


def test_order_of_execution_with_an_example_and_of_registration_without():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 2)
            self.act = nn.ReLU()
            self.first = nn.Linear(3, 3)

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    model = Backwards()
    assert told(sites(model, torch.ones(1, 3)), "path", "depth") == [("first", 0), ("act", 1), ("last", 2)]
    at_rest = sites(model)
    assert told(at_rest, "path", "depth") == [("last", 0), ("act", 1), ("first", 2)]
    assert told(at_rest, "feeds") == [(None,), (None,), ("relu",)]


def test_shared_modules_every_call_and_functions_and_the_idle_one(model_named):
    model, batch = model_named("functional")
    found = sites(model, batch)
    assert told(found, "key", "kind", "depth", "feeds", "aliases") == [
        ("first:output", "Linear", 0, "tanh", ("again",)),
        ("/tanh:output", "tanh", 1, None, ()),
        ("first#1:output", "Linear", 2, "sigmoid", ("again",)),
        ("/sigmoid:output", "sigmoid", 3, None, ()),
        ("last:output", "Linear", 4, None, ()),
        ("/softmax:output", "softmax", 5, None, ()),
        ("idle:output", "Linear", -1, None, ()),
    ]
    assert told(sites(model), "path", "aliases", "feeds") == [
        ("first", ("again",), "tanh"),
        ("last", (), None),
        ("idle", (), None),
    ]


def test_in_place_activations_and_sums(model_named):
    model, batch = model_named("convnet")
    assert told(sites(model, batch), "path", "feeds", "channel_axis") == [
        ("stem.0", None, 1),
        ("stem.1", "relu", 1),
        ("stem.2", None, 1),
        ("conv", None, 1),
        ("norm", None, 1),  # the sum stands between it and the ReLU
        ("/relu", None, 1),
        ("head", None, -1),
    ]


def test_integers_in_and_a_dataclass_out(model_named):
    model, batch = model_named("dataclass")
    assert told(sites(model, batch), "path", "role", "channel_axis", "feeds") == [
        ("embed", "producer", -1, None),
        ("rnn", "producer", -1, None),
        ("norm", "norm", -1, "gelu"),
        ("/gelu", "activation", -1, None),
        ("head", "producer", -1, None),
    ]


def test_a_packed_sequence_and_no_output(model_named):
    model, batch = model_named("packed")
    assert told(sites(model, batch), "path", "depth", "channel_axis") == [("rnn", 0, -1)]


def test_the_inside_of_a_transformer(model_named):
    model, batch = model_named("encoder")
    inside = ["self_attn", "norm1", "linear1", "/relu", "linear2", "norm2"]
    expected = [f"layers.{i}{'' if name[0] == '/' else '.'}{name}" for i in range(2) for name in inside]
    found = sites(model.eval(), batch)  # where torch would take one fused call for a whole layer
    assert [site.path for site in found] == expected
    assert {site.channel_axis for site in found} == {-1}
    assert [site.path for site in found if site.feeds == "relu"] == ["layers.0.linear1", "layers.1.linear1"]


def test_a_model_that_is_a_site_itself():
    assert told(sites(nn.Linear(2, 2), torch.ones(1, 2)), "path", "place", "depth") == [("", "(model)", 0)]
    assert told(sites(nn.Tanh()), "path", "role") == [("", "activation")]


def test_parts_of_a_site_are_no_sites():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert told(sites(nn.Sequential(model), torch.ones(1, 2)), "path", "kind") == [("0", "Linear")]
    assert told(sites(nn.Sequential(nn.MultiheadAttention(2, 1))), "path") == [("0",)]


def test_a_norm_without_a_place_for_it_in_torch_is_a_site(model_named):
    class RootMeanSquareNorm(nn.Module):
        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    found = sites(nn.Sequential(nn.Linear(3, 4), RootMeanSquareNorm(), nn.GELU()), torch.ones(2, 5, 3))
    assert told(found, "role", "feeds") == [("producer", None), ("norm", "gelu"), ("activation", None)]
    assert found[1].spec is not None and found[1].spec.scale == "rms"


class Only(nn.Module):
    """Calls one function and nothing else."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


SPELLINGS = {
    "relu": [F.relu, torch.relu, torch.relu_, F.relu_, torch.Tensor.relu, lambda x: F.relu(x, inplace=True)],
    "tanh": [F.tanh, torch.tanh, torch.Tensor.tanh, lambda x: x.tanh_()],
    "sigmoid": [F.sigmoid, torch.sigmoid, torch.special.expit, torch.Tensor.sigmoid_],
    "softmax": [lambda x: F.softmax(x, -1), lambda x: x.softmax(-1), lambda x: torch.special.softmax(x, -1)],
    "log_softmax": [lambda x: F.log_softmax(x, -1), lambda x: torch.special.log_softmax(x, -1)],
    "logsigmoid": [F.logsigmoid],
    "softplus": [F.softplus],
    "gelu": [F.gelu, lambda x: F.gelu(x, approximate="tanh")],
    "silu": [F.silu, lambda x: F.silu(x, inplace=True)],
    "mish": [F.mish],
    "elu": [F.elu, F.elu_],
    "selu": [F.selu, torch.selu, torch.selu_],
    "celu": [F.celu],
    "leaky_relu": [F.leaky_relu, F.leaky_relu_],
    "relu6": [F.relu6],
    "hardtanh": [F.hardtanh, F.hardtanh_],
    "hardswish": [F.hardswish],
    "hardsigmoid": [F.hardsigmoid],
    "threshold": [lambda x: F.threshold(x, 0.0, 0.0)],
    "rrelu": [F.rrelu],
    "prelu": [lambda x: F.prelu(x, torch.ones(1))],
    "glu": [F.glu],
    "softsign": [F.softsign],
    "hardshrink": [F.hardshrink],
    "softshrink": [F.softshrink],
    "tanhshrink": [F.tanhshrink],
}


@pytest.mark.parametrize(("name", "function"), [(name, each) for name, all_ in SPELLINGS.items() for each in all_])
def test_every_spelling_of_an_activation_is_one_site(name, function):
    found = sites(nn.Sequential(nn.Linear(2, 4), Only(function)), torch.ones(3, 2))
    assert told(found, "path", "kind", "depth") == [("0", "Linear", 0), (f"1/{name}", name, 1)]
    assert found[0].feeds == name


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Conv2d(2, 3, 1), (4, 2, 5, 5), 1),
        (nn.Conv2d(2, 3, 1), (2, 5, 5), 0),
        (nn.ConvTranspose1d(2, 3, 1), (4, 2, 5), 1),
        (nn.Linear(5, 3), (4, 5), -1),
        (nn.Linear(5, 3), (4, 2, 5), -1),
        (nn.LSTM(5, 3), (2, 4, 5), -1),
        (nn.BatchNorm1d(5), (4, 5), 1),
        (nn.BatchNorm1d(2), (4, 2, 5), 1),
        (nn.LayerNorm(5), (4, 2, 5), -1),
        (nn.LayerNorm((2, 5, 5)), (4, 2, 5, 5), 1),
        (nn.GroupNorm(1, 2), (4, 2, 5), 1),
        (nn.ReLU(), (4, 2, 5, 5), 1),
        (nn.ReLU(), (4, 5), -1),
        (nn.ReLU(), (), None),
    ],
    ids=repr,
)
def test_the_axis_of_channels(module, shape, axis):
    assert sites(module.eval(), torch.ones(shape))[0].channel_axis == axis


@pytest.mark.parametrize(
    ("between", "axis"),
    [
        ([], -1),
        ([nn.Dropout()], -1),
        ([Only(lambda x: 2 * x + 1)], -1),
        ([Only(lambda x: x.transpose(1, 2))], 1),
        ([nn.LayerNorm(5)], -1),
    ],
)
def test_an_activation_inherits_the_axis_of_what_feeds_it(between, axis):
    model = nn.Sequential(nn.Linear(3, 5), *between, nn.ReLU())
    assert sites(model, torch.ones(4, 2, 3))[-1].channel_axis == axis


def test_a_second_name_in_the_same_module_is_an_alias():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(OrderedDict(one=layer, two=layer, act=nn.Tanh()))
    assert told(sites(model, torch.ones(1, 2)), "key", "aliases", "feeds") == [
        ("one:output", ("two",), None),
        ("one#1:output", ("two",), "tanh"),
        ("act:output", (), None),
    ]


def test_a_deep_model_is_walked_once():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(300)))
    assert len(sites(model)) == len(sites(model, torch.ones(1, 2))) == 600


def test_a_part_of_a_site_that_is_called_by_itself_is_one_too():
    class Borrows(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(2, 1)

        def forward(self, x):
            return self.attention.out_proj(x)

    found = sites(Borrows(), torch.ones(3, 2))
    assert told(found, "path", "depth") == [("attention.out_proj", 0), ("attention", -1)]
