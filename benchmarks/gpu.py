"""Normalization on a GPU: ours in Triton, torch eager, torch.compile, Liger-Kernel where it is installed.

GB/s of the traffic that no implementation can avoid, and its share of what a copy of a gigabyte moves on the same GPU:
forward reads x and writes y, backward reads x and the gradient of y and writes the gradient of x; a residual is read
once more forward, and its gradient written backward. Medians of CUDA events around work that was queued while the GPU
slept, so that what the host does between two kernels does not count; the cache is emptied before. "a call" is what a
training step pays: forward and backward one after another, the host counted in. Before a row is timed our kernel is
held against the formula in float64, and recorded in a CUDA graph and replayed; a row that is wrong says so.

    python benchmarks/gpu.py [--only TEXT] [--missing] [--compile] [--seconds 500] [--rounds 20] [--out FOLDER]

Writes gpu-<name>.json and .md after every row; `--missing` goes on where a call ended. torch.compile is measured on the
usual rows alone, or on all with `--compile`. `python benchmarks/fit_costs.py` then writes the table by which dispatch
chooses. The watcher's summary of a tensor (moments, range, tally) reads it once; torch takes `var_mean`, `aminmax` and
a `bincount` of the same cells, or, for a coarser picture, `histc`. `--rehearse` runs every kind of row on the host in
Triton's interpreter, on small tensors, with times that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import numpy as np
import torch
import torch._functorch.config

import normscope as ns
from normscope.stats import Summary
from problems import OVER, Case, Sizes, cases, lines_of

IMAGES = {"64 MB": (64, 64, 64, 64), "411 MB": (128, 256, 56, 56), "4 MB": (16, 64, 32, 32), "0.5 MB": (2, 64, 32, 32)}
ROWS = {"64 MB": (16384, 1024), "256 MB": (16384, 4096), "1 GB": (4096, 65536), "4 MB": (1024, 1024)}
SMALL: tuple[Sizes, Sizes] = {"small": (3, 32, 5, 7)}, {"small": (5, 40)}
SUMMARIES = {"64 MB": 1 << 24, "1 GB": 1 << 28, "4 MB": 1 << 20}
DTYPES = ("float32", "bfloat16", "float16")
PEERS = ("triton", "aten", "compile", "liger")  # ours, and torch eager by the name of the offer that calls it
_SLEEP = 3_000_000  # cycles: a millisecond or two, in which the host queues what is measured
_CHECKED = 1 << 27  # numbers that are held against float64
Function = Callable[..., torch.Tensor]


def is_usual(case: Case) -> bool:
    """Whether torch.compile is measured too."""
    tails = (None, "gelu") if OVER[case.norm] == "C" else (None, "relu")
    return case.size in ("411 MB", "256 MB", "small") and case.dtype != "float16" and case.activation in tails


def by(case: Case, offer: str) -> Function:
    """Ours by the offer of that name."""

    def run(*these: Any) -> torch.Tensor:
        with ns.kernels.using(offer):
            return case.by_us(*these)

    return run


def liger(case: Case) -> Function | None:
    """Liger-Kernel's function, where it has one and is installed; it knows neither our activation nor a residual."""
    if find_spec("liger_kernel") is None or case.norm not in ("layer", "rms") or case.activation or case.residual:
        return None
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # pyright: ignore[reportMissingImports]
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]

    if case.norm == "rms":
        return lambda x, weight, bias, residual: LigerRMSNormFunction.apply(x, weight, 1e-5, 0.0, "llama", False)
    return lambda x, weight, bias, residual: LigerLayerNormFunction.apply(x, weight, bias, 1e-5)


