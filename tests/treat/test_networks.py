"""Treatments on the usual architectures, small but whole: folds exact, conversions measured, originals untouched."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.terms.finding import Prescription
from normscope.treat.measure import difference
from normscope.treat.treatment import treat


def conv_norm(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 5))


class Bottleneck(nn.Module):
    """He et al. 2016."""

    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)  # one module for three places
        self.down = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += self.down(x)
        return self.relu(out)


def resnet():
    stem = conv_norm(3, 8, 7, 2)
    return nn.Sequential(stem, nn.MaxPool2d(3, 2, 1), Bottleneck(8, 4), Bottleneck(16, 8, 2), head(32))


class Inverted(nn.Module):
    """MobileNetV2 (Sandler et al. 2018); with `squeeze` and SiLU the block of EfficientNet (Tan & Le 2019)."""

    def __init__(self, inputs, outputs, stride=1, squeeze=False):
        super().__init__()
        act, hidden = (nn.SiLU if squeeze else nn.ReLU6), 4 * inputs
        self.expand = conv_norm(inputs, hidden, 1, act=act)
        self.depthwise = conv_norm(hidden, hidden, 3, stride, hidden, act)
        self.gate = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, inputs, 1), nn.SiLU()),
            *(nn.Conv2d(inputs, hidden, 1), nn.Sigmoid()),
        ) if squeeze else None  # fmt: skip
        self.project = conv_norm(hidden, outputs, 1, act=nn.Identity)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.residual else y


def mobilenet():
    return nn.Sequential(conv_norm(3, 8, stride=2, act=nn.ReLU6), Inverted(8, 8), Inverted(8, 12, 2), head(12))


def efficientnet():
    stem = conv_norm(3, 8, stride=2, act=nn.SiLU)
    return nn.Sequential(stem, Inverted(8, 8, squeeze=True), Inverted(8, 12, 2, squeeze=True), head(12))


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022: channels last inside, a learned scale."""

    def __init__(self, channels):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(channels, 16), nn.GELU(), nn.Linear(16, channels)
        self.gamma = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(self.act(self.pwconv1(y)))).permute(0, 3, 1, 2)


def convnext():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), ns.nn.LayerNorm2d(8), ConvNeXtBlock(8), ConvNeXtBlock(8), head(8))


class SwinBlock(nn.Module):
    """Liu et al. 2021: attention in windows of 4 × 4, shifted by two."""

    def __init__(self, channels, shift):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 16), nn.GELU(), nn.Linear(16, channels))
        self.shift = shift

    def forward(self, x):
        n, h, w, c = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).view(-1, 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(SwinBlock(8, 0), SwinBlock(8, 2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.embed(x).permute(0, 2, 3, 1))).mean((1, 2)))


class UNet(nn.Module):
    """Ronneberger et al. 2015, with norms."""

    def __init__(self):
        super().__init__()
        self.down, self.deep, self.side = conv_norm(3, 8), conv_norm(8, 16), conv_norm(16, 8)
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        wide = self.down(x)
        return self.out(self.side(torch.cat((wide, self.up(self.deep(self.pool(wide)))), 1)))


class Recurrent(nn.Module):
    """An LSTM behind a normalized projection, BatchNorm1d over the sequence."""

    def __init__(self):
        super().__init__()
        self.project, self.norm = nn.Linear(16, 8), nn.BatchNorm1d(8)
        self.lstm, self.after, self.head = nn.LSTM(8, 8, batch_first=True), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        rows = x.flatten(2).unflatten(2, (-1, 16)).mean(1)
        hidden = self.norm(self.project(rows).transpose(1, 2)).transpose(1, 2).tanh()
        return self.head(self.after(self.lstm(hidden)[0])[:, -1])


BATCH_NORMED = {"resnet": (resnet, 9), "mobilenet": (mobilenet, 7), "efficientnet": (efficientnet, 7)}
BATCH_NORMED |= {"unet": (UNet, 4), "lstm": (Recurrent, 1)}
NETWORKS = {**{name: build for name, (build, _) in BATCH_NORMED.items()}, "convnext": convnext, "swin": Swin}


