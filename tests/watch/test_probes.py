"""Each measure of the fixed batch on a case solved by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.diagnose.case import Case
from normscope.stats.summary import Summary
from normscope.terms.activations import activation_named
from normscope.watch.attention import attention_weights
from normscope.watch.probes.affine import collapsed, dominance
from normscope.watch.probes.batch_noise import batch_of, compared
from normscope.watch.probes.effective_rank import effective_rank
from normscope.watch.probes.entropy import entropy
from normscope.watch.probes.gradient_flow import gain
from normscope.watch.probes.running_stat_error import RunningStatError
from normscope.watch.probes.saturated_units import saturated_shares
from normscope.watch.probes.scale_invariance import radial
from normscope.watch.session import watch


def probed(model, x, path, *, steps=1, loss=lambda y, _: y.square().mean(), rate=0.0, **settings):
    """The record of a training on one batch, the fixed batch at every tenth step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    settings = {"every": 10, "probe": (x, None), "loss_fn": loss, **settings}
    with watch(model, optimizer, path, **settings) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(x), None).backward()
            optimizer.step()
    return watcher.record


# Effective rank: tr(M)² / ‖M‖².


def test_the_rank_of_samples_on_one_line_is_one_and_of_orthogonal_ones_their_number():
    line = torch.arange(1.0, 9.0)[:, None] * torch.tensor([[1.0, -2.0, 3.0]])
    assert effective_rank(line) == pytest.approx(1.0, rel=1e-6)
    assert effective_rank(5e18 * torch.eye(4)) == effective_rank(torch.eye(6)[:4]) == pytest.approx(4.0)
    assert effective_rank(torch.diag(torch.tensor([2.0, 1.0]))) == pytest.approx(25 / 17)  # M ∝ diag(4, 1)
    assert effective_rank(torch.zeros(3, 3)) is None and effective_rank(torch.ones(1, 3)) is None
    assert effective_rank(torch.tensor([[1.0, math.nan], [1.0, 1.0]])) is None


def test_the_rank_falls_along_a_deep_linear_network_and_batch_norm_keeps_it(tmp_path):
    def deep(norm):
        layers = []
        for _ in range(30):
            layers += [nn.Linear(16, 16, bias=False), *([nn.BatchNorm1d(16)] if norm else [])]
        return nn.Sequential(*layers)

    ranks = {}
    for norm in (False, True):
        torch.manual_seed(0)
        model = deep(norm)
        for layer in model[:: 2 if norm else 1]:
            nn.init.normal_(layer.weight, std=0.25)
        record = probed(model, torch.randn(64, 16), tmp_path / str(norm), probes=("effective_rank",))
        ranks[norm] = record.series(str(len(model) - 1), "effective_rank").values[0]
    assert ranks[False] < 1.6 and ranks[True] > 2 * ranks[False]  # Daneshmand et al. 2020, figure 1


# Entropy.


def test_the_entropy_of_even_rows_is_one_and_of_rows_on_one_place_zero():
    assert entropy(torch.full((3, 8), 1 / 8)) == pytest.approx(1.0)
    assert entropy(F.one_hot(torch.tensor([0, 3, 1]), 4).float()) == 0.0
    assert entropy(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25] * 4])) == pytest.approx(0.75)
    assert entropy(torch.tensor([[0.5, 0.5], [math.nan, math.nan]])) == pytest.approx(1.0)
    assert entropy(torch.ones(4, 1)) is None


# Saturated units.


def test_a_unit_is_saturated_when_most_of_its_pre_activations_are_in_the_flat(tmp_path):
    x = torch.tensor([[0.0, 9.0, -9.0, 9.0], [0.0, 9.0, -9.0, 0.0], [9.0, 9.0, 0.0, 0.0]])
    shares = {
        "sigmoid": [1 / 3, 1, 2 / 3, 1 / 3],
        "tanh": [1 / 3, 1, 2 / 3, 1 / 3],
        "hardtanh": [1 / 3, 1, 2 / 3, 1 / 3],
        "relu": [2 / 3, 0, 1, 2 / 3],
        "relu6": [1, 1, 1, 1],
        "gelu": [0, 0, 2 / 3, 0],
        "silu": [0, 0, 2 / 3, 0],
        "hardswish": [0, 0, 2 / 3, 0],
    }
    for name, expected in shares.items():
        assert saturated_shares(x, activation_named(name)).tolist() == pytest.approx(expected), name
    assert saturated_shares(x, activation_named("leaky_relu")) is None
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Tanh())
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(4)), model[1].bias.zero_()
    record = probed(model, x, tmp_path, probes=("saturated_units",))
    assert record.series("2", "saturated_units").values.tolist() == [0.5]


# γ and β.