def wrong(case: Case, offer: str, device: str) -> str | None:
    """What is wrong with our kernel on a problem like this one, with fewer samples if need be; None if nothing is."""
    few = case.shape[0] * min(1.0, _CHECKED / case.elements)
    leaves = [value if value is None else value.detach() for value in case.operands(device)]
    leaves = [value[: int(few)] if value is not None and value.ndim > 1 else value for value in leaves]
    # as little as half a step of the dtype, and what a long float32 sum loses
    bound = {"float32": 5e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}[case.dtype]
    told = []
    for function, wide in ((by(case, offer), False), (by(case, "reference"), True)):
        these = [value if value is None else (value.double() if wide else value).clone() for value in leaves]
        these = [value if value is None else value.requires_grad_() for value in these]
        y = function(*these)
        y.backward(torch.linspace(-1, 1, y.numel(), device=device).view(y.shape).to(y.dtype))
        told.append([y.detach(), *(value.grad for value in these if value is not None)])
    for what, value, truth in zip(("y", "x", "weight", "bias or residual", "residual"), *told):
        error = ((value.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30)).item()
        if not error <= bound:
            return f"{what} is off by {error:.1e}"
    return None


def ungraphed(case: Case) -> str | None:
    """Why forward and backward cannot be recorded in a CUDA graph and replayed on other numbers; None if they can."""
    function, leaves = by(case, "triton"), case.operands("cuda")
    wanted = [leaf for leaf in leaves if leaf is not None]
    x, upstream = wanted[0], torch.randn_like(wanted[0])

    def step() -> tuple[torch.Tensor, ...]:
        y = function(*leaves)
        return y.detach(), *torch.autograd.grad(y, wanted, upstream)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    return None if all(map(torch.equal, recorded, step())) else "a replayed graph gives other numbers"


class Clock:
    """Microseconds on the GPU."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")

    def kernels(self, run: Callable[[], Any]) -> list[float]:
        """Median, least and most of the GPU's own time."""
        spent = []
        for turn in range(self.rounds + 3):
            self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_SLEEP)
            begin.record()
            run()
            end.record()
            end.synchronize()
            if turn > 2:  # the first turns compile
                spent.append(begin.elapsed_time(end) * 1e3)
        return [statistics.median(spent), min(spent), max(spent)]

    def call(self, run: Callable[[], Any]) -> list[float]:
        """Median, least and most of calls one after another, the host counted in."""
        spent = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(self.rounds):
                run()
            torch.cuda.synchronize()
            spent.append((time.perf_counter() - start) / self.rounds * 1e6)
        return [statistics.median(spent), min(spent), max(spent)]

    def bandwidth(self) -> float:
        """GB/s that a copy of a gigabyte moves."""
        x, other = torch.empty(2, 1 << 30, dtype=torch.uint8, device="cuda")
        return 2 * x.numel() / self.kernels(lambda: other.copy_(x))[0] / 1e3


class Rehearsal:
    """A clock for the host: it runs what it is given once, and tells a time that means nothing."""

    def kernels(self, run: Callable[[], Any]) -> list[float]:
        run()
        return [1.0, 1.0, 1.0]

    call = kernels

    def bandwidth(self) -> float:
        return 1.0


def measured(case: Case, compiled: bool, clock: Clock | Rehearsal, device: str) -> dict[str, Any]:
    """Microseconds of everyone, or what is wrong: [forward, backward] on the GPU, and forward + backward as called."""
    row: dict[str, Any] = {"case": case, "wrong": said(lambda: wrong(case, "triton", device))}
    if device == "cuda" and row["wrong"] is None:
        row["wrong"] = said(lambda: ungraphed(case))
    functions = {"triton": by(case, "triton")} if row["wrong"] is None else {}
    functions |= {"aten": case.by_torch} | ({"liger": there} if (there := liger(case)) else {})
    if compiled:
        torch._dynamo.reset()
        torch._functorch.config.donated_buffer = False  # the backward pass is measured many times
        functions["compile"] = torch.compile(case.by_torch, backend="inductor" if device == "cuda" else "eager")
    leaves = case.operands(device)
    wanted = [leaf for leaf in leaves if leaf is not None]
    upstream = torch.randn_like(wanted[0])
    for name, function in functions.items():

        def both(function: Function = function, name: str = name) -> None:
            y = function(*leaves)
            row[f"{name}_kernels"] = [
                clock.kernels(lambda: function(*leaves)),
                # Liger writes the gradient where the gradient of the output was
                clock.kernels(lambda: torch.autograd.grad(y, wanted, upstream, retain_graph=True)),
            ]
            row[name] = clock.call(lambda: torch.autograd.grad(function(*leaves), wanted, upstream))

        failed = said(both)
        if failed is not None:
            row[f"{name}_failed"] = failed
    return row


