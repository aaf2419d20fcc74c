"""Reading a module: which normalization it is, and what part it plays."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from normscope.anatomy.measure import measured
from normscope.terms.activations import ACTIVATIONS, BY_CLASS, Activation, activation_named
from normscope.terms.catalog import CATALOG, ENTRIES
from normscope.terms.errors import ModelError
from normscope.terms.site import Role
from normscope.terms.spec import NormSpec

_PRODUCERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
)
_FUSED = 3  # parts of a norm that is one layer: an activation, a dropout, an anti-aliasing step
_SAID = {"GELU": "gelu", "Swish": "silu"}  # words in the names of classes outside torch, all their approximations
_PRODUCERS_ELSEWHERE = {
    "transformers.pytorch_utils.Conv1D",  # the linear layer of GPT-2
    *(f"normscope.norms.recurrent.{name}" for name in ("LSTM", "GRU", "RNN")),
}
# Norms whose formula no `NormSpec` can say: those of the catalog without one, by the part that they are made in, and
# others by qualified name.
_APART = {entry.name for entry in ENTRIES if entry.spec is None}
_APART_IN = "normscope.norms."
_APART_ELSEWHERE = {
    "torch.nn.modules.normalization.LocalResponseNorm",
    "torch.nn.modules.normalization.CrossMapLRN2d",
    "timm.layers.filter_response_norm.FilterResponseNormTlu2d",
    "timm.layers.split_batchnorm.SplitBatchNorm2d",
    *(f"timm.layers.evo_norm.EvoNorm2d{of}" for of in ("B0", "B1", "B2", "S0", "S0a", "S1", "S1a", "S2", "S2a")),
}


def spec_of(module: nn.Module) -> NormSpec | None:
    """The normalization that `module` computes, or None when it is none that a `NormSpec` can say.

    Read off the attributes of torch.nn's classes (and subclasses that keep their ``forward``) and of modules that
    carry a `NormSpec` as ``spec``. Any other class whose name says "norm" is measured: a small tensor is given to a
    copy with random weights, in both modes, and the answer is compared with the catalog. A container that merely holds
    a norm, a reparametrization of weights, and what agrees with no row give None; nothing is guessed. The module and
    the random state stay as they are.

    Raises:
        ModelError: `module` is none.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(
            "The description of something was asked for that is no layer.",
            found=f"{module.__name__}, a class" if isinstance(module, type) else f"{type(module).__name__}",
            because="statistics, sizes and eps are those of one layer",
            do="pass the layer itself, such as torch.nn.GroupNorm(2, 6)",
        )
    if isinstance(own := getattr(module, "spec", None), NormSpec):
        return own if own.weights is None or own.scale is not None else None
    for kind in type(module).__mro__:
        if kind in _READERS:
            return _READERS[kind](module) if type(module).forward is kind.forward else _tried(module)
    return _tried(module) if "norm" in type(module).__name__.lower() else None


def role_of(module: nn.Module) -> Role:
    """What `module` does: ``norm``, ``producer`` (linear, convolution, recurrent, embedding, attention),
    ``activation``, or ``other``.

    Some norms have a formula that no description says (EvoNorm, LocalResponseNorm): they are norms without a `spec_of`.
    One that is made of described norms (BatchChannelNorm) is a container, and its parts are the norms.
    """
    if isinstance(module, _PRODUCERS) or any(_name(kind) in _PRODUCERS_ELSEWHERE for kind in type(module).__mro__):
        return "producer"
    if activation_of(module) is not None:
        return "activation"
    return "norm" if spec_of(module) is not None or _stands_apart(module) else "other"


def _stands_apart(module: nn.Module) -> bool:
    """Whether `module` is known as a norm of a formula of its own, or keeps the ``forward`` of one."""
    for kind in type(module).__mro__:
        if _name(kind) in _APART_ELSEWHERE or (kind.__name__ in _APART and kind.__module__.startswith(_APART_IN)):
            own = type(module).forward is kind.forward
            return own and all(spec_of(part) is None for part in module.children())
    return False


