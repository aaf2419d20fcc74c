"""Runs claims case by case: cached on disk, resumed where it stopped, in as many processes as there are workers.

Claims that share their `run` share its outcomes: what is cached is a case of a function, whoever asked for it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from normscope.claims import cluster
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.orphan import leave_with_parent
from normscope.claims.outcomes import Case, Outcome, Outcomes
from normscope.terms.datum import Datum, plain
from normscope.terms.errors import DataError

CACHE = Path(".normscope/claims")
CLASSES = 10
_ALWAYS, _NAMED = (
    ("bench", "data"),
    ("models", "search", "seen"),
)  # shared files: of every run, and of those that import them

Progress = Callable[["Job", str | None, int, int], object]  # the job that ended, why it failed, how many of how many


@dataclass(frozen=True, repr=False)
class Job(Datum):
    """One case of one claim on one bench: the unit of caching and of parallel work. `module` holds its ``run``."""

    claim: str
    module: str
    case: Case
    bench: Bench

    @cached_property
    def key(self) -> str:
        """Equal for jobs that would give the same: case, data, and the text of what runs it."""
        told = json.dumps([self.case, self.bench.to_dict(), _text(self.module)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:20]

    def file(self, cache: Path) -> Path:
        """Where its outcome is kept."""
        return cache / self.module.rpartition(".")[2] / f"{self.key}.json"


@dataclass(frozen=True, repr=False)
class Ran(Datum):
    """The outcomes of a claim, and how many of its cases are still missing."""

    claim: Claim
    size: str
    outcomes: Outcomes
    missing: int
    seconds: float
    last: str  # the day of the latest run


def jobs(claim: Claim, size: str, bench: Bench) -> list[Job]:
    """All runs of a claim."""
    return [Job(claim.id, claim.run.__module__, case, bench) for case in claim.cases_of(size)]


def run(
    claims: Iterable[Claim],
    *,
    size: str = "quick",
    bench: Bench | None = None,
    cache: Path = CACHE,
    workers: int = 1,
    ray: str = "",
    progress: Progress = lambda job, failure, done, of: None,
) -> None:
    """Run what the cache does not hold yet. A run that raises is told to `progress`, and the others go on.

    Args:
        claims: the claims.
        size: ``"quick"`` or ``"full"``.
        bench: data and device; digits on the CPU when left out.
        cache: a folder; one file a run appears there, whole or not at all.
        workers: processes, one torch thread each; 1 runs here.
        ray: the address of a Ray cluster that runs them instead (``normscope.claims.cluster``).
        progress: told after each run.

    Raises:
        MissingExtraError: `ray` is not installed.
        DataError: the bench's folder holds no images that are read, or more than ten classes.
    """
    bench = bench or Bench()
    _check(bench)
    asked = {job.key: job for claim in claims for job in jobs(claim, size, bench)}
    waiting = [job for job in asked.values() if _kept(job.file(cache)) is None]
    running = cluster.execute(waiting, ray, work) if ray else _execute(waiting, workers)
    for done, (job, ran) in enumerate(running, 1):
        failure = ran.get("failure")
        if failure is None:
            _keep(job.file(cache), {**ran, "case": job.case})
        progress(job, failure, done, len(waiting))


def _check(bench: Bench) -> None:
    """The networks of the claims tell ten classes apart."""
    classes = int(bench.images.y.max()) + 1 if bench.source else 0
    if classes > CLASSES:
        raise DataError(
            f"Claims were to be run on `{bench.source}`.",
            found=f"{classes} classes",
            because=f"the networks of the claims have {CLASSES} outputs, so that guessing is the same everywhere",
            do=f"give a folder of at most {CLASSES} classes",
        )


def load(claim: Claim, *, size: str = "quick", bench: Bench | None = None, cache: Path = CACHE) -> Ran:
    """What the cache holds of a claim."""
    asked = jobs(claim, size, bench or Bench())
    kept = [(job, told) for job in asked if (told := _kept(job.file(cache))) is not None]
    return Ran(
        claim,
        size,
        Outcomes(Outcome(job.case, _numbers(told["values"])) for job, told in kept),
        missing=len(asked) - len(kept),
        seconds=sum(told["seconds"] for _, told in kept),
        last=max((told["day"] for _, told in kept), default=""),
    )


def work(job: Job) -> dict[str, Any]:
    """Run a job in this process: its values and its cost, or why it failed."""
    started = time.process_time()
    try:
        values = importlib.import_module(job.module).run(job.case, job.bench)
    except Exception as error:
        return {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {
        "values": plain(dict(values)),
        "seconds": round(time.process_time() - started, 3),
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _execute(waiting: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if workers <= 1 or len(waiting) < 2:
        for job in waiting:
            yield job, work(job)
        return
    # spawn: a forked process would inherit torch's locked thread pools
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        futures: dict[Future[dict[str, Any]], Job] = {pool.submit(work, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                failure = future.exception()
                yield futures[future], future.result() if failure is None else {"failure": repr(failure)}
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """What a worker process does first."""
    import torch

    torch.set_num_threads(1)
    leave_with_parent()


def _keep(file: Path, told: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.part")
    draft.write_text(json.dumps(told, sort_keys=True), encoding="utf-8")
    os.replace(draft, file)


def _kept(file: Path) -> dict[str, Any] | None:
    """What a file of the cache says; a file that cannot be read is a run that is missing."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _numbers(values: Any) -> Any:
    """JSON's words "nan", "inf" and "-inf" as the numbers they stand for."""
    if isinstance(values, dict):
        return {name: _numbers(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return float(values) if values in ("nan", "inf", "-inf") else values


@cache
def _text(module: str) -> list[str]:
    """The text of what runs a job and of the shared files that it uses, as this process first saw it.

    A claim's sentence and its rule stand last in its file; they change nothing of a run.
    """
    own = _read(importlib.import_module(module).__file__).partition("\nCLAIM = ")[0]
    names = (*_ALWAYS, *(name for name in _NAMED if f"{__package__}.{name} import" in own))
    return [own, *(_read(importlib.import_module(f"{__package__}.{name}").__file__) for name in names)]


def _read(file: str | None) -> str:
    return Path(file).read_text(encoding="utf-8") if file else ""


def machine() -> dict[str, str]:
    """What the runs were made on, for the foot of the ledger."""
    import platform

    import torch

    from normscope import __version__

    return {
        "normscope": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
