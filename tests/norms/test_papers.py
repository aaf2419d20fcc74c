"""Every method against its paper: where its equations are tested, and a property that the paper claims.

The tests that stand beside others of their kind are named in `PAPERS`; what was left is tested here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope.terms.catalog import ENTRIES

F64 = torch.float64
HERE = Path(__file__).parent

# method → the test of its equations, the test of a property
PAPERS = {
    "BatchNorm": ("test_papers::test_batch_norm", "test_papers::test_batch_norm_ignores_the_scale_of_the_weights"),
    "SyncBatchNorm": (
        "test_distributed::test_ranks_equal_one_process", "test_distributed::test_one_process_is_batch_norm"
    ),
    "FrozenBatchNorm": ("test_papers::test_batch_norm", "test_drop_ins::test_frozen_stays_frozen"),
    "GhostBatchNorm": (
        "test_batch::test_ghost_is_batch_norm_of_each_virtual_batch",
        "test_papers::test_a_ghost_of_the_whole_batch_is_batch_norm",
    ),
    "BatchRenorm": (
        "test_batch::test_renorm_follows_algorithm_1", "test_batch::test_renorm_with_bounds_shut_is_batch_norm"
    ),
    "EstimatedBatchNorm": (
        "test_sample::test_batch_channel_norm", "test_batch::test_estimated_statistics_carry_no_gradient"
    ),
    "PopulationBatchNorm": (
        "test_batch::test_population_merges_within_and_between",
        "test_batch::test_population_is_one_pass_in_any_order_and_cut",
    ),
    "OnlineNorm": (
        "test_batch::test_online_follows_its_equations",
        "test_batch::test_online_gradient_is_orthogonal_in_the_long_run",
    ),
    "DecorrelatedBatchNorm": (
        "test_whitening::test_zca_is_the_symmetric_root", "test_whitening::test_output_is_decorrelated"
    ),
    "IterNorm": ("test_whitening::test_iterations_of_newton", "test_whitening::test_output_is_decorrelated"),
    "LayerNorm": (
        "test_papers::test_layer_norm", "test_papers::test_layer_norm_ignores_scale_and_shift_of_the_weights"
    ),
    "LayerNorm2d": (
        "test_drop_ins::test_layer_norm_2d_is_layer_norm_over_channels",
        "test_papers::test_layer_norm_2d_sees_one_position_alone",
    ),
    "GroupNorm": ("test_papers::test_group_norm", "test_papers::test_group_norm_lies_between_layer_and_instance_norm"),
    "InstanceNorm": ("test_papers::test_instance_norm", "test_papers::test_instance_norm_takes_contrast_out"),
    "RMSNorm": ("test_papers::test_rms_norm", "test_papers::test_rms_norm_ignores_scale_and_not_shift"),
    "LlamaRMSNorm": (
        "test_sample::test_llama_gemma_and_t5_conventions", "test_papers::test_conventions_of_rms_norm_start_alike"
    ),
    "GemmaRMSNorm": (
        "test_sample::test_llama_gemma_and_t5_conventions", "test_papers::test_conventions_of_rms_norm_start_alike"
    ),
    "PositionalNorm": ("test_sample::test_positional_norm", "test_papers::test_positional_norm_undone_by_its_shortcut"),
    "FilterResponseNorm": (
        "test_sample::test_filter_response_norm", "test_papers::test_response_norm_of_a_sample_needs_no_other"
    ),
    "BatchChannelNorm": ("test_sample::test_batch_channel_norm", "test_papers::test_batch_channel_norm_trains_on_one"),
    "SwitchableNorm": (
        "test_sample::test_switchable_norm", "test_sample::test_switchable_norm_is_each_of_its_three"
    ),
    "EvoNormB0": ("test_sample::test_evonorm_b0", "test_papers::test_evonorm_b0_ignores_the_scale_of_its_input"),
    "EvoNormS0": ("test_sample::test_evonorm_s0", "test_papers::test_evonorm_s0_is_a_rectifier_of_large_inputs"),
    "LocalResponseNorm": (
        "test_papers::test_local_response_norm", "test_papers::test_local_response_norm_holds_loud_neighbours_down"
    ),
    "DynamicTanh": ("test_sample::test_dynamic_tanh", "test_sample::test_dynamic_tanh"),
    "TemporalBatchNorm": (
        "test_recurrent::test_temporal_batch_norm_is_batch_norm_of_each_step",
        "test_recurrent::test_gain_starts_at_a_tenth",
    ),
    "weight_norm": (
        "test_reparametrize::test_rows_are_what_the_paper_says",
        "test_papers::test_the_gradient_of_a_direction_is_orthogonal_to_it",
    ),
    "centered_weight_norm": (
        "test_reparametrize::test_rows_are_what_the_paper_says",
        "test_reparametrize::test_centred_weights_do_not_see_a_constant_added_to_the_input",
    ),
    "weight_standardization": (
        "test_reparametrize::test_rows_are_what_the_paper_says",
        "test_reparametrize::test_group_norm_after_standardized_weights_ignores_their_scale",
    ),
    "spectral_norm": ("test_papers::test_spectral_norm", "test_reparametrize::test_rows_are_what_the_paper_says"),
    "cosine": (
        "test_reparametrize::test_cosine_linear",
        "test_reparametrize::test_cosine_weights_bound_the_output_by_the_input",
    ),
    **{
        f"{kind} {norm}": (
            "test_recurrent::test_follows_the_papers", "test_recurrent::test_the_scale_of_the_weights_does_not_matter"
        )
        for kind in ("LSTM", "GRU", "RNN")
        for norm in ("batch", "layer", "rms")
    },
    "LSTM weight": (
        "test_recurrent::test_weight_norm_is_torchs_lstm_with_normalized_weights",
        "test_papers::test_the_gradient_of_a_direction_is_orthogonal_to_it",
    ),
    "xavier": ("test_initialize::test_variances", "test_initialize::test_fans_of_grouped_convolutions"),
    "he": ("test_initialize::test_variances", "test_initialize::test_he_keeps_the_signal_of_a_deep_relu_network"),
    "orthogonal": ("test_initialize::test_orthogonal", "test_initialize::test_orthogonal"),
    "lsuv": (
        "test_papers::test_lsuv", "test_initialize::test_lsuv_gives_every_layer_variance_one"
    ),
    "data_dependent": (
        "test_papers::test_data_dependent_start", "test_initialize::test_data_dependent_standardizes_every_unit"
    ),
    "fixup": (
        "test_initialize::test_fixup_starts_as_the_identity_and_scales_by_depth",
        "test_initialize::test_fixup_starts_as_the_identity_and_scales_by_depth",
    ),
}  # fmt: skip


def test_every_method_has_its_papers_tests():
    starts = set(ns.nn.init.__all__) - {"gain_of"}
    assert set(PAPERS) >= {entry.name for entry in ENTRIES} | starts
    written = {
        f"{path.stem}::{name}"
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert {test for pair in PAPERS.values() for test in pair} <= written


def batch(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * 2 + 1


def test_batch_norm():
    """Ioffe & Szegedy 2015, algorithms 1 and 2: inference by the means of μ and of m/(m − 1) σ² over the batches."""
    layer = ns.nn.BatchNorm1d(3, eps=1e-3, momentum=None, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(batch(3)), layer.bias.copy_(batch(3, seed=1))
    gamma, beta = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    means, variances = [], []
    for seed in range(4):
        x = batch(6, 3, seed=seed).numpy()
        m = len(x)
        mu = sum(x) / m
        var = sum((x - mu) ** 2) / m
        np.testing.assert_allclose(
            layer(torch.from_numpy(x)).detach().numpy(), gamma * (x - mu) / np.sqrt(var + 1e-3) + beta
        )
        means.append(mu), variances.append(m / (m - 1) * var)
    mean, var = np.mean(means, 0), np.mean(variances, 0)
    slope = gamma / np.sqrt(var + 1e-3)
    wanted = slope * x + (beta - slope * mean)  # algorithm 2, line 11
    np.testing.assert_allclose(layer.eval()(torch.from_numpy(x)).detach().numpy(), wanted)
    frozen = ns.nn.FrozenBatchNorm(3, eps=1e-3, dtype=F64)
    frozen.load_state_dict(layer.state_dict())
    np.testing.assert_allclose(frozen(torch.from_numpy(x)).numpy(), wanted)


def test_batch_norm_ignores_the_scale_of_the_weights():
    """Section 3.3: BN((aW)u) = BN(Wu), the same gradient for u, and 1/a of it for aW."""
    layer, u = ns.nn.BatchNorm1d(3, eps=0.0, dtype=F64), batch(6, 4).requires_grad_()
    found = []
    for a in (1.0, 7.0):
        w = (a * batch(4, 3, seed=1)).requires_grad_()
        y = layer(u @ w)
        found.append([y.detach(), *torch.autograd.grad(y, (u, w), batch(6, 3, seed=2))])
    torch.testing.assert_close(found[1], [found[0][0], found[0][1], found[0][2] / 7])


def test_a_ghost_of_the_whole_batch_is_batch_norm():
    """Hoffer et al. 2017, algorithm 1, with |B_S| = |B_L|."""
    ghost, plain, x = ns.nn.GhostBatchNorm(3, 6, dtype=F64), ns.nn.BatchNorm1d(3, dtype=F64), batch(6, 3, 4)
    torch.testing.assert_close(ghost(x), plain(x))
    torch.testing.assert_close(ghost.state_dict(), plain.state_dict())


def test_layer_norm():
    """Ba et al. 2016, equation 3, with gain and bias as in equation 4."""
    layer, a = ns.nn.LayerNorm(5, eps=0.0, dtype=F64), batch(4, 5)
    with torch.no_grad():
        layer.weight.copy_(batch(5, seed=1)), layer.bias.copy_(batch(5, seed=2))
    for row, y in zip(a, layer(a), strict=True):
        mu = sum(row) / 5
        sigma = (sum((one - mu) ** 2 for one in row) / 5) ** 0.5
        torch.testing.assert_close(y, layer.weight / sigma * (row - mu) + layer.bias)


def test_layer_norm_ignores_scale_and_shift_of_the_weights():
    """Section 5.1 and table 1: of the whole weight matrix, though not of one of its rows; and of a single case."""
    layer, x, w = ns.nn.LayerNorm(5, eps=0.0, dtype=F64), batch(4, 3), batch(3, 5, seed=1)
    y = layer(x @ w)
    torch.testing.assert_close(layer(x @ (3 * w + batch(3, 1, seed=2))), y)
    torch.testing.assert_close(layer((x * batch(4, 1, seed=3).abs()) @ w), y)


def test_layer_norm_2d_sees_one_position_alone():
    layer, x = ns.nn.LayerNorm2d(5, dtype=F64), batch(2, 5, 3, 4)
    other = batch(2, 5, 3, 4, seed=1)
    other[1, :, 2, 1] = x[1, :, 2, 1]
    torch.testing.assert_close(layer(other)[1, :, 2, 1], layer(x)[1, :, 2, 1])


def test_group_norm():
    """Wu & He 2018, equations 1 to 3 and 7: S_i = {k | k_N = i_N, ⌊k_C / (C/G)⌋ = ⌊i_C / (C/G)⌋}."""
    layer, x = ns.nn.GroupNorm(3, 6, dtype=F64), batch(2, 6, 4).numpy()
    y = layer(torch.from_numpy(x)).detach().numpy()
    for n, c, s in np.ndindex(*x.shape):
        cells = [x[n, k, j] for k in range(6) for j in range(4) if k // (6 // 3) == c // (6 // 3)]
        mu = np.mean(cells)
        assert y[n, c, s] == pytest.approx((x[n, c, s] - mu) / np.sqrt(np.mean((cells - mu) ** 2) + 1e-5))


def test_group_norm_lies_between_layer_and_instance_norm():
    """Section 3.1: G = 1 is layer norm (over C, H, W), G = C is instance norm."""
    x = batch(2, 6, 3, 4)
    one, six = (ns.nn.GroupNorm(groups, 6, affine=False, dtype=F64) for groups in (1, 6))
    torch.testing.assert_close(one(x), ns.nn.LayerNorm((6, 3, 4), elementwise_affine=False, dtype=F64)(x))
    torch.testing.assert_close(six(x), ns.nn.InstanceNorm2d(6, dtype=F64)(x))


def test_instance_norm():
    """Ulyanov et al. 2016: μ and σ² of each image's channel, over its pixels."""
    layer, x = ns.nn.InstanceNorm2d(3, dtype=F64), batch(2, 3, 4, 5)
    for image, y in zip(x.flatten(2), layer(x).flatten(2), strict=True):
        for channel, found in zip(image, y, strict=True):
            mu = sum(channel) / 20
            torch.testing.assert_close(found, (channel - mu) / (sum((channel - mu) ** 2) / 20 + 1e-5).sqrt())


