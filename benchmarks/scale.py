"""What a record costs at any size: bytes, files, and the time to merge ranks, measured on a part and multiplied.

    python benchmarks/scale.py                   writes a few records under a temporary folder, reads them: a table
    python benchmarks/scale.py --grow runs/big   writes the record of one run of 1,000 sites × 2,000 steps
    python benchmarks/scale.py --read runs/big   how long its diagnosis and its page take; --out puts it into a file

A part of R ranks, S sites and T sampled steps is written as a training would write it: digests of 8,192 normal values
whose scale differs from site to site and drifts from step to step, two thirds of the sites on every rank (activations)
and a third on one (parameters, gradients, updates of a replicated model).
"""

import argparse
import json
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normscope.diagnose.engine import diagnose, rules
from normscope.record.database import Database
from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.digest import Digest, Digests
from normscope.stats.summary import Summary
from normscope.terms.site import Site
from normscope.verbs import report
from normscope.watch.session import watch

GPUS, SITES, STEPS = 1_000, 10_000, 1_000_000


def sampled(steps: int, per_doubling: int = 16) -> int:
    """How many of so many steps several processes sample: all up to 16, then 16 in each doubling."""
    return int(per_doubling * (1 + np.log2(steps / per_doubling)))


def summaries(count: int, variety: int = 64) -> list[Summary]:
    torch.manual_seed(0)
    return [Summary.of(torch.randn(8192) * 2.0 ** (at % 16 - 8) + at % 3) for at in range(min(count, variety))]


def write(place: Path, ranks: int, sites: int, steps: int) -> float:
    """Write a part; the processor seconds that one summary takes, encoding and disk included."""
    told = [Digest.of(summary) for summary in summaries(sites)]
    started = time.process_time()
    for rank in range(ranks):
        with Writer(place, rank=rank, queue_limit=1_000_000) as writer:
            of_rank = [at for at in range(sites) if at % 3 or rank == 0]
            named = [Site(f"layer{at // 3}", ("parameter", "input", "output")[at % 3], depth=at) for at in of_rank]
            for step in range(steps):
                writer.block(step, "live", named, Digests.of([told[(at + step) % len(told)] for at in of_rank]))
    written = steps * sum(sites if rank == 0 else sites - len(range(0, sites, 3)) for rank in range(ranks))
    return (time.process_time() - started) / written


def measure(ranks: int, sites: int, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        seconds = write(place, ranks, sites, steps)
        files = sorted(place.glob("*.sqlite"))
        size = sum(file.stat().st_size for file in files)
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
            "bytes_per_summary": size / (steps * (ranks * sites - (ranks - 1) * len(range(0, sites, 3)))),
            "us_to_write": 1e6 * seconds,
            "open_us_per_rank_site": 1e6 * opened / ranks / sites,
            "series_us_per_rank_step": 1e6 * series / ranks / steps,
            "summary_ms_per_rank": 1e3 * one / ranks,
        }


def grow(place: Path, sites: int, steps: int) -> None:
    """A real training under watch for 20 steps, whose rows are then copied until there are `steps` of them."""
    torch.manual_seed(0)
    blocks = (sites - 11) // 18
    layers = [part for _ in range(blocks) for part in (nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, y = torch.randn(256, 64), torch.randint(4, (256,))
    with watch(model, optimizer, place, probe=(x[:64], y[:64]), loss_fn=cross_entropy, every=1) as watcher:
        for _ in range(20):
            chosen = torch.randint(256, (64,))
            optimizer.zero_grad()
            loss = cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            watcher.loss(loss)
            _ = watcher.record  # waits for the disk, so that no sample is dropped
    with closing(sqlite3.connect(place / "rank0.sqlite")) as file:
        have = 20
        while have < steps:
            more = min(have, steps - have)
            for table in ("summary", "block", "scalar"):
                names = [name for _, name, *_ in file.execute(f"PRAGMA table_info({table})")]
                moved = ", ".join("step + ?" if name == "step" else name for name in names)
                file.execute(
                    f"INSERT INTO {table} SELECT {moved} FROM {table} WHERE step < ? ORDER BY step", (have, more)
                )
            file.commit()
            have += more


def read(place: Path) -> dict[str, float]:
    """Seconds and questions of a diagnosis and of a page, and how large the record is."""
    asked: list[str] = []
    query = Database.query
    Database.query = lambda self, sql, *rest: asked.append(sql) or query(self, sql, *rest)
    record = Record(place)
    told: dict[str, float] = {"sites": len(record.sites), "steps": len(record.steps)}
    told["megabytes"] = sum(file.stat().st_size for file in place.glob("*.sqlite")) / 1e6
    rules()  # what is imported once is not the record's
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        found = diagnose(record)
        for name, job in (
            ("diagnose", lambda: diagnose(record)),
            ("report", lambda: report(record, page, diagnosis=found)),
        ):
            asked.clear()
            wall, processor = time.perf_counter(), time.process_time()
            job()
            told[f"{name}_s"] = time.perf_counter() - wall
            told[f"{name}_cpu_s"] = time.process_time() - processor
            told[f"{name}_queries"] = len(asked)
        told["page_megabytes"] = page.stat().st_size / 1e6
    assert not found.faults
    return {name: round(value, 2) for name, value in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", default="1x300x60,4x300x30,16x300x10,256x30x4,1x3000x10,1x10000x3", help="ranks x sites x steps, …"
    )
    parser.add_argument("--grow", type=Path, help="write the record of a large run here")
    parser.add_argument("--size", default="1000x2000", help="its sites x steps")
    parser.add_argument("--read", type=Path, help="diagnose and report the record here")
    parser.add_argument("--out", type=Path, help="where to put what --read measured, as JSON")
    asked = parser.parse_args()
    if asked.grow:
        grow(asked.grow, *(int(number) for number in asked.size.split("x")))
    if asked.read:
        told = json.dumps(read(asked.read), indent=2)
        print(told)
        if asked.out:
            asked.out.write_text(told + "\n")
    if asked.grow or asked.read:
        return
    rows = []
    for part in asked.parts.split(","):
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
