"""What watching costs: steps with and without a watcher, beside other watchers, in one process and in turns.

Every way of watching has a training of its own; all run a few steps, turn by turn, and each is compared with the
unwatched training of the same round. Ours is charged for what its writing thread still has to do: the time ends when
the record is flushed. Peers (`pip install wandb fastai tensorboard cockpit-for-pytorch`) that are not installed, or do
not run, are named as such.

    python benchmarks/watch.py [--models mlp,encoder,resnet] [--rounds 5] [--out benchmarks/results]

What a call measures replaces that in the results, and all else there stays: a model, a way or a part at a time will do.
With `--more`, rounds of an earlier call with the same word are kept and added to.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import itertools
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns

# in a round, at whose end the record is flushed; a run of the MLP flushes each 68 steps
STEPS = {"mlp": 100, "encoder": 3, "resnet": 3}
PATIENCE = 2.0  # seconds that a way may take in a round
DEFAULT = "normscope, default: the median step of a run"
CLOCK = time.perf_counter
CLOCKS = {
    "wall": (time.perf_counter, "time by the clock"),
    "processor": (time.process_time, "processor time of all threads, the writing thread's included"),
}


# what is trained -----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(256, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(ids)).mean(1))


def resnet() -> nn.Module:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp(width: int = 256, depth: int = 10) -> nn.Module:
    layers = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


TRAININGS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(256, 256)),
    "encoder": (Encoder, lambda: torch.randint(0, 1000, (16, 128))),
    "resnet": (resnet, lambda: torch.randn(128, 3, 32, 32)),
}
WORDS = {
    "mlp": "MLP, 10 × 256, batch 256",
    "encoder": "encoder, 4 layers, d 256, 16 × 128",
    "resnet": "ResNet-20, batch 128, 32 × 32",
}


class Training:
    def __init__(self, name: str) -> None:
        build, batch = TRAININGS[name]
        torch.manual_seed(0)
        self.model, self.x = build(), batch()
        self.y = torch.randint(0, 10, (len(self.x),))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        return loss


def leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if not module._modules]


# ways of watching: each yields what to call after the steps of a round ---------------------------------


@contextmanager
def unwatched(training: Training) -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def ours(training: Training, every: int | str, **settings: object) -> Iterator[Callable[[], None]]:
    with (
        tempfile.TemporaryDirectory() as place,
        ns.watch(training.model, training.optimizer, place, every=every, **settings) as watcher,  # pyright: ignore
    ):
        yield lambda: watcher._journal.writer.flush() and None


@contextmanager
def outputs(training: Training, told: Callable[[torch.Tensor], object]) -> Iterator[Callable[[], None]]:
    def hook(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            told(output.detach())

    handles = [module.register_forward_hook(hook) for module in leaves(training.model)]
    yield lambda: None
    for handle in handles:
        handle.remove()


def five(x: torch.Tensor) -> tuple[float, ...]:
    return x.mean().item(), x.std().item(), x.amin().item(), x.amax().item(), (x == 0).float().mean().item()


@contextmanager
def tensorboard(training: Training) -> Iterator[Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as place, SummaryWriter(place) as writer:

        def hook(_: object) -> None:
            for name, parameter in training.model.named_parameters():
                writer.add_histogram(name, parameter.detach())
                if parameter.grad is not None:
                    writer.add_histogram(f"{name}.grad", parameter.grad)

        handle = training.optimizer.register_step_pre_hook(lambda *_: hook(None))
        with outputs(training, lambda x: writer.add_histogram("output", x)):
            yield writer.flush
        handle.remove()


@contextmanager
def cockpit(training: Training) -> Iterator[Callable[[], None]]:
    """Cockpit's economy preset: its own step replaces the training's, since it needs the losses of the samples."""
    from backpack import extend
    from cockpit import Cockpit  # pyright: ignore
    from cockpit.utils.configuration import configuration  # pyright: ignore

    model, losses = extend(training.model), extend(nn.CrossEntropyLoss(reduction="none"))
    mean, numbers = extend(nn.CrossEntropyLoss()), itertools.count()
    peer = Cockpit(list(model.parameters()), quantities=configuration("economy"))

    def step() -> torch.Tensor:
        training.optimizer.zero_grad()
        output, number = model(training.x), next(numbers)
        loss = mean(output, training.y)
        with peer(number, info={
            "batch_size": len(training.x), "individual_losses": losses(output, training.y), "loss": loss,
            "optimizer": training.optimizer,
        }):  # fmt: skip
            loss.backward(create_graph=peer.create_graph(number))
        training.optimizer.step()
        return loss

    training.step = step
    yield lambda: None


@contextmanager
def wandb(training: Training) -> Iterator[Callable[[], None]]:
    import wandb as peer

    with tempfile.TemporaryDirectory() as place:
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=place)
        run = peer.init(project="bench", dir=place)
        peer.watch(training.model, log="all", log_freq=1)
        handle = training.optimizer.register_step_post_hook(lambda *_: run.log({"step": 1}))
        yield lambda: None
        handle.remove()
        peer.unwatch(training.model)
        run.finish()


@contextmanager
def fastai(training: Training) -> Iterator[Callable[[], None]]:
    from fastai.callback.hook import ActivationStats

    peer = ActivationStats(with_hist=True)
    with outputs(training, lambda x: peer.hook(None, None, x)) as finish:
        yield finish


WAYS: dict[str, tuple[str | None, Callable]] = {
    "unwatched": (None, unwatched),
    DEFAULT: (None, lambda training: ours(training, "auto")),
    "normscope, every=1, the training alone": (None, lambda training: ours(training, 1, probes=())),
    "normscope, every=1, and the fixed batch at each tenth": (None, lambda training: ours(training, 1)),
    "sum of every leaf's output": (None, lambda training: outputs(training, lambda x: x.sum().item())),
    "five statistics of every leaf's output": (None, lambda training: outputs(training, five)),
    'wandb.watch(log="all"), offline': ("wandb", wandb),
    "fastai's ActivationStats(with_hist=True)": ("fastai", fastai),
    "TensorBoard histograms": ("tensorboard", tensorboard),
    "Cockpit, economy": ("cockpit", cockpit),
}


def compare(name: str, rounds: int, asked: list[str], seconds: float) -> dict[str, list[float] | str]:
    """By way: the ratios to the unwatched steps of the same round, or why there are none; the last begins in time."""
    started = time.perf_counter()
    ways: dict[str, tuple[Training, Callable[[], None], int]] = {}
    found: dict[str, list[float] | str] = {}
    with contextlib.ExitStack() as stack:
        for way, (needs, watching) in WAYS.items():
            if way == DEFAULT or (way != "unwatched" and not any(word in way for word in asked)):
                continue
            if needs is not None and importlib.util.find_spec(needs) is None:
                found[way] = "not installed"
                continue
            training = Training(name)
            training.step()
            try:
                finish = stack.enter_context(watching(training))
                training.step()
                took = timed(training, finish, 1)
                print(f"{name}: {way}: {took:.3f} s", file=sys.stderr, flush=True)
            except Exception as error:
                said = " ".join(str(error).split())
                found[way] = f"{type(error).__name__}: {said[:57] + '…' if len(said) > 58 else said}".replace("|", "/")
                continue
            ways[way], found[way] = (training, finish, max(1, min(STEPS[name], int(PATIENCE / took)))), []
        for training, finish, _ in ways.values():  # once more, now that all stand side by side
            timed(training, finish, 1)
        for _ in range(rounds):
            if time.perf_counter() - started > seconds:
                break
            try:
                times = {way: timed(*each) for way, each in ways.items()}
            except SystemExit:  # asked to end: the rounds before this one are told
                break
            for way, took in times.items():
                told = found[way]
                assert isinstance(told, list)
                told.append(took if way == "unwatched" else took / times["unwatched"])
    return found


def timed(training: Training, finish: Callable[[], None], steps: int) -> float:
    """Seconds a step."""
    gc.collect()
    started = CLOCK()
    for _ in range(steps):
        training.step()
    finish()
    return (CLOCK() - started) / steps


# what else watching takes ----------------------------------------------------------------------------


def run_of(name: str, steps: int, at_once: int = 50) -> dict[str, float]:
    """A run of so many steps watched by default beside an unwatched one, in turns: the median step, the whole run."""
    plain, watched = Training(name), Training(name)
    plain.step(), watched.step()
    spent: dict[str, list[float]] = {"plain": [], "watched": []}
    with WAYS[DEFAULT][1](watched) as finish:
        for _ in range(0, steps, at_once):
            for way, training in (("plain", plain), ("watched", watched)):
                for _ in range(at_once):
                    started = CLOCK()
                    training.step()
                    spent[way].append(CLOCK() - started)
        started = CLOCK()
        finish()
        spent["watched"][-1] += CLOCK() - started
    first = spent["watched"][0] / statistics.median(spent["plain"])
    told = {way: (statistics.median(each), sum(each[1:])) for way, each in spent.items()}
    (median, whole), (seen, total) = told.values()
    return {"steps": steps, "median": seen / median, "rest": total / whole, "first": first, "seconds": whole}


def disk(name: str, steps: int) -> tuple[int, int]:
    """Bytes of the record of `steps` steps at every=1, and how many sites it has."""
    training = Training(name)
    with tempfile.TemporaryDirectory() as place:
        with ns.watch(training.model, training.optimizer, place, every=1):
            for _ in range(steps):
                training.step()
        return sum(file.stat().st_size for file in Path(place).iterdir()), len(ns.Record(place).sites)


def peak(name: str, every: str) -> int:
    """Peak resident bytes of a process that trains six steps, watched or not."""
    code = f"import watch; watch.train_six({name!r}, {every!r})"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    ).stdout
    return int(told.split()[-1]) * 1024


def train_six(name: str, every: str) -> None:
    training = Training(name)
    watching = unwatched if every == "none" else lambda t: ours(t, 1 if every == "1" else "auto")
    with watching(training) as finish:
        for _ in range(6):
            training.step()
        finish()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def query(place: Path, sites: int, steps: int) -> tuple[float, int]:
    """Seconds in which a fresh process opens a record of so many sites and steps and has its first series; bytes.

    The record is written first where it is not there yet.
    """
    if not place.exists():
        from normscope.record.writer import Writer
        from normscope.stats import Summary
        from normscope.stats.digest import Digest, Digests
        from normscope.terms.site import Site

        named = [Site(f"layer{index}") for index in range(sites)]
        digests = Digests.of([Digest.of(Summary.of(torch.randn(8192))) for _ in named])
        with Writer(place) as writer:
            for step in range(steps):
                writer.block(step, "live", named, digests)
                if step % 4 == 3:  # before the queue is full
                    writer.flush()
    code = (
        "import sys, time, normscope as ns; ns.Record; started = time.perf_counter(); record = ns.Record(sys.argv[1])\n"
        f"found = record.series('layer{sites // 2}', 'std'); assert len(found.values) == {steps}\n"
        "print(time.perf_counter() - started)"
    )
    call = [sys.executable, "-c", code, str(place)]
    told = min(float(subprocess.run(call, check=True, capture_output=True, text=True).stdout) for _ in range(3))
    return told, sum(file.stat().st_size for file in place.iterdir())


def attach(layers: int) -> tuple[float, float]:
    """Seconds to attach to a model of so many layers, and what the first step takes above an unwatched one."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
        return time.perf_counter() - started

    step()
    plain = step()
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        with ns.watch(model, optimizer, place):
            attached = time.perf_counter() - started
            return attached, step() - plain


