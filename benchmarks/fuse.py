"""A whole training step of ResNet-20 after `fuse` (norm, sum and ReLU in one kernel; the convolutions untouched).

Both networks start alike and see the same batches; they step in turns in one process, and each step of ours is held
against torch's of the same turn. The gap is the largest difference between the two losses on the way.

    python benchmarks/fuse.py [--seconds 40] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from normscope.treat.treatments.fuse import fuse
from watch import resnet

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM = 3  # turns that are not counted


def ratio(layout: str, threads: int, batch: int, seconds: float) -> str:
    """A row of the table."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    memory = LAYOUTS[layout]
    model = resnet().to(memory_format=memory)  # pyright: ignore[reportCallIssue]: torch declares keywords of `to` apart
    x, y = torch.randn(batch, 3, 32, 32).to(memory_format=memory), torch.randint(0, 10, (batch,))
    models: list[nn.Module] = [model, fuse(copy.deepcopy(model), x[:8]).model]
    optimizers = [torch.optim.SGD(each.parameters(), 0.05, momentum=0.9) for each in models]
    turns: list[list[float]] = []
    gap, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        took, losses = [0.0, 0.0], [0.0, 0.0]
        for which in (0, 1) if len(turns) % 2 else (1, 0):
            begin = time.perf_counter()
            optimizers[which].zero_grad()
            loss = F.cross_entropy(models[which](x), y)
            loss.backward()
            optimizers[which].step()
            took[which] = time.perf_counter() - begin
            losses[which] = loss.item()
        turns.append(took)
        gap = max(gap, abs(losses[0] - losses[1]))
    torchs, ours = (statistics.median(took[which] for took in turns[WARM:]) * 1e3 for which in (0, 1))
    ratios = sorted(took[1] / took[0] for took in turns[WARM:])
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    told = f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"
    return f"| {layout} | {threads} | {batch} | {torchs:.0f} | {ours:.0f} | {told} | {len(ratios)} | {gap:.1e} |"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seconds", type=float, default=20.0, help="for each row")
    asked.add_argument("--batch", type=int, default=128)
    asked.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = asked.parse_args()
    cores = os.cpu_count() or 1
    rows = [ratio(layout, threads, given.batch, given.seconds) for threads in sorted({1, cores}) for layout in LAYOUTS]
    words = (__doc__ or "").splitlines()
    page = [
        "# A training step after fusing",
        "",
        f"torch {torch.__version__}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}. ms are medians; the "
        "ratio is ours over torch's of the same turn, its median and quartiles.",
        "",
        *words[2:],
        "",
        "| layout | threads | batch | torch ms | ours ms | ratio | turns | gap of the losses |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    (given.out / "fuse-cpu.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
