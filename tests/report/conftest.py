"""Records to report on: a deep tanh network that does not learn, watched by hand, and odd ones made of a few rows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.stats.summary import Summary
from normscope.terms.finding import Diagnosis, Evidence, Fault, Finding, Prescription
from normscope.terms.site import Site
from normscope.terms.verdict import Arm, Effect, Trial, Verdict

DEPTH, STEPS = 6, 30


@pytest.fixture(scope="session")
def sick(tmp_path_factory) -> SimpleNamespace:
    """`record` and `diagnosis` of a network whose weights start too large."""
    path = tmp_path_factory.mktemp("runs") / "untreated"
    watch_by_hand(path, depth=DEPTH, steps=STEPS)
    record = Record(path)
    return SimpleNamespace(record=record, diagnosis=diagnose_by_hand(record))


@pytest.fixture
def written(tmp_path) -> Iterator[Callable[..., Record]]:
    """A function that makes a record of whatever its argument writes."""

    def make(write: Callable[[Writer], object] = lambda writer: None, name: str = "run") -> Record:
        with Writer(tmp_path / name) as writer:
            write(writer)
        return Record(tmp_path / name)

    yield make


def watch_by_hand(path: Path, *, depth: int, steps: int, every: int = 1, width: int = 16) -> None:
    """Train and write what a watcher would: live and probe summaries, scalars, events, a trial."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=1.0)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    places = _sites(model)
    probe, target = torch.randn(64, width), torch.randint(3, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curves: list[float] = []
    with Writer(path, meta={"model": "Sequential", "optimizer": "SGD", "seed": 0, "batch_size": 64}) as writer:
        for step in range(steps):
            shifted = torch.randn(64, width) * (1 + step / steps)
            loss, tensors = _run(model, shifted, target)
            curves.append(loss)
            writer.scalar(None, step, "loss", loss)
            writer.scalar(None, step, "overhead", 0.008 + 0.001 / (1 + step))
            optimizer.step()
            if step % every:
                continue
            _, probed = _run(model, probe, target)
            for path_, site in places.items():
                for what in ("input", "output", "gradient"):
                    writer.summary(site.at(what), step, "live", Summary.of(tensors[path_, what]))
                for what in ("input", "output"):
                    writer.summary(site.at(what), step, "probe", Summary.of(probed[path_, what]))
        writer.event("note", "the probe is the first training batch", step=0)
        writer.event("dropped", "12 summaries were dropped between step 3 and step 5", step=5, data={"summary": 12})
        writer.trial(_trial(curves))


def diagnose_by_hand(record: Record) -> Diagnosis:
    """What the rules would find in that record, with two causes and an effect."""
    shares = sorted(
        ((site.key, float(record.series(site, "saturated").values.max())) for site in record.sites if _saturable(site)),
        key=lambda row: -row[1],
    )
    sites = tuple(key for key, share in shares if share > 0.5)
    gradients = {site.key: record.series(site, "gradient_norm").values[-1] for site in record.sites if site.what == "gradient"}
    worst = sorted(gradients, key=lambda key: gradients[key])
    saturated = Finding(
        code="NS202",
        name="saturated_activation",
        severity="error",
        sites=sites,
        message=f"{shares[0][1]:.0%} of the pre-activations of `{Site.parse(sites[0]).place}` lie where tanh is flat; "
        f"so do more than half of those of {len(sites) - 1} further activations.",
        evidence=Evidence(
            "saturated", shares[0][1], 0.5, tuple(map(int, record.steps)), "share", "Glorot & Bengio 2010, fig. 2", tuple(shares)
        ),
        since_step=0,
        why="Where tanh is flat its slope is below a twentieth of the steepest: a gradient that passes loses 95% of itself.",
        cause_of=("NS201",),
        prescriptions=(
            Prescription(
                "insert_norm",
                tuple(Site.parse(key).path for key in sites),
                {"norm": "BatchNorm", "before": True},
                "nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh()",
                "Normalized pre-activations have standard deviation one, where tanh still has slope.",
            ),
            Prescription("reinitialize", (), {"gain": "tanh"}, "nn.init.xavier_normal_(layer.weight, gain=5 / 3)", "It starts at a scale that keeps the variance from layer to layer."),
        ),
    )
    vanishing = Finding(
        code="NS201",
        name="vanishing_gradient",
        severity="warning",
        sites=tuple(worst[:3]),
        message=f"The gradient at `{Site.parse(worst[0]).place}` is a small share of that at the last layer.",
        evidence=Evidence("gradient_share", 1e-4, 1e-3, (29,), "ratio", "", tuple((key, gradients[key] / max(gradients.values())) for key in worst)),
        why="Layers without a gradient do not learn.",
        caused_by=("NS202",),
    )
    advice = Finding(
        code="NS104",
        name="bias_before_norm",
        severity="note",
        sites=("0",),
        message="The bias of `0` is subtracted again by the norm behind it.",
        evidence=Evidence("bias", 1.0, 0.0),
        prescriptions=(Prescription("remove_bias", ("0",), {}, "nn.Linear(64, 64, bias=False)", ""),),
    )
    return Diagnosis((saturated, vanishing, advice), ("NS101", "NS104", "NS201", "NS202", "NS203"), (Fault("NS203", "ZeroDivisionError: division by zero"),), str(record.path.name))


def _sites(model: nn.Sequential) -> dict[str, Site]:
    return {
        name: Site(
            name,
            role="producer" if isinstance(module, nn.Linear) else "activation",
            kind=type(module).__name__,
            depth=depth,
            channel_axis=1,
            feeds="tanh" if isinstance(module, nn.Linear) and depth + 1 < len(model) else None,
        )
        for depth, (name, module) in enumerate(model.named_children())
    }


def _run(model: nn.Sequential, batch: torch.Tensor, target: torch.Tensor) -> tuple[float, dict[tuple[str, str], torch.Tensor]]:
    """The loss, and input, output and gradient of every layer."""
    model.zero_grad()
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    x, outputs = batch, {}
    for name, module in model.named_children():
        tensors[name, "input"] = x.detach()
        x = module(x)
        x.retain_grad()
        outputs[name] = x
        tensors[name, "output"] = x.detach()
    loss = nn.functional.cross_entropy(x, target)
    loss.backward()
    tensors.update({(name, "gradient"): output.grad for name, output in outputs.items()})
    return loss.item(), tensors


def _saturable(site: Site) -> bool:
    return site.what == "input" and site.role == "activation"


def _trial(curve: list[float]) -> Trial:
    untreated = tuple(tuple(value + 0.05 * seed for value in curve) for seed in range(3))
    treated = tuple(tuple(value * 0.93**step + 0.02 * seed for step, value in enumerate(curve)) for seed in range(3))
    return Trial(
        treatment="nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh()",
        seeds=(0, 1, 2),
        steps=len(curve),
        arms=(Arm("untreated", untreated), Arm("treated", treated)),
        effect=Effect(-1.9, -2.3, -1.5, 0.95, "log ratio of final loss", "paired t, 3 seeds, last 5 steps"),
        verdict=Verdict.HOLDS,
        notes=("both arms of a seed share the start, the random state and the optimizer's settings",),
        settings={"final_steps": 5},
    )
