"""Other libraries' conventions, against their update rules written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import normscope as ns
from normscope.norms import conventions


def keras_layer(batches, momentum=0.9):
    """Keras' BatchNormalization, training: ``moving ← m · moving + (1 − m) · batch``, biased variance."""
    mean, var = np.zeros(3), np.ones(3)
    for x in batches:
        mean = momentum * mean + (1 - momentum) * x.mean(0)
        var = momentum * var + (1 - momentum) * x.var(0)
    return {"gamma": np.full(3, 2.0), "beta": np.full(3, 0.5), "moving_mean": mean, "moving_variance": var}


@pytest.mark.parametrize("unbiased", [True, False])
def test_a_keras_layer_goes_on_in_torch(unbiased):
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(50, 3)) * 2 + 1 for _ in range(200)]
    held = keras_layer(batches)
    cells = 50 if unbiased else None
    values = conventions.state_dict(held, "keras", "torch", cells=cells)
    spec = ns.catalog["BatchNorm"].but(
        momentum=conventions.momentum(0.9, "keras", "torch"), eps=1e-3, unbiased=unbiased
    )
    trained, loaded = (ns.nn.build(spec, 3, dtype=torch.float64) for _ in range(2))
    for x in batches:
        trained(torch.from_numpy(x))
    loaded.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
    torch.testing.assert_close(loaded.running_mean, trained.running_mean)
    torch.testing.assert_close(loaded.running_var, trained.running_var)
    x = batches[0]
    wanted = (x - held["moving_mean"]) / np.sqrt(values["running_var"] + 1e-3) * 2 + 0.5
    torch.testing.assert_close(loaded.eval()(torch.from_numpy(x)), torch.from_numpy(wanted))


def test_there_and_back():
    held = {"bn/scale": np.ones(2), "bn/bias": np.zeros(2), "bn/mean": np.ones(2), "bn/var": np.array([1.0, 3.0])}
    there = conventions.state_dict(held, "flax", "torch", cells=4)
    assert there["bn/running_var"].tolist() == [4 / 3, 4.0]
    back = conventions.state_dict({**there, "bn/num_batches_tracked": 7}, "torch", "flax", cells=4)
    assert back.keys() == held.keys()
    np.testing.assert_allclose(back["bn/var"], held["bn/var"])
    assert conventions.state_dict(held, "flax", "keras")["bn/moving_variance"] is held["bn/var"]


def test_errors():
    with pytest.raises(ns.NormscopeError, match="n is not written down"):
        conventions.running_variance(np.ones(2), "keras", "torch")
    with pytest.raises(ns.NormscopeError, match="named gamma, beta"):
        conventions.state_dict({"weight": 1}, "keras", "torch")
    with pytest.raises(ns.NormscopeError, match="choose torch, keras, flax"):
        conventions.momentum(0.9, "jax", "torch")
