"""Stop norms from changing: their running statistics hold still in every mode, their weight and bias are not learned.

A frozen norm stays in evaluation mode whatever ``model.train()`` says. It keeps its class, its names and its state, so
checkpoints fit before, during and after; `unfreeze` gives back the norm as it was.

It preserves the function in evaluation mode exactly, and from then on training mode computes the same at these layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from torch import nn

from normscope.anatomy.recognize import spec_of
from normscope.anatomy.walk import sites as sites_of
from normscope.terms.site import Site
from normscope.terms.spec import NormSpec
from normscope.treat.surgery import replace, unregistered, within
from normscope.treat.treatment import Change, Treated, Treatment, perform

Where = str | Iterable[str] | Callable[[Site], bool] | None


def freeze(model: nn.Module, where: Where = None) -> Treated:
    """Freeze the norms of `model` itself, so that ``model.train()`` does not wake them.

    Args:
        model: the network, changed in place. When the model is itself a norm, `Treated.model` takes its place.
        where: which norms: a path, several paths (each with all beneath it), or a function of the norm's `Site`; None
            is all.

    Raises:
        UnknownNameError: there is no such path.
    """

    def act(patient: nn.Module) -> Treated:
        if callable(where):
            return apply(patient, where=where)
        return apply(patient, (where,) if isinstance(where, str) else tuple(where or ()))

    return perform(model, act, inplace=True)


def unfreeze(model: nn.Module) -> Treated:
    """Give `model` its frozen norms back as they were before `freeze`, in the mode that the model is in."""

    def act(patient: nn.Module) -> Treated:
        changes = []
        for path, module in list(patient.named_modules()):
            if isinstance(module, Frozen):
                thawed = _thawed(module)
                patient = replace(patient, module, thawed)
                thawed.train(patient.training)
                changes.append(Change(path, f"frozen {type(thawed).__name__}", type(thawed).__name__))
        return Treated(patient, tuple(changes))

    return perform(model, act, inplace=True)


def apply(
    model: nn.Module,
    sites: Sequence[str] = (),
    *,
    data: Any = None,
    where: Callable[[Site], bool] | None = None,
) -> Treated:
    """`freeze`, for the norms at `sites`. It looks at no data."""
    chosen, changes, skipped = within(model, sites), [], []
    for site in sites_of(model):
        module = model.get_submodule(site.path)
        if site.role != "norm" or module not in chosen or isinstance(module, Frozen):
            continue
        if where is not None and not where(site):
            continue
        if reason := _kept(model, module):
            skipped.append((site.path, reason))
            continue
        model = replace(model, module, _frozen(module))
        changes.append(Change(site.path, site.kind, f"frozen {site.kind}"))
    return Treated(model, tuple(changes), "exact", None, tuple(skipped))


class Frozen(nn.Module):
    """Mixed before the class of a norm: always in evaluation mode, whatever it is told."""

    spec: NormSpec  # the description, with statistics that are given
    before: dict[str, Any]  # the attributes that freezing replaced

    @property
    def training(self) -> bool:
        """False."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Nothing: it stays False."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _bare, (_base(self),), vars(self)

    def _get_name(self) -> str:
        return type(self).__name__


def _kept(model: nn.Module, module: nn.Module) -> str | None:
    """Why a norm cannot be frozen, or None."""
    spec = spec_of(module)
    if spec is not None and spec.infer_from in ("batch", "ghost", "synchronized"):
        return "it keeps no statistics that could hold still"
    if held := unregistered(model, module):
        return f"`{held}` holds it outside of the registered modules and would go on calling it"
    return None


def _frozen(module: nn.Module) -> nn.Module:
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    frozen: Any = _bare(type(module))
    own = getattr(module, "spec", None)
    vars(frozen).update(vars(module), before={"learned": learned, "spec": own})
    spec = spec_of(module)
    if spec is not None:
        frozen.spec = spec.but(train_from="given", infer_from="given") if _averages(spec) else spec
    return frozen.requires_grad_(False)


def _averages(spec: NormSpec) -> bool:
    return spec.infer_from in ("running", "cumulative")


def _thawed(module: Frozen) -> nn.Module:
    thawed: Any = object.__new__(_base(module))
    vars(thawed).update({name: value for name, value in vars(module).items() if name not in ("before", "spec")})
    if module.before["spec"] is not None:
        thawed.spec = module.before["spec"]
    for parameter in module.before["learned"]:
        parameter.requires_grad_()
    return thawed


def _base(module: Frozen) -> type[nn.Module]:
    return type(module).__mro__[2]


@cache
def _class(norm: type[nn.Module]) -> type[nn.Module]:
    return type(f"Frozen{norm.__name__}", (Frozen, norm), {"__module__": __name__})


def _bare(norm: type[nn.Module]) -> nn.Module:
    return object.__new__(_class(norm))


TREATMENT = Treatment("freeze", "exact", apply)