def activation_of(module: nn.Module | None) -> Activation | None:
    """The activation function that `module` computes, by its class or a class it derives from; None otherwise."""
    for kind in type(module).__mro__:
        if kind.__name__ in BY_CLASS and kind.__module__.startswith("torch."):
            return BY_CLASS[kind.__name__]
    if module is None or module._modules:
        return None
    name = type(module).__name__.removesuffix("Activation")
    return activation_named(name) or next((ACTIVATIONS[row] for word, row in _SAID.items() if word in name), None)


def kind_of(module: nn.Module) -> str:
    """The name of the module's class, as it was before torch's parametrizations derived another from it."""
    return type_before_parametrizations(module).__name__


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _tried(module: nn.Module) -> NormSpec | None:
    """The measured description of a class that is not known, with the activation that is fused to it."""
    parts = {path: part for path, part in module.named_modules() if part is not module}
    if len(parts) > _FUSED:
        return None
    functions = {path: function for path, part in parts.items() if (function := activation_of(part)) is not None}
    path, function = next(iter(functions.items()), (None, None))
    spec = measured(module, path)
    if spec is not None and isinstance(module, nn.SyncBatchNorm):  # a process alone cannot tell
        spec = spec.but(train_from="synchronized")
    return spec.but(activation=function.name) if spec is not None and function is not None else spec


def _batch_norm(module: nn.modules.batchnorm._BatchNorm) -> NormSpec:
    synchronized = isinstance(module, nn.SyncBatchNorm)
    spec = CATALOG["SyncBatchNorm" if synchronized else "BatchNorm"].but(eps=module.eps, **_affine(module))
    if not module.track_running_stats:
        return spec.but(infer_from="batch", momentum=None)
    if module.momentum is None:
        return spec.but(infer_from="cumulative", momentum=None)
    return spec.but(momentum=module.momentum)


def _instance_norm(module: nn.modules.instancenorm._InstanceNorm) -> NormSpec:
    spec = CATALOG["InstanceNorm"].but(eps=module.eps, **_affine(module))
    return spec.but(infer_from="running", momentum=module.momentum) if module.track_running_stats else spec


def _layer_norm(module: nn.LayerNorm) -> NormSpec:
    spec = CATALOG["LayerNorm"].but(eps=module.eps, **_affine(module))
    return spec if len(module.normalized_shape) == 1 else spec.but(over="CS", layout="channels_first")


def _group_norm(module: nn.GroupNorm) -> NormSpec:
    spec = CATALOG["GroupNorm"].but(eps=module.eps, **_affine(module))
    if module.num_groups == module.num_channels > 1:
        return spec.but(over="S", groups=1)
    return spec.but(groups=module.num_groups)


def _rms_norm(module: nn.RMSNorm) -> NormSpec:
    spec = CATALOG["RMSNorm"].but(eps=module.eps, cast=_torch_rms_cast(), **_affine(module))
    return spec if len(module.normalized_shape) == 1 else spec.but(over="CS", layout="channels_first")


def _affine(module: nn.Module) -> dict[str, bool]:
    return {name: getattr(module, of, None) is not None for name, of in (("affine", "weight"), ("bias", "bias"))}


@functools.cache
def _torch_rms_cast() -> str:
    """Where torch's RMSNorm returns to half precision: before the weight up to some version, after it since."""
    x = torch.arange(1.0, 257.0).to(torch.bfloat16)
    weight = (x / 97).flip(0)
    wide = x.float() * torch.rsqrt(x.float().square().mean() + 1e-6)
    late = (wide * weight.float()).to(torch.bfloat16)
    return "output" if torch.equal(nn.functional.rms_norm(x, (256,), weight, 1e-6), late) else "normalized"


_READERS: dict[type, Callable[..., NormSpec]] = {
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.modules.instancenorm._InstanceNorm: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.RMSNorm: _rms_norm,
}
