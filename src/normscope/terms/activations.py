"""What is known of each activation function: its gain, where it saturates, where it is silent.

A function saturates where its slope is below a twentieth of its steepest: there a gradient loses 95% in one step.
The points below solve ``|f'(x)| = max|f'| / 20``; the test solves them again by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from normscope.terms.datum import Datum

SLOPE_SHARE = 0.05


@dataclass(frozen=True, repr=False)
class Activation(Datum):
    """One activation function, by torch's functional name.

    Attributes:
        name: torch's functional name (``"tanh"``).
        gain: the factor of the standard deviation of the weights that keeps the variance from layer to layer
            (`torch.nn.init.calculate_gain`; He et al. 2015 for the ReLU family, Glorot & Bengio 2010 for tanh).
        low: pre-activations below this are saturated; None when that side does not saturate.
        high: pre-activations above this are saturated; None when that side does not saturate.
        silent_below: outputs and gradients are exactly zero for pre-activations below this; None when nowhere.
        classes: names of the torch.nn classes that compute it.
    """

    name: str
    gain: float
    low: float | None = None
    high: float | None = None
    silent_below: float | None = None
    classes: tuple[str, ...] = ()

    @property
    def saturates(self) -> bool:
        """Whether pre-activations can lie where the slope has died, on both sides or one, short of exact silence."""
        return self.silent_below is None and (self.low is not None or self.high is not None)


_ROWS = (
    Activation("sigmoid", 1.0, -4.3565, 4.3565, classes=("Sigmoid",)),
    Activation("tanh", 5 / 3, -2.1783, 2.1783, classes=("Tanh",)),
    Activation("hardsigmoid", 1.0, -3.0, 3.0, classes=("Hardsigmoid",)),
    Activation("hardtanh", 5 / 3, -1.0, 1.0, classes=("Hardtanh",)),
    Activation("softsign", 5 / 3, -3.4721, 3.4721, classes=("Softsign",)),
    Activation("logsigmoid", 1.0, None, 2.9444, classes=("LogSigmoid",)),
    Activation("relu", math.sqrt(2.0), silent_below=0.0, classes=("ReLU",)),
    Activation("relu6", math.sqrt(2.0), high=6.0, silent_below=0.0, classes=("ReLU6",)),
    Activation("leaky_relu", math.sqrt(2.0 / (1 + 0.01**2)), classes=("LeakyReLU",)),
    Activation("prelu", math.sqrt(2.0 / (1 + 0.25**2)), classes=("PReLU",)),
    Activation("rrelu", math.sqrt(2.0 / (1 + (11 / 48) ** 2)), classes=("RReLU",)),
    Activation("elu", math.sqrt(2.0), low=-2.9957, classes=("ELU",)),
    Activation("celu", math.sqrt(2.0), low=-2.9957, classes=("CELU",)),
    Activation("selu", 0.75, low=-2.9957, classes=("SELU",)),
    Activation("softplus", 1.0, low=-2.9444, classes=("Softplus",)),
    Activation("gelu", math.sqrt(2.0), low=-2.2786, classes=("GELU",)),
    Activation("silu", math.sqrt(2.0), low=-3.9299, classes=("SiLU",)),
    Activation("mish", math.sqrt(2.0), low=-3.9812, classes=("Mish",)),
    Activation("hardswish", math.sqrt(2.0), silent_below=-3.0, classes=("Hardswish",)),
    Activation("threshold", math.sqrt(2.0), silent_below=0.0, classes=("Threshold",)),
    Activation("hardshrink", 1.0, classes=("Hardshrink",)),
    Activation("softshrink", 1.0, classes=("Softshrink",)),
    Activation("tanhshrink", 1.0, classes=("Tanhshrink",)),
    Activation("glu", 1.0, classes=("GLU",)),
    Activation("softmax", 1.0, classes=("Softmax", "Softmax2d")),
    Activation("log_softmax", 1.0, classes=("LogSoftmax",)),
)

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({row.name: row for row in _ROWS})
BY_CLASS: Mapping[str, Activation] = MappingProxyType({name: row for row in _ROWS for name in row.classes})


def activation_named(name: str | None) -> Activation | None:
    """The row for torch's functional name or class name (``"tanh"``, ``"Tanh"``, ``"relu_"``), or None."""
    if not name:
        return None
    return BY_CLASS.get(name) or ACTIVATIONS.get(name.rstrip("_").lower())
