"""Time and memory of every norm, forward and backward, beside torch.nn in one run.

Times are medians in microseconds and multiples of the ideal: the time in which memory as fast as a measured copy moves
what any norm must move, two passes over the tensor forward (read x, write y) and three backward (read x and the
gradient, write the gradient). Ratios are medians over rounds in which the layers take turns, with their quartiles;
"inference" is the forward pass alone in evaluation mode. Memory is the peak above what was there before the step, in
multiples of the input. Compiled is `torch.compile` of the same step, on the last shape of each norm; recurrent layers
are left out, whose steps the compiler would unroll.

    python benchmarks/norms.py [--compile] [--only BatchNorm,LayerNorm] [--device cuda] [--out benchmarks/results]

`--part 2/10` measures a tenth of the rows and puts them beside the others. `--warm` only compiles, so that a later run
finds the compiler's work in its cache and measures alone.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import normscope as ns
from normscope.terms.catalog import CATALOG

IMAGE, SMALL_IMAGE, LARGE_IMAGE = (32, 64, 28, 28), (2, 64, 14, 14), (64, 64, 32, 32)
TOKENS, ROWS, FEW_ROWS = (32, 128, 256), (1024, 256), (32, 256)
SEQUENCE = (128, 32, 256)
SECONDS = 0.5  # of each row's rounds
ROUNDS = 61  # at most

Build = Callable[[], nn.Module]


def both(name: str, *args: Any, **kwargs: Any) -> tuple[Build, Build]:
    """The layer of that name, ours and torch's."""
    return lambda: getattr(ns.nn, name)(*args, **kwargs), lambda: getattr(nn, name)(*args, **kwargs)


def weights(name: str) -> tuple[Build, Build]:
    """A convolution with a reparametrized weight, by us and by torch."""
    return (
        lambda: getattr(ns.nn, name)(nn.Conv2d(64, 64, 3, padding=1)),
        lambda: getattr(nn.utils.parametrizations, name)(nn.Conv2d(64, 64, 3, padding=1)),
    )


def ours(make: Build) -> tuple[Build, None]:
    """A layer that torch does not have."""
    return make, None


def row(name: str, channels: int = 64) -> tuple[Build, None]:
    """The layer of a row of the catalog, with groups of eight channels where it has groups."""
    spec = CATALOG[name]
    return ours(lambda: ns.nn.build(spec.but(groups=8) if spec.groups > 1 else spec, channels))


