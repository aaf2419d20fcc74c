"""Planted faults and sound runs: is the cause named, the place, and does the first prescription cure?

Every fault is trained, and counts only when it hurts and its known cure (the training without it) helps; every sound
run counts only when it learns. A fault is right when the primary finding is one of its causes. A first prescription
that a treatment can execute is applied to a fresh model, which is trained again; one in words is counted as a cure
when the cause is right, since the known cure is what it says.

Faults on the MLP and the convolutional net were looked at while rules were written ("seen"). Those on the residual net,
the LSTM and the transformer, and all sound runs, were first run when the rules were done ("held out").

    python benchmarks/faults/bench.py [--only WORD] [--part 0/2] [--out FILE.json]
    python benchmarks/faults/bench.py --table FILE.json [FILE.json …] > benchmarks/results/faults.md
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from healthy import runs
from planted import FAULTS, Fault
from scipy.stats import binomtest
from setups import SETUPS, Setup
from torch import nn

import normscope as ns

HURTS = 0.75  # a spoiled run reaches at most this share of what the sound one does above chance
GOOD = 0.85  # a sound run classifies at least this share right


def trained(setup: Setup, seed: int, model: nn.Module | None = None, path: Path | None = None) -> dict[str, Any]:
    """Train, under watch where a path is given; the score, and the watcher's diagnosis."""
    model = setup.model(seed) if model is None else model
    optimizer = setup.made(model)
    inputs, targets = setup.samples()
    probe = inputs[:64], targets[:64]
    watcher = None
    if path is not None:
        watcher = ns.watch(model, optimizer, path, probe=probe, loss_fn=setup.loss, every=10, seed=seed)
    model.train()
    for chosen in setup.batches(targets, seed):
        if setup.clears:
            optimizer.zero_grad()
        loss = setup.loss(model(inputs[chosen]), targets[chosen])
        loss.backward()
        if setup.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
        optimizer.step()
        if watcher:
            watcher.loss(loss.item())
    told: dict[str, Any] = {"score": score(setup, model)}
    if watcher:
        watcher.close()
        told["diagnosis"] = ns.diagnose(watcher)
    return told


@torch.no_grad()
def score(setup: Setup, model: nn.Module) -> float:
    """From 0, as good as a constant, to 1: of held-out samples, in evaluation mode."""
    model.eval()
    inputs, targets = setup.held_out()
    output = model(inputs)
    if setup.score == "error":
        value = 1 - torch.nn.functional.mse_loss(output, targets).item() / targets.var().item()
    elif setup.score == "binary":
        value = 2 * ((output > 0.5).float() == targets).float().mean().item() - 1
    else:
        value = ((output.argmax(1) == targets).float().mean().item() - 0.1) / 0.9
    return max(0.0, value) if value == value else 0.0


def fault(one: Fault, where: str, folder: Path, sound: dict[str, float]) -> dict[str, Any]:
    """One planted fault: trained, diagnosed, treated."""
    base = one.sound(SETUPS[where])
    sick = one.plant(SETUPS[where])
    key = f"{where}/{one.name}"
    best = sound.setdefault(key, trained(base, 1)["score"])
    shutil.rmtree(folder, ignore_errors=True)
    result = trained(sick, 1, path=folder)
    found = result["diagnosis"]
    primary = found.primary
    row = {
        "kind": "fault", "name": one.name, "where": where, "half": half(where), "sound": best, "sick": result["score"],
        "counts": best > 0.6 and result["score"] < HURTS * best, "primary": primary.name if primary else None,
        "findings": [f"{each.name}:{each.severity}" for each in found],
        "detected": any(each.severity != "note" for each in found),
        "right": bool(primary and primary.name in one.causes), "told": any(each.name in one.causes for each in found),
        "faults": [str(each) for each in found.faults],
    }  # fmt: skip
    row["site"] = None if not one.sites else bool(primary and _named(primary.sites, one.sites))
    row["cured"], row["act"] = cured(sick, primary, best, result["score"], row["right"])
    return row


def cured(setup: Setup, primary: Any, best: float, before: float, right: bool) -> tuple[bool, str]:
    """Whether the first prescription helps at least halfway to the sound run, and what it was."""
    if primary is None or not primary.prescriptions:
        return False, ""
    first = primary.prescriptions[0]
    if not first.treatment:
        return right, "words"
    inputs, targets = setup.samples()
    try:
        treated = ns.treat(setup.model(1), first, data=(inputs[:256], targets[:256]), inplace=True).model
        if first.treatment == "recalibrate":  # of the trained model
            model = setup.model(1)
            trained(setup, 1, model)
            loader = [(inputs[at : at + 64], targets[at : at + 64]) for at in range(0, len(inputs) - 63, 64)]
            after = score(setup, ns.recalibrate(model, loader).model)
        else:
            after = trained(setup, 1, treated)["score"]
    except Exception as error:
        return False, f"{first.treatment}: {type(error).__name__}"
    return after - before >= (best - before) / 2, first.treatment