def test_collapsed_and_dominating_channels():
    assert collapsed(torch.tensor([1.0, 1.0, 1e-4, 0.0])) == 0.5
    assert collapsed(torch.zeros(4)) == 1.0 and collapsed(torch.full((3,), 1e-9)) == 0.0
    assert dominance(torch.full((8,), -0.3)) == pytest.approx(1.0)
    assert dominance(torch.tensor([2.0, 0.0, 0.0, 0.0])) == 4.0 and dominance(torch.zeros(2)) == 1.0


def test_the_drift_of_scale_and_offset_is_in_units_of_the_first_scale(tmp_path):
    model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, tmp_path, every=10, probes=("affine",)) as watcher:
        for _ in range(11):
            model(torch.randn(4, 2)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model[0].weight.copy_(torch.tensor([3.0, 0.0]))
                model[0].bias.copy_(torch.tensor([5.0, 0.0]))
    record = watcher.record
    assert record.series("0", "scale_drift").values == pytest.approx([0.0, 4 / 5])
    assert record.series("0", "offset_drift").values == pytest.approx([0.0, 1.0])
    assert record.series("0", "collapsed_channels").values.tolist() == [0.0, 0.5]
    assert record.series("0", "dominance").values == pytest.approx([16 / 12.5, 2.0])


# Flow.


def test_the_gains_of_a_linear_chain_are_its_factors(tmp_path):
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    for factor, layer in zip((1.0, 0.5, 3.0), model):
        nn.init.eye_(layer.weight).data.mul_(factor)
    record = probed(model, torch.randn(8, 4), tmp_path, probes=("gradient_flow", "gradient"))
    gains = [record.series(f"{place}:output", "activation_gain").values.tolist() for place in "12"]
    assert gains == [pytest.approx([0.5]), pytest.approx([3.0])]
    back = [record.series(f"{place}:gradient", "gradient_gain").values.tolist() for place in "01"]
    assert back == [pytest.approx([0.5]), pytest.approx([3.0])]  # dL/dh_l = w_{l+1} dL/dh_{l+1}
    nothing = Summary.of(torch.zeros(3))
    assert gain(None, nothing) is gain(nothing, nothing) is None and gain(nothing, Summary.of(torch.ones(2))) == 0


# Scale invariance.


def test_a_weight_before_a_norm_stands_upright_on_its_gradient(tmp_path):
    assert radial(torch.tensor([[3.0, 4.0]]), torch.tensor([[-4.0, 3.0]])) == 0.0
    assert radial(torch.tensor([[3.0, 4.0]]), torch.tensor([[-6.0, -8.0]])) == pytest.approx(1.0)
    assert radial(torch.zeros(1, 2), torch.ones(1, 2)) is None
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, eps=1e-12), nn.ReLU(), nn.Linear(16, 1))
    record = probed(model, torch.randn(64, 8), tmp_path)
    before, after = (record.series(f"{place}@weight:parameter", "radial_gradient").values[0] for place in (0, 3))
    assert before < 1e-5 and after > 1e-2


# Running statistics.


def test_the_error_of_running_statistics_in_nats(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 1))
    model[0].running_mean.copy_(torch.tensor([1.0, 0.0])), model[0].running_var.copy_(torch.tensor([1.0, 4.0]))
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # μ = 0, σ = 1 in both channels
    record = probed(model, x, tmp_path, probes=("running_stat_error",))
    # KL(N(0,1) ‖ N(m,s²)) + KL back: one deviation aside gives 1/2 + 1/2; twice the deviation (1/4 + 4 − 2) / 2
    assert record.series("0", "running_stat_kl").values == pytest.approx([(1.0 + 1.125) / 2])
    assert record.series("0", "running_stat_error").values == pytest.approx([1.0])
    assert RunningStatError.__doc__ and not RunningStatError.on_request


# Batch noise.


def test_noise_and_excess_of_two_batches_by_hand():
    def batch(*values):
        return batch_of(torch.tensor(values, dtype=torch.float64)[:, None], 1)

    noise, excess = compared(batch(1.0, 3.0), batch(-1.0, 1.0))
    # Means 2 and 0; s² = 2, so chance alone sets them √2·√(1/2 + 1/2) apart; the cells vary by 1, half of 2² is ours.
    assert excess == pytest.approx(4 / 2) and noise == pytest.approx(math.sqrt(2))
    assert compared(batch(1.0, 3.0), batch(1.0, 3.0)) == (0.0, 0.0)
    assert compared(batch(1.0, 1.0), batch(1.0, 1.0)) == (None, None)
    assert batch_of(torch.ones(1, 3), 1) is None and batch_of(torch.ones(3, 2), None) is None
    maps = batch_of(torch.arange(12.0).reshape(2, 2, 3), 1)  # two samples, two channels, three positions
    assert maps.samples.tolist() == [[1.0, 4.0], [7.0, 10.0]] and maps.mean.tolist() == [4.0, 7.0]
    assert maps.variance.tolist() == pytest.approx([(9 * 2 + 2 / 3 * 2) / 2] * 2)


