"""Starting weights as treatments: what each paper promises holds on the batch; branches are found as they run."""

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.anatomy.flow import trace
from normscope.terms.finding import Prescription
from normscope.treat.branches import branches
from normscope.treat.treatment import treat


class Block(nn.Module):
    def __init__(self, inputs, outputs, norm=nn.BatchNorm2d, inplace=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), norm(outputs)
        self.short = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.inplace = inplace

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        if self.inplace:
            y += self.short(x)
            return y.relu_()
        return torch.relu(self.short(x) + y)


def residual(norm=nn.BatchNorm2d, inplace=False):
    torch.manual_seed(0)
    blocks = [Block(4, 4, norm, inplace), Block(4, 6, norm, inplace), Block(6, 6, norm, inplace)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def without(channels):
    return nn.Identity()


IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inplace", [True, False])
def test_branches_are_found_and_shortcuts_are_not_taken_for_them(inplace):
    found = branches(trace(residual(inplace=inplace), IMAGES))
    assert [branch.end.path for branch in found] == ["1.norm2", "2.norm2", "3.norm2"]
    assert [[call.path for call in branch.layers] for branch in found] == [
        [f"{k}.conv1", f"{k}.conv2"] for k in (1, 2, 3)
    ]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ends = [branch.end.path for branch in branches(trace(layer, torch.randn(2, 3, 8)))]
    assert ends == ["self_attn", "linear2"]

    class Merge(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(x) + self.b(x) + x.exp()

    assert [branch.end.path for branch in branches(trace(Merge(), torch.randn(2, 3)))] == ["/add"]


def test_residuals_start_at_zero_so_that_each_block_is_its_shortcut():
    for norm in (nn.BatchNorm2d, without):
        treated = treat(residual(norm), Prescription("zero_residuals"), data=IMAGES)
        model = treated.model.eval()
        end = "norm2" if norm is nn.BatchNorm2d else "conv2"
        assert [change.site for change in treated.changes] == [f"{k}.{end}" for k in (1, 2, 3)]
        x = model[0](IMAGES)
        for block in (model[1], model[2], model[3]):
            assert torch.equal(block(x), block.short(x).relu())
            x = block(x)
        model.train()(IMAGES).sum().backward()
        assert all(getattr(model[k], end).weight.grad.abs().sum() > 0 for k in (1, 2, 3))
    some = treat(residual(), Prescription("zero_residuals", ("2.conv1",)), data=IMAGES)
    assert [change.site for change in some.changes] == ["2.norm2"]
    none = treat(nn.Sequential(nn.Linear(3, 3)), Prescription("zero_residuals"))
    assert none.skipped == (("", "no residual branch was found"),) and none.preserves == "exact"


def test_fixup_scales_the_branches_by_their_number_and_answers_zero_at_first():
    model = residual(without)
    treated = treat(model, Prescription("fixup", arguments={"seed": 0}), data=IMAGES)
    new = treated.model
    for k in (1, 2, 3):
        fan_in = new[k].conv1.weight[0].numel()
        assert new[k].conv1.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5 * 3 ** (-1 / 2), rel=0.25)
        assert not new[k].conv2.weight.any() and not new[k].conv1.bias.any()
        assert k == 2 or torch.equal(new[0].weight, model[0].weight)
    assert torch.equal(new[2].short.weight, model[2].short.weight)
    assert not new(IMAGES).any() and treated.preserves == "nothing"
    again = treat(model, Prescription("fixup", arguments={"seed": 0}), data=IMAGES)
    assert torch.equal(again.model[1].conv1.weight, new[1].conv1.weight)
    normed = treat(residual(), Prescription("fixup"), data=IMAGES)
    assert normed.changes == () and 'convert to "none"' in normed.skipped[0][1]


def outputs(model):
    """What every layer gives on the batch."""
    seen = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda m, a, y, path=path: seen.update({path: y.detach()}))
    model(IMAGES)
    return seen


def test_the_outputs_start_with_variance_one_on_the_batch():
    model = residual(without)
    for method in ("lsuv", "data_dependent"):
        arguments = {"method": method, "seed": 1}
        treated = treat(model, Prescription("initialize_on_data", arguments=arguments), data=[IMAGES])
        seen = outputs(treated.model)
        assert seen.keys() == {change.site for change in treated.changes} and len(seen) == 9
        for y in seen.values():
            if method == "lsuv":
                assert y.var().item() == pytest.approx(1, abs=0.05)
            else:
                units = y.movedim(1, 0).flatten(1)
                assert units.mean(1).abs().max() < 1e-4 and (units.std(1, correction=0) - 1).abs().max() < 1e-3
    for wrong in (Prescription("initialize_on_data", ("0",)), Prescription("initialize_on_data", (), {"method": "he"})):
        with pytest.raises(ns.NormscopeError, match="initialization on data was asked for that does not exist"):
            treat(model, wrong, data=IMAGES)
    with pytest.raises(ns.NormscopeError, match="without data"):
        treat(model, Prescription("initialize_on_data"))
