"""Whitening against its definition, in training and in use."""

from __future__ import annotations

import pytest
import torch

import normscope as ns

F64 = torch.float64
LAYERS = [
    (ns.nn.DecorrelatedBatchNorm, {"eps": 1e-9}),
    (ns.nn.IterNorm, {"eps": 1e-9, "iterations": 40}),
]


def mixed(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=F64)
    mix = torch.randn(shape[1], shape[1], generator=generator, dtype=F64)
    return torch.einsum("ij,nj...->ni...", mix, x) + 3


def covariance(y):
    return torch.cov(y.movedim(1, 0).flatten(1), correction=0)


@pytest.mark.parametrize(("kind", "fields"), LAYERS)
@pytest.mark.parametrize("shape", [(64, 6), (32, 6, 5), (16, 6, 4, 3), (8, 6, 2, 3, 4)], ids=len)
def test_output_is_decorrelated(kind, fields, shape):
    layer = kind(6, dtype=F64, **fields)
    torch.testing.assert_close(covariance(layer(mixed(shape))), torch.eye(6, dtype=F64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "fields"), LAYERS)
def test_groups_are_decorrelated_within_themselves(kind, fields):
    layer = kind(6, num_groups=2, dtype=F64, **fields)
    found = covariance(layer(mixed((64, 6, 3))))
    for block in (found[:3, :3], found[3:, 3:]):
        torch.testing.assert_close(block, torch.eye(3, dtype=F64), rtol=0, atol=1e-5)
    assert found[:3, 3:].abs().max() > 0.1


def test_zca_is_the_symmetric_root():
    x = mixed((64, 4))
    d, u = torch.linalg.eigh(covariance(x) + 1e-3 * torch.eye(4, dtype=F64))
    wanted = (x - x.mean(0)) @ (u @ torch.diag(d**-0.5) @ u.T)
    torch.testing.assert_close(ns.nn.DecorrelatedBatchNorm(4, dtype=F64)(x), wanted)


def test_iterations_of_newton():
    x = mixed((64, 4))
    sigma = covariance(x) + 1e-5 * torch.eye(4, dtype=F64)
    p = torch.eye(4, dtype=F64)
    for _ in range(3):
        p = (3 * p - p @ p @ p @ (sigma / sigma.trace())) / 2
    wanted = (x - x.mean(0)) @ (p / sigma.trace().sqrt()).T
    torch.testing.assert_close(ns.nn.IterNorm(4, iterations=3, dtype=F64)(x), wanted)


@pytest.mark.parametrize(("kind", "fields"), LAYERS)
def test_evaluation_uses_the_average_covariance(kind, fields):
    layer = kind(4, dtype=F64, momentum=0.5, **fields)
    mean, cov = torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64)
    for seed in range(3):
        x = mixed((32, 4, 2), seed)
        layer(x)
        flat = x.movedim(1, 0).flatten(1)
        mean, cov = 0.5 * mean + 0.5 * flat.mean(1), 0.5 * cov + 0.5 * torch.cov(flat)
    torch.testing.assert_close((layer.running_mean, layer.running_cov[0]), (mean, cov))
    layer.eval()
    y = layer(x[:1])
    d, u = torch.linalg.eigh(cov)
    wanted = torch.einsum("ij,njk->nik", u @ torch.diag(d**-0.5) @ u.T, x[:1] - mean[:, None])
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer(x)[:1], y)


@pytest.mark.parametrize(("kind", "fields"), LAYERS)
def test_masked_cells_are_neither_counted_nor_written(kind, fields):
    x, lengths = mixed((9, 4, 7)), torch.tensor([7, 2, 5, 1, 7, 3, 6, 4, 7])
    mask = torch.arange(7) < lengths[:, None]
    sick = torch.where(mask[:, None], x, float("nan")).requires_grad_()
    masked, packed = kind(4, dtype=F64, **fields), kind(4, dtype=F64, **fields)
    for training in (True, False):
        y = masked.train(training)(sick, lengths)
        torch.testing.assert_close(y.movedim(1, 2)[mask], packed.train(training)(x.movedim(1, 2)[mask]))
        assert y.movedim(1, 2)[~mask].isnan().all()
        (grad,) = torch.autograd.grad(y.movedim(1, 2)[mask].square().sum(), sick)
        assert grad.isfinite().all() and not grad.movedim(1, 2)[~mask].any()
    torch.testing.assert_close(masked.state_dict(), packed.state_dict())
    before = masked.running_cov.clone()
    masked.train()(x, torch.zeros(9, 7, dtype=torch.bool))
    assert torch.equal(masked.running_cov, before) and masked.num_batches_skipped == 1


@pytest.mark.parametrize(("kind", "fields"), LAYERS)
def test_a_batch_that_is_not_finite_teaches_nothing_and_raises_nothing(kind, fields):
    layer, x = kind(4, dtype=F64, **fields), mixed((32, 4))
    layer(x)
    before = layer.running_cov.clone()
    x[3, 1] = float("inf")
    assert not layer(x).isfinite().all()
    assert torch.equal(layer.running_cov, before) and layer.num_batches_skipped == 1
    assert layer.eval()(x[:3]).isfinite().all()


def test_momentum_zero_holds_still():
    layer = ns.nn.IterNorm(4, momentum=0.0, dtype=F64)
    layer(mixed((32, 4)))
    assert torch.equal(layer.running_cov[0], torch.eye(4, dtype=F64)) and not layer.running_mean.any()


@pytest.mark.parametrize(("kind", "fields"), [(LAYERS[0][0], {"eps": 1e-3}), (LAYERS[1][0], {"iterations": 3})])
def test_gradients_twice(kind, fields):
    layer = kind(3, dtype=F64, **fields)
    x = mixed((5, 3, 2)).requires_grad_()
    torch.autograd.gradcheck(layer, (x,))
    torch.autograd.gradgradcheck(layer, (x,), atol=1e-4)


def test_gradient_is_finite_where_eigenvalues_meet():
    x = torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)]).requires_grad_()  # covariance is a multiple of 1
    ns.nn.DecorrelatedBatchNorm(3, dtype=F64)(x)[0, 0].backward()
    assert x.grad.isfinite().all()


def test_half_types_and_errors():
    assert ns.nn.IterNorm(4)(mixed((16, 4)).bfloat16()).dtype is torch.bfloat16
    with pytest.raises(ns.NormscopeError, match="made for 4 channels"):
        ns.nn.IterNorm(4)(torch.randn(2, 3))
    with pytest.raises(ns.NormscopeError, match="choose a divisor of 4"):
        ns.nn.IterNorm(4, num_groups=3)
    built = ns.nn.build(ns.catalog["IterNorm"].but(groups=2), 4)
    assert built.spec.iterations == 5 and built(torch.randn(8, 4)).shape == (8, 4)
