"""Treatments on whole architectures: a transformer whose fused path reads past the modules, an LSTM, a U-Net."""

import copy

import pytest
import torch
from torch import nn

from normscope.terms.finding import Prescription
from normscope.treat.measure import difference
from normscope.treat.surgery import Followed
from normscope.treat.treatment import treat
from normscope.treat.treatments.convert import convert
from normscope.treat.treatments.fold import fold


def transformer():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0 if "weight" in name else 0.0, 0.4)
    return model


def without_gradients(model, x):
    with torch.no_grad():  # lets TransformerEncoderLayer take its fused path
        return model(x)


@pytest.mark.parametrize("to", ["RMSNorm", "GroupNorm", "BatchNorm"])
def test_a_converted_transformer_answers_alike_on_every_path(to):
    torch.manual_seed(0)
    model, x = transformer(), torch.randn(4, 7, 16)
    treated = convert(model, to, data=x)
    assert len(treated.changes) == 4 and not treated.skipped
    assert difference(without_gradients(treated.model, x), treated.model(x)) < 1e-5
    assert difference(treated.model(x), model(x)) == pytest.approx(treated.error, rel=1e-3)
    assert without_gradients(model, x).shape == (4, 7, 3)


def test_a_norm_inside_a_transformer_is_not_passed_by():
    torch.manual_seed(0)
    model, x = transformer(), torch.randn(4, 7, 16)
    treated = treat(model, Prescription("insert_norm", arguments={"norm": "LayerNorm"}), data=x)
    layer = treated.model[0].layers[0]
    assert isinstance(layer.linear1, Followed)
    hidden = []
    layer.linear2.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    assert difference(without_gradients(treated.model, x), treated.model(x)) < 1e-5
    treated.model.train()(x).sum().backward()
    assert layer.linear1.norm.weight.grad is not None


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(10, 8), nn.LayerNorm(8)
        self.lstm, self.out = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, tokens):
        return self.out(self.lstm(self.norm(self.embed(tokens)))[0])


def test_a_language_model_on_integers():
    tokens = torch.randint(10, (4, 5))
    for to in ("BatchNorm", "RMSNorm"):
        treated = convert(Language(), to, data=(tokens, tokens))
        assert len(treated.changes) == 1 and treated.error < 0.5
    treated = treat(Language(), Prescription("reinitialize"), data=tokens)
    assert [change.site for change in treated.changes] == ["lstm", "out"]


class UNet(nn.Module):
    def __init__(self):
        super().__init__()

        def block(inputs, outputs):
            return nn.Sequential(
                *(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)),
                *(nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)),
            )

        self.down, self.deep, self.side = block(3, 8), block(8, 16), block(16, 8)
        self.pool, self.up, self.out = nn.MaxPool2d(2), nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        wide = self.down(x)
        return self.out(self.side(torch.cat([wide, self.up(self.deep(self.pool(wide)))], 1)))


def test_a_u_net_with_activations_in_place():
    torch.manual_seed(0)
    model, x = UNet().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for _ in range(3):
        model(x)
    wanted = copy.deepcopy(model).eval()(x)
    folded = fold(model, x)
    assert len(folded.changes) == 6 and difference(folded.model(x), wanted) < 1e-12
    bare = treat(model, Prescription("remove_bias"), data=x)
    assert len(bare.changes) == 6 and difference(bare.model.eval()(x), wanted) < 1e-12
    converted = convert(model, "GroupNorm", data=x)
    assert len(converted.changes) == 6 and converted.error < 0.5
