"""`spec_of` and `role_of`: every norm of torch by its attributes, strangers by measurement, nothing by guessing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import normscope.nn as ours
from normscope.anatomy.recognize import activation_of, kind_of, role_of, spec_of
from normscope.anatomy.walk import sites
from normscope.terms.activations import BY_CLASS
from normscope.terms.catalog import CATALOG, ENTRIES
from normscope.terms.spec import NormSpec

BATCH, LAYER, GROUP, INSTANCE, RMS = (
    CATALOG[name] for name in ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")
)


def torch_rms_cast():
    """Read off torch itself, where rounding before the weight differs from rounding after it."""
    x, weight = torch.randn(2, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    normalized = x.double() / x.double().square().mean().add(1e-6).sqrt()
    late, early = (normalized * weight.double()).bfloat16(), normalized.bfloat16() * weight
    y = F.rms_norm(x, (512,), weight, 1e-6)
    return "output" if (y == late).sum() > (y == early).sum() else "normalized"


@pytest.mark.parametrize(
    ("module", "spec"),
    [
        (nn.BatchNorm1d(4), BATCH),
        (nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), BATCH.but(eps=1e-3, momentum=0.01)),
        (nn.BatchNorm3d(4, affine=False), BATCH.but(affine=False, bias=False)),
        (nn.BatchNorm2d(4, momentum=None), BATCH.but(infer_from="cumulative", momentum=None)),
        (nn.BatchNorm2d(4, track_running_stats=False), BATCH.but(infer_from="batch", momentum=None)),
        (nn.SyncBatchNorm(4), CATALOG["SyncBatchNorm"]),
        (nn.LazyBatchNorm2d(), BATCH),
        (nn.LazyBatchNorm1d(affine=False), BATCH.but(affine=False, bias=False)),
        (nn.InstanceNorm1d(4), INSTANCE),
        (nn.InstanceNorm2d(4, affine=True), INSTANCE.but(affine=True, bias=True)),
        (nn.InstanceNorm3d(4, track_running_stats=True), INSTANCE.but(infer_from="running", momentum=0.1)),
        (nn.LazyInstanceNorm2d(affine=False, track_running_stats=False), INSTANCE),
        (nn.LayerNorm(4), LAYER),
        (nn.LayerNorm(4, bias=False, eps=1e-6), LAYER.but(bias=False, eps=1e-6)),
        (nn.LayerNorm(4, elementwise_affine=False), LAYER.but(affine=False, bias=False)),
        (nn.LayerNorm((4, 5, 6)), LAYER.but(over="CS", layout="channels_first")),
        (nn.GroupNorm(2, 4), GROUP.but(groups=2)),
        (nn.GroupNorm(1, 4), GROUP.but(groups=1)),
        (nn.GroupNorm(4, 4), GROUP.but(over="S", groups=1)),
        (nn.GroupNorm(1, 1), GROUP.but(groups=1)),
        (nn.RMSNorm(4), RMS.but(cast=torch_rms_cast())),
        (nn.RMSNorm(4, eps=1e-6, elementwise_affine=False), RMS.but(eps=1e-6, affine=False, cast=torch_rms_cast())),
    ],
    ids=repr,
)
def test_norms_of_torch(module, spec):
    assert spec_of(module) == spec
    assert role_of(module) == "norm"


def test_only_that_without_its_own_forward_is_read_off_its_attributes():
    class Same(nn.BatchNorm2d):
        pass

    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    assert spec_of(Same(3)) == BATCH
    assert spec_of(Doubled(3)) is None


def test_ours_say_it_themselves():
    class Ours(nn.Module):
        def __init__(self, spec):
            super().__init__()
            self.spec = spec

    spec = GROUP.but(groups=2, eps=0.5)
    assert spec_of(Ours(spec)) is spec and role_of(Ours(spec)) == "norm"
    weights = NormSpec(over="", train_from="none", infer_from="none", scale=None, weights="weight_norm")
    assert spec_of(Ours(weights)) is None
    assert spec_of(Ours("no description")) is None


class Holds(nn.Module):
    """NormedBlock: a container, whatever its name."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return self.parts(x)


