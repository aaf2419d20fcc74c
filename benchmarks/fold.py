"""Time of folded networks against the unfolded ones and against `torch.fx`'s fuse, in one process.

Random weights and statistics, evaluation mode, without gradients. The runs take turns, so that other work on the
machine falls on all of them alike; ratios are medians over the rounds. The error is the largest difference from the
unfolded network's output in its standard deviations; "refused" is what the folding left alone.

    python benchmarks/fold.py [--device cuda] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import normscope as ns
from normscope.treat.measure import difference

ROUNDS = 15


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.short(x))


def resnet() -> nn.Module:
    stem = nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    return nn.Sequential(*stem, Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 128, 2))


def mobilenet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    for inputs, outputs, stride in ((32, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
        ]
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()]
    return nn.Sequential(*layers)


def generator() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((64, 64), (64, 32)):
        layers += [
            nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, groups=2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(32, 3, 3, 1, 1))


def mlp() -> nn.Module:
    layers = [part for _ in range(4) for part in (nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU())]
    return nn.Sequential(*layers)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual, batch 1": (resnet, (1, 3, 32, 32)),
    "residual, batch 16": (resnet, (16, 3, 32, 32)),
    "depthwise, batch 1": (mobilenet, (1, 3, 64, 64)),
    "depthwise, batch 16": (mobilenet, (16, 3, 64, 64)),
    "grouped deconvolutions, batch 4": (generator, (4, 64, 16, 16)),
    "linear, batch 1": (mlp, (1, 256)),
    "linear, batch 64": (mlp, (64, 256)),
}


def learned(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias)
    return model.eval()


def seconds(run: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    clock = time.thread_time if device == "cpu" else time.perf_counter
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


@torch.no_grad()
def measured(name: str, device: str) -> str:
    build, shape = CASES[name]
    torch.manual_seed(0)
    model, x = learned(build()).to(device), torch.randn(shape, device=device)
    started = time.process_time()
    treated = ns.fold(model, x)
    cost = time.process_time() - started
    arms: dict[str, nn.Module] = {"unfolded": model, "ours": treated.model}
    try:
        arms["torch"] = fuse(copy.deepcopy(model))
    except Exception as error:
        told = f"raises {type(error).__name__}"
    else:
        told = ""
    repeats = max(1, round(0.02 / max(seconds(lambda: model(x), device), 1e-6)))

    def run(arm: nn.Module) -> Callable[[], object]:
        return lambda: [arm(x) for _ in range(repeats)]

    rounds = [{arm: seconds(run(its), device) for arm, its in arms.items()} for _ in range(ROUNDS)]
    best = {arm: min(times[arm] for times in rounds) / repeats * 1e6 for arm in arms}
    gain = statistics.median(times["unfolded"] / times["ours"] for times in rounds)
    if "torch" in arms:
        beside = statistics.median(times["torch"] / times["ours"] for times in rounds)
        wrong = difference(arms["torch"](x), model(x))
        told = f"{best['torch']:.0f} | {beside:.2f} | {wrong:.1e}"
    else:
        told = f"{told} | | "
    return (
        f"| {name} | {best['unfolded']:.0f} | {best['ours']:.0f} | {gain:.2f} | {told} | {treated.error:.1e} | "
        f"{len(treated.changes)} | {len(treated.skipped)} | {cost:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = [measured(name, options.device) for name in CASES]
    about = (__doc__ or "").partition("    python")[0]
    head = f"# Folding, {options.device}\n\nTorch {torch.__version__}, one thread, load {load:.1f}. {about}"
    names = "network | unfolded µs | folded µs | unfolded / folded | torch µs | torch / ours | torch's error | error"
    table = [f"| {names} | folds | refused | s to fold |", "| " + " | ".join(["---"] * 11) + " |", *rows]
    options.out.mkdir(parents=True, exist_ok=True)
    written = "\n".join([head.rstrip(), "", "    python benchmarks/fold.py", "", *table, ""])
    (options.out / f"fold-{options.device}.md").write_text(written)


if __name__ == "__main__":
    main()
