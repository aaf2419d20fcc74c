"""Errors that teach: what was asked, what was found, why it cannot be, what to do.

Every error that a user can meet is one of these, and reads in four lines:

    ShapeError: GroupNorm was asked to split 30 channels into 32 groups.
      found    num_groups=32, num_channels=30 at `layer2.1.norm2`
      because  every group must hold the same number of channels
      do       choose a divisor of 30: 1, 2, 3, 5, 6, 10, 15, 30
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NormscopeError(Exception):
    """The four lines. `found` is a sentence, or a mapping that reads as ``name=value, …``."""

    def __init__(self, asked: str, *, found: str | Mapping[str, Any], because: str, do: str) -> None:
        self.asked = asked
        self.found = found if isinstance(found, str) else ", ".join(f"{key}={value}" for key, value in found.items())
        self.because = because
        self.do = do
        super().__init__(self.__str__())

    def __str__(self) -> str:
        return f"{self.asked}\n  found    {self.found}\n  because  {self.because}\n  do       {self.do}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.asked, self.found, self.because, self.do)


def _rebuild(kind: type[NormscopeError], asked: str, found: str, because: str, do: str) -> NormscopeError:
    return kind(asked, found=found, because=because, do=do)


class ShapeError(NormscopeError, ValueError):
    """A tensor or a layer has sizes that cannot work together."""


class SpecError(NormscopeError, ValueError):
    """A description of a normalization contradicts itself or names what does not exist."""


class ModelError(NormscopeError, ValueError):
    """A model cannot be read or run as asked."""


class DataError(NormscopeError, ValueError):
    """A batch or a loader is not what the call needs."""


class RecordError(NormscopeError, OSError):
    """A run directory is no record, is of a newer schema, or cannot be read."""


class UnknownNameError(NormscopeError, KeyError):
    """A rule, treatment, norm, quantity, site or claim of that name does not exist."""


class TreatmentRefused(NormscopeError):
    """A treatment that would not do what it says was refused; the model is as it was."""


class MissingExtraError(NormscopeError, ImportError):
    """A feature needs an optional package that is not installed."""

    @classmethod
    def of(cls, feature: str, package: str, extra: str) -> MissingExtraError:
        """The error for `feature` that needs `package`, which the extra `extra` installs."""
        return cls(
            f"{feature} needs {package}.",
            found=f"{package} is not installed in this environment",
            because="Normscope's core needs torch and numpy alone; the rest is optional",
            do=f"pip install 'normscope[{extra}]'",
        )


class NormscopeWarning(UserWarning):
    """Something went wrong inside Normscope; the training went on, and the record says what is missing."""
