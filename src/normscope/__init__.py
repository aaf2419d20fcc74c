"""Normscope sees, explains and repairs what normalization does inside a neural network.

Five verbs: watch a training, diagnose its record, treat the model, report on a page, test the claims. Names are
loaded when they are first asked for, so ``import normscope`` costs nothing that is not used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# name → where it lives; a module alone means the module itself.
_FACE: dict[str, str] = {
    # describe
    "NormSpec": "normscope.terms.spec:NormSpec",
    "Site": "normscope.terms.site:Site",
    "catalog": "normscope.terms.catalog:CATALOG",
    "spec_of": "normscope.anatomy.recognize:spec_of",
    "sites": "normscope.anatomy.walk:sites",
    # build
    "nn": "normscope.nn",
    "functional": "normscope.functional",
    "stats": "normscope.stats",
    "kernels": "normscope.kernels",
    # watch
    "watch": "normscope.watch.session:watch",
    "Watcher": "normscope.watch.session:Watcher",
    "Probe": "normscope.anatomy.batch:Probe",
    "Record": "normscope.record.reader:Record",
    # diagnose
    "diagnose": "normscope.diagnose.engine:diagnose",
    "lint": "normscope.diagnose.engine:lint",
    "Diagnosis": "normscope.terms.finding:Diagnosis",
    "Finding": "normscope.terms.finding:Finding",
    "Evidence": "normscope.terms.finding:Evidence",
    "Prescription": "normscope.terms.finding:Prescription",
    # treat
    "treat": "normscope.verbs:treat",
    "convert": "normscope.treat.treatments.convert:convert",
    "recalibrate": "normscope.treat.treatments.recalibrate:recalibrate",
    "fold": "normscope.treat.treatments.fold:fold",
    "fuse": "normscope.treat.treatments.fuse:fuse",
    "freeze": "normscope.treat.treatments.freeze:freeze",
    "unfreeze": "normscope.treat.treatments.freeze:unfreeze",
    "adapt": "normscope.treat.treatments.adapt:adapt",
    "parameter_groups": "normscope.treat.parameter_groups:parameter_groups",
    "domain_banks": "normscope.treat.banks:domain_banks",
    "density_weights": "normscope.treat.density:density_weights",
    "effective_sample_size": "normscope.treat.density:effective_sample_size",
    "norm_for_stream": "normscope.treat.stream:norm_for_stream",
    "weighted_sampler": "normscope.treat.density:weighted_sampler",
    "trial": "normscope.treat.trial:trial",
    "Treated": "normscope.treat.treatment:Treated",
    "Trial": "normscope.terms.verdict:Trial",
    "Verdict": "normscope.terms.verdict:Verdict",
    # look
    "report": "normscope.verbs:report",
    # claims
    "claims": "normscope.claims",
    "NormscopeError": "normscope.terms.errors:NormscopeError",
}

__all__ = ["__version__", *_FACE]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    try:
        module, _, attribute = _FACE[name].partition(":")
    except KeyError:
        raise AttributeError(f"module 'normscope' has no attribute {name!r}") from None
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})


class _Face(ModuleType):
    """The package as users see it.

    Importing ``normscope.treat.trial`` would set `treat` to the folder of that name; the verb keeps its place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and ":" in _FACE.get(name, "")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
