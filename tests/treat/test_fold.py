"""Folding: exact in float64 for every layer and order, refused where it would be wrong, and torch's own failures."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.experimental.optimization import fuse

import normscope as ns
from normscope.treat.measure import difference
from normscope.treat.treatments.convert import convert
from normscope.treat.treatments.fold import fold

NORMS = (nn.modules.batchnorm._BatchNorm, ns.nn.Norm)


def learned(model, dtype=torch.float64):
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
            if module.weight is not None:
                nn.init.normal_(module.weight.data, 1, 0.4)
                nn.init.normal_(module.bias.data)
    return model.to(dtype)


def norms(model):
    return sum(isinstance(module, NORMS) for module in model.modules())


def folded(model, x, count=None):
    """The folded copy of `model`, which answers as the original in evaluation mode, on more than the example."""
    treated = fold(model, x)
    original = copy.deepcopy(model).eval()
    assert not treated.model.training and treated.preserves == "exact" and treated.error < 1e-9
    for other in (x, torch.randn_like(x) * 3 + 1):
        assert difference(treated.model(other), original(other)) < 1e-9
    if count is not None:
        assert norms(treated.model) == count
    return treated


def images(channels=4):
    return torch.randn(3, channels, 8, 8, dtype=torch.float64)


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d, (3, 4, 9)),
    "conv2d, grouped, strided, padded": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm2d, (3, 4, 8, 8)),
    "depthwise without bias": (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d, (3, 4, 8, 8)),
    "conv3d": (nn.Conv3d(4, 6, 2), nn.BatchNorm3d, (3, 4, 4, 4, 4)),
    "deconv": (nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d, (3, 4, 5, 5)),
    "grouped deconv": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d, (3, 4, 5, 5)),
    "deconv1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d, (3, 4, 5)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d, (3, 4)),
    "synchronized": (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm, (3, 4, 8, 8)),
    "frozen": (nn.Conv2d(4, 6, 3), ns.nn.FrozenBatchNorm, (3, 4, 8, 8)),
    "ours": (nn.Conv2d(4, 6, 3), ns.nn.BatchNorm2d, (3, 4, 8, 8)),
    "without affine": (nn.Conv2d(4, 6, 3), lambda n: nn.BatchNorm2d(n, affine=False), (3, 4, 8, 8)),
    "reflected padding": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d, (3, 4, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_behind_a_layer(name):
    layer, norm, shape = LAYERS[name]
    outputs = getattr(layer, "out_channels", 6)
    model = learned(nn.Sequential(copy.deepcopy(layer), nn.Dropout(0.5), norm(outputs), nn.ReLU()))
    treated = folded(model, torch.randn(shape, dtype=torch.float64), 0)
    assert treated.changes[0].after == "folded into `0` before it" and isinstance(treated.model[2], nn.Identity)


@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_in_front_of_a_layer(name):
    layer, norm, shape = LAYERS[name]
    model = learned(nn.Sequential(norm(4), copy.deepcopy(layer), nn.ReLU()))
    padded = "padded" in name or "deconv" in name
    treated = folded(model, torch.randn(shape, dtype=torch.float64), int(padded))
    if padded:
        assert "pads with zeros" in treated.skipped[0][1]
        model[0].running_mean.zero_()
        if model[0].bias is not None:
            model[0].bias.data.zero_()
        folded(model, torch.randn(shape, dtype=torch.float64), 0)  # nothing that the zeros would have to get


def test_both_sides_of_one_layer():
    model = learned(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    assert len(folded(model, images(), 0).changes) == 2


def test_torch_is_silently_wrong_for_a_linear_layer_before_batch_norm_of_sequences():
    model = learned(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).eval()
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    assert difference(fuse(model)(x), model(x)) > 0.1
    treated = folded(model, x, 1)
    assert "it normalizes axis 1 of 3, and `0` has its channels on axis 2" in treated.skipped[0][1]


class TwoNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.one(self.conv(x)) + self.other(self.conv(x + 1))


def test_torch_is_silently_wrong_for_a_convolution_with_two_norms():
    model, x = learned(TwoNorms()).eval(), images()
    assert difference(fuse(model)(x), model(x)) > 0.1
    treated = folded(model, x, 2)
    assert "`conv` also serves `other`" in treated.skipped[0][1]


def test_torch_raises_for_a_grouped_deconvolution():
    model = learned(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))).eval()
    with pytest.raises(RuntimeError):
        torch.nn.utils.fuse_conv_bn_eval(model[0], model[1], transpose=True)
    folded(model, images(), 0)


class SharedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))


class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.a(x)) + self.norm(self.b(x))


class HalfShared(SharedNorm):
    def forward(self, x):
        return self.norm(self.a(x)) + self.norm(x)


class Branch(SharedNorm):
    def forward(self, x):
        h = self.a(x)
        return self.norm(h) + h


def test_shared_layers_and_norms():
    folded(learned(SharedBlock()), images(), 0)
    assert folded(learned(SharedNorm()), images(), 0).changes[0].after == "folded into `a`, `b` before it"
    assert "the model's input feeds it" in folded(learned(HalfShared()), images(), 1).skipped[0][1]
    assert "the output of `a` goes to 2 places" in folded(learned(Branch()), images(), 1).skipped[0][1]


def test_a_tied_weight_is_untied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.relu(self.norm(self.a(x))))

    folded(learned(Tied()), torch.randn(5, 4, dtype=torch.float64), 0)


def test_reparametrized_weights_are_baked():
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 3))
    standardized = ns.nn.weight_standardization(nn.Conv2d(6, 6, 3))
    model = learned(nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), standardized))
    treated = folded(model, images(), 0)
    assert all(nn.utils.parametrize.is_parametrized(model[place]) for place in (0, 3))  # a copy shares its class
    assert not any(nn.utils.parametrize.is_parametrized(module) for module in treated.model)
    assert [change.site for change in treated.changes] == ["0", "3", "1"]


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, scale=None):
        if x.abs().sum() > 0:
            x = self.norm(self.conv(x))
        return {"out": x, "sum": x.sum()}


def test_a_model_that_fx_cannot_read():
    model = learned(Untraceable())
    treated = fold(model, {"x": images()})
    assert norms(treated.model) == 0 and treated.skipped == ()
    x = images()
    assert difference(treated.model(x), model.eval()(x)) < 1e-12


class Peeking(Untraceable):
    def forward(self, x):
        return self.norm(self.conv(x)) * self.norm.running_var.mean()


class Doubling(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def test_what_is_refused_and_why():
    assert (
        folded(learned(Peeking()), images(), 1)
        .skipped[0][1]
        .startswith("undone: the folded model raised AttributeError")
    )
    model = learned(nn.Sequential(Scaled(4, 4, 3), nn.BatchNorm2d(4)))
    assert "`0`, Scaled, has a forward of its own" in folded(model, images(), 1).skipped[0][1]
    model = learned(nn.Sequential(nn.Conv2d(4, 4, 3), Doubling(4)))
    assert folded(model, images(), 1).changes == ()
    model = learned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)))
    assert {why for _, why in folded(model, images()).skipped} == {"its statistics are measured on each input"}
    model = learned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    assert "has hooks" in folded(model, images(), 1).skipped[0][1]
    with pytest.raises(ns.NormscopeError, match="without an example"):
        fold(model, None)


def test_a_fold_that_fails_its_proof_is_undone_and_the_others_stay(monkeypatch):
    model = learned(
        nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(8, 8), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        )
    )
    from normscope.treat.treatments import fold as module

    right = module.take_up

    def wrong(layer, factor, offset, *, behind):
        right(
            layer,
            factor * (1.1 if layer.in_channels == 4 and layer.kernel_size == (1, 1) and layer.marked else 1),
            offset,
            behind=behind,
        )

    model[0].marked, model[4].marked = True, False
    monkeypatch.setattr(module, "take_up", wrong)
    treated = folded(model, images(), 1)
    assert [change.site for change in treated.changes] == ["5"]
    assert treated.skipped[0][0] == "1" and treated.skipped[0][1].startswith("undone: the output moved by")


def test_atol_bounds_every_output():
    model = learned(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    assert fold(model, images(), atol=1e-9).changes and not fold(model, images(), atol=0.0).changes


def test_float32_and_half_models_are_proven_in_float64():
    model = learned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.float32)
    treated = fold(model, images().float())
    assert treated.model[0].weight.dtype == torch.float32 and treated.error < 1e-5
    treated = fold(model.bfloat16(), images().bfloat16())
    assert treated.model[0].weight.dtype == torch.bfloat16 and len(treated.changes) == 1


def test_the_original_stays_and_the_copy_is_exportable():
    model = learned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    treated = fold(model, images())
    assert model.training and all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    x = images()
    assert difference(torch.export.export(treated.model, (x,)).module()(x), treated.model(x)) < 1e-12
    assert difference(torch.compile(treated.model, backend="eager")(x), treated.model(x)) < 1e-12
    assert copy.deepcopy(treated.model).state_dict().keys() == {"0.weight", "0.bias"}


def test_an_activation_inside_the_norm_stays():
    norm = ns.norms.module.build(ns.catalog["BatchNorm"].but(activation="relu"), 4)
    treated = folded(learned(nn.Sequential(nn.Conv2d(4, 4, 1), norm)), images(), 0)
    assert isinstance(treated.model[1], nn.ReLU)


class Turned(nn.Module):
    """A linear layer over a sequence, turned round for BatchNorm1d."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.after = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.after(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2).relu())