def test_instance_norm_takes_contrast_out():
    layer, x = ns.nn.InstanceNorm2d(3, eps=0.0, dtype=F64), batch(2, 3, 4, 5)
    contrast, light = batch(2, 3, 1, 1, seed=1).abs(), batch(2, 3, 1, 1, seed=2)
    torch.testing.assert_close(layer(contrast * x + light), layer(x))


def test_rms_norm():
    """Zhang & Sennrich 2019, equation 4."""
    layer, a = ns.nn.RMSNorm(5, eps=0.0, dtype=F64), batch(4, 5)
    with torch.no_grad():
        layer.weight.copy_(batch(5, seed=1))
    for row, y in zip(a, layer(a), strict=True):
        torch.testing.assert_close(y, row / (sum(one**2 for one in row) / 5) ** 0.5 * layer.weight)


def test_rms_norm_ignores_scale_and_not_shift():
    """Section 4 and table 1: invariant to re-scaling of weights and inputs, not to re-centring."""
    layer, a = ns.nn.RMSNorm(5, eps=0.0, dtype=F64), batch(4, 5)
    torch.testing.assert_close(layer(a * batch(4, 1, seed=1).abs()), layer(a))
    assert (layer(a + 1) - layer(a)).abs().max() > 0.1


def test_conventions_of_rms_norm_start_alike():
    """Gemma's weight starts at 0 and is added to 1; all three start as the plain norm."""
    x = batch(4, 5)
    plain, llama, gemma = (
        ns.nn.build(ns.catalog[name].but(eps=1e-6), 5, dtype=F64)
        for name in ("RMSNorm", "LlamaRMSNorm", "GemmaRMSNorm")
    )
    assert not gemma.weight.any() and (llama.weight == 1).all()
    torch.testing.assert_close(llama(x), plain(x))
    torch.testing.assert_close(gemma(x), plain(x))