class PreNorm(Holds):
    pass


class NormConv(Holds):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.Identity(),
        nn.Linear(2, 2),
        parametrizations.weight_norm(nn.Linear(2, 2)),
        parametrizations.spectral_norm(nn.Conv2d(2, 2, 1)).parametrizations,
        nn.Sequential(nn.BatchNorm2d(2)),
        PreNorm(nn.LayerNorm(4)),
        PreNorm(nn.Identity()),
        NormConv(nn.Conv2d(4, 4, 1), nn.ReLU()),
        nn.LSTM(2, 2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_no_norm_is_none(module):
    assert spec_of(module) is None
    assert role_of(module) != "norm"


# strangers, written as the packages write them ---------------------------------------------------------------------


class LlamaRMSNorm(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, hidden):
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden.dtype)


class GemmaRMSNorm(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class T5LayerNorm(LlamaRMSNorm):
    """Says layer norm, centres nothing."""


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """Keeps its eps to itself and outside the root."""

    def __init__(self, size):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.pow(2).mean(1, keepdim=True).sqrt() + 1e-3)
        return x * self.gamma[:, None, None] + self.beta[:, None, None]


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, size, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(size))

    def forward(self, x):
        w, b, m, v = (t.view(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var))
        return (x - m) * (v + self.eps).rsqrt() * w + b


class BatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, size, **more):
        super().__init__(size, **more)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class GroupNormAct(nn.GroupNorm):
    def __init__(self, groups, size):
        super().__init__(groups, size)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class KerasBatchNorm(nn.Module):
    """Its momentum weighs the old value, and its running variance is the biased one."""

    def __init__(self, size):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("moving_mean", torch.zeros(size))
        self.register_buffer("moving_variance", torch.ones(size))
        self.momentum, self.epsilon = 0.99, 1e-3

    def forward(self, x):
        mean, var = self.moving_mean, self.moving_variance
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.moving_mean.lerp_(mean, 1 - self.momentum)
                self.moving_variance.lerp_(var, 1 - self.momentum)
        mean, var, gamma, beta = (t.view(1, -1, 1, 1) for t in (mean, var, self.gamma, self.beta))
        return (x - mean) / (var + self.epsilon).sqrt() * gamma + beta