class Flattened(Turned):
    def forward(self, x):
        hidden = self.norm(self.linear(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.after(hidden.relu())


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2))


def test_axes_that_change_places_on_the_way_are_followed_and_proven():
    for model in (Turned(), Flattened()):
        treated = folded(learned(model), torch.randn(3, 5, 4, dtype=torch.float64), 0)
        assert treated.changes[0].after == "folded into `linear` before it"
    shuffled = folded(learned(Shuffled()), images(), 1)  # the channels themselves change places
    assert shuffled.skipped[0][1].startswith("undone: the output moved by")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_norm_and_spectral_norm_are_baked():
    for reparametrized in (nn.utils.weight_norm, nn.utils.spectral_norm):
        model = learned(nn.Sequential(reparametrized(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6), nn.ReLU()))
        with torch.no_grad():
            model(images())
        treated = folded(model, images(), 0)
        assert set(treated.model.state_dict()) == {"0.weight", "0.bias"} and model[0]._forward_pre_hooks
        model(images())  # leaves a weight that is no leaf, which torch cannot copy
        assert len(fold(model, images()).changes) == 2


def test_what_a_removed_norm_left_is_folded_too():
    model = learned(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())).eval()
    bare = convert(model, "none").model
    assert norms(bare) == 1 and bare[1].spec.scale is None
    treated = fold(bare, images())
    assert norms(treated.model) == 0
    x = images()
    assert difference(treated.model(x), model(x)) < 1e-9