# the page ------------------------------------------------------------------------------------------


def cell(told: list[float] | str | None, *, milliseconds: bool = False) -> str:
    if not isinstance(told, list) or not told:
        return str(told or "–")
    scale, digits = (1e3, 1) if milliseconds else (1.0, 2)
    low, middle, high = (f"{scale * value:.{digits}f}" for value in (min(told), statistics.median(told), max(told)))
    return f"{middle}{' ms' if milliseconds else ''} ({low}–{high})"


def page(told: dict) -> str:
    names = [name for name in TRAININGS if name in told["compared"]]
    lines = [
        "# What watching costs on a CPU",
        "",
        f"`python benchmarks/watch.py`, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores of {processor()}, {memory()}.",
        "Steps of all ways run in turns in one process; ratios to the unwatched steps of the same",
        "round: median (range), each network in the time that stands under it. Ours ends when the record is",
        "on the disk. By default steps are sampled ever more rarely, so there the median step of a run stands here;",
        "what the whole run took is below.",
        "",
        "| | " + " | ".join(WORDS[name] for name in names) + " |",
        "| --- |" + " --- |" * len(names),
        "| measured in | " + " | ".join(told["clocks"].get(name, "–") for name in names) + " |",
    ]
    for way in WAYS:
        if way == DEFAULT:
            cells = (f"{found['median']:.3f}" if (found := told["runs"].get(name)) else "–" for name in names)
        else:
            cells = (cell(told["compared"][name].get(way), milliseconds=way == "unwatched") for name in names)
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += ["", *told.get("notes", {}).values(), ""]
    return "\n".join(lines)


