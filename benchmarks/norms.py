"""Time and memory of every norm, forward and backward, beside torch.nn in one run.

Times are given in microseconds and as multiples of the ideal: the time in which memory as fast as a measured copy
moves what any norm must move, two passes over the tensor forward (read x, write y) and three backward (read x and the
gradient, write the gradient). Memory is the peak above what was there before the step, in multiples of the input.

    python benchmarks/norms.py [--compile] [--device cuda] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import normscope as ns

IMAGE, TOKENS, ROWS = (32, 64, 28, 28), (32, 128, 256), (1024, 256)
ROUNDS = 31

# name → (ours, torch's or None, shape of the input)
CASES: dict[str, tuple[Callable, Callable | None, tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: ns.nn.BatchNorm1d(256), lambda: torch.nn.BatchNorm1d(256), ROWS),
    "BatchNorm2d": (lambda: ns.nn.BatchNorm2d(64), lambda: torch.nn.BatchNorm2d(64), IMAGE),
    "BatchNorm2d, momentum=None": (
        lambda: ns.nn.BatchNorm2d(64, momentum=None), lambda: torch.nn.BatchNorm2d(64, momentum=None), IMAGE,
    ),
    "InstanceNorm2d": (lambda: ns.nn.InstanceNorm2d(64), lambda: torch.nn.InstanceNorm2d(64), IMAGE),
    "GroupNorm": (lambda: ns.nn.GroupNorm(8, 64), lambda: torch.nn.GroupNorm(8, 64), IMAGE),
    "LayerNorm": (lambda: ns.nn.LayerNorm(256), lambda: torch.nn.LayerNorm(256), TOKENS),
    "RMSNorm": (lambda: ns.nn.RMSNorm(256), lambda: torch.nn.RMSNorm(256), TOKENS),
    "FrozenBatchNorm": (lambda: ns.nn.FrozenBatchNorm(64), lambda: torch.nn.BatchNorm2d(64).eval(), IMAGE),
    "LayerNorm2d": (lambda: ns.nn.LayerNorm2d(64), None, IMAGE),
    "PositionalNorm": (lambda: ns.nn.PositionalNorm(64), None, IMAGE),
    "GhostBatchNorm": (lambda: ns.nn.GhostBatchNorm(64, 8), None, IMAGE),
    "BatchRenorm": (lambda: ns.nn.BatchRenorm(64), None, IMAGE),
    "OnlineNorm": (lambda: ns.nn.OnlineNorm(64), None, IMAGE),
    "BatchChannelNorm": (lambda: ns.nn.BatchChannelNorm(64, 8), None, IMAGE),
    "SwitchableNorm": (lambda: ns.nn.SwitchableNorm(64), None, IMAGE),
    "FilterResponseNorm": (lambda: ns.nn.FilterResponseNorm(64), None, IMAGE),
    "EvoNormB0": (lambda: ns.nn.EvoNormB0(64), None, IMAGE),
    "EvoNormS0": (lambda: ns.nn.EvoNormS0(64, 8), None, IMAGE),
    "DecorrelatedBatchNorm": (lambda: ns.nn.DecorrelatedBatchNorm(64, 4), None, IMAGE),
    "IterNorm": (lambda: ns.nn.IterNorm(64, 4), None, IMAGE),
    "DynamicTanh": (lambda: ns.nn.DynamicTanh(256), None, TOKENS),
    "LlamaRMSNorm": (lambda: ns.nn.build(ns.catalog["LlamaRMSNorm"], 256), None, TOKENS),
    "LSTM, norm=None": (lambda: ns.nn.LSTM(256, 256), lambda: torch.nn.LSTM(256, 256), (128, 32, 256)),
    "LSTM, norm='weight'": (
        lambda: ns.nn.LSTM(256, 256, norm="weight"), lambda: torch.nn.LSTM(256, 256), (128, 32, 256),
    ),
    "LSTM, norm='layer'": (
        lambda: ns.nn.LSTM(256, 256, norm="layer"), lambda: torch.nn.LSTM(256, 256), (128, 32, 256),
    ),
    "LSTM, norm='batch'": (
        lambda: ns.nn.LSTM(256, 256, norm="batch", max_steps=128), lambda: torch.nn.LSTM(256, 256), (128, 32, 256),
    ),
}  # fmt: skip


def step(layer: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """One forward and backward pass."""

    def output() -> torch.Tensor:
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    upstream = torch.randn_like(output())

    def run() -> None:
        output().backward(upstream)
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    return run


def times(runs: list[Callable[[], None]], device: str) -> tuple[list[float], list[float]]:
    """Seconds of each run, the least of all rounds, and the median over the rounds of its ratio to the last run.

    The runs take turns, so that other work on the machine falls on all of them alike.
    """
    # On the CPU one thread's processor time, which a busy machine disturbs less than the clock on the wall.
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = time.perf_counter()
    runs[0]()
    repeats = max(1, int(0.02 / (time.perf_counter() - start)))
    rounds = []
    for _ in range(ROUNDS):
        spent = []
        for run in runs:
            if device != "cpu":
                torch.cuda.synchronize()
            start = clock()
            for _ in range(repeats):
                run()
            if device != "cpu":
                torch.cuda.synchronize()
            spent.append((clock() - start) / repeats)
        rounds.append(spent)
    ratios = [statistics.median(spent[n] / spent[-1] for spent in rounds) for n in range(len(runs))]
    return [min(column) for column in zip(*rounds, strict=True)], ratios


def peak(run: Callable[[], None], device: str) -> int:
    """Bytes above the start, at the worst moment of a step."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = worst = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            worst = max(worst, held)
    return worst


def measure(name: str, device: str, compiled: bool) -> list[str]:
    """One row of the table."""
    ours, theirs, shape = CASES[name]
    x = torch.randn(shape, device=device, requires_grad=True)
    y = torch.empty_like(x)
    layers = [build().to(device) for build in (ours, theirs) if build is not None]
    runs = [step(layer, x) for layer in layers]
    with torch.no_grad():
        (copy,), _ = times([lambda: y.copy_(x)], device)
    ideal = copy / 2 * 5
    found, ratios = times(runs, device)
    memory = [peak(run, device) / (x.numel() * x.element_size()) for run in runs]
    row = [name, "×".join(map(str, shape)), f"{found[0] * 1e6:.0f}"]
    row += ["" if name.startswith("LSTM") else f"{found[0] / ideal:.1f}"]
    row += [f"{found[1] * 1e6:.0f}", f"{ratios[0]:.2f}"] if theirs else ["", ""]
    row += [f"{memory[0]:.1f}", f"{memory[1]:.1f}" if theirs else ""]
    if compiled and not name.startswith("LSTM"):
        torch._dynamo.reset()
        fast = [step(torch.compile(layer), x) for layer in layers]
        found, ratios = times(fast, device)
        row += [f"{found[0] * 1e6:.0f}", f"{ratios[0]:.2f}" if theirs else ""]
    elif compiled:
        row += ["", ""]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["norm", "input", "µs", "× ideal", "torch µs", "ours / torch", "memory", "torch memory"]
    heads += ["compiled µs", "compiled ours / torch"] if options.compile else []
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name in CASES:
        lines.append("| " + " | ".join(measure(name, options.device, options.compile)) + " |")
        print(lines[-1], flush=True)
    chip = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or platform.machine()
    told = f"{chip}, torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    text = f"# Norms: forward and backward, {options.device}\n\n{told}. {__doc__.split(chr(10), 1)[1].strip()}\n\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"norms-{options.device}.md").write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