# name → (ours, torch's or None), shapes of the input
CASES: dict[str, tuple[tuple[Build, Build | None], tuple[tuple[int, ...], ...]]] = {
    "BatchNorm1d": (both("BatchNorm1d", 256), ((128, 256), ROWS)),
    "BatchNorm2d": (both("BatchNorm2d", 64), (SMALL_IMAGE, IMAGE, LARGE_IMAGE)),
    "BatchNorm3d": (both("BatchNorm3d", 16), ((2, 16, 8, 8, 8), (8, 16, 16, 16, 16))),
    "BatchNorm2d, momentum=None": (both("BatchNorm2d", 64, momentum=None), (SMALL_IMAGE, IMAGE)),
    "BatchNorm2d, track_running_stats=False": (both("BatchNorm2d", 64, track_running_stats=False), (SMALL_IMAGE,)),
    "SyncBatchNorm, one process": (both("SyncBatchNorm", 64), (SMALL_IMAGE, IMAGE)),
    "FrozenBatchNorm": (
        (lambda: ns.nn.FrozenBatchNorm(64), lambda: nn.BatchNorm2d(64).requires_grad_(False).eval()),
        (SMALL_IMAGE, IMAGE),
    ),
    "InstanceNorm1d": (both("InstanceNorm1d", 64), ((8, 64, 50),)),
    "InstanceNorm2d": (both("InstanceNorm2d", 64), (SMALL_IMAGE, IMAGE)),
    "InstanceNorm2d, running": (both("InstanceNorm2d", 64, affine=True, track_running_stats=True), (SMALL_IMAGE,)),
    "InstanceNorm3d": (both("InstanceNorm3d", 16), ((2, 16, 8, 8, 8),)),
    "GroupNorm": (both("GroupNorm", 8, 64), (SMALL_IMAGE, IMAGE)),
    "LayerNorm": (both("LayerNorm", 256), ((1, 256), FEW_ROWS, TOKENS)),
    "RMSNorm": (both("RMSNorm", 256), ((1, 256), FEW_ROWS, TOKENS)),
    "LocalResponseNorm": (both("LocalResponseNorm", 5), (SMALL_IMAGE, IMAGE)),
    "weight_norm": (weights("weight_norm"), (SMALL_IMAGE,)),
    "spectral_norm": (weights("spectral_norm"), (SMALL_IMAGE,)),
    **{
        f"{kind}, norm=None": (both(kind, 256, 256), ((4, 1, 256), SEQUENCE)) for kind in ("LSTM", "GRU", "RNN")
    },
    **{
        f"LSTM, norm={norm!r}": (
            (lambda norm=norm: ns.nn.LSTM(256, 256, norm=norm, max_steps=128), lambda: nn.LSTM(256, 256)), (SEQUENCE,),
        )
        for norm in ("weight", "layer", "rms", "batch")
    },
    "GhostBatchNorm": (ours(lambda: ns.nn.GhostBatchNorm(64, 8)), (IMAGE,)),
    "BatchRenorm": (ours(lambda: ns.nn.BatchRenorm(64)), (SMALL_IMAGE, IMAGE)),
    "EstimatedBatchNorm": (row("EstimatedBatchNorm"), (IMAGE,)),
    "PopulationBatchNorm": (row("PopulationBatchNorm"), (IMAGE,)),
    "OnlineNorm": (ours(lambda: ns.nn.OnlineNorm(64)), (SMALL_IMAGE, IMAGE)),
    "DecorrelatedBatchNorm": (ours(lambda: ns.nn.DecorrelatedBatchNorm(64, 4)), (IMAGE,)),
    "IterNorm": (ours(lambda: ns.nn.IterNorm(64, 4)), (IMAGE,)),
    "LayerNorm2d": (ours(lambda: ns.nn.LayerNorm2d(64)), (SMALL_IMAGE, IMAGE)),
    "LlamaRMSNorm": (row("LlamaRMSNorm", 256), (FEW_ROWS, TOKENS)),
    "GemmaRMSNorm": (row("GemmaRMSNorm", 256), (FEW_ROWS, TOKENS)),
    "PositionalNorm": (ours(lambda: ns.nn.PositionalNorm(64)), (IMAGE,)),
    "FilterResponseNorm": (ours(lambda: ns.nn.FilterResponseNorm(64)), (SMALL_IMAGE, IMAGE)),
    "BatchChannelNorm": (ours(lambda: ns.nn.BatchChannelNorm(64, 8)), (IMAGE,)),
    "SwitchableNorm": (ours(lambda: ns.nn.SwitchableNorm(64)), (SMALL_IMAGE, IMAGE)),
    "EvoNormB0": (ours(lambda: ns.nn.EvoNormB0(64)), (SMALL_IMAGE, IMAGE)),
    "EvoNormS0": (ours(lambda: ns.nn.EvoNormS0(64, 8)), (SMALL_IMAGE, IMAGE)),
    "DynamicTanh": (ours(lambda: ns.nn.DynamicTanh(256)), (FEW_ROWS, TOKENS)),
    "TemporalBatchNorm": (ours(lambda: ns.nn.TemporalBatchNorm(256, 128)), (SEQUENCE,)),
    "weight_standardization": (
        ours(lambda: ns.nn.weight_standardization(nn.Conv2d(64, 64, 3, padding=1))), (SMALL_IMAGE,),
    ),
    "centered_weight_norm": (
        ours(lambda: ns.nn.centered_weight_norm(nn.Conv2d(64, 64, 3, padding=1))), (SMALL_IMAGE,),
    ),
    "cosine": (ours(lambda: ns.nn.cosine(nn.Conv2d(64, 64, 3, padding=1))), (SMALL_IMAGE,)),
    "CosineConv2d": (ours(lambda: ns.nn.CosineConv2d(64, 64, 3, padding=1)), (SMALL_IMAGE,)),
}  # fmt: skip
NOT_ONE_PASS = ("LSTM", "GRU", "RNN,", "weight", "spectral", "cosine", "Cosine", "centered")  # more than memory traffic


def step(layer: Any, x: torch.Tensor) -> Callable[[], None]:
    """One forward and backward pass."""

    def output() -> torch.Tensor:
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    upstream, parameters = torch.randn_like(output()), list(layer.parameters())

    def run() -> None:
        output().backward(upstream)
        x.grad = None
        for parameter in parameters:
            parameter.grad = None

    return run


