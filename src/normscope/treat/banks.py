"""Statistics of several domains for one network: a bank each, and the one that is in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.anatomy.isolate import unwrapped
from normscope.terms.datum import Datum
from normscope.terms.errors import UnknownNameError
from normscope.treat.treatments.recalibrate import recalibrate

_NAMES = ("running_mean", "running_var")


@dataclass(frozen=True, repr=False)
class Banks(Datum):
    """The population statistics of each domain.

    Attributes:
        statistics: by domain, then by buffer as ``model.named_buffers()`` names it.
    """

    statistics: Mapping[str, Mapping[str, Tensor]]

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains."""
        return tuple(self.statistics)

    def use(self, model: nn.Module, domain: str) -> None:
        """Write the statistics of `domain` into the buffers of `model`.

        Raises:
            UnknownNameError: there is no such domain.
        """
        if domain not in self.statistics:
            raise UnknownNameError(
                f"The statistics of a domain `{domain}` were asked for.",
                found=", ".join(self.statistics),
                because="a bank holds the domains that it was made of",
                do="choose one of these, or make the banks again with its data",
            )
        buffers = dict(unwrapped(model).named_buffers())
        with torch.no_grad():
            for name, kept in self.statistics[domain].items():
                buffers[name].copy_(kept)


def domain_banks(model: nn.Module, domains: Mapping[str, Any], **settings: Any) -> Banks:
    """The statistics that `model` needs in each domain (Li et al. 2016, "Revisiting Batch Normalization…", AdaBN).

    Args:
        model: the network; it stays as it is.
        domains: the data of each domain, as `normscope.recalibrate` takes it.
        settings: of `normscope.recalibrate`: exact, estimator, settle, group.

    Raises:
        DataError: a domain's data cannot be used.
    """
    found = {}
    for domain, data in domains.items():
        treated = recalibrate(unwrapped(model), data, inplace=False, **settings)
        measured = {change.site for change in treated.changes}
        found[domain] = {
            name: buffer
            for name, buffer in treated.model.named_buffers()
            if name.rpartition(".")[0] in measured and name.rpartition(".")[2] in _NAMES
        }
    return Banks(found)
