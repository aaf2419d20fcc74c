"""Kernels on the CPU, forward and backward: ours, torch eager and torch.compile, interleaved in one process.

Multiples of the ideal: the time in which memory as fast as a copy of 64 MB moves what must be moved, five passes over
the tensor (read x, write y; read x and the gradient of y, write the gradient of x), seven with a residual. Medians over
rounds in which the copy and all others take turns, with the least and the most; "kept" is what the forward pass keeps
for the backward pass beside the parameters, in multiples of the input. Every offer is measured by itself; "ours" is the
one that dispatch chooses, and the last column what it passed over. Bold: torch eager is faster by more than 3%.
"moved" is a second measure: torch's plain copies and sums, which pass as often over tensors of the same size.

The heap is reused unless `--fresh` (then the default allocator returns large tensors to the system, and each new one
costs page faults; the largest tensors alone, since only they feel it). torch.compile takes ten seconds to compile a
case, so it stands in few rows; `--compile all` measures it wherever dispatch looks at it.

    python benchmarks/kernels.py [--only TEXT] [--compile [all]] [--fresh] [--missing] [--seconds 75] [--warm]
        [--out FOLDER]

Rows are added to what the folder holds, and replaced where they are there, so that short calls add up. `--missing`
leaves out those that are there, but for those that were disturbed: the copy beside them took much longer than usual.
`--warm` before the first call has all kernels compiled (minutes). Then `python benchmarks/fit_costs.py` writes the
table by which dispatch chooses, and `--write` this page by that choice.
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
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

import normscope as ns
from normscope.kernels import dispatch, fused
from normscope.kernels.offer import Operands, Problem
from problems import OVER, Case, cases, lines_of

SIZES = {"51 MB": (16, 256, 56, 56), "16 MB": (64, 64, 32, 32), "1 MB": (16, 16, 32, 32), "0.25 MB": (4, 64, 16, 16)}
ROWS = {"25 MB": (8192, 768), "6 MB": (2048, 768), "1 MB": (512, 512), "0.25 MB": (128, 512)}
HEAP = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "1000000000"}
OFFERS = ("numba", "aten")
WHO = ("ours", "torch", "compile")
Found = dict[str, dict[str, Any]]
_BYTES = 1 << 26
_LEAST_TURNS, _SECONDS = 4, 0.7  # of a row: three rounds that count, or as many as fit
_COPIED = torch.zeros(2, _BYTES // 4)


def every() -> Iterator[Case]:
    return cases(SIZES, ROWS, ("float32", "bfloat16"))


def is_large(case: Case) -> bool:
    """Whether the default allocator asks the system for each such tensor; of usual layers."""
    return case.size in ("51 MB", "25 MB") and case.activation in (None, "relu")


def is_compiled(case: Case, which: str | None) -> bool:
    """Whether torch.compile is measured too: in few rows that say where it stands, or in all that dispatch asks for."""
    if which is None or (which == "few" and (case.size not in ("16 MB", "25 MB") or case.dtype == "bfloat16")):
        return False
    if which == "few":
        usual = "relu" if case.norm == "group" else None
        return (case.norm == "batch" and case.activation == "relu") or case[1:3] == (usual, False)
    tails = {"16 MB": (None, "relu", "gelu"), "6 MB": (None,), "1 MB": (None, "relu")}
    if case.dtype == "bfloat16":
        tails = {"16 MB": (None,)}
    usual = not case.residual or (case.norm == "batch" and case.size == "16 MB" and case.dtype == "float32")
    return usual and case.activation in tails.get(case.size.replace("25", "16"), ())


def is_disturbed(row: dict[str, Any], found: Found) -> bool:
    """Whether the machine was at something else: the copy took much longer than beside most rows."""
    return row["copy"][0] > 1.4 * statistics.median(one["copy"][0] for one in found.values())


def problem_of(case: Case, leaves: list[torch.Tensor | None]) -> Problem:
    assert leaves[0] is not None
    return Problem.of(case.spec, Operands(leaves[0], *leaves[1:]))


def measured(case: Case, compiled: bool, rounds: int) -> dict[str, Any]:
    """One row: microseconds of forward and backward as (median, least, most), and what is kept."""
    leaves = case.operands()
    x = leaves[0]
    assert x is not None
    upstream = torch.randn_like(x)
    wanted = [leaf for leaf in leaves if leaf is not None]

    def step(function: Callable[..., torch.Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function(*leaves), wanted, upstream)

    problem = problem_of(case, leaves)
    served = {offer.name for offer in fused.OFFERS if offer.refuses(problem) is None}
    functions = {"torch": case.by_torch} | {name: case.by_us for name in OFFERS if name in served}
    row: dict[str, Any] = {}
    for name, function in functions.items():
        with forcing(name):
            row[f"{name}_kept"] = round(kept(function, leaves), 3)
    if compiled:
        torch._dynamo.reset()
        functions["compile"] = torch.compile(case.by_torch)
    runs = {name: step(function) for name, function in functions.items()}
    runs["copy"] = lambda: _COPIED[0].copy_(_COPIED[1])
    runs["moved"] = moving(*(leaf if leaf is None else leaf.detach() for leaf in (x, upstream, leaves[3])))
    spent: dict[str, list[float]] = {name: [] for name in runs}
    repeats = dict.fromkeys(runs, max(1, (1 << 20) // x.numel())) | {"copy": 1}
    begun = time.perf_counter()
    for turn in range(rounds + 2):
        if turn > _LEAST_TURNS and time.perf_counter() - begun > _SECONDS:
            break
        if turn == 2:
            begun = time.perf_counter()
        for name in (*list(runs)[turn % len(runs) :], *list(runs)[: turn % len(runs)]):
            with forcing(name):
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    runs[name]()
                if turn > 1:  # the first turns compile, and fetch the heap
                    spent[name].append((time.perf_counter() - start) / repeats[name] * 1e6)
    told = {name: (statistics.median(values), min(values), max(values)) for name, values in spent.items() if values}
    return {"case": case} | {name: [float(f"{value:.4g}") for value in three] for name, three in told.items()} | row


def moving(x: torch.Tensor, grad: torch.Tensor, residual: torch.Tensor | None) -> Callable[[], Any]:
    """Copies and sums by torch that pass as often over tensors of the same size as nobody can avoid."""
    y, dx, dr = (torch.empty_like(x) for _ in range(3))

    def run() -> None:
        y.copy_(x) if residual is None else torch.add(x, residual, out=y)
        torch.add(x, grad, out=dx)
        if residual is not None:
            dr.zero_()

    return run


def forcing(name: str) -> AbstractContextManager[None]:
    """A block in which the offer of that name computes; of another name, whatever would."""
    return ns.kernels.using(name) if name in OFFERS else nullcontext()


def warm(compiled: str | None) -> None:
    """Have everything compiled that will be measured: kernels do not depend on the size, torch.compile's code does."""
    seen = set()
    for case in sorted(every(), key=lambda case: case.elements):
        kind = (case.norm, *case[1:3], case.dtype, case.memory)
        if kind not in seen or is_compiled(case, compiled):
            measured(case, is_compiled(case, compiled), rounds=-1)
            print(case.name, flush=True)
        seen.add(kind)