def healthy(setup: Setup, folder: Path) -> dict[str, Any]:
    """One sound run, diagnosed."""
    shutil.rmtree(folder, ignore_errors=True)
    result = trained(setup, 2, path=folder)
    alarms = [f"{one.name}:{one.severity}" for one in result["diagnosis"] if one.severity != "note"]
    return {
        "kind": "healthy", "name": setup.name, "half": "held out", "score": result["score"], "alarms": alarms,
        "counts": result["score"] * 0.9 + 0.1 >= GOOD, "faults": [str(one) for one in result["diagnosis"].faults],
    }  # fmt: skip


def half(where: str) -> str:
    """Whether faults of this architecture were looked at while rules were written."""
    return "seen" if where in ("mlp", "conv") else "held out"


def _named(sites: Any, wanted: tuple[str, ...]) -> bool:
    return any(site.startswith(start) for site in sites for start in wanted)


def share(rows: list[dict[str, Any]], name: str) -> str:
    """So many of so many, with Wilson's interval."""
    hits, count = sum(bool(row[name]) for row in rows), len(rows)
    if not count:
        return "–"
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return f"{hits}/{count} = {hits / count:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def table(files: list[str]) -> str:
    """The results as a page."""
    rows = [row for file in files for row in json.loads(Path(file).read_text())]
    faults = [row for row in rows if row["kind"] == "fault"]
    sound = [row for row in rows if row["kind"] == "healthy"]
    for row in sound:
        row["flagged"] = bool(row["alarms"])
    lines = [
        "# Planted faults and sound runs", "",
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, digits of scikit-learn. "
        f"{len({row['name'] for row in faults})} types of fault on {len({row['where'] for row in faults})} "
        f"architectures, {len(faults)} pairs; {len(sound)} sound runs. A pair counts when the fault hurts and its cure "
        "helps, a sound run when it learns. Intervals are Wilson's, 95%.", "", (__doc__ or "").strip().split("\n\n")[2],
        "", "| measure | seen | held out | all |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for title, name, of in (
        ("detected", "detected", faults), ("primary cause right", "right", faults),
        ("cause among the findings", "told", faults), ("first prescription cures", "cured", faults),
        ("healthy runs flagged", "flagged", sound),
    ):  # fmt: skip
        counted = [row for row in of if row["counts"]]
        parts = [[row for row in counted if row["half"] == which] for which in ("seen", "held out")]
        lines.append(f"| {title} | {share(parts[0], name)} | {share(parts[1], name)} | {share(counted, name)} |")
    lines += [
        "",
        "## Faults",
        "",
        "| fault | where | half | sound → sick | primary | right | first prescription | cures |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in faults:
        marks = [("✓" if row[name] else "✗") if row["counts"] else "(does not hurt)" for name in ("right", "cured")]
        lines.append(
            f"| {row['name']} | {row['where']} | {row['half']} | {row['sound']:.2f} → {row['sick']:.2f} | "
            f"{row['primary'] or '–'} | {marks[0]} | {row['act']} | {marks[1]} |"
        )
    lines += ["", "## Sound runs with a finding of warning or above, or that do not learn", ""]
    lines += [
        f"- {row['name']} ({row['half']}, score {row['score']:.2f}): {', '.join(row['alarms']) or 'no finding'}"
        for row in sound
        if row["alarms"] or not row["counts"]
    ] or ["None."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="names that hold this word")
    parser.add_argument("--part", default="0/1", help="every n-th case, from the k-th: k/n")
    parser.add_argument("--out", default="faults.json")
    parser.add_argument("--table", nargs="+", help="write the page of these results")
    options = parser.parse_args()
    if options.table:
        sys.stdout.write(table(options.table))
        return
    warnings.simplefilter("ignore")
    first, parts = map(int, options.part.split("/"))
    cases = [(one, where) for one in FAULTS for where in one.where] + [(one, "") for one in runs()]
    cases = [case for case in cases if options.only in f"{case[1]}/{case[0].name}"][first::parts]
    rows: list[dict[str, Any]] = []
    sound: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for one, where in cases:
            place = Path(folder) / "run"
            row = fault(one, where, place, sound) if isinstance(one, Fault) else healthy(one, place)
            rows.append(row)
            print(json.dumps(row), flush=True)
            Path(options.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