def processor() -> str:
    found = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    return found or platform.processor()


def memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB of memory"


def measure(asked: argparse.Namespace, told: dict, clock: str) -> None:
    """Put what is asked for into what is `told`, part by part."""
    names, parts, notes = asked.models.split(","), asked.only.split(","), told["notes"]
    for name in names:
        if "compare" in parts:
            found = compare(name, asked.rounds, asked.ways.split(","), asked.seconds)
            before = told["compared"].get(name, {})
            if asked.more:
                found = {
                    way: [*before[way], *each] if isinstance(each, list) and isinstance(before.get(way), list) else each
                    for way, each in found.items()
                }
            told["compared"][name] = {**before, **found}
            told["clocks"][name] = f"{clock}, {asked.threads} thread{'s' if asked.threads > 1 else ''}"
        if "run" in parts:
            run = told["runs"][name] = run_of(name, asked.steps)
            notes[f"run {name}"] = (
                f"- {WORDS[name]}: {run['steps']} steps by default ({run['seconds']:.0f} s unwatched), in turns of 50: "
                f"median step {run['median']:.3f} ×; the first took as long as {run['first']:.0f}, all others "
                f"together {run['rest']:.3f} ×."
            )
        if "disk" in parts:
            size, sites = disk(name, 40)
            notes[f"disk {name}"] = (
                f"- {WORDS[name]}: {size * 25 / 1e6:.0f} MB on disk per 1,000 steps at every=1, of {sites} sites: "
                f"{size * 25 / sites / 1e3:.0f} kB a site."
            )
        if "memory" in parts:
            plain, auto, dense = (peak(name, every) for every in ("none", "auto", "1"))
            notes[f"memory {name}"] = (
                f"- {WORDS[name]}: peak memory of the process {plain / 1e6:.0f} MB unwatched, "
                f"{auto / plain:.3f} × by default ({(auto - plain) / 1e6:+.0f} MB), {dense / plain:.3f} × at every=1."
            )
    if "query" in parts:
        opened, size = query(asked.record, 1000, 2000)
        notes["query"] = (
            f"- A record of 1,000 sites × 2,000 steps: {size / 1e9:.2f} GB, {opened:.2f} s to open it and have a first "
            "series, in a fresh process."
        )
    if "attach" in parts:
        attached, first = attach(10_000)
        notes["attach"] = (
            f"- A model of 10,000 layers: attached in {attached:.2f} s, its first step {first:.1f} s longer."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mlp,encoder,resnet")
    parser.add_argument("--only", default="compare,run,disk,memory,query,attach")
    parser.add_argument("--ways", default="", help="words of the ways to compare, by default all")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: for a machine that is shared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="of the long run by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="after which no further round begins")
    parser.add_argument("--more", action="store_true", help="add to the rounds of an earlier call, of the same ways")
    parser.add_argument("--record", type=Path, default=Path(tempfile.gettempdir()) / "normscope-1000x2000")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    global CLOCK
    CLOCK, clock = CLOCKS[asked.clock]
    torch.set_num_threads(asked.threads)
    kept = asked.out / "watch-cpu.json"
    told = json.loads(kept.read_text()) if kept.exists() else {}
    for part in ("compared", "clocks", "runs", "notes"):
        told.setdefault(part, {})
    try:
        measure(asked, told, clock)
    finally:
        asked.out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(told, indent=1))
        (asked.out / "watch-cpu.md").write_text(page(told))
        print(page(told))


if __name__ == "__main__":
    main()