def test_positional_norm_undone_by_its_shortcut():
    """Li et al. 2019, section 4: what was taken out is put back late, scale for σ and shift for μ."""
    layer, x = ns.nn.PositionalNorm(6, eps=0.0, dtype=F64), batch(2, 6, 3, 4)
    mean, deviation = layer.moments(x)
    torch.testing.assert_close(layer(x).std(1, unbiased=False), torch.ones(2, 3, 4, dtype=F64))
    torch.testing.assert_close(layer(x) * deviation + mean, x)


def test_response_norm_of_a_sample_needs_no_other():
    """Singh & Krishnan 2020, section 3: no dependence on other samples, nor on other channels."""
    layer, x, other = ns.nn.FilterResponseNorm(6, dtype=F64), batch(2, 6, 3, 4), batch(2, 6, 3, 4, seed=1)
    other[1, 2] = x[1, 2]
    torch.testing.assert_close(layer(other)[1, 2], layer(x)[1, 2])


def test_batch_channel_norm_trains_on_one():
    """Qiao et al. 2019: the estimates need no batch, and each group's statistics are those of the sample."""
    layer, x = ns.nn.BatchChannelNorm(6, 3, eps=0.0, dtype=F64), batch(1, 6, 4, 4)
    y = layer(x).view(3, -1)
    torch.testing.assert_close(y.mean(1), torch.zeros(3, dtype=F64))
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(3, dtype=F64))


