"""Minimizers that ask for no gradient. The packages cma and nevergrad are imported in this file alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from normscope.terms.errors import MissingExtraError

SEARCHES = {"CMA-ES": "", "differential evolution": "TwoPointsDE", "particle swarm": "PSO"}  # nevergrad's names
TOGETHER = 20  # candidates of one generation
REACH = 2.0  # the deviation of the first candidates: a sigmoid carries a signal from weights of about 4 on


def searched(name: str, start: Tensor, losses_of: Callable[[Tensor], Tensor], *, seed: int, evaluations: int) -> Tensor:
    """The best weights that a search of `SEARCHES` found from `start` (parameters,), in generations of `TOGETHER`.

    Args:
        name: CMA-ES (Hansen & Ostermeier 2001), differential evolution (Storn & Price 1997, two-point crossover), or a
            particle swarm (Kennedy & Eberhart 1995).
        start: where the first candidates lie around.
        losses_of: (candidates, parameters) → (candidates,).
        seed: of the search.
        evaluations: how many losses it may ask for.

    Raises:
        MissingExtraError: cma or nevergrad is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cma misses a plotting library, nevergrad an optimizer
        try:
            import cma
            import nevergrad
        except ImportError as error:
            raise MissingExtraError.of("Training without gradients", error.name or "cma", "claims") from None
        generations = evaluations // TOGETHER
        if name == "CMA-ES":
            search = cma.CMAEvolutionStrategy(
                start.tolist(), REACH, {"seed": seed + 1, "popsize": TOGETHER, "verbose": -9}
            )
            for _ in range(generations):
                asked = search.ask()
                search.tell(asked, losses_of(_stacked(asked)).tolist())
            return torch.tensor(search.best.x, dtype=torch.float32)
        space = nevergrad.p.Array(init=start.double().numpy()).set_mutation(sigma=REACH)
        space.random_state.seed(seed)
        search = nevergrad.optimizers.registry[SEARCHES[name]](space, budget=generations * TOGETHER)
        for _ in range(generations):
            asked = [search.ask() for _ in range(TOGETHER)]
            for one, loss in zip(asked, losses_of(_stacked([one.value for one in asked])).tolist()):
                search.tell(one, loss)
        return torch.tensor(search.provide_recommendation().value, dtype=torch.float32)


def _stacked(candidates: list[np.ndarray]) -> Tensor:
    return torch.tensor(np.stack(candidates), dtype=torch.float32)
