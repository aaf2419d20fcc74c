"""Where batch statistics come from: each source against its paper's equations, written out here."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import normscope as ns

F64 = torch.float64


def batches(count=4, shape=(6, 3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64) * (1 + i) + i for i in range(count)]


def built(name, channels=3, **fields):
    return ns.nn.build(ns.catalog[name].but(**fields), channels, dtype=F64)


def z(x, mean, var, eps=1e-5):
    return (x - mean[:, None]) / (var[:, None] + eps).sqrt()


def test_population_merges_within_and_between():
    layer = built("PopulationBatchNorm")
    parts = batches()
    for part in parts:
        layer(part)
    whole = torch.cat(parts).movedim(1, 0).flatten(1)
    torch.testing.assert_close(layer.running_mean, whole.mean(1))
    torch.testing.assert_close(layer.running_var, whole.var(1, unbiased=False))
    torch.testing.assert_close(layer.eval()(parts[0]), z(parts[0], whole.mean(1), whole.var(1, unbiased=False)))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_population_is_one_pass_in_any_order_and_cut(sizes, random):
    parts = list(torch.randn(sum(sizes), 3, 2, dtype=F64).split(sizes))
    random.shuffle(parts)
    layer = built("PopulationBatchNorm")
    for part in parts:
        layer(part)
    whole = torch.cat(parts).movedim(1, 0).flatten(1)
    torch.testing.assert_close(layer.running_mean, whole.mean(1))
    torch.testing.assert_close(layer.running_var, whole.var(1, unbiased=False))
    assert layer.population_size == whole.shape[1]


def test_population_variance_is_not_a_difference_of_squares():
    layer = ns.nn.build(ns.catalog["PopulationBatchNorm"], 1)
    parts = [torch.randn(64, 1) * 0.01 + 30 for _ in range(50)]
    for part in parts:
        layer(part)
    torch.testing.assert_close(layer.running_var[0], torch.cat(parts).double().var().float(), rtol=0.01, atol=0)


def test_accumulated_micro_batches_are_one_batch():
    whole = batches(3, (8, 3, 4))
    one = ns.nn.BatchNorm1d(3, dtype=F64)
    many = built("BatchNorm", accumulate=4)
    for batch in whole:
        one(batch)
        for part in batch.split([1, 3, 2, 2]):
            many(part)
    torch.testing.assert_close(many.state_dict(), one.state_dict())
    before = copy.deepcopy(many.state_dict())
    many(whole[0][:2])
    assert torch.equal(many.running_mean, before["running_mean"])  # not before the window is full


@pytest.mark.parametrize("virtual", [2, 4, 5, 64])
def test_ghost_is_batch_norm_of_each_virtual_batch(virtual):
    layer = ns.nn.GhostBatchNorm(3, virtual, dtype=F64)
    x = batches(1, (9, 3, 4))[0]
    mean, var = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    wanted = []
    for part in x.split(virtual):
        flat = part.movedim(1, 0).flatten(1)
        wanted.append(z(part, flat.mean(1), flat.var(1, unbiased=False)))
        mean = 0.9 * mean + 0.1 * flat.mean(1)
        var = 0.9 * var + 0.1 * flat.var(1)
    torch.testing.assert_close(layer(x), torch.cat(wanted))
    torch.testing.assert_close((layer.running_mean, layer.running_var), (mean, var))
    torch.testing.assert_close(layer.eval()(x[:1]), z(x[:1], mean, var))


def test_renorm_follows_algorithm_1():
    layer = ns.nn.BatchRenorm(3, r_max=(3.0, 1, 5), d_max=(2.0, 0, 4), momentum=0.1, dtype=F64)
    mean, var = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    for step, x in enumerate(batches(8)):
        x = x.requires_grad_()
        flat = x.movedim(1, 0).flatten(1)
        sigma_b = (flat.var(1, unbiased=False) + 1e-3).sqrt()
        sigma = (var + 1e-3).sqrt()
        r_max = 1 + 2 * min(max((step - 1) / 4, 0), 1)
        d_max = 2 * min(step / 4, 1)
        r = (sigma_b / sigma).detach().clamp(1 / r_max, r_max)
        d = ((flat.mean(1) - mean) / sigma).detach().clamp(-d_max, d_max)
        wanted = (x - flat.mean(1)[:, None]) / sigma_b[:, None] * r[:, None] + d[:, None]
        y = layer(x)
        torch.testing.assert_close(y, wanted)
        upstream = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, upstream), torch.autograd.grad(wanted, x, upstream))
        mean = (mean + 0.1 * (flat.mean(1) - mean)).detach()
        sigma = (sigma + 0.1 * (sigma_b - sigma)).detach()  # the paper averages σ, ε within
        var = sigma**2 - 1e-3
        torch.testing.assert_close((layer.running_mean, layer.running_var), (mean, var))


def test_renorm_with_bounds_shut_is_batch_norm():
    renorm, plain = ns.nn.BatchRenorm(3, dtype=F64), ns.nn.BatchNorm1d(3, eps=1e-3, dtype=F64)
    for x in batches(3):
        torch.testing.assert_close(renorm(x), plain(x))


def test_renorm_bounds_stop_growing_and_one_sample_stays_finite():
    layer = ns.nn.BatchRenorm(3, r_max=(3.0, 0, 2), d_max=(5.0, 0, 2), dtype=F64)
    layer.num_batches_tracked.fill_(1_000_000)
    loud = torch.randn(4, 3, 5, dtype=F64) * 1000
    assert (layer(loud).std((0, 2)) < 3 * 1.05).all()
    quiet = torch.randn(1, 3, 5, dtype=F64)
    layer(quiet)
    assert layer.running_var.isfinite().all()
    with pytest.raises(ns.NormscopeError, match="both bounds grow"):
        ns.nn.BatchRenorm(3, r_max=(0.5, 0, 1))


def chiley(x, grad, mean, var, e_y, e_1, af, ab, eps):
    """The forward and backward process of Chiley et al. 2019, sample by sample."""
    ys, grads = [], []
    scales = []
    for sample in x:
        sigma = (var + eps).sqrt()
        ys.append((sample - mean[:, None]) / sigma[:, None])
        scales.append(sigma)
        own, spread = sample.mean(1), sample.var(1, unbiased=False)
        var = af * var + (1 - af) * spread + af * (1 - af) * (own - mean) ** 2
        mean = af * mean + (1 - af) * own
    for y, g, sigma in zip(ys, grad, scales):
        g = g - (1 - ab) * e_y[:, None] * y
        e_y = e_y + (g * y).mean(1)
        g = g / sigma[:, None] - (1 - ab) * e_1[:, None]
        e_1 = e_1 + g.mean(1)
        grads.append(g)
    return torch.stack(ys), torch.stack(grads), mean, var, e_y, e_1


def test_online_follows_its_equations():
    layer = ns.nn.OnlineNorm(3, decay_forward=0.9, decay_backward=0.8, layer_scaling=False, dtype=F64)
    state = [torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)]
    for x in batches(3):
        upstream = torch.randn_like(x)
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(upstream)
        wanted, grad, *state = chiley(x, upstream, *state, 0.9, 0.8, 1e-5)
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(leaf.grad, grad)
        kept = (layer.running_mean, layer.running_var, layer.control_output, layer.control_ones)
        torch.testing.assert_close(kept, tuple(state))
    torch.testing.assert_close(layer.eval()(x), z(x, state[0], state[1]))


def test_online_gradient_is_orthogonal_in_the_long_run():
    torch.manual_seed(0)
    layer = ns.nn.OnlineNorm(1, decay_forward=0.99, decay_backward=0.9, layer_scaling=False, dtype=F64)
    controlled, plain = [], []
    for _ in range(60):
        x = torch.randn(16, 1, 8, dtype=F64, requires_grad=True)
        y = layer(x)
        upstream = 1 + 0.5 * y.detach() + torch.randn_like(y)  # neither orthogonal to 1 nor to y
        y.backward(upstream)
        controlled.append([x.grad.mean(), (x.grad * y.detach()).mean()])
        plain.append([upstream.mean(), (upstream * y.detach()).mean()])
    means = torch.tensor(controlled)[20:].mean(0).abs(), torch.tensor(plain)[20:].mean(0).abs()
    assert (means[0] < 0.05 * means[1]).all(), means


def test_online_layer_scaling_bounds_each_sample():
    layer = ns.nn.OnlineNorm(3, dtype=F64)
    y = layer(batches(1)[0] * 1e6)
    torch.testing.assert_close(y.square().mean((1, 2)), torch.ones(6, dtype=F64))


@pytest.mark.parametrize("name", ["BatchNorm", "PopulationBatchNorm", "OnlineNorm", "EstimatedBatchNorm"])
def test_a_batch_with_infinities_is_skipped_and_counted(name):
    layer = built(name)
    clean, sick = batches(2)
    sick[0, 1, 2] = float("inf")
    layer(clean)
    before = copy.deepcopy(layer.state_dict())
    layer(sick)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert layer.num_batches_skipped == 1
    layer(clean)
    assert layer.running_var.isfinite().all() and layer.num_batches_skipped == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_a_batch_once(reentrant):
    layers = [ns.nn.BatchNorm1d(3, dtype=F64) for _ in range(2)]
    x = batches(1)[0].requires_grad_()
    (one,) = torch.autograd.grad(layers[0](x).square().sum() + layers[0].weight.sum(), x)
    checkpoint(layers[1], x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, one)
    torch.testing.assert_close(layers[1].state_dict(), layers[0].state_dict())


@pytest.mark.parametrize("name", ["BatchNorm", "PopulationBatchNorm", "BatchRenorm", "EstimatedBatchNorm"])
def test_masked_statistics_are_those_of_the_kept_cells(name):
    x = batches(1, (4, 3, 5))[0]
    lengths = torch.tensor([5, 2, 4, 1])
    mask = torch.arange(5) < lengths[:, None]
    masked, packed = built(name), built(name)
    kept = x.movedim(1, 2)[mask]  # (cells, C)
    y = masked(x, mask)
    torch.testing.assert_close(y.movedim(1, 2)[mask], packed(kept))
    torch.testing.assert_close(y.movedim(1, 2)[~mask], x.movedim(1, 2)[~mask])
    torch.testing.assert_close(masked.state_dict(), packed.state_dict())


def test_online_norm_with_lengths_is_that_of_each_sample_cut_to_its_own():
    """One sample after the other, without padding; a sample without a cell is none of the stream."""
    masked, cut = (ns.nn.OnlineNorm(3, decay_forward=0.9, decay_backward=0.8, dtype=F64) for _ in range(2))
    lengths = torch.tensor([5, 2, 0, 4, 1, 3])
    for x in batches(3, (6, 3, 5)):
        upstream = torch.randn_like(x)
        padded = torch.where(torch.arange(5) < lengths[:, None, None], x, float("nan")).requires_grad_()
        y = masked(padded, lengths)
        y.backward(torch.where(padded.isnan(), 7.0, upstream))
        leaves = [x[n : n + 1, :, :length].clone().requires_grad_() for n, length in enumerate(lengths) if length]
        outputs = [cut(leaf) for leaf in leaves]
        for n, leaf, alone in zip(lengths.nonzero(), leaves, outputs, strict=True):
            alone.backward(upstream[n, :, : leaf.shape[2]])
            torch.testing.assert_close(y[n, :, : leaf.shape[2]], alone)
            torch.testing.assert_close(padded.grad[n, :, : leaf.shape[2]], leaf.grad)
        assert y[padded.isnan()].isnan().all() and (padded.grad[padded.isnan()] == 7).all()
        torch.testing.assert_close(masked.state_dict(), cut.state_dict())
    assert masked.eval()(x, lengths).isfinite().all()


def test_lengths_are_a_mask():
    x, lengths = batches(1, (4, 3, 5))[0], torch.tensor([5, 2, 4, 1])
    mask = torch.arange(5) < lengths[:, None]
    torch.testing.assert_close(built("BatchNorm")(x, lengths), built("BatchNorm")(x, mask))
    with pytest.raises(ns.NormscopeError, match=r"boolean mask of shape \(4, 5\), or the lengths"):
        built("BatchNorm")(x, mask[:, :2])


def test_cumulative_with_a_mask_of_nothing_learns_nothing():
    layer = built("BatchNorm", infer_from="cumulative", momentum=None)
    layer(batches(1)[0], torch.zeros(6, 4, dtype=torch.bool))
    assert layer.num_batches_tracked == 0 and layer.num_batches_skipped == 1


def test_estimated_statistics_carry_no_gradient():
    layer = built("EstimatedBatchNorm")
    x = batches(1)[0].requires_grad_()
    layer(x).sum().backward()
    wanted = (1 / (layer.running_var + 1e-5).sqrt())[:, None].expand(3, 4).expand(6, 3, 4)
    torch.testing.assert_close(x.grad, wanted)
    assert built("EstimatedBatchNorm")(torch.randn(1, 3, 1, dtype=F64)).isfinite().all()


def test_momentum_and_eps_are_the_description():
    layer = ns.nn.BatchNorm1d(3)
    layer.momentum, layer.eps = 0.5, 1e-2
    assert (layer.spec.momentum, layer.spec.eps) == (0.5, 1e-2)
    x = torch.randn(4, 3)
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.5 * x.mean(0))


def test_functional_updates_the_state_it_is_given():
    x = batches(1)[0]
    layer = ns.nn.BatchNorm1d(3, dtype=F64)
    state = {key: value.clone() for key, value in layer.state.items()}
    y = ns.functional.normalize(x, layer.spec, state=state)
    torch.testing.assert_close(y, layer(x))
    torch.testing.assert_close(state, layer.state)
    with pytest.raises(ns.NormscopeError, match="without running_mean"):
        ns.functional.normalize(x, layer.spec, training=False)
