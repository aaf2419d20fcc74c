"""`Flow`: which value fed which, traced on a run or read off the code."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from normscope.anatomy.flow import symbolic, trace
from normscope.anatomy.observe import CONSTANT, INPUT


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.shift = nn.Parameter(torch.zeros(2, 1, 1))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x, scale=1.0):
        y = self.norm(self.conv(x)) + self.shift
        y += x
        return self.act(y * scale)


BOTH = {"traced": lambda model, x: trace(model, x), "symbolic": lambda model, x: symbolic(model)}


@pytest.fixture(params=BOTH.values(), ids=BOTH)
def flow_of(request):
    return request.param


def test_calls_and_the_values_between_them(flow_of):
    flow = flow_of(Residual(), torch.ones(1, 2, 4, 4))
    assert [(call.path, call.call, call.inputs) for call in flow.calls] == [
        ("conv", 0, (INPUT,)),
        ("norm", 0, (0,)),
        ("/add", 0, (1, CONSTANT)),
        ("/add", 1, (2, INPUT)),
        ("/mul", 0, (3,)),
        ("act", 0, (4,)),
    ]
    assert [call.index for call in flow.calls] == list(range(6))
    assert flow.outputs == (5,)


def test_both_agree_on_a_model_that_both_can_read(model_named, flow_of):
    model, batch = model_named("convnet")
    flow = flow_of(model, batch)
    assert [(c.path, c.kind, c.role, c.inputs) for c in flow.calls] == [
        ("stem.0", "Conv2d", "producer", (INPUT,)),
        ("stem.1", "BatchNorm2d", "norm", (0,)),
        ("stem.2", "ReLU", "activation", (1,)),
        ("conv", "Conv2d", "producer", (2,)),
        ("norm", "BatchNorm2d", "norm", (3,)),
        ("/add", "add", "other", (4, 2)),
        ("/relu", "relu", "activation", (5,)),
        ("/mean", "mean", "other", (6,)),
        ("head", "Linear", "producer", (7,)),
    ]


def test_neighbours(flow_of):
    flow = flow_of(Residual(), torch.ones(1, 2, 4, 4))
    conv, norm, shift, total, scaled, act = flow.calls
    assert flow.producers(norm) == (conv,) and flow.consumers(conv) == (norm,)
    assert flow.producers(conv) == () and flow.consumers(act) == ()
    assert flow.producers(total) == (shift,) and flow.consumers(total) == (scaled,)
    assert flow.at("/add") == (shift, total)
    assert flow.sums() == (total,)


class Through(nn.Module):
    """A value that goes through nothing but rearrangements, and one that also goes elsewhere."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Tanh()
        self.drop = nn.Dropout()

    def forward(self, x):
        x = self.norm(self.drop(self.first(x)).reshape(x.shape[0], 2, 3).flatten(1).contiguous())
        x = self.second(x)
        return self.last(x.view(-1, 6)) + x


def test_transparent_calls_are_seen_through(flow_of):
    flow = flow_of(Through(), torch.ones(2, 4))
    (first,), (norm,), (second,), (last,) = (flow.at(path) for path in ("first", "norm", "second", "last"))
    assert flow.consumers(first) == flow.at("drop")
    assert flow.consumers(first, skip=True) == (norm,) and flow.producers(norm, skip=True) == (first,)
    assert list(flow.chain("producer", "norm")) == [(first, norm)]
    assert list(flow.chain("producer", "norm", "producer", "activation")) == [(first, norm, second, last)]
    assert [chain[0].path for chain in flow.chain("Dropout", "norm")] == ["drop"]
    assert list(flow.chain("producer", "Dropout", "norm")) == [(first, *flow.at("drop"), norm)]
    assert list(flow.chain("producer", "activation")) == [(second, last)]
    assert list(flow.chain("producer", "activation", sole=True)) == []
    assert list(flow.chain("producer", "norm", sole=True)) == [(first, norm)]
    assert flow.feeds(second) == "tanh" and flow.feeds(first) is None


