"""The parameters of a model in two groups, so that weight decay reaches only what it is meant for."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from normscope.anatomy.recognize import role_of
from normscope.terms.errors import DataError

_NORM = re.compile("norm|dynamic_?tanh|dyt|tlu", re.IGNORECASE)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: what decays, and what does not.

    Without decay go every parameter of a norm, whatever its shape (weight and bias, the α of DynamicTanh, the τ of
    filter response normalization), every bias, and the magnitudes of weight normalization, whose decay would shrink
    the layer and not its direction. Each parameter is in one group, once; one that two modules share goes without
    decay when one of them says so. Parameters that ask for no gradient are left out.

    Args:
        model: the network.
        weight_decay: for the first group.

    Raises:
        DataError: `weight_decay` is negative or no number.
    """
    if not weight_decay >= 0:
        raise DataError(
            "Groups of parameters were asked for with a weight decay that is none.",
            found={"weight_decay": weight_decay},
            because="decay pulls weights towards zero; a negative one blows them up",
            do="give weight_decay ≥ 0, such as 0.01",
        )
    spared = {id(parameter) for module in model.modules() for parameter in _spared(module)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if id(parameter) not in spared], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if id(parameter) in spared], "weight_decay": 0.0},
    ]


def _spared(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of `module` that are not to decay."""
    if role_of(module) == "norm":
        return list(module.parameters())
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, ParametrizationList):
        return [parameter for parameter in own.values() if _is_vector(parameter) and len(own) > 1]
    named = _NORM.search(type(module).__name__) is not None and role_of(module) == "other"
    return [
        parameter
        for name, parameter in own.items()
        if name.startswith("bias") or name.endswith(("_bias", "_g")) or (named and _is_vector(parameter))
    ]


def _is_vector(parameter: nn.Parameter) -> bool:
    return sum(size > 1 for size in parameter.shape) <= 1
