"""Normalization with what stands beside it, forward and backward: ours, torch eager and torch.compile in one process.

Multiples of the ideal: the time in which memory as fast as a measured copy moves what must be moved, five passes over
the tensor (read x, write y; read x and the gradient of y, write the gradient of x), seven with a residual. Medians over
rounds in which the three take turns, with the least and the most. "kept" is what the forward pass keeps for the
backward pass beside the parameters, in multiples of the input. The heap is reused unless `--fresh` (then the default
allocator returns large tensors to the system, and each new one costs page faults).

    python benchmarks/kernels.py [--only TEXT] [--compile] [--fresh] [--threads 2] [--seconds 120] [--out FOLDER]

Rows are added to what the folder holds, and replaced where they are there, so that short calls add up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import normscope as ns
from normscope.kernels.offer import Operands, Problem
from problems import Case

SIZES = {"16 MB": (64, 64, 32, 32), "51 MB": (16, 256, 56, 56), "1 MB": (16, 16, 32, 32), "0.25 MB": (4, 64, 16, 16)}
ROWS = {"16 MB": (8192, 512), "25 MB": (8192, 768), "1 MB": (512, 512)}
HEAP = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "1000000000"}


def cases() -> Iterator[Case]:
    """Every norm × activation and residual × size × dtype × memory that is worth a row."""
    for size, shape in SIZES.items():
        for dtype in ("float32", "bfloat16"):
            for memory in ("contiguous", "channels_last"):
                yield Case("batch", None, False, size, shape, dtype, memory)
                yield Case("batch", "relu", False, size, shape, dtype, memory)
                yield Case("batch", "relu", True, size, shape, dtype, memory)
                if dtype == "float32":
                    yield Case("batch", "silu", False, size, shape, dtype, memory)
                    yield Case("batch", "gelu", False, size, shape, dtype, memory)
                yield Case("group", "relu", False, size, shape, dtype, memory)
                yield Case("instance", None, False, size, shape, dtype, memory)
    for size, shape in ROWS.items():
        for dtype in ("float32", "bfloat16"):
            yield Case("layer", None, False, size, shape, dtype, "contiguous")
            yield Case("layer", "gelu", False, size, shape, dtype, "contiguous")
            yield Case("rms", None, False, size, shape, dtype, "contiguous")


def measured(case: Case, compiled: bool, rounds: int) -> dict[str, Any]:
    """One row: milliseconds as (median, least, most), and what is kept."""
    leaves = case.operands()
    x = leaves[0]
    assert x is not None
    upstream, plain, other = torch.randn_like(x), x.detach(), torch.empty_like(x)

    def step(function: Callable[..., torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            function(*leaves).backward(upstream)

        return run

    # our kernel, even where dispatch avoids it: that is what the table of costs is made of
    problem = Problem.of(case.spec, Operands(x, *leaves[1:]))
    kernels = [offer.name for offer in ns.kernels.dispatch.fused.OFFERS if offer.run is None]
    served = [o for o in ns.kernels.dispatch.fused.OFFERS if o.run is None and o.supports(problem) is None]

    def forced(*these: Any) -> torch.Tensor:
        with ns.kernels.using(served[0].name):
            return case.by_us(*these)

    runs: dict[str, Callable[[], Any]] = {"copy": lambda: other.copy_(plain), "torch": step(case.by_torch)}
    if served and kernels:
        runs["kernel"] = step(forced)
    runs["ours"] = step(case.by_us)
    if compiled:
        torch._dynamo.reset()
        runs["compile"] = step(torch.compile(case.by_torch))
    spent: dict[str, list[float]] = {name: [] for name in runs}
    repeats = max(1, (1 << 20) // x.numel())
    for turn in range(rounds + 2):
        for name, run in runs.items():
            for leaf in leaves:
                if leaf is not None:
                    leaf.grad = None
            start = time.perf_counter()
            for _ in range(repeats):
                run()
                for leaf in leaves:
                    if leaf is not None:
                        leaf.grad = None
            if turn > 1:  # the first turns compile, and fetch the heap
                spent[name].append((time.perf_counter() - start) / repeats * 1e3)
    row: dict[str, Any] = {
        name: [statistics.median(values), min(values), max(values)] for name, values in spent.items()
    }
    row |= {
        f"{name}_kept": kept(case, function, leaves)
        for name, function in (("torch", case.by_torch), ("ours", case.by_us))
    }
    row["choice"] = ns.kernels.explain(case.spec, plain, residual=leaves[3]).choice
    return row


def kept(case: Case, function: Callable[..., torch.Tensor], leaves: list[Any]) -> float:
    """Bytes kept from forward to backward, in multiples of the input's; what is the output itself counts too."""
    seen: dict[int, int] = {}
    skip = {leaf.data_ptr() for leaf in leaves[1:3] if leaf is not None}

    def note(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in skip:
            seen[value.data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        function(*leaves)
    return sum(seen.values()) / (leaves[0].numel() * leaves[0].element_size())


def written(found: dict[str, Any], about: str) -> str:
    """The table."""
    lines = [f"# Kernels: forward and backward\n\n{about}\n\n{(__doc__ or '').split(chr(10), 1)[1].strip()}\n"]
    heads = ["case", "copy GB/s", "ours", "kernel", "torch", "compile", "torch / ours", "kept", "torch kept", "choice"]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for case in cases():
        row = found.get(case.name)
        if row is None:
            continue
        ideal = row["copy"][0] / 2 * sum(case.passes)
        told = [case.name, f"{2 * case.bytes / row['copy'][0] / 1e6:.0f}"]
        for name in ("ours", "kernel", "torch", "compile"):
            said = row.get(name)
            told.append("" if said is None else f"{said[0] / ideal:.2f} ({said[1] / ideal:.2f}–{said[2] / ideal:.2f})")
        ratio = row["torch"][0] / row["ours"][0]
        told += [f"{ratio:.2f}" if ratio >= 0.97 else f"**{ratio:.2f}**"]
        told += [f"{row['ours_kept']:.1f}", f"{row['torch_kept']:.1f}", row["choice"]]
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def drawn(found: dict[str, Any], out: Path) -> None:
    """Bars of the multiples of ideal, where altair is installed."""
    try:
        import altair
    except ImportError:
        return
    bars = [
        {"case": case.name, "what": name, "× ideal": min(25.0, row[name][0] / (row["copy"][0] / 2 * sum(case.passes)))}
        for case in cases()
        if (row := found.get(case.name)) and case.size in ("16 MB", "51 MB", "25 MB")
        for name in ("ours", "torch", "compile")
        if name in row
    ]
    chart = altair.Chart(altair.Data(values=bars)).mark_bar().encode(
        x=altair.X("× ideal:Q"), y=altair.Y("case:N", sort=None, title=None), yOffset="what:N", color="what:N"
    )  # fmt: skip
    chart.properties(width=500).save(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name holds this text, or all of these words")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="the default allocator")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so long")
    parser.add_argument("--missing", action="store_true", help="only rows that the folder does not hold yet")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not options.fresh and any(os.environ.get(name) != value for name, value in HEAP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HEAP})
    torch.set_num_threads(options.threads)
    stem = "kernels-cpu-fresh" if options.fresh else "kernels-cpu"
    path = options.out / f"{stem}.json"
    found = json.loads(path.read_text())["rows"] if path.exists() else {}
    about = f"{chip()}, torch {torch.__version__}, {options.threads} threads of {os.cpu_count()} cores"
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for case in cases():
        wanted = all(word in case.name for word in options.only.split()) or options.only in case.name
        if not wanted or (options.missing and case.name in found) or time.perf_counter() - start > options.seconds:
            continue
        row = measured(case, options.compile, options.rounds)
        if "compile" not in row and "compile" in found.get(case.name, {}):
            row["compile"] = found[case.name]["compile"]
        found[case.name] = row
        ideal = row["copy"][0] / 2 * sum(case.passes)
        said = {name: f"{row[name][0] / ideal:.2f}" for name in ("ours", "kernel", "torch", "compile") if name in row}
        print(f"{case.name}: {said}, {row['choice']}", flush=True)
        path.write_text(json.dumps({"machine": about, "rows": found}, indent=0) + "\n")  # what a stop leaves
    told = f"{about}, load {os.getloadavg()[0]:.1f}."
    (options.out / f"{stem}.md").write_text(written(found, told))
    drawn(found, options.out / f"{stem}.svg")


def chip() -> str:
    """The processor by its name."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