def test_a_value_that_is_returned_has_more_than_one_taker(flow_of):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

        def forward(self, x):
            x = self.fc(x)
            return {"raw": x, "normed": self.norm(x), "none": None}

    flow = flow_of(Returns(), torch.ones(3, 2))
    assert flow.outputs == (0, 1)
    assert len(list(flow.chain("producer", "norm"))) == 1 and not list(flow.chain("producer", "norm", sole=True))


def test_a_transparent_copy_that_is_returned_counts_as_taken(flow_of):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

        def forward(self, x):
            x = self.fc(x)
            return self.norm(x), x.reshape(-1)

    flow = flow_of(Returns(), torch.ones(3, 2))
    assert not list(flow.chain("producer", "norm", sole=True))


def test_a_shared_module_is_several_calls(flow_of, model_named):
    model, batch = model_named("functional")
    flow = flow_of(model, batch)
    assert [(call.path, call.call) for call in flow.calls if call.role != "other"] == [
        ("first", 0),
        ("/tanh", 0),
        ("first", 1),
        ("/sigmoid", 0),
        ("last", 0),
        ("/softmax", 0),
    ]
    assert [call.module is model.first for call in flow.at("first")] == [True, True]


def test_in_place_writing_is_a_call():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(2, 2), nn.Tanh()

        def forward(self, x):
            x = self.fc(x)
            x[:, 0] = 0
            return self.act(x)

    flow = trace(Writes(), torch.ones(3, 2))
    assert [call.kind for call in flow.calls] == ["Linear", "setitem", "Tanh"]
    assert flow.producers(flow.calls[2])[0].kind == "setitem" and flow.feeds(flow.calls[0]) is None


def test_control_flow_on_values_is_traced_and_stands_as_one_call_in_code():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return torch.tanh(self.fc(x)) if x.sum() > 0 else x

    model = nn.Sequential(nn.Linear(2, 2), Chooses(), nn.Sequential(nn.BatchNorm1d(2), nn.Identity()))
    flow = symbolic(model)
    assert [(call.path, call.inputs) for call in flow.calls] == [
        ("0", (-1,)),
        ("1", (0,)),
        ("2.0", (1,)),
        ("2.1", (2,)),
    ]
    assert symbolic(Chooses()) is None
    assert [call.path for call in trace(Chooses(), torch.ones(1, 2)).calls if call.role != "other"] == ["fc", "/tanh"]


def test_a_function_that_torch_does_not_show_is_bridged():
    class Foreign(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.numpy() ** 2)

    model = nn.Sequential(nn.Linear(2, 2), Foreign(), nn.Tanh())
    flow = trace(model, torch.ones(1, 2))
    assert [(call.path, call.inputs) for call in flow.calls] == [("0", (INPUT,)), ("1", (0,)), ("2", (1,))]


def test_a_function_of_constants_is_a_constant():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return x * torch.sigmoid(self.gate) + torch.ones(2)

    for flow in (trace(Gated(), torch.ones(1, 2)), symbolic(Gated())):
        assert [(call.kind, call.inputs) for call in flow.calls] == [("mul", (INPUT, CONSTANT)), ("add", (0, CONSTANT))]


def test_returning_a_parameter_bridges_nothing():
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x), self.fc.weight

    flow = trace(nn.Sequential(Returns()), torch.ones(1, 2))
    assert [call.path for call in flow.calls] == ["0.fc"] and flow.outputs == (0,)


def test_kwargs_and_dataclass_outputs(model_named):
    model, batch = model_named("dataclass")
    flow = trace(model, batch)
    assert [call.path for call in flow.calls if call.role != "other"] == ["embed", "rnn", "norm", "/gelu", "head"]
    returned = [flow.calls[index].kind for index in flow.outputs]
    assert returned == ["cross_entropy", "Linear", "GRU"]