def celled(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the summary tells, by torch's functions: nearly, for what is not finite spoils it."""
    bits = x.float().view(torch.int32)
    cells = (((bits >> 19) & 0xFFF) - (127 - 32) * 16).clamp_(0, 1023) + 1024 * (bits < 0)
    return *torch.var_mean(x), *torch.aminmax(x), torch.bincount(cells, minlength=2048)


def mistold(x: torch.Tensor) -> str | None:
    """What is wrong with the summary of some of these numbers; None if nothing is."""
    from normscope.kernels.triton import summary

    part = x[: 1 << 22]
    found, truth = summary.told(part).cpu(), Summary.of(part.cpu())
    if not np.array_equal(found[: summary.BINS].numpy(), truth.sketch.counts):
        return "the tally is another"
    moments = [truth.moments.count, truth.moments.mean, truth.moments.m2, truth.low, truth.high]
    near = np.allclose(found[summary.CELLS :].numpy().view(np.float64), np.array(moments, float), rtol=1e-9)
    return None if near else "the moments or the range are others"


def summarized(size: int, dtype: str, clock: Clock | Rehearsal, device: str) -> dict[str, Any]:
    """Microseconds of everyone who summarizes so many numbers."""
    from normscope.kernels.triton import summary

    x = torch.randn(size, device=device).to(getattr(torch, dtype))
    row: dict[str, Any] = {"bytes": x.nbytes, "wrong": said(lambda: mistold(x))}
    ways: dict[str, Callable[[], Any]] = {
        "triton": lambda: summary.told(x),
        "cells": lambda: celled(x),
        "histc": lambda: (torch.var_mean(x), torch.histc(x.float(), 64)),
    }
    for name, way in ways.items():

        def timed(name: str = name, way: Callable[[], Any] = way) -> None:
            row[name] = clock.kernels(way)

        failed = said(timed)
        if failed is not None:
            row[f"{name}_failed"] = failed
    return row


def said(work: Callable[[], str | None]) -> str | None:
    """What `work` says, or the last line of the error that it ends with: one row must not end the others."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error).strip() else ''}"


def counted(summaries: dict[str, Any], copy: float) -> str:
    """The table of summaries."""
    heads = ["the summary of", "ours", "torch, the same cells", "torch, histc", "torch / ours"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name, row in summaries.items():
        told = [name]
        for who in ("triton", "cells", "histc"):
            rate = row["bytes"] / row[who][0] / 1e3 if who in row else 0.0
            told.append(f"{rate:,.0f} ({rate / copy:.0%})" if rate else row.get(f"{who}_failed", ""))
        told[1] = f"**wrong: {row['wrong']}**" if row["wrong"] else told[1]
        told.append(f"{row['cells'][0] / row['triton'][0]:.2f}" if {"cells", "triton"} <= row.keys() else "")
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def written(rows: dict[str, Any], about: str, copy: float, every: list[Case]) -> str:
    """The page: GB/s and share of the copy, forward / backward; bold where we lose to the best peer."""
    lines = [f"# Kernels on a GPU\n\n{about}. A copy of 1 GB moves {copy:,.0f} GB/s.\n"]
    lines += [(__doc__ or "").split("\n", 1)[1].strip() + "\n", ""]
    ratios: list[float] = []
    heads = ["case", "ours", *("torch", "compile", "liger"), "best peer / ours", "a call, µs", "torch"]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for case in every:
        row = rows.get(case.name)
        if row is None:
            continue
        told = [case.name]
        for name in PEERS:
            both = zip(row.get(f"{name}_kernels", ()), case.passes)
            rates = [count * case.bytes / spent[0] / 1e3 for spent, count in both]
            told.append(
                " / ".join(f"{rate:,.0f} ({rate / copy:.0%})" for rate in rates) or row.get(f"{name}_failed", "")
            )
        if row["wrong"]:
            told[1] = f"**wrong: {row['wrong']}**"
        sums = {name: sum(spent[0] for spent in row.get(f"{name}_kernels", ())) for name in PEERS}
        peers = [sums[name] for name in PEERS[1:] if sums[name]]
        best = min(peers) / sums["triton"] if peers and sums["triton"] else 0.0
        ratios += [best] if best else []
        told.append("" if not best else f"{best:.2f}" if best >= 1 else f"**{best:.2f}**")
        told += [f"{row[name][0]:,.0f}" if name in row else "" for name in PEERS[:2]]
        lines.append("| " + " | ".join(told) + " |")
    lines[2] = (
        f"{len(ratios)} rows with a peer: ours is the fastest in {sum(ratio >= 1 for ratio in ratios)}, and loses to "
        f"the best one by more than 3% in {sum(ratio < 1 / 1.03 for ratio in ratios)}, where dispatch must take that "
        f"one; {sum(bool(row['wrong']) for row in rows.values())} are wrong.\n"
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name holds all of these words")
    parser.add_argument("--missing", action="store_true", help="only rows that the folder does not hold yet")
    parser.add_argument("--compile", action="store_true", help="torch.compile on every row")
    parser.add_argument("--rehearse", action="store_true", help="on the host, without a GPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so long")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("This measures a GPU, and torch sees none here. --rehearse runs it on the host.")
    device, gpu = ("cpu", "rehearsal") if options.rehearse else ("cuda", torch.cuda.get_device_name())
    every = list(cases(IMAGES, ROWS, DTYPES)) if not options.rehearse else rehearsed()
    path = options.out / f"gpu-{gpu.lower().replace(' ', '-')}.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    rows, summaries = before.get("rows", {}), before.get("summaries", {})
    clock = Rehearsal() if options.rehearse else Clock(options.rounds)
    copy = clock.bandwidth()
    machine = f"{gpu}, torch {torch.__version__}, CUDA {torch.version.cuda}, {versions()}"
    options.out.mkdir(parents=True, exist_ok=True)
    words = options.only.split()
    start = time.perf_counter()

    def keep() -> bool:
        """Write what is there, which a stop leaves; whether there is time for more."""
        held = {"machine": machine, "device": device, "copy": copy, "summaries": summaries, "rows": rows}
        path.write_text(lines_of(held))
        page = written(rows, machine, copy, every)
        path.with_suffix(".md").write_text(f"{page}\n{counted(summaries, copy)}" if summaries else page)
        return time.perf_counter() - start < options.seconds

    for name, size, dtype in summaries_of(options.rehearse):
        if all(word in name for word in words) and not (options.missing and name in summaries) and keep():
            summaries[name] = summarized(size, dtype, clock, device)
            print(name, summaries[name], flush=True)
    for case in wanted_of(every, words, rows if options.missing else {}):
        if not keep():
            print("There is more to measure.")
            break
        rows[case.name] = measured(case, options.compile or is_usual(case), clock, device)
        print(case.name, {name: value for name, value in rows[case.name].items() if name != "case"}, flush=True)
    keep()


def summaries_of(rehearse: bool) -> Iterator[tuple[str, int, str]]:
    """Name, numbers and dtype of each tensor that is summarized."""
    for size, numbers in ({"small": 5000} if rehearse else SUMMARIES).items():
        for dtype in DTYPES:
            yield f"summary, {size}, {dtype}", numbers, dtype


def rehearsed() -> list[Case]:
    """One of each kind."""
    return [case for case in cases(*SMALL, DTYPES) if case.dtype == "float32" or case.residual]


def wanted_of(every: list[Case], words: list[str], there: dict[str, Any]) -> Iterator[Case]:
    """The cases whose names hold all words and are not there yet."""
    return (case for case in every if all(word in case.name for word in words) and case.name not in there)


def versions() -> str:
    """Of what else takes part."""
    there = (name for name in ("triton", "liger-kernel") if find_spec(name.replace("-", "_")) is not None)
    return ", ".join(f"{name} {version(name)}" for name in there)


if __name__ == "__main__":
    main()
