"""Normalization on a GPU, forward and backward: ours in Triton, torch eager, torch.compile, Liger-Kernel if installed.

A row says GB/s of the traffic that no implementation can avoid, and its share of what a copy moves on the same GPU:
forward reads x and writes y, backward reads x and the gradient of y and writes the gradient of x; a residual is read
once more forward, and its gradient written backward. Times are medians of CUDA events with the cache emptied between.
Before a row is timed, our kernel is held against the formula in float64; a row that is wrong says so, and has no times.

    python benchmarks/gpu.py [--only TEXT] [--seconds 600] [--rounds 30] [--out FOLDER]

Writes gpu-<name>.md and .json. The last lines printed are the rows that belong in `normscope.kernels.costs.COSTS`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import normscope as ns
from problems import OVER, Case

IMAGES = {"64 MB": (64, 64, 64, 64), "411 MB": (128, 256, 56, 56), "4 MB": (16, 64, 32, 32), "0.5 MB": (2, 64, 32, 32)}
ROWS = {"64 MB": (16384, 1024), "256 MB": (16384, 4096), "1 GB": (4096, 65536), "4 MB": (1024, 1024)}
PEERS = ("ours", "torch", "compile", "liger")


def cases() -> Iterator[Case]:
    """Every norm × activation and residual × size × dtype × memory that is worth a row."""
    for dtype in ("float32", "bfloat16", "float16"):
        for size, shape in IMAGES.items():
            for memory in ("contiguous", "channels_last"):
                for norm in ("batch", "group", "instance"):
                    yield Case(norm, None, False, size, shape, dtype, memory)
                    yield Case(norm, "relu", False, size, shape, dtype, memory)
                yield Case("batch", "relu", True, size, shape, dtype, memory)
                yield Case("group", "silu", False, size, shape, dtype, memory)
        for size, shape in ROWS.items():
            for norm in ("layer", "rms"):
                yield Case(norm, None, False, size, shape, dtype, "contiguous")
                yield Case(norm, "gelu", True, size, shape, dtype, "contiguous")


def ours(case: Case, offer: str) -> Callable[..., torch.Tensor]:
    """Ours by the offer of that name."""

    def run(*these: Any) -> torch.Tensor:
        with ns.kernels.using(offer):
            return case.by_us(*these)

    return run


def liger(case: Case) -> Callable[..., torch.Tensor] | None:
    """Liger-Kernel's function, where it has one and is installed; it knows neither our activation nor a residual."""
    if find_spec("liger_kernel") is None or case.norm not in ("layer", "rms") or case.activation or case.residual:
        return None
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # pyright: ignore[reportMissingImports]
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]

    if case.norm == "rms":
        return lambda x, weight, bias, residual: LigerRMSNormFunction.apply(x, weight, 1e-5, 0.0, "llama", False)
    return lambda x, weight, bias, residual: LigerLayerNormFunction.apply(x, weight, bias, 1e-5)


