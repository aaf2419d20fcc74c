"""Records to report on: a deep tanh network that does not learn, watched by hand, and odd ones made of a few rows."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.report.trials import LOG_RATIO
from normscope.stats.summary import Summary
from normscope.terms.finding import Diagnosis, Evidence, Fault, Finding, Prescription
from normscope.terms.site import Site
from normscope.terms.verdict import Arm, Effect, Trial, Verdict

DEPTH, STEPS = 6, 16
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{}}\x1b[31m\u202e"


@pytest.fixture(scope="session")
def sick(tmp_path_factory) -> SimpleNamespace:
    """`record` and `diagnosis` of a network whose weights start too large."""
    path = tmp_path_factory.mktemp("runs") / "untreated"
    watch_by_hand(path, depth=DEPTH, steps=STEPS)
    record = Record(path)
    return SimpleNamespace(record=record, diagnosis=diagnose_by_hand(record))


@pytest.fixture
def written(tmp_path) -> Callable[..., Record]:
    """A function that makes a record of whatever its argument writes."""

    def make(write: Callable[[Writer], object] = lambda writer: None, name: str = "run") -> Record:
        with Writer(tmp_path / name) as writer:
            write(writer)
        return Record(tmp_path / name)

    return make


@pytest.fixture
def hostile(written):
    """A record and a diagnosis that try to break out of the page."""

    def write(writer):
        for depth in range(2):
            site = Site(f"{HOSTILE}.{depth}", role="producer", kind=HOSTILE, depth=depth)
            for step in range(2):
                for what in ("output", "gradient"):
                    for source in ("live", "probe"):
                        writer.summary(site.at(what), step, source, Summary.of(torch.randn(8, 4)))
                writer.scalar(site, step, HOSTILE, float(step))
        writer.scalar(None, 0, "loss", 1.0)
        writer.event("note", HOSTILE)
        writer.event(HOSTILE, HOSTILE, step=1)
        writer.meta(**{"argv": [HOSTILE, "--" + HOSTILE], HOSTILE: HOSTILE, "deep": {HOSTILE: [HOSTILE]}})
        arms = (Arm(HOSTILE, ((1.0, 2.0),), ((1, HOSTILE),)), Arm("treated", ((1.0, 2.0),)))
        writer.trial(
            Trial(HOSTILE, (1,), 2, arms, Effect(0.0, -1.0, 1.0, 0.95, HOSTILE, HOSTILE), Verdict.UNCLEAR, (HOSTILE,))
        )

    record = written(write)
    key = f"{HOSTILE}.0"
    evil = Finding(
        code=HOSTILE, name=HOSTILE, severity="error", sites=(key,), message=HOSTILE, why=HOSTILE, cause_of=(HOSTILE,),
        evidence=Evidence(HOSTILE, 1.0, 0.5, (), HOSTILE, HOSTILE, ((key, 1.0), (f"{HOSTILE}.1", 2.0))),
        prescriptions=(Prescription(HOSTILE, (key,), {HOSTILE: HOSTILE}, HOSTILE, HOSTILE),),
    )  # fmt: skip
    return SimpleNamespace(record=record, diagnosis=Diagnosis((evil,), (HOSTILE,), subject=HOSTILE))


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
    """What rules would find in that record: a cause, its effect, and something else."""
    shares = {
        site.key: float(record.series(site, "saturated").values.max()) for site in filter(_saturable, record.sites)
    }
    norms = {
        site.key: float(record.series(site, "gradient_norm").values[-1])
        for site in record.sites
        if site.what == "gradient"
    }
    findings = _saturated(shares, record), _vanishing(norms), _cancelled()
    fault = Fault("NS203", "ZeroDivisionError: division by zero")
    return Diagnosis(findings, ("NS101", "NS104", "NS201", "NS202", "NS203"), (fault,), str(record.path))


def _saturated(shares: dict[str, float], record: Record) -> Finding:
    worst = sorted(shares, key=lambda key: -shares[key])
    sites = tuple(key for key in worst if shares[key] > 0.5)
    insert = Prescription(
        "insert_norm",
        tuple(Site.parse(key).path for key in sites),
        {"norm": "BatchNorm1d"},
        "put `nn.BatchNorm1d(64)` before each of the activations (`1`, `3`, `5` …)",
        "its output has mean 0 and deviation 1 whatever the weights are, where the function has its slope",
    )
    initialize = Prescription("reinitialize", words="nn.init.xavier_normal_(layer.weight, gain=5 / 3)")
    return Finding(
        code="NS202",
        name="saturated_activation",
        severity="error",
        sites=sites,
        message=f"{shares[worst[0]]:.0%} of the pre-activations of `{Site.parse(worst[0]).place}` lie where tanh is "
        f"flat; so do more than half of those of {len(sites) - 1} further activations.",
        evidence=Evidence(
            "saturated",
            shares[worst[0]],
            0.5,
            tuple(map(int, record.steps)),
            "share",
            "the median pre-activation itself is saturated",
            tuple((key, shares[key]) for key in worst),
        ),
        since_step=0,
        why="Where tanh is flat its slope is below a twentieth of the steepest: a gradient loses 95% of itself.",
        cause_of=("NS201",),
        prescriptions=(insert, initialize),
    )


def _vanishing(norms: dict[str, float]) -> Finding:
    most = max(norms.values())
    worst = sorted(norms, key=lambda key: norms[key])
    rows = tuple((key, norms[key] / most) for key in worst)
    return Finding(
        code="NS201",
        name="vanishing_gradient",
        severity="warning",
        sites=tuple(worst[:3]),
        message=f"The gradient at `{Site.parse(worst[0]).place}` is a small share of the largest one.",
        evidence=Evidence("relative_gradient", rows[0][1], math.exp(-6), (15,), "ratio", "six e-folds", rows),
        why="Layers without a gradient do not learn.",
        caused_by=("NS202",),
    )


def _cancelled() -> Finding:
    return Finding(
        code="NS104",
        name="bias_before_norm",
        severity="note",
        sites=("0",),
        message="The bias of `0` is subtracted again by the norm behind it.",
        evidence=Evidence("cancelled_bias", 1.0, 0.0, unit="layers"),
        prescriptions=(Prescription("remove_bias", ("0",), words="build `0` with `bias=False`"),),
    )


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


def _run(
    model: nn.Sequential, batch: torch.Tensor, target: torch.Tensor
) -> tuple[float, dict[tuple[str, str], torch.Tensor]]:
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
    treated = tuple(
        tuple(value * (0.2 + 0.8 * 0.9**step) + 0.02 * seed for step, value in enumerate(curve)) for seed in range(3)
    )
    ratios = [math.log(sum(after[-5:]) / sum(before[-5:])) for before, after in zip(untreated, treated, strict=True)]
    return Trial(
        treatment="put `nn.BatchNorm1d(64)` before each of the activations",
        seeds=(0, 1, 2),
        steps=len(curve),
        arms=(Arm("untreated", untreated), Arm("treated", treated)),
        effect=Effect(
            sum(ratios) / 3, min(ratios) - 0.1, max(ratios) + 0.1, 0.95, LOG_RATIO, "paired t, 3 seeds, last 5 steps"
        ),
        verdict=Verdict.HOLDS,
        notes=("both arms of a seed share the start, the random state and the optimizer's settings",),
        settings={"final_steps": 5},
    )
