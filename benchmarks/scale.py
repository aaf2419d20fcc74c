"""What a record costs at any size: bytes, files, and the time to merge ranks, measured on a part and multiplied.

    python benchmarks/scale.py            writes a few records under a temporary folder, reads them, prints a table

A part of R ranks, S sites and T sampled steps is written as a training would write it: digests of 8,192 normal values
whose scale differs from site to site and drifts from step to step, two thirds of the sites on every rank (activations)
and a third on one (parameters, gradients, updates of a replicated model).
"""

import argparse
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.site import Site

GPUS, SITES, STEPS = 1_000, 10_000, 1_000_000


def sampled(steps: int, per_doubling: int = 16) -> int:
    """How many of so many steps several processes sample: all up to 16, then 16 in each doubling."""
    return int(per_doubling * (1 + np.log2(steps / per_doubling)))


def summaries(count: int, variety: int = 64) -> list[Summary]:
    torch.manual_seed(0)
    return [Summary.of(torch.randn(8192) * 2.0 ** (at % 16 - 8) + at % 3) for at in range(min(count, variety))]


def write(place: Path, ranks: int, sites: int, steps: int) -> float:
    """Write a part; the processor seconds that one summary takes, encoding and disk included."""
    told = summaries(sites)
    started = time.process_time()
    for rank in range(ranks):
        with Writer(place, rank=rank, queue_limit=1_000_000) as writer:
            for step in range(steps):
                for at in range(sites):
                    if at % 3 or rank == 0:
                        site = Site(f"layer{at // 3}", ("parameter", "input", "output")[at % 3], depth=at)
                        writer.summary(site, step, "live", told[(at + step) % len(told)])
    written = steps * sum(sites if rank == 0 else sites - len(range(0, sites, 3)) for rank in range(ranks))
    return (time.process_time() - started) / written


def measure(ranks: int, sites: int, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        seconds = write(place, ranks, sites, steps)
        files = sorted(place.glob("*.sqlite"))
        size = sum(file.stat().st_size for file in files)
        rows = sum(sqlite3.connect(file).execute("SELECT count(*) FROM summary").fetchone()[0] for file in files)
        started = time.perf_counter()
        record = Record(place)
        found = len(record.sites)
        opened = time.perf_counter() - started
        started = time.perf_counter()
        record.series("layer0", "std")
        series = time.perf_counter() - started
        started = time.perf_counter()
        record.summary("layer0:output", steps - 1)
        one = time.perf_counter() - started
        assert found == sites
        return {
            "ranks": ranks,
            "sites": sites,
            "steps": steps,
            "bytes_per_summary": size / rows,
            "us_to_write": 1e6 * seconds,
            "open_us_per_rank_site": 1e6 * opened / ranks / sites,
            "series_us_per_rank_step": 1e6 * series / ranks / steps,
            "summary_ms_per_rank": 1e3 * one / ranks,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", default="1x300x60,4x300x30,16x300x10,256x30x4,1x3000x10,1x10000x3", help="ranks x sites x steps, …"
    )
    rows = []
    for part in parser.parse_args().parts.split(","):
        rows.append(measure(*(int(number) for number in part.split("x"))))
        print(" ".join(f"{name}={value:.4g}" for name, value in rows[-1].items()), flush=True)
    worst = {name: max(row[name] for row in rows) for name in rows[0]}
    whole = [row for row in rows if row["ranks"] == 1]  # in a file of a few rows the empty tables weigh most
    n = sampled(STEPS)
    once, everywhere = SITES / 3, 2 * SITES / 3
    kept = n * (once + GPUS * everywhere)
    print(f"\n{GPUS:,} GPUs × {SITES:,} sites × {STEPS:,} steps, {n} of them sampled")
    print(f"summaries    {kept:,.0f}")
    print(f"files        {GPUS:,}")
    size = max(row["bytes_per_summary"] for row in whole)
    print(f"bytes        {kept * size / 1e9:,.0f} GB, {n * everywhere * size / 1e6:,.0f} MB a rank")
    print(f"every site   {GPUS * SITES * rows[-1]['open_us_per_rank_site'] / 1e6:,.1f} s")
    print(f"one series   {GPUS * n * worst['series_us_per_rank_step'] / 1e6:,.1f} s")
    print(f"one summary  {GPUS * worst['summary_ms_per_rank'] / 1e3:,.2f} s")


if __name__ == "__main__":
    main()