def wrong(case: Case, offer: str, device: str) -> str | None:
    """What is wrong with our kernel on a problem like this one, with fewer samples; None where nothing is."""
    few = (max(2, case.shape[0] // 16), *case.shape[1:])
    leaves = [value if value is None else value.detach() for value in case.operands(device)]
    leaves = [value[: few[0]] if value is not None and value.ndim > 1 else value for value in leaves]
    # as little as half a step of the dtype, and what a long float32 sum loses
    bound = {"float32": 5e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}[case.dtype]
    told = []
    for function, wide in ((ours(case, offer), False), (ours(case, "reference"), True)):
        these = [value if value is None else (value.double() if wide else value).clone() for value in leaves]
        these = [value if value is None else value.requires_grad_() for value in these]
        y = function(*these)
        assert these[0] is not None
        y.backward(torch.linspace(-1, 1, y.numel(), device=device).view(y.shape).to(y.dtype))
        told.append([y.detach(), *(value.grad for value in these if value is not None)])
    for what, value, truth in zip(("y", "x", "weight", "bias or residual", "residual"), *told):
        error = ((value.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30)).item()
        if not error <= bound:
            return f"{what} is off by {error:.1e}"
    return None


def timed(run: Callable[[], Any], rounds: int, flush: torch.Tensor) -> float:
    """Microseconds, the median."""
    spent = []
    for turn in range(rounds + 3):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if turn > 2:  # the first turns compile
            spent.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(spent)


def measured(case: Case, rounds: int, flush: torch.Tensor) -> dict[str, Any]:
    """Microseconds forward and backward of everyone, or what is wrong."""
    row: dict[str, Any] = {"wrong": wrong(case, "triton", "cuda")}
    if row["wrong"]:
        return row
    leaves = case.operands("cuda")
    assert leaves[0] is not None
    wanted = [leaf for leaf in leaves if leaf is not None]
    upstream = torch.randn_like(leaves[0])
    torch._dynamo.reset()
    functions = {"ours": ours(case, "triton"), "torch": case.by_torch, "compile": torch.compile(case.by_torch)}
    functions |= {"liger": there} if (there := liger(case)) else {}
    for name, function in functions.items():
        y = function(*leaves)
        forward = timed(lambda function=function: function(*leaves), rounds, flush)
        try:  # Liger writes the gradient where the gradient of the output was
            backward = timed(
                lambda y=y: torch.autograd.grad(y, wanted, upstream, retain_graph=True), rounds, flush
            )  # fmt: skip
        except RuntimeError:  # compiled code may have given up its buffers
            backward = float("nan")
        row[name] = [forward, backward]
    plain_x, other = leaves[0].detach(), torch.empty_like(leaves[0])
    row["copy"] = timed(lambda: other.copy_(plain_x), rounds, flush)
    return row


def bandwidth(flush: torch.Tensor, rounds: int) -> float:
    """GB/s that a copy of a gigabyte moves."""
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(x)
    return 2 * x.numel() / timed(lambda: other.copy_(x), rounds, flush) / 1e3


def written(found: dict[str, Any], about: str, copy: float) -> str:
    """The table: GB/s and share of the copy, forward / backward; bold where we lose to the best peer."""
    lines = [f"# Kernels on a GPU\n\n{about}. A copy of 1 GB moves {copy:,.0f} GB/s.\n"]
    lines += [(__doc__ or "").split("\n", 1)[1].strip() + "\n"]
    lines += ["| case | " + " | ".join(PEERS) + " | best peer / ours |", "|" + " --- |" * (len(PEERS) + 2)]
    for case in cases():
        row = found.get(case.name)
        if row is None:
            continue
        if row["wrong"]:
            lines.append(f"| {case.name} | **wrong: {row['wrong']}** |" + " |" * len(PEERS))
            continue
        told = [case.name]
        for name in PEERS:
            both = zip(row.get(name, ()), [count * case.bytes for count in case.passes])
            told.append(
                " / ".join(f"{moved / spent / 1e3:,.0f} ({moved / spent / 1e3 / copy:.0%})" for spent, moved in both)
            )
        best = min(sum(row[name]) for name in PEERS[1:] if name in row) / sum(row["ours"])
        told.append(f"{best:.2f}" if best >= 1 else f"**{best:.2f}**")
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def rows_of_costs(found: dict[str, Any]) -> list[str]:
    """Lines of `COSTS`: microseconds a call and nanoseconds an element, from the smallest and the largest size."""
    points: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for case in cases():
        row = found.get(case.name)
        if row is None or row["wrong"] or case.activation or case.residual or case.norm == "rms":
            continue
        memory = "channels_last" if OVER[case.norm] == "C" else case.memory
        for name, offer in (("ours", "triton"), ("torch", "aten")):
            key = (offer, "cuda", OVER[case.norm], memory, case.dtype)
            points.setdefault(key, []).append((case.elements, sum(row[name])))
    lines = []
    for key, seen in points.items():
        (small, low), (large, high) = min(seen), max(seen)
        element = (high - low) / max(large - small, 1) * 1e3
        call = max(low - element * small / 1e3, 0.0)
        *words, dtype = (f'"{word}"' for word in key)
        lines.append(f"({', '.join(words)}, torch.{dtype.strip(chr(34))}): Cost({call:.0f}, {element:.5f}),")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name holds all of these words")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so long")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This measures a GPU, and torch sees none here.")
    gpu = torch.cuda.get_device_name()
    path = options.out / f"gpu-{gpu.lower().replace(' ', '-')}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    copy = bandwidth(flush, options.rounds)
    start = time.perf_counter()
    for case in cases():
        if not all(word in case.name for word in options.only.split()):
            continue
        if time.perf_counter() - start > options.seconds:
            break
        found[case.name] = measured(case, options.rounds, flush)
        print(case.name, found[case.name], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=0) + "\n")
    about = f"{gpu}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    path.with_suffix(".md").write_text(written(found, about, copy))
    print("\n".join(rows_of_costs(found)))


if __name__ == "__main__":
    main()