class WeightlessRMSNorm(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class SyncBatchNormAct(nn.SyncBatchNorm):
    def __init__(self, size):
        super().__init__(size)
        self.act = nn.ReLU()

    def forward(self, x):
        mean, var, own = self.running_mean, self.running_var, self.training
        return self.act(F.batch_norm(x, mean, var, self.weight, self.bias, own, self.momentum, self.eps))


PLAIN_RMS = RMS.but(eps=1e-6, cast="output")
STRANGERS = [
    (LlamaRMSNorm(16), PLAIN_RMS.but(cast="normalized")),
    (LlamaRMSNorm(7, eps=1e-5).bfloat16(), PLAIN_RMS.but(cast="normalized", eps=1e-5)),
    (LlamaRMSNorm(12).to("meta"), PLAIN_RMS.but(cast="normalized")),
    (T5LayerNorm(16), PLAIN_RMS.but(cast="normalized")),
    (GemmaRMSNorm(5), PLAIN_RMS.but(weight_offset=1.0)),
    (WeightlessRMSNorm(), PLAIN_RMS.but(affine=False)),
    (LayerNorm2d(6, eps=1e-6), CATALOG["LayerNorm2d"].but(eps=1e-6)),
    (BatchNormAct2d(4, momentum=None), BATCH.but(infer_from="cumulative", momentum=None, activation="silu")),
    (ChannelNorm(11), CATALOG["LayerNorm2d"].but(eps=1e-3, eps_place="outside")),
    (ChannelNorm(5), CATALOG["LayerNorm2d"].but(eps=1e-3, eps_place="outside")),
    (FrozenBatchNorm2d(3), CATALOG["FrozenBatchNorm"]),
    (BatchNormAct2d(4), BATCH.but(activation="silu")),
    (SyncBatchNormAct(4), CATALOG["SyncBatchNorm"].but(activation="relu")),
    (GroupNormAct(2, 6), GROUP.but(groups=2, activation="relu")),
    (GroupNormAct(1, 6), GROUP.but(groups=1, activation="relu")),
    (GroupNormAct(6, 6), GROUP.but(over="S", groups=1, activation="relu")),
    (KerasBatchNorm(5), BATCH.but(eps=1e-3, momentum=0.01, unbiased=False)),
]


@pytest.mark.parametrize(("module", "spec"), STRANGERS, ids=[type(module).__name__ for module, _ in STRANGERS])
def test_strangers_are_measured(module, spec, picture):
    if any(parameter.is_meta for parameter in module.parameters()):
        assert spec_of(module) == spec
        return
    module = module.float()
    before = picture(module)
    assert spec_of(module) == spec
    assert picture(module) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_answer_does_not_depend_on_weights_or_dtype(dtype):
    module = LlamaRMSNorm(16).to(dtype)
    nn.init.zeros_(module.weight)
    assert spec_of(module) == PLAIN_RMS.but(cast="normalized")


class UnbiasedLayerNorm(nn.Module):
    """The Annotated Transformer's: divides by the unbiased deviation, which no row of the catalog does."""

    def __init__(self, size):
        super().__init__()
        self.a_2, self.b_2, self.eps = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size)), 1e-6

    def forward(self, x):
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.b_2


class NormOfTwo(nn.Module):
    def forward(self, x, y):
        return x / y.norm()


class NormFreeScale(nn.Module):
    def forward(self, x):
        return 2 * x


class NormalizedPosition(nn.Module):
    def forward(self, x):
        return torch.arange(x.numel()).view(x.shape)