def test_a_module_that_is_one_call_is_a_flow_of_one():
    assert [call.path for call in symbolic(nn.Linear(2, 2)).calls] == [""]
    assert [call.path for call in trace(nn.Linear(2, 2), torch.ones(1, 2)).calls] == [""]


def test_a_norm_outside_torch_does_not_stop_the_reading():
    class PickyNorm(nn.Module):
        def forward(self, x):
            if x.mean() > 1e9:
                raise ValueError
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(2, 2), PickyNorm()

        def forward(self, x, mask=None):
            x = F.gelu(self.norm(self.fc(x)))
            return x if mask is None else x * mask

    flow = symbolic(Root())
    assert [(call.path, call.role) for call in flow.calls] == [
        ("fc", "producer"),
        ("norm", "norm"),
        ("/gelu", "activation"),
    ]


def test_values_that_die_do_not_lend_their_identity():
    """Ids are used again by the interpreter; a new tensor must not be taken for a dead one."""

    class Churns(nn.Module):
        def forward(self, x):
            for _ in range(50):
                x = torch.tanh(x) + torch.ones_like(x)
            return x

    flow = trace(Churns(), torch.ones(2))
    ones = [call for call in flow.calls if call.kind == "ones_like"]
    for call in flow.calls:
        if call.kind == "add":
            assert [flow.calls[index].kind for index in call.inputs] == ["tanh", "ones_like"]
    assert len(ones) == 50


def test_a_part_that_cannot_be_read_leaves_no_other_trace():
    """Reading a weight while fx traces must not become a part of the flow."""
    flow = symbolic(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.LayerNorm(2))))
    assert [(call.path, call.inputs) for call in flow.calls] == [("0", (INPUT,)), ("1", (0,)), ("2.0", (1,))]


KINDS = ("Linear", "LayerNorm", "Tanh", "relu", "add", "neg")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=12)


class Drawn(nn.Module):
    """A network given as a list of (kind, value, value): each step works on values made before, 0 being the input."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        make = {"Linear": lambda: nn.Linear(2, 2), "LayerNorm": lambda: nn.LayerNorm(2), "Tanh": nn.Tanh}
        self.layers = nn.ModuleDict({str(i): make[kind]() for i, (kind, *_) in enumerate(steps) if kind in make})

    def forward(self, x):
        values, functions = [x], {"relu": F.relu, "neg": torch.neg, "add": torch.add}
        for i, (kind, *taken) in enumerate(self.steps):
            function = self.layers[str(i)] if str(i) in self.layers else functions[kind]
            values.append(function(*(values[each % len(values)] for each in taken[: 2 if kind == "add" else 1])))
        return values[-1]


@settings(max_examples=40)
@given(STEPS)
def test_the_flow_of_a_drawn_network_is_the_drawing(steps):
    expected = []  # value 0 is the input, and call i makes value i + 1
    for i, (kind, *taken) in enumerate(steps):
        expected.append((kind, tuple(each % (i + 1) - 1 for each in taken[: 2 if kind == "add" else 1])))
    model = Drawn(steps)
    for flow in (trace(model, torch.ones(1, 2)), symbolic(model)):
        assert [(call.kind, call.inputs) for call in flow.calls] == expected
        assert flow.outputs == (len(steps) - 1,)
        for call in flow.calls:
            assert all(call in flow.producers(taker) for taker in flow.consumers(call))


def test_a_call_that_returns_its_argument_stands_for_it_from_then_on():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

        def forward(self, x):
            x = self.fc(x)
            same = x.flatten(1)
            return self.norm(x) + same

    flow = trace(Flat(), torch.ones(3, 2))
    fc, flat, norm, total = flow.calls
    assert flow.producers(norm) == (flat,) and flow.producers(norm, skip=True) == (fc,)
    assert flow.producers(total, skip=True) == (norm, fc)
