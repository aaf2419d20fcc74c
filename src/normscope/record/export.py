"""A record for other tools: Parquet, CSV, TensorBoard event files. Whole or not at all."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from normscope.record import table
from normscope.record.reader import Record
from normscope.terms.errors import DataError, MissingExtraError

Form: TypeAlias = Literal["parquet", "csv", "tensorboard"]


def export(record: Record, to: Form, out: str | PathLike[str] | None = None, **what: Any) -> Path:
    """Write the measurements of `record` as a file (Parquet, CSV) or a folder (TensorBoard); where it was written.

    Args:
        record: the run.
        to: the form. Parquet and CSV hold the columns of `table.columns`; TensorBoard a scalar ``quantity/site`` (with
            ``/source`` where a quantity has several) for each series.
        out: where to; beside the run directory, under its name, when left out. What is there is replaced.
        what: ``sites``, ``quantities``, ``steps``, as for `table.columns`.

    Raises:
        DataError: `out` cannot be written.
        MissingExtraError: pyarrow (extra ``data``) or tensorboard (extra ``tensorboard``) is not installed.
    """
    ending, write = FORMS[to]
    path = Path(out) if out is not None else record.path.absolute().with_name(f"{record.path.absolute().name}{ending}")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(record, draft, what)
        if draft.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)
    except OSError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise DataError(
            f"A record was to be exported as {to} where it cannot be written.",
            found=f"{error.strerror or error} at `{path}`",
            because="Parquet and CSV are one file, TensorBoard one folder; the folders above are made when missing",
            do="give a place that can be written to and has room, such as `-o export/run`",
        ) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
    return path


def _parquet(record: Record, path: Path, what: Mapping[str, Any]) -> None:
    told = table.arrow(record, **what)  # says what is missing, if pyarrow is
    import pyarrow.parquet as parquet

    parquet.write_table(told, path)


def _csv(record: Record, path: Path, what: Mapping[str, Any]) -> None:
    told = table.columns(record, **what)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(told)
        writer.writerows(zip(*(column.tolist() for column in told.values())))


def _tensorboard(record: Record, path: Path, what: Mapping[str, Any]) -> None:
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise MissingExtraError.of("An export to TensorBoard", "tensorboard", "tensorboard") from error
    told = table.columns(record, **what)
    started = float(record.started)
    writer = EventFileWriter(str(path))
    names = ("step", "site", "quantity", "source", "value")
    for step, site, quantity, source, value in zip(*(told[name].tolist() for name in names)):
        tag = "/".join(filter(None, (quantity, site, source)))
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(wall_time=started + step, step=step, summary=summary))
    writer.close()


FORMS: Mapping[str, tuple[str, Callable[[Record, Path, Mapping[str, Any]], None]]] = MappingProxyType(
    {"parquet": (".parquet", _parquet), "csv": (".csv", _csv), "tensorboard": ("-tensorboard", _tensorboard)}
)
"""By form: what is put behind the run's name, and what writes it."""
