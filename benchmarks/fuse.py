"""A whole training step of ResNet-20 after `fuse` (norm, sum and ReLU in one kernel; the convolutions untouched).

Both networks start alike and see the same batches; they step in turns in one process, and each step of ours is held
against torch's of the same turn. The gap is the largest difference between the two losses on the way. The last row of
a number of threads is what a user has who takes a network as it is, and lays the fused one out the better way.

The ledger is where the time of a step goes, by torch's profiler: what each operation took with all that it calls, in
ms. "floor" is the step, as a share of torch's, if norms, ReLUs and sums cost nothing at all; "copy" if they cost what
copying as many bytes costs, 64 MB at a time: two passes over a tensor forward, three backward, for a sum one more each.

    python benchmarks/fuse.py [--seconds 20] [--threads 1] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from normscope.treat.treatments.fuse import fuse
from watch import resnet

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PAIRS = (("contiguous", "contiguous"), ("channels_last", "channels_last"), ("contiguous", "channels_last"))
WARM = 3  # turns that are not counted
KINDS = {
    "aten::conv2d": "convolution", "ConvolutionBackward0": "convolution", "aten::batch_norm": "norm",
    "NativeBatchNormBackward0": "norm", "_Fused": "norm", "_FusedBackward": "norm", "aten::relu": "ReLU",
    "ReluBackward0": "ReLU", "aten::add": "sum",
}  # fmt: skip
ORDER = ("convolution", "norm", "ReLU", "sum", "other")


class Training:
    """A network in a layout, and its step."""

    def __init__(self, layout: str, fused: bool, batch: int) -> None:
        memory = LAYOUTS[layout]
        torch.manual_seed(0)
        model = resnet()
        self.x, self.y = torch.randn(batch, 3, 32, 32).to(memory_format=memory), torch.randint(0, 10, (batch,))
        whole = fuse(model, self.x[:8]).model if fused else model
        self.model: nn.Module = whole.to(memory_format=memory)  # pyright: ignore[reportCallIssue]: declared apart
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def turns(layouts: tuple[str, str], batch: int, seconds: float) -> Iterator[tuple[list[float], list[float], list[Any]]]:
    """Milliseconds, losses and ledgers of torch's step and ours, turn by turn; every other turn has ledgers."""
    trainings = [Training(layouts[0], False, batch), Training(layouts[1], True, batch)]
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        took, losses, ledgers = [0.0, 0.0], [0.0, 0.0], list[Any]([None, None])
        for which in (0, 1) if turn & 2 else (1, 0):
            step = trainings[which].step
            begin = time.perf_counter()
            losses[which], ledgers[which] = (step(), None) if turn % 2 else ledger(step)
            took[which] = (time.perf_counter() - begin) * 1e3
        turn += 1
        if turn > WARM:
            yield took, losses, ledgers


def ledger(step: Callable[[], float]) -> tuple[float, dict[str, float]]:
    """The loss, and milliseconds by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        begin = time.perf_counter()
        loss = step()
        took = (time.perf_counter() - begin) * 1e3
    spent: dict[str, float] = dict.fromkeys(ORDER, 0.0)
    for event in seen.events() or ():
        kind = KINDS.get(event.name.removeprefix("autograd::engine::evaluate_function: "))
        if kind is not None and (event.cpu_parent is None or event.name.startswith(("aten::conv2d", "aten::batch"))):
            spent[kind] += event.cpu_time_total / 1e3
    spent["other"] = took - sum(spent.values())
    return loss, spent


def copied(batch: int) -> float:
    """Milliseconds in which copies of tensors that no cache holds move what the norms' layers must."""
    moved, model, x = 0, resnet(), torch.randn(batch, 3, 32, 32)

    def note(passes: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def seen(norm: nn.Module, inputs: Any, y: torch.Tensor) -> None:
            nonlocal moved
            moved += passes * y.nbytes

        return seen

    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(note(7 if name.endswith("norm2") else 5))
    with torch.no_grad():
        model(x)
    from_, into = torch.randn(2, 1 << 24)
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        into.copy_(from_)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3 * moved / (2 * into.nbytes)


def rows(layouts: tuple[str, str], threads: int, batch: int, seconds: float) -> tuple[str, list[str]]:
    """A row of the first table, and two of the ledger."""
    torch.set_num_threads(threads)
    plain: list[list[float]] = []
    seen: tuple[list[dict[str, float]], ...] = ([], [])
    gap = 0.0
    for took, losses, ledgers in turns(layouts, batch, seconds):
        if ledgers[0] is None:
            plain.append(took)
        else:
            for each, one in zip(seen, ledgers, strict=True):
                each.append(one)
        gap = max(gap, abs(losses[0] - losses[1]))
    torchs, ours = (statistics.median(took[which] for took in plain) for which in (0, 1))
    ratios = sorted(took[1] / took[0] for took in plain)
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    what = f"| {layouts[0]} | {layouts[1]} | {threads}"
    told = f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"
    both = [{kind: statistics.median(one[kind] for one in each) for kind in ORDER} for each in seen]
    whole = sum(both[0].values())
    bare = whole - sum(both[0][kind] for kind in ("norm", "ReLU", "sum"))
    lines = []
    for who, layout, spent in zip(("torch", "ours"), layouts, both, strict=True):
        figures = " | ".join(f"{spent[kind]:.0f}" for kind in ORDER)
        shares = f"{bare / whole:.2f} | {(bare + copied(batch)) / whole:.2f}" if who == "torch" else " | "
        lines.append(f"| {who} | {layout} | {threads} | {figures} | {shares} |")
    return f"{what} | {torchs:.0f} | {ours:.0f} | {told} | {len(ratios)} | {gap:.1e} |", lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seconds", type=float, default=20.0, help="for each row")
    asked.add_argument("--batch", type=int, default=128)
    asked.add_argument("--threads", type=int, nargs="*", default=sorted({1, os.cpu_count() or 1}))
    asked.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = asked.parse_args()
    made = [rows(pair, threads, given.batch, given.seconds) for threads in given.threads for pair in PAIRS]
    words = (__doc__ or "").splitlines()
    page = [
        "# A training step after fusing",
        "",
        f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, batch "
        f"{given.batch}. ms are medians; the ratio is ours over torch's of the same turn, its median and quartiles.",
        "",
        *words[2:],
        "",
        "| torch's layout | ours | threads | torch ms | ours ms | ratio | turns | gap of the losses |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row for row, _ in made),
        "",
        "| who | layout | threads | " + " | ".join(ORDER) + " | floor | copy |",
        "|" + " --- |" * (len(ORDER) + 5),
        *(line for _, lines in made for line in lines),
    ]
    (given.out / "fuse-cpu.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page[-len(made) * 3 - 8 :]))


if __name__ == "__main__":
    main()