def kept(function: Callable[..., torch.Tensor], leaves: list[Any]) -> float:
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


def chosen(found: Found) -> dict[Case, dict[str, Any]]:
    """The rows in their order, each with "choice", the offer that dispatch takes today, and its figures as "ours"."""
    rows = {}
    for case in every():
        row = found.get(case.name)
        if row is not None:
            memory = "contiguous" if OVER[case.norm] == "C" else case.memory
            problem = Problem(
                case.spec, case.shape, getattr(torch, case.dtype), memory, weight=True, bias=case.norm != "rms",
                residual=case.residual, grad=True,
            )  # fmt: skip
            choice = dispatch.choose(problem).name
            rows[case] = row | {"choice": choice, "ours": row[choice], "ours_kept": row[f"{choice}_kept"]}
    return rows


def multiple(row: dict[str, Any], case: Case, name: str) -> list[float]:
    """Median, least and most as multiples of the ideal."""
    ideal = row["copy"][0] * sum(case.passes) * case.bytes / (2 * _BYTES)
    return [value / ideal for value in row[name]]


def written(rows: dict[Case, dict[str, Any]], about: str) -> str:
    """The page."""
    ratios = [row["torch"][0] / row["ours"][0] for row in rows.values()]
    passed = sum(row["choice"] == "aten" and "numba" in row for row in rows.values())
    lines = ["# Kernels: forward and backward", "", about, "", (__doc__ or "").split("\n", 1)[1].strip(), ""]
    lines += [
        f"{len(ratios)} rows: ours is faster than torch eager by more than 3% in {sum(r > 1.03 for r in ratios)}, as "
        f"fast in {sum(1 / 1.03 <= r <= 1.03 for r in ratios)}, slower in {sum(r < 1 / 1.03 for r in ratios)}; in "
        f"{passed} dispatch leaves the kernel for ATen's.",
        "",
    ]
    heads = ["case", "copy GB/s", *WHO, "moved", "torch / ours", "kept", "torch kept", "choice", "passed over"]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for case, row in rows.items():
        told = [case.name, f"{2 * _BYTES / row['copy'][0] / 1e3:.0f}"]
        told += [three(multiple(row, case, name)) if name in row else "" for name in (*WHO, "moved")]
        ratio = row["torch"][0] / row["ours"][0]
        told += [f"{ratio:.2f}" if ratio >= 1 / 1.03 else f"**{ratio:.2f}**"]
        told += [f"{row['ours_kept']:.1f}", f"{row['torch_kept']:.1f}", row["choice"]]
        over = [
            f"{name} {multiple(row, case, name)[0]:.2f}" for name in OFFERS if name in row and name != row["choice"]
        ]
        lines.append("| " + " | ".join([*told, ", ".join(over)]) + " |")
    return "\n".join(lines) + "\n"