def use(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """One forward pass at inference."""
    twin, given = copy.deepcopy(layer).eval(), x.detach()

    def run() -> None:
        with torch.no_grad():
            twin(given)

    return run


class Found(NamedTuple):
    """Of one run: its median time in seconds; and of its ratio to the last run the median and the quartiles."""

    seconds: float
    ratio: tuple[float, float, float]

    def told(self) -> str:
        """The ratio and its quartiles."""
        return "{1:.2f} [{0:.2f}, {2:.2f}]".format(*self.ratio)


def times(runs: Sequence[Callable[[], object]], device: str, least: float = 0.002) -> list[Found]:
    """What the runs take. They take turns, in random order, so that the machine's moods fall on all of them alike."""
    clock = time.perf_counter
    for run in runs:
        run()
    start = clock()
    runs[-1]()
    once = clock() - start
    repeats = max(1, int(least / once))
    rounds: list[list[float]] = []
    for _ in range(max(5, min(ROUNDS, int(SECONDS / (len(runs) * repeats * once))))):
        spent = [0.0] * len(runs)
        for n in random.sample(range(len(runs)), len(runs)):
            if device != "cpu":
                torch.cuda.synchronize()
            start = clock()
            for _ in range(repeats):
                runs[n]()
            if device != "cpu":
                torch.cuda.synchronize()
            spent[n] = (clock() - start) / repeats
        rounds.append(spent)
    ratios = [statistics.quantiles([one[n] / one[-1] for one in rounds], n=4) for n in range(len(runs))]
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return [Found(seconds, (q[0], q[1], q[2])) for seconds, q in zip(medians, ratios, strict=True)]


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
    events: Any = profile.profiler
    for event in events.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            worst = max(worst, held)
    return worst


def measure(name: str, shape: tuple[int, ...], device: str, compiled: bool) -> list[str]:
    """One row of the table."""
    (make, make_torchs), _ = CASES[name]
    x = torch.randn(shape, device=device, requires_grad=True)
    y = torch.empty_like(x)
    layers = [make().to(device) for make in (make, make_torchs) if make is not None]
    runs = [step(layer, x) for layer in layers]
    with torch.no_grad():
        ideal = times([lambda: y.copy_(x)], device)[0].seconds / 2 * 5
    training, used = times(runs, device), times([use(layer, x) for layer in layers], device)
    memory = [f"{peak(run, device) / (x.numel() * x.element_size()):.1f}" for run in runs]
    theirs = len(layers) > 1
    told = [name, "×".join(map(str, shape)), f"{training[0].seconds * 1e6:.0f}"]
    told += ["" if name.startswith(NOT_ONE_PASS) else f"{training[0].seconds / ideal:.1f}"]
    told += [f"{training[1].seconds * 1e6:.0f}", training[0].told(), used[0].told()] if theirs else ["", "", ""]
    told += [memory[0], memory[1] if theirs else ""]
    if compiled and shape == CASES[name][1][-1]:
        told += by_compiler(name, layers, x, device, training)
    return told


def by_compiler(name: str, layers: list[nn.Module], x: torch.Tensor, device: str, eager: list[Found]) -> list[str]:
    """The compiled layer's time as a share of the eager one's, its ratio to torch's compiled layer, its memory."""
    if name.startswith(("LSTM", "GRU", "RNN,")):
        return []
    try:
        runs = compiled_steps(layers, x)
        found = times(runs, device)
    except Exception as error:
        return [type(error).__name__]
    memory = f"{peak(runs[0], device) / (x.numel() * x.element_size()):.1f}"
    return [f"{found[0].seconds / eager[0].seconds:.2f}", found[0].told() if len(layers) > 1 else "", memory]


def compiled_steps(layers: list[nn.Module], x: torch.Tensor) -> list[Callable[[], None]]:
    """A step of each layer, compiled now."""
    torch._dynamo.reset()
    runs = [step(torch.compile(layer), x) for layer in layers]
    for run in runs:
        run()
    return runs


def warm(name: str, device: str) -> None:
    """Leave what the compiler makes of a norm in its cache."""
    (make, make_torchs), shapes = CASES[name]
    if not name.startswith(("LSTM", "GRU", "RNN,")):
        layers = [one().to(device) for one in (make, make_torchs) if one is not None]
        compiled_steps(layers, torch.randn(shapes[-1], device=device, requires_grad=True))


HEADS = ("norm", "input", "µs", "× ideal", "torch µs", "ours / torch", "ours / torch, inference", "memory", "torch")
COMPILED = ("compiled / eager", "compiled ours / torch", "memory, compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--warm", action="store_true", help="compile, and measure nothing")
    parser.add_argument("--part", default="1/1", help="which part of the rows, such as 2/10; its rows are replaced")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="names that begin so, with commas between; their rows are replaced")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / f"norms-{options.device}.json"
    part, parts = map(int, options.part.split("/"))
    whole = parts == 1 and not options.only
    rows: dict[str, list[str]] = json.loads(kept.read_text()) if kept.exists() and not whole else {}
    wanted = [name for name in CASES if name.startswith(tuple(options.only.split(",")))]
    if options.warm:
        for name in wanted[part - 1 :: parts]:
            print(name, flush=True)
            warm(name, options.device)
        return
    every = [(name, shape) for name in wanted for shape in CASES[name][1]]
    for name, shape in every[part - 1 :: parts]:
        told = measure(name, shape, options.device, options.compile)
        before = rows.get(" ".join(told[:2]), [])
        rows[" ".join(told[:2])] = told + before[len(told) :]
        print(" | ".join(told), flush=True)
        kept.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        (options.out / f"norms-{options.device}.md").write_text(page(list(rows.values()), options.device))


def page(rows: list[list[str]], device: str) -> str:
    """The table and what it was measured on."""
    heads = [*HEADS, *COMPILED]
    order = {name: n for n, name in enumerate(CASES)}
    rows = sorted((one for one in rows if one[0] in order), key=lambda one: order[one[0]])
    lines = [
        "| " + " | ".join(one + [""] * (len(heads) - len(one))) + " |" for one in [heads, ["---"] * len(heads), *rows]
    ]
    chip = torch.cuda.get_device_name() if device != "cpu" else chip_name()
    told = f"{chip}, torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    text = (__doc__ or "").split(chr(10), 1)[1].strip()
    return f"# Norms: forward and backward, {device}\n\n{told}.\n\n{text}\n\n" + "\n".join(lines) + "\n"


def chip_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
