"""What treatments do on real data: small batches, sorted classes, single images, streams that shift.

A small convolutional network with BatchNorm is the patient. It is converted before training (GroupNorm, GroupNorm with
standardized weights, BatchRenorm, OnlineNorm), or trained as it is and then recalibrated, or left as it is and adapted
while it is used. Every arm of a seed starts from the same weights and sees the same batches, 6,000 images in all.

    python benchmarks/treatments.py [--data DIR of CIFAR-10] [--kept FILE] [--minutes M] [--out benchmarks/results]

Finished runs are kept in FILE, so the work can be done in slices of M minutes; the table is written when all are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

import normscope as ns
from normscope.claims.data import Split, images
from normscope.treat.interval import mean_interval

SEEN, RATE, MOMENTUM, SIDE = 6_000, 0.05, 0.9, 32  # images a training sees; the rate is for batches of SIDE
SEEDS = (0, 1, 2, 3)
BATCHES = (2, 4, 8, 32)
TRAININGS = ("BatchNorm", "GroupNorm", "GroupNorm+WS", "BatchRenorm")
ADAPTATIONS: dict[str, dict[str, Any] | None] = {
    "as trained": None,
    "adapt norm, prior 16": {"mode": "norm"},
    "adapt norm, prior 0": {"mode": "norm", "prior": 0},
    "adapt ema": {"mode": "ema"},
    "adapt entropy": {"mode": "entropy"},
}
Job = dict[str, Any]


def jobs(sets: list[str]) -> Iterator[Job]:
    for data in sets:
        for seed in SEEDS:
            for order, batches in (("shuffled", BATCHES), ("sorted by class", (8, 32))):
                for batch in batches:
                    yield from (
                        {"data": data, "what": "train", "norm": norm, "order": order, "batch": batch, "seed": seed}
                        for norm in (*TRAININGS, *(["OnlineNorm"] if batch == 2 else []))
                    )
    yield from ({"data": data, "what": "stream", "seed": seed} for data in sets for seed in SEEDS)


def split(name: str, folder: str) -> Split:
    """Digits at 8×8, CIFAR-10 at 16×16, which says the same of norms at a quarter of the cost."""
    if name == "digits":
        return images()
    whole = images(folder)
    return whole.but(x=avg_pool2d(whole.x, 2), test_x=avg_pool2d(whole.test_x, 2))


def network(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def treated(model: nn.Module, norm: str, steps: int) -> nn.Module:
    """Converted before training. Renorm's corrections grow over this training, not over the paper's 40,000 steps."""
    if norm == "BatchNorm":
        return model
    if norm == "BatchRenorm":
        grow = (steps // 10, steps // 2)
        spec = ns.catalog[norm].but(momentum=0.02, corrections=((3.0, *grow), (5.0, *grow)))
        return ns.convert(model, spec).model
    return ns.convert(model, norm).model


def batches(y: Tensor, batch: int, order: str, seed: int) -> list[Tensor]:
    """Indices of each batch; sorted by class, a batch holds one class and classes follow each other in turn."""
    turns = torch.Generator().manual_seed(seed)
    steps = SEEN // batch
    if order == "shuffled":
        epochs = [torch.randperm(len(y), generator=turns) for _ in range(-(-SEEN // len(y)) + 1)]
        return list(torch.cat(epochs).split(batch))[:steps]
    of = [(y == label).nonzero().flatten() for label in range(10)]
    return [of[k % 10][torch.randint(len(of[k % 10]), (batch,), generator=turns)] for k in range(steps)]


def trained(data: Split, norm: str, batch: int, order: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    plan = batches(data.y, batch, order, seed)
    model = treated(network(data.x.shape[1]), norm, len(plan)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE * batch / SIDE, momentum=MOMENTUM)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(plan))
    for chosen in plan:
        loss = cross_entropy(model(data.x[chosen]), data.y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return model


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch: int = 256) -> float:
    """Percent."""
    right = sum(int((model(part).argmax(1) == of).sum()) for part, of in zip(x.split(batch), y.split(batch)))
    return 100 * right / len(y)


def recalibrated(model: nn.Module, data: Split) -> nn.Module:
    return ns.recalibrate(model, list(data.x[:2048].split(128)), inplace=False).model.eval()


def train_job(job: Job, data: Split) -> dict[str, float]:
    model = trained(data, job["norm"], job["batch"], job["order"], job["seed"])
    test = data.test_x, data.test_y
    found = {job["norm"]: accuracy(model.eval(), *test)}
    if job["norm"] == "BatchNorm":
        cured = recalibrated(model, data)
        found["BatchNorm, recalibrated"] = accuracy(cured, *test)
        if job["batch"] == SIDE and job["order"] == "shuffled":
            few = test[0][:512], test[1][:512]
            own = model.train()  # the statistics of whatever batch comes
            found["single images, own statistics"] = accuracy(own, *few, batch=1)
            found["batches of 128, own statistics"] = accuracy(own, *few, batch=128)
            found["single images, recalibrated"] = accuracy(cured, *few, batch=1)
    return found


def stream_job(job: Job, data: Split) -> dict[str, float]:
    """Test images whose contrast is halved and whose brightness is raised by one deviation, in batches of 32."""
    model = trained(data, "BatchNorm", SIDE, "shuffled", job["seed"]).eval()
    turns = torch.Generator().manual_seed(job["seed"])
    mixed = torch.randperm(len(data.test_y), generator=turns)[:1024]
    in_order = mixed[data.test_y[mixed].argsort(stable=True)]
    found = {}
    for kind, chosen, shifted in (
        ("clean", mixed, False),
        ("shifted", mixed, True),
        ("shifted, sorted by class", in_order, True),
    ):
        x, y = data.test_x[chosen], data.test_y[chosen]
        x = 0.5 * x + 1.0 if shifted else x
        for arm, settings in ADAPTATIONS.items():
            used = model if settings is None else ns.adapt(model, **settings).model
            found[f"{kind}|{arm}"] = accuracy(used, x, y, batch=32)
    return found


def table(done: list[tuple[Job, dict[str, float]]], sets: list[str]) -> Iterator[str]:
    """One row for each arm, with the mean over seeds, and its difference from the row it is to be compared with."""
    rows: dict[tuple[str, str, str, str], dict[int, float]] = {}
    reference: dict[tuple[str, str, str, str], str] = {}
    for job, found in done:
        for arm, value in found.items():
            if job["what"] == "stream":
                kind, _, name = arm.partition("|")
                key, against = (job["data"], "test stream, " + kind, "32", name), "as trained"
            elif "statistics" in arm or arm.startswith("single"):
                key, against = (job["data"], "inference", "32", arm), "single images, own statistics"
            else:
                key, against = (job["data"], "training, " + job["order"], str(job["batch"]), arm), "BatchNorm"
            rows.setdefault(key, {})[job["seed"]] = value
            reference[key] = against
    yield "| data | what | batch | arm | accuracy, % | against the first arm, points | seeds |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for key, values in sorted(rows.items(), key=lambda row: (sets.index(row[0][0]), row[0][1], int(row[0][2]))):
        base = rows[(*key[:3], reference[key])]
        apart = [values[seed] - base[seed] for seed in values if seed in base]
        told = "" if key[3] == reference[key] else written(apart, "+")
        yield f"| {' | '.join(key)} | {written(list(values.values()))} | {told} | {len(values)} |"


def written(values: list[float], sign: str = "") -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a folder of CIFAR-10 as parquet; digits alone when left out")
    parser.add_argument("--kept", type=Path, default=Path(".normscope/treatments.jsonl"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = ["digits", *(["cifar10"] if options.data else [])]
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    lines = options.kept.read_text().splitlines() if options.kept.exists() else []
    done = [(row["job"], row["found"], row["seconds"]) for row in map(json.loads, lines)]
    known = [job for job, *_ in done]
    end = time.monotonic() + 60 * options.minutes
    splits: dict[str, Split] = {}
    for job in (job for job in jobs(sets) if job not in known):
        if time.monotonic() > end:
            print("more to do")
            return
        name = job["data"]
        if name not in splits:
            splits[name] = split(name, options.data)
        start = time.process_time()
        found = (train_job if job["what"] == "train" else stream_job)(job, splits[name])
        row = {"job": job, "found": found, "seconds": time.process_time() - start}
        with options.kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done.append((job, found, row["seconds"]))
    wanted = list(jobs(sets))
    done = [row for row in done if row[0] in wanted]
    minutes = sum(seconds for *_, seconds in done) / 60
    head = (
        "# Treatments on real data\n\n"
        f"Torch {torch.__version__}, one thread, {minutes:.1f} minutes of processor time. Mean over seeds with "
        "Student's t interval at 95%; differences are paired by seed. A training sees 6,000 images, so accuracies are "
        "far from what the data allow; what counts is the difference. Network and arms: `benchmarks/treatments.py`."
        "\n\n"
        "    python benchmarks/treatments.py --data DIR\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    rows = table([(job, found) for job, found, _ in done], sets)
    (options.out / "treatments.md").write_text(head + "\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