def three(values: list[float]) -> str:
    median, least, most = values
    return f"{median:.2f} ({least:.2f}–{most:.2f})"


def drawn(rows: dict[Case, dict[str, Any]], out: Path) -> None:
    """Multiples of the ideal of the largest tensors: the median and the range."""
    import altair

    values = [
        {"what": case.name.split(",")[0], "how": f"{case.dtype}, {case.memory}", "who": name}
        | dict(zip(("median", "least", "most"), multiple(row, case, name)))
        for case, row in rows.items()
        if case.size in (next(iter(SIZES)), next(iter(ROWS)))
        for name in WHO[:2]
    ]
    axis = altair.X("median:Q", scale=altair.Scale(type="log"), title="× ideal")
    what = altair.Y("what:N", sort=None, title=None)
    chart = altair.Chart(altair.Data(values=values)).encode(y=what, color=altair.Color("who:N", title=None))
    layers = chart.mark_rule().encode(x=altair.X("least:Q", title="× ideal"), x2="most:Q")
    layers = layers + chart.mark_point(filled=True, size=45, opacity=1).encode(x=axis)
    layers.properties(width=230).facet(altair.Facet("how:N", title=None, sort=None), columns=2).save(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name holds all of these words")
    parser.add_argument("--compile", nargs="?", const="few", choices=("few", "all"), help="torch.compile too")
    parser.add_argument("--fresh", action="store_true", help="the default allocator")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="at most; a row ends sooner after 0.7 s")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so long")
    parser.add_argument("--missing", action="store_true", help="only rows that are not there, or were disturbed")
    parser.add_argument("--warm", action="store_true", help="measure nothing, only have everything compiled")
    parser.add_argument("--write", action="store_true", help="measure nothing, only write the page")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not options.fresh and any(os.environ.get(name) != value for name, value in HEAP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HEAP})
    torch.set_num_threads(options.threads)
    if options.warm:
        warm(options.compile)
        return
    stem = "kernels-cpu-fresh" if options.fresh else "kernels-cpu"
    path = options.out / f"{stem}.json"
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    found: Found = held["rows"]
    heap = "the default allocator" if options.fresh else "a reused heap"
    machine = f"{chip()}, torch {torch.__version__}, {options.threads} threads of {os.cpu_count()} cores, {heap}"
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for case in () if options.write else every():
        compiled = is_compiled(case, options.compile)
        old = found.get(case.name, {})
        if not all(word in case.name for word in options.only.split()) or (options.fresh and not is_large(case)):
            continue
        there = old and not is_disturbed(old, found) and ("compile" in old or not compiled)
        if options.missing and there:
            continue
        if time.perf_counter() - start > options.seconds:
            print("There is more to measure.")
            break
        row = measured(case, compiled, options.rounds)
        found[case.name] = ({"compile": old["compile"]} if "compile" in old else {}) | row
        said = {name: f"{multiple(row, case, name)[0]:.2f}" for name in ("torch", *OFFERS, "compile") if name in row}
        print(f"{case.name}: {said}", flush=True)
        held = {"machine": machine, "device": "cpu", "fresh": options.fresh, "rows": found}
        path.write_text(lines_of(held))  # what a stop leaves
    rows = chosen(found)
    (options.out / f"{stem}.md").write_text(written(rows, held["machine"] + "."))
    drawn(rows, options.out / f"{stem}.svg")


def chip() -> str:
    """The processor by its name, and what it can do at once."""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        for line in text.splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip() + " with AVX-512" * ("avx512f" in text)
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
