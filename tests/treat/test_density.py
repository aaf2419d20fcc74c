"""Weights against ratios that are known in closed form, and each method against its definition by another solver."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import normscope as ns
from normscope.treat import density
from normscope.treat.density import density_weights, effective_sample_size, weighted_sampler

METHODS = ("classifier", "ulsif", "kmm")


def shifted(n=400, m=300, shift=1.0, seed=0):
    """Normals of unit variance in two dimensions: log w = shift · x₀ − shift²/2."""
    turns = np.random.default_rng(seed)
    x, z = turns.normal(size=(n, 2)), turns.normal(size=(m, 2)) + np.array((shift, 0))
    return x, z, np.exp(shift * x[:, 0] - shift**2 / 2)


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_are_close_to_the_true_ratio_and_move_the_mean(method):
    x, z, truth = shifted()
    weights = density_weights(torch.tensor(x), torch.tensor(z), method=method)
    assert weights.shape == (400,) and weights.dtype == torch.float64 and bool((weights >= 0).all())
    assert weights.mean().item() == pytest.approx(1.0)
    if method != "kmm":  # which matches means by few samples with large weights
        assert np.corrcoef(weights, truth)[0, 1] > 0.8
    moved = (weights.numpy()[:, None] * x).mean(0)
    assert abs(moved[0] - 1) < 0.3 and abs(moved[1]) < 0.2


@pytest.mark.parametrize("method", METHODS[:2])
def test_without_a_shift_the_weights_are_nearly_equal(method):
    x, z, _ = shifted(shift=0.0)
    weights = density_weights(x, z, method=method)
    assert effective_sample_size(weights) > 0.75 * len(x)


def test_the_effective_size_is_that_of_the_closed_form():
    assert effective_sample_size(torch.ones(7)) == 7
    assert effective_sample_size([1.0, 0.0, 0.0]) == 1
    x, _, truth = shifted(20_000, 10, 1.0)
    assert effective_sample_size(truth) / len(x) == pytest.approx(np.exp(-1.0), rel=0.1)  # (E w)²/E w² = e^(−shift²)


def test_least_squares_leave_one_out_is_the_error_of_leaving_one_out():
    turns = np.random.default_rng(0)
    phi, psi, ridge = turns.random((9, 4)), turns.random((9, 4)), 0.3
    ratio, error = density._fitted(phi, psi, ridge)
    n = len(phi)
    alpha = np.linalg.solve(phi.T @ phi / n + ridge * np.eye(4), psi.mean(0))
    np.testing.assert_allclose(ratio, np.maximum(phi @ alpha, 0))
    errors = []
    for i in range(n):
        p, q = np.delete(phi, i, 0), np.delete(psi, i, 0)
        one = np.maximum(np.linalg.solve(p.T @ p / (n - 1) + ridge * np.eye(4), q.mean(0)), 0)
        errors.append((phi[i] @ one) ** 2 / 2 - psi[i] @ one)
    assert error == pytest.approx(np.mean(errors), rel=1e-9)


@pytest.mark.parametrize("bound", [1000.0, 1.5])
def test_kernel_means_are_matched_as_well_as_a_general_solver_does(bound):
    x, z, _ = shifted(30, 40, 1.5)
    w = density._kmm(x, z, bound)
    n = len(x)
    among = ((x[:, None] - x) ** 2).sum(-1)
    width = np.median(among[among > 0])
    kernel = np.exp(-among / width)
    kappa = np.exp(-((x[:, None] - z) ** 2).sum(-1) / width).sum(1) * n / len(z)
    slack = (np.sqrt(n) - 1) / np.sqrt(n)
    sums = [
        {"type": "ineq", "fun": lambda w: 1 + slack - w.mean()},
        {"type": "ineq", "fun": lambda w: w.mean() - 1 + slack},
    ]

    def loss(w):
        return w @ kernel @ w / 2 - kappa @ w

    best = minimize(
        loss, np.ones(n), jac=lambda w: kernel @ w - kappa, method="SLSQP", bounds=[(0, bound)] * n, constraints=sums,
        options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    assert best.success and (w >= 0).all() and (w <= bound).all() and abs(w.mean() - 1) <= slack + 1e-8
    assert loss(w) == pytest.approx(best.fun, rel=1e-4)


def test_a_classifier_of_ones_own_and_axes_behind_the_first():
    from sklearn.ensemble import RandomForestClassifier

    x, z, truth = shifted(200, 200)
    weights = density_weights(
        x.reshape(200, 1, 2), z.reshape(200, 1, 2), classifier=RandomForestClassifier(20, random_state=0)
    )
    assert np.corrcoef(weights, truth)[0, 1] > 0.5
    assert torch.equal(density_weights(x, z), density_weights(x, z))


def test_the_sampler_draws_by_the_weights():
    sampler = weighted_sampler([1.0, 0.0, 3.0], 4000, seed=0)
    drawn = np.bincount(list(sampler), minlength=3)
    assert drawn[1] == 0 and drawn[2] / 4000 == pytest.approx(0.75, abs=0.03)
    assert len(weighted_sampler(torch.ones(5))) == 5


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ns.NormscopeError, match="method that does not exist"):
        density_weights(np.ones((9, 1)), np.ones((9, 1)), method="kliep")
    for one, other in (((4, 2), (9, 2)), ((9, 2), (9, 3)), ((9, 0), (9, 0))):
        with pytest.raises(ns.NormscopeError, match="cannot be compared"):
            density_weights(np.ones(one), np.ones(other))
    with pytest.raises(ns.NormscopeError, match="cannot be compared"):
        density_weights(np.full((9, 1), np.nan), np.ones((9, 1)))
    same = np.ones((9, 1))
    for method in METHODS:  # nothing varies: nothing can be told apart
        assert effective_sample_size(density_weights(same, same, method=method)) > 8.9
