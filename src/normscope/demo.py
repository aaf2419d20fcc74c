"""The whole road on real data: a deep network that does not learn is watched, diagnosed, treated and proved.

Nothing here knows the answer. The network is sick because its weights start too large; what to do about it is what
`normscope.diagnose` prescribes, and whether that helps is what `normscope.trial` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import normscope as ns
from normscope.terms.datum import Datum
from normscope.terms.errors import MissingExtraError
from normscope.terms.finding import Diagnosis
from normscope.terms.verdict import Trial
from normscope.treat.trial import seeded

DEPTH, WIDTH, BATCH, RATE = 20, 64, 128, 0.05

Progress = Callable[[str, int, int], None]  # (stage, steps done, steps in all)


@dataclass(frozen=True, repr=False)
class Demo(Datum):
    """What the demo found: the diagnosis before and after the treatment, the trial, the page."""

    before: Diagnosis
    after: Diagnosis
    trial: Trial
    page: Path


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits that scikit-learn bundles: images (1797, 64) standardized, labels (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError.of("The demo", "scikit-learn", "claims") from None
    bunch: Any = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(bunch.target)


def sick_network() -> nn.Sequential:
    """Twenty tanh layers whose weights start with standard deviation 1, eight times what their width allows."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(linear.weight, std=1.0)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def momentum_sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every run."""
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers of 64 units are too small to share between threads; the caller's number of threads afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def demo(
    out: str | PathLike[str] = "demo",
    *,
    steps: int = 200,
    seeds: tuple[int, ...] = (0, 1, 2),
    progress: Progress = lambda stage, done, total: None,
) -> Demo:
    """Watch, diagnose, treat, prove, report. Writes ``out/report.html`` and two records beside it.

    Args:
        out: the folder to write to.
        steps: optimizer steps of every run.
        seeds: one pair of trial runs each.
        progress: told of every step.
    """
    out = Path(out)
    images, labels = digits()

    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = sick_network()
        return model, momentum_sgd(model)

    def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
        chosen = torch.randint(len(images), (BATCH,))
        loss = cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def watched(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, stage: str) -> Diagnosis:
        fixed = (images[:BATCH], labels[:BATCH])
        with ns.watch(model, optimizer, path, probe=fixed, loss_fn=cross_entropy, every=max(1, steps // 20)) as watcher:
            for step in range(steps):
                watcher.loss(train_step(model, optimizer, step))
                progress(stage, step + 1, steps)
        return ns.diagnose(path, model=model)

    with seeded(seeds[0]):
        model, optimizer = build(seeds[0])
        before = watched(model, optimizer, _fresh(out / "untreated"), "watch the untreated network")

    cure = before.prescriptions[:1]
    with seeded(seeds[0]):
        model, _ = build(seeds[0])
        model = ns.treat(model, cure, data=images[:BATCH]).model
        optimizer = momentum_sgd(model)
        after = watched(model, optimizer, _fresh(out / "treated"), "watch the treated network")

    runs = 2 * len(seeds) * steps
    counted = iter(range(1, runs + 1))
    trial = ns.trial(
        build,
        train_step,
        cure,
        steps=steps,
        seeds=seeds,
        path=out / "untreated",
        data=images[:BATCH],
        progress=lambda arm, seed, step: progress("trial, both arms", next(counted, runs), runs),
    )
    told = replace(before, subject="Twenty tanh layers on handwritten digits")
    page = ns.report(out / "untreated", out / "report.html", diagnosis=told)
    return Demo(before, after, trial, page)


def _fresh(run: Path) -> Path:
    """`run` without the records of an earlier demo, which a new watcher would continue."""
    for file in run.glob("*") if run.is_dir() else ():
        file.unlink()
    return run