class NormAct(nn.BatchNorm2d):
    """As timm writes it: the activation and a dropout inside."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.LeakyReLU(0.3), nn.SiLU()])
def test_a_foreign_norm_with_its_activation_inside_leaves_the_activation(act):
    model = learned(nn.Sequential(nn.Conv2d(4, 6, 1), NormAct(6, act), nn.Conv2d(6, 2, 1)))
    treated = folded(model, images(), 0)
    assert type(treated.model[1]) is type(act)


class Drawn(nn.Module):
    """Random blocks: layers and norms in any order, residuals, blocks that are called twice."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*(PARTS[part]() for part in parts)) for parts, _, _ in blocks)
        self.ways = [(residual, twice) for _, residual, twice in blocks]

    def forward(self, x):
        for block, (residual, twice) in zip(self.blocks, self.ways):
            y = block(block(x)) if twice else block(x)
            x = x + y if residual else y
        return x.mean((2, 3))


PARTS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    "point": lambda: nn.Conv2d(4, 4, 1),
    "deconv": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    "norm": lambda: nn.BatchNorm2d(4),
    "frozen": lambda: ns.nn.FrozenBatchNorm(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "act": nn.ReLU,
    "drop": nn.Dropout,
}
parts = st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=5)
drawn = st.lists(st.tuples(parts, st.booleans(), st.booleans()), min_size=1, max_size=3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(drawn, st.integers(0, 99))
def test_random_networks_compute_the_same(blocks, seed):
    torch.manual_seed(seed)
    model = learned(Drawn(blocks))
    treated = folded(model, images())
    assert norms(treated.model) <= norms(model) - sum("folded" in change.after for change in treated.changes)
    assert not any("undone" in why for _, why in treated.skipped)  # the flow foresaw every refusal


def test_conversion_to_frozen_then_fold():
    model = learned(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    folded(convert(model, "FrozenBatchNorm").model, images(), 0)