def images(n=4, dtype=torch.float64):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n)).to(dtype)


def trained(name, dtype=torch.float64):
    """Random weights, statistics of some batches."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        for n in (6, 7, 8):
            model(images(n, dtype))
    return model.eval()


def bits(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", BATCH_NORMED)
def test_every_batch_norm_folds_exactly(name):
    model = trained(name)
    before = bits(model)
    treated = ns.fold(model, images())
    folded = [change for change in treated.changes if "folded" in change.after]
    assert len(folded) == BATCH_NORMED[name][1]
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in treated.model.modules())
    assert difference(treated.model(images(9)), model(images(9))) < 1e-9
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_converts_and_the_error_is_the_measured_one(name):
    model, x = trained(name), images()
    before = bits(model)
    found = sum(site.role == "norm" for site in ns.sites(model))
    for to in ("GroupNorm+WS", "RMSNorm"):
        treated = ns.convert(model, to, data=x)
        assert sum(change.before != "weight as stored" for change in treated.changes) == found
        assert all("its rows" in why or "past the norm" in why or "LSTM has no" in why for _, why in treated.skipped)
        assert treated.error == pytest.approx(difference(treated.model.eval()(x), model(x)), rel=1e-6, abs=1e-12)
        treated.model.train()(x).sum().backward()
        assert all(p.grad is not None for p in treated.model.parameters())
        assert ns.convert(treated.model, to).changes == ()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", BATCH_NORMED)
def test_statistics_are_recalibrated_frozen_and_adapted(name):
    model = trained(name)
    data = [images(6) + 1, images(7) - 1]
    exact = ns.recalibrate(model, data, exact=True, inplace=False)
    again = ns.recalibrate(exact.model, data, exact=True, inplace=False)
    ours, theirs = exact.model.state_dict(), again.model.state_dict()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-3)  # a fixed point
    adapted = ns.adapt(model, prior=1e12).model
    assert difference(adapted(images()), model(images())) < 1e-6
    frozen = copy.deepcopy(model)
    ns.freeze(frozen)
    if name == "unet":  # no dropout, so that training mode is evaluation mode
        assert difference(frozen.train()(images()), model(images())) < 1e-12


def test_biases_go_and_residuals_start_at_zero():
    model = trained("unet")
    bare = treat(model, Prescription("remove_bias"), data=images())
    assert [change.site for change in bare.changes] == ["up.0"]
    assert difference(bare.model(images()), model(images())) < 1e-9
    zeroed = treat(trained("resnet"), Prescription("zero_residuals"), data=images())
    assert [change.site for change in zeroed.changes] == ["2.bn3", "3.bn3"]
    turned = treat(trained("swin"), Prescription("zero_residuals"), data=images())
    assert [change.site for change in turned.changes] == [
        "blocks.0.proj",
        "blocks.0.mlp.2",
        "blocks.1.proj",
        "blocks.1.mlp.2",
    ]


def treatments_of(model, x):
    yield "folded", ns.fold(model, x).model
    yield "converted", ns.convert(model, "GroupNorm+WS", data=x).model
    yield "removed", ns.convert(model, "none").model
    yield "frozen", ns.convert(model, "FrozenBatchNorm").model
    yield "adapted", ns.adapt(model).model


def test_treated_models_copy_save_load_compile_and_export(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = trained("mobilenet", torch.float32), images(4, torch.float32)
    for name, treated in treatments_of(model, x):
        treated.eval()
        wanted = treated(x)
        assert torch.equal(copy.deepcopy(treated)(x), wanted)
        file = io.BytesIO()
        torch.save(treated.state_dict(), file)
        file.seek(0)
        other = copy.deepcopy(treated)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        other.load_state_dict(torch.load(file))
        assert torch.equal(other(x), wanted)
        if name in ("folded", "converted"):  # the adapted one's compilation is in test_adapt
            assert difference(torch.compile(treated, backend="eager")(x), wanted) < 1e-5
            path = tmp_path / f"{name}.onnx"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(treated, (x,), path, dynamo=False, input_names=["input"])
            (found,) = onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})
            assert difference(torch.from_numpy(found), wanted) < 1e-4
