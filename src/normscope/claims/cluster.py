"""The same jobs on a Ray cluster. The package ray is imported in this file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from normscope.terms.errors import MissingExtraError

if TYPE_CHECKING:
    from normscope.claims.runner import Job


def execute(
    waiting: Sequence[Job], address: str, work: Callable[[Job], dict[str, Any]]
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with what it gave, as they end; one core each.

    Args:
        waiting: the jobs.
        address: of the cluster (``"ray://head:10001"``, ``"auto"``), or ``"local"`` for one that is started here. The
            nodes need normscope with the extra ``claims``, and the bench's data at the same path.
        work: runs a job where it is called.

    Raises:
        MissingExtraError: ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError.of("Running claims on a cluster", "ray", "ray") from None
    ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        remote = ray.remote(num_cpus=1)(work)
        running = {remote.remote(job): job for job in waiting}
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ended)
            try:
                yield job, ray.get(ended)
            except Exception as error:  # a worker that died is one failed run; the others go on
                yield job, {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        ray.shutdown()