def test_evonorm_b0_ignores_the_scale_of_its_input():
    layer, x = ns.nn.EvoNormB0(6, eps=0.0, dtype=F64), batch(4, 6, 3, 4)
    torch.testing.assert_close(layer(5 * x), layer(x))


def test_evonorm_s0_is_a_rectifier_of_large_inputs():
    """x · sigmoid(v·x) is max(x, 0) far from zero: a rectifier divided by the groups' deviation."""
    layer, x = ns.nn.EvoNormS0(6, 2, dtype=F64), batch(4, 6, 3, 4) * 1e6
    deviation = x.view(4, 2, -1).std(-1, unbiased=False).repeat_interleave(3, 1)[..., None, None]
    torch.testing.assert_close(layer(x), x.relu() / deviation, rtol=1e-5, atol=1e-5)


def test_local_response_norm():
    """Krizhevsky et al. 2012, section 3.3: b = a / (k + α Σ a²)^β over n neighbours; torch's α is n times it."""
    k, n, alpha, beta = 2.0, 5, 1e-1, 0.75
    a = batch(2, 7, 3)
    y = ns.nn.LocalResponseNorm(n, alpha * n, beta, k)(a)
    for i in range(7):
        near = a[:, max(0, i - n // 2) : min(6, i + n // 2) + 1]
        torch.testing.assert_close(y[:, i], a[:, i] / (k + alpha * near.square().sum(1)) ** beta)


def test_local_response_norm_holds_loud_neighbours_down():
    """Lateral inhibition: a channel next to a loud one gives less."""
    layer, a = ns.nn.LocalResponseNorm(3, 1.0), torch.ones(1, 5, 1, dtype=F64)
    loud = a.clone()
    loud[0, 1] = 100
    assert layer(loud)[0, 2] < 0.1 * layer(a)[0, 2] and layer(loud)[0, 4] == layer(a)[0, 4]


def test_the_gradient_of_a_direction_is_orthogonal_to_it():
    """Salimans & Kingma 2016, equations 3 and 4: ∇_v L = g/‖v‖ (I − ww′/‖w‖²) ∇_w L, and ∇_g L = ∇_w L · v/‖v‖."""
    layer, x = ns.nn.weight_norm(nn.Linear(4, 3, bias=False, dtype=F64)), batch(6, 4)
    g, v = layer.parametrizations.weight.parameters()
    with torch.no_grad():
        g.mul_(3)
    upstream = batch(6, 3, seed=1)
    layer(x).backward(upstream)
    of_w, length = upstream.T @ x, v.norm(dim=1, keepdim=True)
    unit = v / length
    torch.testing.assert_close(g.grad, (of_w * unit).sum(1, keepdim=True))
    torch.testing.assert_close(v.grad, g / length * (of_w - (of_w * unit).sum(1, keepdim=True) * unit))
    torch.testing.assert_close((v.grad * v).sum(1), torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)


def test_spectral_norm():
    """Miyato et al. 2018, algorithm 1: v ← W′u/‖W′u‖, u ← Wv/‖Wv‖, W/(u′Wv); torch, and ours, begins with u."""
    layer = ns.nn.spectral_norm(nn.Linear(4, 3, bias=False, dtype=F64))
    w, part = layer.parametrizations.weight.original.detach(), layer.parametrizations.weight[0]
    part._v.copy_(nn.functional.normalize(batch(4), dim=0))
    v = part._v.clone()
    u = w @ v / (w @ v).norm()
    v = w.T @ u / (w.T @ u).norm()
    torch.testing.assert_close(layer.weight, w / (u @ w @ v))
    torch.testing.assert_close((part._u, part._v), (u, v))


def test_lsuv():
    """Mishkin & Matas 2016, algorithm 1: orthonormal rows, divided by the deviation of the layer's whole output."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4, dtype=F64), batch(64, 6)
    ns.nn.init.lsuv(layer, x)
    gram = layer.weight @ layer.weight.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(4, dtype=F64))
    assert layer(x).var(unbiased=False).item() == pytest.approx(1, abs=0.01)


def test_data_dependent_start():
    """Salimans & Kingma 2016, equations 5 and 6: g ← 1/σ[t] and b ← −μ[t]/σ[t] of t = v·x/‖v‖."""
    torch.manual_seed(0)
    layer, x = ns.nn.weight_norm(nn.Linear(6, 4, dtype=F64)), batch(64, 6)
    with torch.no_grad():
        layer.bias.zero_()
    v = layer.parametrizations.weight.original1.detach().clone()
    t = x @ (v / v.norm(dim=1, keepdim=True)).T
    ns.nn.init.data_dependent(layer, x)
    mean, deviation = t.mean(0), t.std(0, unbiased=False)
    torch.testing.assert_close(layer.parametrizations.weight.original0.flatten(), 1 / deviation)
    torch.testing.assert_close(layer.bias, -mean / deviation)