class NormAfterAct(nn.Module):
    """Its activation comes first, which a description cannot say."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return F.layer_norm(self.act(x), x.shape[-1:])


class NormAndMore(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        return self.pool(F.instance_norm(x))


class NormWhenQuiet(nn.Module):
    """What holds for small numbers must hold for large ones."""

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:]) if x.abs().max() < 1 else x


class NormAfterNorm(nn.Module):
    """Holds a norm and is one: two in a row are not one."""

    def __init__(self):
        super().__init__()
        self.inner = nn.BatchNorm2d(4)

    def forward(self, x):
        return F.layer_norm(self.inner(x), x.shape[1:])


class BrokenNorm(nn.Module):
    def forward(self, x):
        raise RuntimeError


@pytest.mark.parametrize(
    "module",
    [
        UnbiasedLayerNorm(8),
        NormOfTwo(),
        NormFreeScale(),
        NormalizedPosition(),
        NormWhenQuiet(),
        NormAfterAct(),
        NormAndMore(),
        NormAfterNorm(),
        BrokenNorm(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_strangers_that_agree_with_no_row_are_none(module):
    assert spec_of(module) is None


def test_measuring_neither_calls_nor_copies_hooks():
    class Hook:
        def __call__(self, *_):
            raise AssertionError("called")

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    module = BatchNormAct2d(9)
    for each in (module, module.act):
        each.register_forward_hook(Hook())
        each.register_forward_pre_hook(Hook())
    assert spec_of(module) == BATCH.but(activation="silu")


APART = [
    ours.EvoNormB0(4),
    ours.EvoNormS0(4, 2),
    ours.SwitchableNorm(4),
    ours.LocalResponseNorm(3),
    ours.DynamicTanh(4),
    ours.TemporalBatchNorm(4),
    nn.LocalResponseNorm(3),
    nn.CrossMapLRN2d(3),
    type("EvoNorm2dS0", (nn.Module,), {"__module__": "timm.layers.evo_norm", "forward": lambda self, x: x})(),
]


@pytest.mark.parametrize("module", APART, ids=lambda module: f"{type(module).__module__}.{type(module).__name__}")
def test_a_norm_that_no_description_says_is_a_norm_all_the_same(module):
    derived = type("Mine", (type(module),), {})
    other = type("Mine", (type(module),), {"forward": lambda self, x: x + 1})
    module_of = copy.copy(module)
    assert spec_of(module) is None and role_of(module) == "norm"
    module_of.__class__ = derived
    assert role_of(module_of) == "norm"
    module_of.__class__ = other
    assert role_of(module_of) == "other"


def test_every_norm_of_the_catalog_is_a_site():
    """A row with a description by itself, one without by its class, one made of others by its parts."""
    model = nn.ModuleDict({name: ours.build(spec.but(groups=1), 4) for name, spec in CATALOG.items()})
    assert [site.path for site in sites(model)] == list(CATALOG)
    apart = nn.ModuleDict({type(module).__name__: module for module in APART})
    assert [(site.role, site.spec, site.channel_axis) for site in sites(apart)] == [
        ("norm", None, -1 if name in ("DynamicTanh", "TemporalBatchNorm") else 1) for name in apart
    ]
    both = nn.Sequential(ours.BatchChannelNorm(4, 2), ours.OnlineNorm(4))
    assert [site.path for site in sites(both)] == ["0.over_batch", "0.over_groups", "1"]
    assert {entry.name for entry in ENTRIES} - set(CATALOG) - set(apart) == {
        "BatchChannelNorm",
        *(entry.name for entry in ENTRIES if entry.name.islower()),  # functions that reparametrize weights
    }


# roles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(2, 2),
        nn.Bilinear(2, 2, 2),
        nn.Conv1d(2, 2, 1),
        nn.ConvTranspose3d(2, 2, 1),
        nn.LSTM(2, 2),
        nn.GRUCell(2, 2),
        nn.Embedding(2, 2),
        nn.EmbeddingBag(2, 2),
        nn.MultiheadAttention(2, 1),
        nn.LazyConv2d(2, 1),
        parametrizations.weight_norm(nn.Linear(2, 2)),
        type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})(),
        ours.LSTM(2, 2, norm="layer"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_producers(module):
    assert role_of(module) == "producer"


@pytest.mark.parametrize("name", BY_CLASS)
def test_activations_by_class(name):
    kind = getattr(nn, name)
    module = kind(0.1, 20.0) if name == "Threshold" else kind()
    derived = type("Mine", (kind,), {})
    assert role_of(module) == "activation" and activation_of(module) is BY_CLASS[name]
    assert activation_of(derived(0.1, 20.0) if name == "Threshold" else derived()) is BY_CLASS[name]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("NewGELUActivation", "gelu"),
        ("QuickGELU", "gelu"),
        ("SiLUActivation", "silu"),
        ("Swish", "silu"),
        ("HardSwish", "hardswish"),
    ],
)
def test_activations_of_other_packages_by_name(name, function):
    kind = type(name, (nn.Module,), {})
    assert activation_of(kind()).name == function
    block = kind()
    block.inner = nn.Linear(2, 2)
    assert activation_of(block) is None


def test_the_rest_is_other():
    same_name = type("Conv1D", (nn.Module,), {})()  # as people call blocks of their own
    for module in (
        same_name,
        nn.Dropout(),
        nn.MaxPool2d(2),
        nn.Sequential(),
        nn.Softmin(),
        nn.TransformerEncoderLayer(2, 1),
    ):
        assert role_of(module) == "other"


def test_a_parametrized_class_keeps_its_name():
    assert kind_of(parametrizations.weight_norm(nn.Linear(2, 2))) == "Linear"
