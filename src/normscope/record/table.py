"""A record as one table, a row for each value: for NumPy, pandas, Arrow and whatever reads those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.record.places import unknown
from normscope.record.quantities import DERIVED, FROM_COLUMNS, STORED
from normscope.record.series import Series, Steps, only
from normscope.terms.errors import MissingExtraError
from normscope.terms.site import Site

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from normscope.record.reader import Record

TEXTS = ("site", "path", "what", "quantity", "source")
_VECTORS = frozenset({"quantiles"})  # not one number a step


def columns(
    record: Record,
    *,
    sites: Iterable[Site | str] | None = None,
    quantities: Iterable[str] | None = None,
    steps: Steps = None,
) -> dict[str, np.ndarray]:
    """The columns ``step``, ``site``, ``path``, ``what``, ``depth``, ``quantity``, ``source``, ``value``, as arrays.

    Args:
        record: the run.
        sites: sites or keys; all, and the whole run (the key ``""``), when None.
        quantities: names; all but the vectors when None.
        steps: as for `Record.series`.

    Raises:
        UnknownNameError: no such site, or a quantity that is neither known nor in the record.
    """
    wanted = None if quantities is None else set(quantities)
    if wanted:
        known = {*STORED, *DERIVED, *(name for stored in record.catalog().values() for name in stored)}
        for name in sorted(wanted - known):
            raise unknown("quantity", name, known, "it is neither derived from summaries nor stored in this record")
    found = [series for series in _all(record, sites, wanted, steps) if len(series)]
    lengths = [len(series) for series in found]

    def repeated(values: list[Any], kind: Any) -> np.ndarray:
        return np.repeat(np.array(values, dtype=kind), lengths)

    places = [series.site or Site("") for series in found]
    return {
        "step": np.concatenate([series.steps for series in found]) if found else np.array([], np.int64),
        "site": repeated([series.site.key if series.site else "" for series in found], object),
        "path": repeated([place.path for place in places], object),
        "what": repeated([series.site.what if series.site else "run" for series in found], object),
        "depth": repeated([place.depth for place in places], np.int64),
        "quantity": repeated([series.quantity for series in found], object),
        "source": repeated([series.source for series in found], object),
        "value": np.concatenate([series.values for series in found]) if found else np.array([], np.float64),
    }


def pandas(record: Record, **what: Any) -> pd.DataFrame:
    """The columns as a data frame. Raises MissingExtraError without pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError.of("A record as a data frame", "pandas", "data") from error
    told = columns(record, **what)
    return pd.DataFrame({name: pd.Categorical(v) if name in TEXTS else v for name, v in told.items()})


def arrow(record: Record, **what: Any) -> pa.Table:
    """The columns as an Arrow table, texts as dictionaries. Raises MissingExtraError without pyarrow."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError.of("A record as an Arrow table", "pyarrow", "data") from error
    told = columns(record, **what)
    return pa.table(
        {
            name: pa.array(values, pa.string()).dictionary_encode() if name in TEXTS else pa.array(values)
            for name, values in told.items()
        }
    )


def _all(record: Record, sites: Any, wanted: set[str] | None, steps: Steps) -> Iterator[Series]:
    def asked(name: str) -> bool:
        return name not in _VECTORS if wanted is None else name in wanted

    if sites is None:
        for name in filter(asked, record.quantities(None)):
            yield record.series(None, name, steps=steps)
    known = {site.key: site for site in record.sites}
    for place in known.values() if sites is None else sites:
        site = known.get(Site.parse(place).key) if isinstance(place, str) else place
        yield from _of(record, record.series(place, "mean").site if site is None else site, asked, steps)


def _of(record: Record, site: Site | None, asked: Any, steps: Steps) -> Iterator[Series]:
    """Every series of one tensor; what its summaries' columns hold is read once for each source."""
    if site is None:
        return
    for name, sources in record.contents(site).items():
        if name:
            if asked(name):
                yield record.series(site, name, steps=steps)
            continue
        for source in sources:
            rows = record.columns(site, source)
            for quantity in (name for name in FROM_COLUMNS if asked(name) and _suits(site, name)):
                values = FROM_COLUMNS[quantity](rows)
                yield only(Series.of(site, quantity, source, rows.steps, values), steps)
        there = set(record.quantities(site))
        for quantity in DERIVED:
            if quantity not in FROM_COLUMNS and quantity in there and asked(quantity) and _suits(site, quantity):
                found = record.series(site, quantity, steps=steps)
                if found.site is not None and found.site.key == site.key:
                    yield found


def _suits(site: Site, quantity: str) -> bool:
    """Whether a derived quantity means anything at this tensor."""
    if quantity in ("gradient_norm",):
        return site.what == "gradient"
    if quantity in ("weight_norm", "effective_learning_rate"):
        return site.what == "parameter"
    return True