@pytest.mark.parametrize("shape", [(16,), (16, 5, 5)], ids=["vectors", "maps"])
def test_independent_batches_show_no_excess_and_sorted_ones_do(shape, tmp_path):
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
    excess, noise = {}, {}
    for sort in (False, True):
        model = nn.Sequential(kind(16), nn.Flatten(), nn.Linear(math.prod(shape), 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with watch(model, optimizer, tmp_path / f"{sort}", every=10, live=False, probes=("batch_noise",)) as watcher:
            for step in range(201):
                sample = torch.randn(32, *([16] + [1] * (len(shape) - 1))).expand(32, *shape)  # alike at all positions
                model(sample + (step // 10 % 2) * sort).sum().backward()
                optimizer.step()
        excess[sort], noise[sort] = (
            watcher.record.series("0", f"batch_stat_{what}").values for what in ("excess", "noise")
        )
    assert len(excess[False]) == 20 and excess[False].mean() == pytest.approx(1.0, abs=0.3)
    assert noise[False].mean() == pytest.approx(1 / math.sqrt(32), rel=0.25)
    assert excess[True].mean() > 5


# Attention.


def test_the_weights_of_attention_are_those_that_torch_uses():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.eye(7).expand(2, 2, 7, 7)
    boolean, added = torch.rand(2, 1, 5, 7) > 0.3, torch.randn(5, 7)
    for settings in ({}, {"attn_mask": boolean}, {"attn_mask": added, "scale": 0.7}, {"is_causal": True}):
        told = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **settings)  # the values are one-hot
        assert torch.allclose(attention_weights(q, k, v, enable_gqa=True, **settings), told, atol=1e-6)


class Attention(nn.Module):
    """Attention of a sequence to itself, written in one of four ways; `sharp` makes it look at one place."""

    def __init__(self, how, sharp):
        super().__init__()
        self.how, self.sharp = how, sharp
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        with torch.no_grad():
            self.attend.in_proj_weight.copy_(torch.eye(4).repeat(3, 1) * sharp)
            self.attend.in_proj_bias.zero_()

    def forward(self, x):
        if self.how == "module":
            return self.attend(x, x, x, need_weights=False)[0]
        heads = (F.linear(x, self.attend.in_proj_weight[:4]).unflatten(-1, (2, 2)).transpose(1, 2),) * 2
        if self.how == "function":
            mixed = F.scaled_dot_product_attention(*heads, heads[0])
        else:
            mixed = (heads[0] @ heads[1].mT / math.sqrt(2)).softmax(-1) @ heads[0]
        return self.attend.out_proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("sharp", [0.0, 1.0, 100.0])
def test_the_entropy_of_attention_however_it_is_written(sharp, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4)
    head = (sharp * x).unflatten(-1, (2, 2)).transpose(1, 2)
    truth = entropy((head @ head.mT / math.sqrt(2)).softmax(-1))
    for how, place in (("module", "attend"), ("function", "/scaled_dot_product_attention"), ("formula", "/softmax")):
        record = probed(Attention(how, sharp), x, tmp_path / how, probes=("entropy",))
        assert record.series(place, "entropy").values == pytest.approx([truth], abs=1e-5), how
    assert (truth == pytest.approx(1.0)) if sharp == 0 else truth < (1.0 if sharp == 1 else 0.05)


def test_the_record_knows_the_batch_size_and_the_batches_that_a_norm_refused(tmp_path):
    model = nn.Sequential(ns.nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, tmp_path, every=10, probe=torch.randn(6, 2), probes=("skipped_batches",)) as watcher:
        for step in range(21):
            batch = torch.randn(4 if step == 0 else 3, 2)
            model(batch * float("inf") if step in (3, 12, 13) else batch).sum().backward()
            optimizer.step()
    record = watcher.record
    assert record.meta["batch_size"] == 4
    assert record.series("0", "num_batches_skipped").values.tolist() == [0, 1, 3]


def test_a_scale_is_the_weight_and_the_offset_that_its_description_adds(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), ns.nn.build("GemmaRMSNorm", 8), nn.Linear(8, 1))
    assert torch.equal(model[1].weight, torch.zeros(8)), "the scale is 1 + weight"
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.0), tmp_path, probes=("affine",)) as watcher:
        model(torch.randn(4, 4)).sum().backward()
        watcher.optimizer.step()
    assert watcher.record.series("1", "collapsed_channels").values.tolist() == [0.0]
    assert watcher.record.series("1", "dominance").values == pytest.approx([1.0])


def test_tied_weights_are_one_parameter_with_the_paths_of_all_that_share_them(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path, every=1) as watcher:
        model(torch.randn(4, 4)).sum().backward()
        watcher.optimizer.step()
    case = Case(watcher.record)
    (tied,) = case.parameters("2")
    assert (tied.path, tied.name, tied.aliases) == ("0", "weight", ("2",))
    assert case.moves(tied).values[0] > 0
