"""The sharpest direction of the loss: the largest eigenvalue of its Hessian, by power iteration.

Yao et al. 2020, "PyHessian: Neural Networks Through the Lens of the Hessian", section 3 and algorithm 1; the product of
Hessian and vector after Pearlmutter 1994.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from normscope.watch.bench import Bench, Experiment, along, dot, norm
from normscope.watch.measure import Reading, Scalar

ITERATIONS = 20
TOLERANCE = 1e-3
"""Relative change of the eigenvalue from one iteration to the next at which the iteration ends, as in PyHessian."""


class Hessian(Experiment):
    """``top_hessian_eigenvalue``: of largest magnitude, with its sign, for the loss on the fixed batch at θ_{t+1}.

    Gradient descent is unstable beyond 2 / learning rate. With a held gradient in place of a loss it is the curvature
    that the network alone brings. This takes up to `ITERATIONS` forward passes with two backward passes each, and an
    architecture that can be differentiated twice; only where it is named.
    """

    on_request = True
    passes = 2 * ITERATIONS

    def run(self, bench: Bench) -> Iterable[Reading]:
        """One eigenvalue, of the whole run."""
        chance = torch.Generator().manual_seed(0)
        vector = [
            None if value is None else torch.randn(value.shape, generator=chance).to(value) for value in bench.after
        ]
        eigenvalue = None
        for _ in range(ITERATIONS):
            length = norm(vector)
            if not 0 < length < float("inf"):
                break
            vector = [None if value is None else value / length for value in vector]
            image = bench.curvature(vector)
            if image is None:
                return
            before, eigenvalue = eigenvalue, dot(vector, image)
            if before is not None and abs(eigenvalue - before) <= TOLERANCE * abs(before):
                break
            vector = along(image, 0.0, image)
        if eigenvalue is not None:
            yield Scalar(None, "top_hessian_eigenvalue", eigenvalue)
