"""Importance weights for covariate shift: how much more often the target draws a sample than the source does.

With w(x) = p_target(x)/p_source(x), averages over the source weighted by w are averages over the target (Shimodaira
2000). The weights are only as good as the overlap: see `effective_sample_size`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from normscope.terms.errors import DataError, MissingExtraError, SpecError

Method = Literal["classifier", "ulsif", "kmm"]
CENTERS = 100  # kernels of uLSIF (Kanamori, Hido & Sugiyama 2009, section 4)
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # tried, in units of the median distance
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # tried
BOUND = 1000.0  # B, the largest weight of kernel mean matching (Huang et al. 2007, section 5)


def density_weights(
    source: Any,
    target: Any,
    *,
    method: Method = "classifier",
    classifier: Any = None,
    bound: float = BOUND,
    seed: int = 0,
) -> Tensor:
    """One weight for each source sample, in proportion to p_target/p_source, with mean 1.

    Args:
        source: samples (n, …), or features of them; axes behind the first are flattened.
        target: samples (m, …) of the same shape.
        method: ``"classifier"`` lets a logistic regression tell source from target and takes the odds of its
            probabilities, calibrated and predicted out of fold (five folds; Bickel, Brückner & Scheffer 2007).
            ``"ulsif"`` fits the ratio itself by least squares on Gaussian kernels, width and ridge chosen by its closed
            leave-one-out error (Kanamori et al. 2009). ``"kmm"`` matches the means of both samples in a Gaussian
            kernel's feature space, the weights between 0 and `bound` (Huang et al. 2007); it does so by few samples
            with large weights, which a smaller bound spreads.
        classifier: any scikit-learn classifier for ``"classifier"`` in the place of the logistic regression on
            standardized features, whose log ratio is linear.
        bound: B of ``"kmm"``.
        seed: of the folds and of the kernels' centres.

    Returns:
        The weights (n,), float64, on the device of `source`.

    Raises:
        DataError: fewer than five samples on a side, shapes that differ, or values that are not finite.
        SpecError: there is no such method.
        MissingExtraError: ``"classifier"`` needs scikit-learn, ``"kmm"`` needs SciPy.
    """
    if method not in get_args(Method):
        raise SpecError(
            "Density weights were asked for by a method that does not exist.",
            found={"method": repr(method)},
            because="the ratio is taken from a classifier, from least squares, or from matched kernel means",
            do='choose "classifier", "ulsif" or "kmm"',
        )
    x, z = _matrix(source), _matrix(target)
    _check(x, z)
    if method == "classifier":
        ratio = _odds(x, z, classifier, seed)
    else:
        unit = np.concatenate((x, z)).std(0)
        x, z = (part / np.where(unit > 0, unit, 1.0) for part in (x, z))
        ratio = _ulsif(x, z, seed) if method == "ulsif" else _kmm(x, z, bound)
    if not ratio.sum() > 0:
        ratio = np.ones_like(ratio)
    weights = torch.from_numpy(ratio / ratio.mean())
    return weights.to(source.device) if isinstance(source, Tensor) else weights


def effective_sample_size(weights: Any) -> float:
    """(Σw)²/Σw² (Kish 1965): how many samples without weights would tell as much; n for equal weights."""
    w = torch.as_tensor(weights, dtype=torch.float64)
    return float(w.sum().square() / w.square().sum())


def weighted_sampler(weights: Any, samples: int | None = None, *, seed: int | None = None) -> WeightedRandomSampler:
    """A sampler for a DataLoader that draws source samples as the target would, with replacement.

    Args:
        weights: of `density_weights`.
        samples: how many are drawn in an epoch; None draws as many as there are weights.
        seed: None takes torch's random state.
    """
    w = torch.as_tensor(weights, dtype=torch.float64)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return WeightedRandomSampler(w.tolist(), len(w) if samples is None else samples, generator=generator)


def _matrix(samples: Any) -> np.ndarray:
    values = samples.detach().double().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples, float)
    return values.reshape(len(values), -1)


def _check(x: np.ndarray, z: np.ndarray) -> None:
    few, apart = min(len(x), len(z)) < 5, x.shape[1] != z.shape[1] or not x.shape[1]
    if few or apart or not (np.isfinite(x).all() and np.isfinite(z).all()):
        raise DataError(
            "Density weights were asked for of samples that cannot be compared.",
            found={"source": x.shape, "target": z.shape, "finite": bool(np.isfinite(x).all() and np.isfinite(z).all())},
            because="both need five samples or more, of the same features, all of them finite",
            do="pass (n, features) and (m, features), for images the output of a feature layer",
        )


def _odds(x: np.ndarray, z: np.ndarray, classifier: Any, seed: int) -> np.ndarray:
    try:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingExtraError.of("A classifier's density ratio", "scikit-learn", "shift") from None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)) if classifier is None else classifier
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    inner = StratifiedKFold(4, shuffle=True, random_state=seed)  # four fifths of five samples a side are four
    features, side = np.concatenate((x, z)), np.repeat((0, 1), (len(x), len(z)))
    calibrated = CalibratedClassifierCV(model, method="sigmoid", cv=inner)
    share = np.asarray(cross_val_predict(calibrated, features, side, cv=folds, method="predict_proba"))[: len(x), 1]
    return share / np.clip(1 - share, 1e-12, None) * len(x) / len(z)


def _ulsif(x: np.ndarray, z: np.ndarray, seed: int) -> np.ndarray:
    """Kanamori et al. 2009, equations 9 and 21: α = (H + λI)⁻¹h, negative values cut to 0."""
    chosen = np.random.default_rng(seed).permutation(len(z))[:CENTERS]
    of_x, of_z = _squares(x, z[chosen]), _squares(z, z[chosen])
    median = np.median(of_z[of_z > 0]) if (of_z > 0).any() else 1.0
    best, error = np.ones(len(x)), np.inf
    for width in WIDTHS:
        phi, psi = (np.exp(-squares / (2 * median * width**2)) for squares in (of_x, of_z))
        for ridge in RIDGES:
            ratio, its_error = _fitted(phi, psi, ridge)
            if its_error < error:
                best, error = ratio, its_error
    return best


def _fitted(phi: np.ndarray, psi: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """The ratio at the source samples for one width and ridge, and its leave-one-out error in closed form.

    Leaving out sample i of both, B = H + λ(n − 1)/n I stands for the matrix without it by Sherman and Morrison.
    """
    n, m = len(phi), len(psi)
    gram, mean = phi.T @ phi / n, psi.mean(0)
    alpha = np.linalg.solve(gram + ridge * np.eye(len(mean)), mean)
    both = min(n, m)
    inverse = np.linalg.inv(gram + ridge * (n - 1) / n * np.eye(len(mean)))
    left, right = phi[:both], psi[:both]
    moved = left @ inverse
    spread = n - (moved * left).sum(1)
    zeroth = (inverse @ mean) + moved * ((left @ inverse @ mean) / spread)[:, None]
    first = right @ inverse + moved * ((moved * right).sum(1) / spread)[:, None]
    each = np.maximum((n - 1) / (n * (m - 1)) * (m * zeroth - first), 0)
    its = (left * each).sum(1)
    return np.maximum(phi @ alpha, 0), float(np.mean(its**2) / 2 - np.mean((right * each).sum(1)))


def _kmm(x: np.ndarray, z: np.ndarray, bound: float) -> np.ndarray:
    """Huang et al. 2007, equation 12: min ½ wᵀKw − κᵀw, 0 ≤ w ≤ B, |mean w − 1| ≤ ε = (√n − 1)/√n.

    The two sides of the sum are held by multipliers (the method of multipliers), the box by L-BFGS-B.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError.of("Kernel mean matching", "SciPy", "shift") from None
    n = len(x)
    among, across = _squares(x, x), _squares(x, z)
    width = np.median(among[among > 0]) if (among > 0).any() else 1.0
    kernel = np.exp(-among / width)
    kappa = np.exp(-across / width).sum(1) * n / len(z)
    slack = (np.sqrt(n) - 1) / np.sqrt(n)
    w, multipliers, stiffness = np.ones(n), np.zeros(2), 10.0 * n

    def excess(w: np.ndarray) -> np.ndarray:
        return np.array((w.mean() - 1 - slack, 1 - slack - w.mean()))

    def lagrangian(w: np.ndarray) -> tuple[float, np.ndarray]:
        pull, over = kernel @ w, np.maximum(multipliers + stiffness * excess(w), 0)
        value = w @ pull / 2 - kappa @ w + (over**2).sum() / (2 * stiffness)
        return value, pull - kappa + (over[0] - over[1]) / n

    precise = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-9}
    for _ in range(20):
        w = minimize(lagrangian, w, jac=True, method="L-BFGS-B", bounds=[(0, bound)] * n, options=precise).x
        multipliers = np.maximum(multipliers + stiffness * excess(w), 0)
        if excess(w).max() < 1e-9:
            break
    return w


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (len(a), len(b))."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
