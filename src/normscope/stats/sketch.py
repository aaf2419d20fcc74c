"""A histogram over all magnitudes whose bins are the float's own leading bits.

Sign, exponent (64 octaves, 2⁻³² to 2³¹) and the top 4 bits of the mantissa number one of 2,048 bins, so a bin is at
most 6.25 % wide and is the same for every tensor, step and machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from normscope.stats.cdf import Cdf
from normscope.stats.code import decode, encode
from normscope.stats.monoid import Arrays, Monoid
from normscope.stats.values import block_size, exact, finite, values
from normscope.terms.datum import Datum

if TYPE_CHECKING:
    import torch

BINS = 2048
CELLS = BINS + 4  # and exact zeros, NaN, +∞, −∞
_HALF = BINS // 2  # bins of one sign, in order of magnitude; the negative half follows the positive one
_STEPS = 16  # bins in an octave: 4 bits of the mantissa
_LOWEST = -32  # the exponent where the bins begin


@dataclass(frozen=True, repr=False, eq=False)
class Sketch(Monoid, Datum):
    """How many values fall in each bin; exact zeros and non-finite values are counted apart.

    counts: int64 (2048,). Bins 0…1023 hold positive values by rising magnitude, 1024…2047 negative ones likewise.
    Values below 2⁻³² in magnitude fall in the lowest bin of their sign, those from 2³² on in the highest.
    """

    counts: np.ndarray
    zeros: int = 0
    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0

    @classmethod
    def empty(cls) -> Sketch:
        """The sketch of nothing: the identity of `merge`."""
        return cls(np.zeros(BINS, dtype=np.int64))

    @classmethod
    def coded(cls, code: bytes, zeros: int, nan: int, pos_inf: int, neg_inf: int) -> Sketch:
        """From the code of its counts, which must be one: it is not read before somebody asks for the counts."""
        made = object.__new__(cls)
        made.__dict__.update(code=code, zeros=zeros, nan=nan, pos_inf=pos_inf, neg_inf=neg_inf)
        return made

    def __getattr__(self, name: str) -> Any:
        if name != "counts":
            raise AttributeError(name)
        return self.__dict__.setdefault("counts", decode(self.__dict__["code"], BINS))

    @cached_property
    def code(self) -> bytes:
        """The counts in few bytes, see `code.encode`."""
        return encode(self.counts)

    @classmethod
    def of(cls, x: Any) -> Sketch:
        """The sketch of a tensor or array of any shape and real dtype, counted on its device."""
        import torch

        flat = values(x).reshape(-1)
        rows = [exact(block)[None] for block in flat.split(block_size(flat.device))]
        return cls.from_tally(torch.cat([tally(row, finite(row)) for row in rows]).sum(0).cpu().numpy())

    @classmethod
    def from_tally(cls, tally: np.ndarray) -> Sketch:
        """From the counts of all `cells`, int64 (CELLS,), of which it keeps a view."""
        return cls(tally[:BINS], *tally[BINS:].tolist())

    def merge(self, other: Sketch) -> Sketch:
        """The sketch of both data sets together."""
        return Sketch(
            self.counts + other.counts,
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.pos_inf + other.pos_inf,
            self.neg_inf + other.neg_inf,
        )

    def __repr__(self) -> str:
        quartiles = ", ".join(f"{value:.4g}" for value in self.quantile([0.25, 0.5, 0.75]))
        return f"Sketch(total={self.total}, zeros={self.zeros}, nonfinite={self.nonfinite}, quartiles=({quartiles}))"

    @cached_property
    def total(self) -> int:
        """The number of finite values, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def nonfinite(self) -> int:
        """The number of values that are NaN or infinite."""
        return self.nan + self.pos_inf + self.neg_inf

    @property
    def zero_share(self) -> float:
        """The share of exact zeros among the finite values; NaN when there are none."""
        return self.zeros / self.total if self.total else float("nan")

    @staticmethod
    def edges() -> np.ndarray:
        """The borders of the 2,049 cells of `ordered`, ascending, float64 (2050,), from −2³² to 2³².

        0 stands twice: the cell between holds exact zeros. Values beyond the outer borders are in the outer cells.
        """
        return _edges()

    def ordered(self) -> np.ndarray:
        """The counts along the real line, int64 (2049,): negative bins, exact zeros, positive bins."""
        return np.concatenate((self.counts[: _HALF - 1 : -1], [self.zeros], self.counts[:_HALF]))

    def cdf(self, low: float | None = None, high: float | None = None) -> Cdf:
        """The cumulative distribution over the cells of `ordered`.

        low, high: the least and greatest value, where they are known; the outermost cells then begin and end there.
        """
        edges = _edges()
        if low is not None and high is not None:
            edges = edges.clip(low, high)
            edges[0], edges[-1] = low, high
        return Cdf(edges, np.concatenate(([0], np.cumsum(self.ordered()))))

    def quantile(self, q: ArrayLike) -> Any:
        """The value below which a share `q` of the finite values lies, within a bin's width of `numpy.quantile`.

        A float for a float, an array for an array; NaN when there are no finite values.
        """
        return self.cdf().quantile(q)

    def below(self, t: float) -> float:
        """The share of finite values strictly below `t`, interpolated inside a bin; NaN when there are none."""
        return float(self.cdf().below(t))

    def above(self, t: float) -> float:
        """The share of finite values strictly above `t`, interpolated inside a bin; NaN when there are none."""
        return 1 - float(self.cdf().upto(t))

    def outside(self, low: float | None = None, high: float | None = None) -> float:
        """The share of finite values below `low` or above `high`; None leaves that side out."""
        below = 0.0 if low is None else self.below(low)
        above = 0.0 if high is None else self.above(high)
        return below + above if self.total else float("nan")

    def to_arrays(self) -> Arrays:
        """bins: numbers of the filled bins (uint16); counts: what they hold; apart: zeros, NaN, +∞, −∞."""
        filled = np.flatnonzero(self.counts)
        counts = self.counts[filled]
        return {
            "bins": filled.astype(np.uint16),
            "counts": counts.astype(np.min_scalar_type(int(counts.max(initial=0)))),
            "apart": np.array([self.zeros, self.nan, self.pos_inf, self.neg_inf], dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Sketch:
        """The inverse of `to_arrays`."""
        counts = np.zeros(BINS, dtype=np.int64)
        counts[np.asarray(arrays["bins"], dtype=np.int64)] = arrays["counts"]
        return cls(counts, *(int(number) for number in arrays["apart"]))


def cells(x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """The cell of each element of a float32 or float64 tensor, int32 of the same shape.

    The cells are the bins of `Sketch.counts`, and after them exact zeros of either sign, NaN, +∞, −∞.
    kept: which elements are finite; None when all are.
    """
    import torch

    integer, mantissa, bias = (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)
    first = (bias + _LOWEST) * _STEPS
    bits = (x + 0.0).view(integer)  # −0 + 0 is +0
    magnitude = bits & torch.iinfo(integer).max
    cell = (magnitude >> (mantissa - 4)).clamp_(first, first + _HALF - 1).sub_(first - BINS)
    cell.add_(magnitude.clamp_(max=1), alpha=-BINS)  # back among the bins, but for zeros
    cell.add_((bits >> (8 * bits.itemsize - 1)).bitwise_and_(_HALF))
    if kept is not None:
        infinite = torch.where(x > 0, BINS + 2, BINS + 3)
        cell = cell.where(kept, infinite.where(x == x, BINS + 1))
    return cell.to(torch.int32)


def tally(rows: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """How many elements of each row (R, n), float32 or float64, fall in each of the `cells`: int64 (R, CELLS)."""
    import torch

    count = len(rows)
    cell = cells(rows, kept)
    cell.add_(torch.arange(0, count * CELLS, CELLS, dtype=torch.int32, device=rows.device)[:, None])
    return torch.bincount(cell.view(-1), minlength=count * CELLS).view(count, CELLS)


@cache
def _edges() -> np.ndarray:
    code = np.arange(1, _HALF + 1)
    magnitude = np.ldexp(1 + (code % _STEPS) / _STEPS, code // _STEPS + _LOWEST)
    edges = np.concatenate((-magnitude[::-1], [0.0, 0.0], magnitude))
    edges.flags.writeable = False
    return edges
