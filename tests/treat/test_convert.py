"""Any norm to any other: shapes, ties, parameters, groups, fits; what cannot be converted is said."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import normscope as ns
from normscope.anatomy.recognize import spec_of
from normscope.terms.catalog import CATALOG
from normscope.treat.measure import difference
from normscope.treat.treatments.convert import convert

KINDS = ("BatchNorm", "BatchRenorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "FilterResponseNorm")
FROM = {
    "BatchNorm1d": (nn.BatchNorm1d(6), (8, 6)),
    "BatchNorm1d over time": (nn.BatchNorm1d(6), (8, 6, 5)),
    "BatchNorm2d": (nn.BatchNorm2d(6), (8, 6, 4, 4)),
    "BatchNorm3d": (nn.BatchNorm3d(6), (8, 6, 2, 3, 3)),
    "LayerNorm": (nn.LayerNorm(6), (8, 5, 6)),
    "GroupNorm": (nn.GroupNorm(3, 6), (8, 6, 4, 4)),
    "InstanceNorm2d": (nn.InstanceNorm2d(6), (8, 6, 4, 4)),
    "RMSNorm": (nn.RMSNorm(6), (8, 5, 6)),
    "FilterResponseNorm": (ns.nn.FilterResponseNorm(6, threshold=False), (8, 6, 4, 4)),
    "GhostBatchNorm": (ns.nn.GhostBatchNorm(6, 4), (8, 6, 4, 4)),
    "BatchRenorm": (ns.nn.BatchRenorm(6), (8, 6, 4, 4)),
}


def learned(module):
    module = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, 1.0 if name == "weight" else 0.0, 0.3)
    if getattr(module, "running_mean", None) is not None:
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 2)
    return module


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("source", FROM)
def test_any_norm_becomes_any_other_and_fits_better_with_data(source, to):
    torch.manual_seed(0)
    module, shape = FROM[source]
    model, x = nn.Sequential(learned(module).double()), torch.randn(shape, dtype=torch.float64) * 2 + 1
    model.eval()
    treated = convert(model, to, data=x)
    if to in ("InstanceNorm", "FilterResponseNorm") and len(shape) == 2:
        assert treated.skipped[0][1].startswith("its input has no positions")
        return
    if not treated.changes:
        assert source.startswith(to) and treated.model[0].state_dict().keys() == model[0].state_dict().keys()
        return
    new = treated.model[0]
    spec = spec_of(new)
    assert (spec.over, spec.train_from, spec.scale) == (CATALOG[to].over, CATALOG[to].train_from, CATALOG[to].scale)
    assert spec.layout == spec_of(model[0]).layout and not new.training
    assert next(new.parameters()).dtype == torch.float64
    if treated.preserves == "exact":
        assert "Batch" in source and "Batch" in to and treated.error < 1e-12
        return
    assert treated.preserves == "approximate"
    assert treated.error == pytest.approx(difference(new(x), model(x)))
    # No other weight and bias, channel by channel, would bring it closer.
    axis = 1 if spec.layout == "channels_first" else -1
    for parameter in (new.weight, new.bias):
        for move in (-0.01, 0.01) if parameter is not None else ():
            moved = copy.deepcopy(new)
            with torch.no_grad():
                (moved.weight if parameter is new.weight else moved.bias).add_(move)
            rest = [(one(x) - model(x)).square().movedim(axis, -1).flatten(0, -2).sum(0) for one in (new, moved)]
            assert (rest[0] <= rest[1] + 1e-9).all()


def net(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 30, 3),
        learned(norm(30)),
        nn.ReLU(),
        nn.Conv2d(30, 8, 3),
        learned(norm(8)),
        nn.ReLU(),
        nn.Conv2d(8, 7, 3),
        learned(norm(7)),
    )


def test_groups_divide_and_hold_two_channels():
    treated = convert(net(), "GroupNorm")
    assert [spec_of(treated.model[place]).groups for place in (1, 4, 7)] == [15, 4, 1]
    assert [change.after for change in treated.changes] == [
        "GroupNorm(15 groups of 2), instead of 32 groups",
        "GroupNorm(4 groups of 2), instead of 32 groups",
        "GroupNorm(1 group of 7), instead of 32 groups",
    ]
    assert treated.preserves == "nothing" and treated.error is None
    flat = convert(nn.Sequential(nn.Linear(3, 64), nn.BatchNorm1d(64)), "GroupNorm")
    assert spec_of(flat.model[1]).groups == 4  # two values alone would normalize to +1 and −1


def test_parameters_stay_the_same_objects_in_place():
    model = net()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model, "GroupNorm", inplace=True)
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()


def test_a_tied_norm_is_replaced_by_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.BatchNorm1d(4)
            self.b = nn.Sequential(self.a)
            self.weight_only = nn.LayerNorm(4)
            self.weight_only.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x)) + self.weight_only(x)

    treated = convert(Tied(), "RMSNorm", data=torch.randn(16, 4))
    assert treated.model.a is treated.model.b[0] and spec_of(treated.model.a).scale == "rms"
    assert treated.model.weight_only.weight is treated.model.a.weight
    assert len(treated.changes) == 2


def test_the_error_is_measured_at_each_site_and_at_the_output():
    model, data = net(), [torch.randn(8, 3, 9, 9) for _ in range(3)]
    plain, fit = convert(model, "GroupNorm"), convert(model, "GroupNorm", data=data)
    wanted = [copy.deepcopy(model).eval()(x) for x in data]
    errors = [max(difference(one.model.eval()(x), y) for x, y in zip(data, wanted)) for one in (plain, fit)]
    assert fit.error == pytest.approx(errors[1], rel=1e-3) and errors[1] < 0.5 * errors[0]
    told = [float(change.after.split("error ")[1]) for change in fit.changes]
    assert told[-1] == pytest.approx(fit.error, rel=1e-2)


def test_statistics_are_taken_from_data_when_the_new_norm_keeps_some():
    model = nn.Sequential(nn.Linear(3, 4), learned(nn.LayerNorm(4)))
    x = torch.randn(64, 3) * 3
    treated = convert(model, "BatchNorm", data=list(x.split(16)))
    hidden = model[0](x).double()
    assert torch.allclose(treated.model[1].running_mean.double(), hidden.mean(0), atol=1e-5)
    assert torch.allclose(treated.model[1].running_var.double(), hidden.var(0, correction=0), rtol=1e-4)
    assert "its statistics start at mean 0 and variance 1" in convert(model, "BatchNorm").changes[0].after


def test_the_fit_is_least_squares_over_all_batches_together():
    torch.manual_seed(0)
    model = nn.Sequential(learned(nn.LayerNorm(4)).double()).eval()
    data = [torch.randn(n, 4, dtype=torch.float64) * n + shift for n, shift in ((9, 0), (5, 7), (14, -3))]
    new = convert(model, "BatchNorm", data=data).model.eval()[0]
    x, y = torch.cat(data), model(torch.cat(data)).detach()
    for channel in range(4):
        line = torch.stack((x[:, channel], torch.ones(len(x), dtype=x.dtype)), 1)
        best = line @ torch.linalg.lstsq(line, y[:, channel, None]).solution
        assert torch.allclose(new(x)[:, channel], best[:, 0], atol=1e-10)


def test_a_later_norm_is_fitted_to_what_the_earlier_ones_give_it():
    torch.manual_seed(0)
    parts = [part for _ in range(3) for part in (nn.Linear(4, 4), learned(nn.LayerNorm(4)), nn.Tanh())]
    model, x = nn.Sequential(*parts).double(), torch.randn(64, 4, dtype=torch.float64)
    treated = convert(model, "BatchNorm", data=x).model.eval()
    for place in (1, 4, 7):
        reached = treated[:place](x)
        assert torch.allclose(treated[place].running_mean, reached.mean(0), atol=1e-12)
        assert torch.allclose(treated[place].running_var, reached.var(0, correction=0), atol=1e-12)


def test_to_a_description_or_by_a_function():
    spec = CATALOG["GroupNorm"].but(groups=2, eps=1e-3)
    treated = convert(net(), spec)
    assert [spec_of(treated.model[place]).groups for place in (1, 4, 7)] == [2, 2, 1]
    assert spec_of(treated.model[1]).eps == 1e-3
    assert convert(treated.model, spec).changes == ()
    assert convert(net(), spec.to_dict()).changes == treated.changes
    chosen = convert(net(), lambda site: "LayerNorm" if site.path == "4" else None)
    assert [change.site for change in chosen.changes] == ["4"]
    assert [c.site for c in convert(net(), "LayerNorm", where=lambda site: site.path != "4").changes] == ["1", "7"]
    nested = nn.Sequential(net(), nn.BatchNorm2d(7))
    assert [c.site for c in convert(nested, "LayerNorm", where="0").changes] == ["0.1", "0.4", "0.7"]
    with pytest.raises(ns.NormscopeError, match="norm that does not exist") as unknown:
        convert(net(), "GruopNorm")
    assert "did you mean 'GroupNorm'?" in unknown.value.do


def test_the_offset_that_an_rms_norm_would_lose_is_kept():
    fresh, trained = nn.LayerNorm(4), nn.LayerNorm(4)
    nn.init.normal_(trained.bias)
    treated = convert(nn.Sequential(fresh, trained), "RMSNorm").model
    assert treated[0].bias is None and torch.equal(treated[1].bias, trained.bias)


def test_the_weight_offset_of_a_foreign_convention_is_carried():
    spec = CATALOG["RMSNorm"].but(weight_offset=1.0)
    norm = ns.norms.module.build(spec, 4)
    nn.init.normal_(norm.weight)
    treated = convert(nn.Sequential(norm), "LayerNorm")
    assert torch.allclose(treated.model[0].weight, norm.weight + 1)


class Odd(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2 + x


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.plain = [self.norm]

    def forward(self, x):
        return self.plain[0](x)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Odd(3), "has a forward of its own"),
        (nn.LayerNorm((3, 4)), "each of several axes"),
        (nn.LazyBatchNorm2d(), "before its first batch"),
        (nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None), "reparametrized"),
        (Held(), "outside of the registered modules"),
    ],
)
def test_what_cannot_be_converted_is_skipped_with_the_reason(module, why):
    treated = convert(nn.Sequential(module, nn.Identity()), "GroupNorm", inplace=True)
    assert treated.changes == () and treated.preserves == "exact"
    assert len(treated.skipped) == 1 and why in treated.skipped[0][1]


def test_hooks_and_modes_go_along():
    model, told = net(), []
    model[1].register_forward_hook(lambda *_: told.append("ran"))
    model.train()
    model[1].eval()
    treated = convert(model, "LayerNorm").model
    treated(torch.randn(2, 3, 9, 9))
    assert told == ["ran"] and not treated[1].training and treated[4].training


def batch(n=8):
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def test_group_norm_with_standardized_weights():
    model, x = net(), batch()
    treated = convert(model, "GroupNorm+WS", data=x)
    standardized = [parametrize.is_parametrized(treated.model[place], "weight") for place in (0, 3, 6)]
    assert standardized == [True] * 3 and spec_of(treated.model[1]).groups == 15
    weight = treated.model[3].weight.flatten(1)
    torch.testing.assert_close(weight.mean(1), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(weight.var(1, correction=0), torch.ones(8), rtol=1e-2, atol=0)
    assert treated.error == pytest.approx(difference(treated.model.eval()(x), model.eval()(x)), rel=1e-3)
    assert [change.site for change in treated.changes] == ["1", "4", "7", "0", "3", "6"]
    again = convert(treated.model, "GroupNorm+WS", data=x)
    assert again.changes == () and again.skipped == () and again.preserves == "exact"
    plain = convert(net(), "BatchNorm+WS")  # norms that are of the kind already keep; the weights change
    assert [change.site for change in plain.changes] == ["0", "3", "6"] and plain.preserves == "nothing"


class Fed(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.point, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)

    def forward(self, x):
        h = self.wide(x)
        return self.norm(self.point(h)) + self.other(h) + h


def test_weights_that_cannot_be_standardized_are_left_with_the_reason():
    left = dict(convert(Fed(), "GroupNorm+WS", data=batch()).skipped)
    assert left["point"] == "each of its rows is one weight, of which standardization leaves nothing"
    assert left["wide"] == "its output also goes past the norm, where its scale counts"
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4))
    assert "reparametrized already" in dict(convert(normed, "LayerNorm+WS").skipped)["0"]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: ns.nn.FrozenBatchNorm(n), nn.SyncBatchNorm])
def test_the_removal_of_stored_statistics_is_exact_in_evaluation_mode(norm):
    model, x = net(norm), batch()
    treated = convert(model, "none")
    assert treated.preserves == "exact" and len(treated.changes) == 3
    assert treated.changes[0].after == "weight and bias of 30 channels"
    assert difference(treated.model.eval()(x), copy.deepcopy(model).eval()(x)) < 1e-5
    assert difference(treated.model.train()(x), treated.model.eval()(x)) < 1e-5  # nothing is measured any more
    layer = nn.Sequential(nn.Linear(3, 4), learned(nn.LayerNorm(4)))
    fit = convert(layer, "none", data=torch.randn(64, 3))
    assert fit.preserves == "approximate" and fit.error > 0


@pytest.mark.parametrize("to", ["BatchRenorm", "GhostBatchNorm", "SyncBatchNorm", "PopulationBatchNorm"])
def test_norms_over_the_batch_convert_into_each_other_and_back_exactly(to):
    model, x = net(), batch()
    there = convert(model, to)
    back = convert(there.model, "BatchNorm")
    assert there.preserves == back.preserves == "exact" and len(there.changes) == len(back.changes) == 3
    wanted = copy.deepcopy(model).eval()(x)
    for one in (there, back):
        assert difference(one.model.eval()(x), wanted) < 1e-6
    state, returned = model.state_dict(), back.model.state_dict()
    assert all(torch.equal(state[key], returned[key]) for key in state if "tracked" not in key)


class NormAct(nn.BatchNorm2d):
    """As timm writes it: a norm with its activation inside."""

    def __init__(self, channels, act=nn.ReLU, drop=0.0):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(drop), act()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def test_an_activation_inside_the_norm_stays_inside():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), learned(NormAct(6)), nn.Conv2d(6, 4, 3)).eval()
    x = batch(16)
    frozen = convert(model, "FrozenBatchNorm")
    assert frozen.preserves == "exact" and difference(frozen.model(x), model(x)) < 1e-6
    grouped = convert(model, "GroupNorm", data=x)
    assert spec_of(grouped.model[1]).activation == "relu" and (grouped.model[:2](x) >= 0).all()
    assert grouped.error < 0.6 * convert(model, "GroupNorm").model(x).sub(model(x)).std() / model(x).std()
    norm = grouped.model[1]
    before = copy.deepcopy(norm)
    before.spec = norm.spec.but(activation=None)
    hidden = model[0](x).detach()
    bare = nn.functional.batch_norm(
        hidden, model[1].running_mean, model[1].running_var, model[1].weight, model[1].bias, eps=model[1].eps
    )
    rest = bare - before(hidden)  # least squares leave nothing that a weight or a bias could take up
    assert rest.mean((0, 2, 3)).abs().max() < 1e-4
    gone = convert(model, "none")
    assert gone.preserves == "exact" and difference(gone.model(x), model(x)) < 1e-5
    leaky = nn.Sequential(nn.Conv2d(3, 6, 3), learned(NormAct(6, lambda: nn.LeakyReLU(0.3))))
    assert "is not leaky_relu as torch computes it by default" in convert(leaky, "GroupNorm").skipped[0][1]
    dropping = nn.Sequential(nn.Conv2d(3, 6, 3), learned(NormAct(6, drop=0.2)))
    assert "it holds a dropout (`drop`)" in convert(dropping, "GroupNorm").skipped[0][1]


def test_a_layer_norm_over_several_axes_gets_a_weight_for_each_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.LayerNorm((6, 7, 7)), nn.ReLU()).eval()
    with torch.no_grad():  # of a channel each, so that nothing is lost
        model[1].weight.copy_(torch.rand(6, 1, 1) + 0.5)
        model[1].bias.copy_(torch.randn(6, 1, 1))
    x = batch()
    treated = convert(model, CATALOG["GroupNorm"].but(groups=1, eps=1e-6), data=x)
    assert treated.error < 1e-5 and treated.model[1].weight.shape == (6,)
    nn.init.normal_(model[1].weight)
    rough = convert(model, "BatchNorm", data=x)
    assert rough.changes and 0.1 < rough.error < 2


def test_an_optimizer_goes_along_with_its_state():
    model, x = net(), batch()
    optimizer = torch.optim.Adam([{"params": model[:3].parameters(), "lr": 0.1}, {"params": model[3:].parameters()}])
    model(x).square().mean().backward()
    optimizer.step()
    treated = convert(model, "GroupNorm+WS")
    assert treated.parameters["0.weight"] == "0.parametrizations.weight.original"
    assert treated.parameters["1.weight"] == "1.weight" and len(treated.parameters) == 12
    carried = treated.carry(optimizer, model)
    now = dict(treated.model.named_parameters())
    for old, parameter in model.named_parameters():
        new = now[treated.parameters[old]]
        assert torch.equal(carried.state[new]["exp_avg"], optimizer.state[parameter]["exp_avg"])
        assert carried.state[new]["exp_avg"] is not optimizer.state[parameter]["exp_avg"]
    assert [group["lr"] for group in carried.param_groups] == [0.1, 0.001]
    assert [len(group["params"]) for group in carried.param_groups] == [4, 8]
    treated.model(x).square().mean().backward()
    carried.step()
    before = dict(model.named_parameters())
    inplace = ns.treat(model, ns.Prescription("remove_bias"), inplace=True)
    assert [name for name, new in inplace.parameters.items() if new is None] == ["0.bias", "3.bias", "6.bias"]
    assert len(inplace.carry(optimizer, before).state) == 9


def test_the_threshold_of_filter_response_normalization_is_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), learned(ns.nn.FilterResponseNorm(6)), nn.Conv2d(6, 2, 1)).eval()
    x = batch()
    treated = convert(model, "GroupNorm", data=x)
    norm = treated.model[1]
    assert torch.equal(norm.tau, model[1].tau) and treated.parameters["1.tau"] == "1.tau" and norm.tau.std() > 0.1
    assert (treated.model[:2](x) >= norm.tau.view(-1, 1, 1)).all()
    assert treated.error < 0.7 and treated.error == pytest.approx(difference(treated.model(x), model(x)), rel=1e-3)
    back = convert(treated.model, "FilterResponseNorm", data=x)
    assert torch.equal(back.model[1].tau, norm.tau) and difference(back.model(x), model(x)) < 0.1
    learned_eps = nn.Sequential(ns.nn.FilterResponseNorm(3, learned_eps=True))
    assert convert(learned_eps, "GroupNorm").skipped[0][1] == "it has parameters of its own: eps_learned"
