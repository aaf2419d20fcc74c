"""Planted faults and sound runs: is the cause named, the place, and does the first prescription cure?

Every fault is trained, and counts only when it hurts and its known cure (the training without it) helps; every sound
run counts only when it learns. A fault is right when the primary finding is one of its causes; its place is right when
the first site of that finding is one at which it was planted, or stands between that and the next layer with weights.
A first prescription that a treatment can execute is applied to a fresh model, which is trained again; one in words is
counted as a cure when the cause is right, since the known cure is what it says.

Trainings are kept in a folder (record, last state, score), so that a changed rule is judged without training again, and
a run that was broken off goes on. Each judgement is a line of rows.jsonl there.

    python benchmarks/faults/bench.py --keep DIR [--data DIR] [--set NAME] [--only WORD] [--part 0/2] [--train]
                                      [--mark NAME]
    python benchmarks/faults/bench.py --keep DIR --page > benchmarks/results/faults.md

A case belongs to one set: seen while rules were written, or the first, second or third of those held out. The
judgements of `--mark first`, `--mark second` and `--mark third` are the first runs of those: they lie in
benchmarks/results/faults-first.jsonl and so on, to be copied to rows-first.jsonl and so on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import images
import torch
from fault import Fault
from healthy import runs
from others import SETUPS
from page import page
from planted import FAULTS
from setups import Setup
from training import ended, fingerprint, kept, probe, score, scored

import normscope as ns
from normscope.terms.site import Site

HURTS = 0.9  # a spoiled run scores at most this share of the sound one: two seeds of a sound one differ by 0.02
LEARNS = 0.6  # of a run without the fault, from 0 for a constant to 1
GOOD = 0.8  # of a run that is called sound
Row = dict[str, Any]


class Case(NamedTuple):
    """Something to run: a fault on an architecture, or a sound training."""

    name: str
    one: Fault | Setup
    where: str
    held: str
    """The set: ``"seen"``, ``"first"``, ``"second"`` or ``"third"``."""


class Kept:
    """A folder of trainings, scores and judgements."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.mark = folder, mark
        self.rows, self._scores = folder / (f"rows-{mark}.jsonl" if mark else "rows.jsonl"), folder / "scores.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def score(self, key: str, setup: Setup, make: Any = None) -> float:
        """The score of an unwatched training, of the model that `make` makes."""
        key = f"{fingerprint(setup)} {key}"
        known = {one["key"]: one["score"] for one in lines(self._scores)}
        if key not in known:
            known[key] = scored(setup, 1, make() if make else None)
            append(self._scores, {"key": key, "score": known[key]})
        return known[key]

    def place(self, kind: str, name: str) -> Path:
        return self.folder / kind / "".join(one if one.isalnum() else "-" for one in name)


def lines(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def append(file: Path, row: Row) -> None:
    with file.open("a") as out:  # one write, so that parts that run beside each other do not mix
        out.write(json.dumps(row) + "\n")


def cases() -> Iterator[Case]:
    """Everything that is there to run."""
    for one in FAULTS:
        for where in one.where:
            yield Case(f"{one.name} / {where}", one, where, one.set(where))
    for name, (one, held) in runs().items():
        yield Case(name, one, "", held)


def of_cifar(case: Case) -> bool:
    return "cifar" in case.name


def trained(case: Case, store: Kept) -> None:
    """Make what a case needs, without looking at it."""
    name, one, where, _ = case
    if isinstance(one, Setup):
        kept(one, 2, store.place("sound", name))
        return
    store.score("sound", one.sound(SETUPS[where]))
    kept(one.plant(SETUPS[where]), 1, store.place("fault", name))


def fault(name: str, one: Fault, where: str, store: Kept) -> Row:
    """One planted fault: trained, diagnosed, treated."""
    sick, folder = one.plant(SETUPS[where]), store.place("fault", name)
    best, got = store.score("sound", one.sound(SETUPS[where])), kept(sick, 1, folder)["score"]
    found = diagnosed(sick, 1, folder)
    primary = found.primary
    right = bool(primary and primary.name in one.causes)
    row = {
        "kind": "fault", "name": one.name, "where": where, "sound": best, "sick": got,
        "counts": best > LEARNS and got < HURTS * best, "primary": primary.name if primary else None,
        "findings": [f"{each.name}:{each.severity}" for each in found],
        "detected": any(each.severity != "note" for each in found), "right": right,
        "told": any(each.name in one.causes for each in found), "faults": [str(each) for each in found.faults],
    }  # fmt: skip
    wanted = around(one.sites(sick.model(1)), folder) if one.sites else []
    places = [Site.parse(site).path for site in primary.sites] if primary else []
    row["planted"], row["places"] = wanted[:6], places[:6]
    row["place"] = None if not wanted else right and bool(places) and _is(places[0], wanted)
    row["among"] = None if not wanted else right and any(_is(place, wanted) for place in places)
    row["cured"], row["act"] = cured(sick, primary, best, got, right, store, folder)
    return row


def diagnosed(setup: Setup, seed: int, folder: Path) -> Any:
    """The diagnosis of a kept training, with its model at hand, as its watcher would give it."""
    model, optimizer = ended(setup, seed, folder)
    return ns.diagnose(folder / "run", model=model, probe=probe(setup), loss_fn=setup.loss, optimizer=optimizer)


def around(paths: Any, folder: Path) -> list[str]:
    """The paths, and what runs between each layer with weights among them and the next such layer."""
    ran = sorted((site for site in ns.Record(folder / "run").sites if site.depth >= 0), key=lambda site: site.depth)
    found, near = dict.fromkeys(paths), False
    for site in (site for site in ran if site.what == "output" and site.role != "other"):
        near = site.path in paths or (near and site.role != "producer")
        if near:
            found[site.path] = None
    return list(found)


def _is(place: str, wanted: list[str]) -> bool:
    return any(place == one or place.startswith(f"{one}.") or one.startswith(f"{place}.") for one in wanted if one)


def cured(
    setup: Setup, primary: Any, best: float, before: float, right: bool, store: Kept, folder: Path
) -> tuple[bool, str]:
    """Whether the first prescription helps at least halfway to the sound run, and what it was."""
    if primary is None or not primary.prescriptions:
        return False, ""
    first = primary.prescriptions[0]
    if not first.treatment:
        return right, "words"
    inputs, targets = setup.samples()

    def treated() -> torch.nn.Module:
        return ns.treat(setup.model(1), first, data=(inputs[:256], targets[:256]), inplace=True).model

    try:
        if first.treatment == "recalibrate":  # of the trained model
            at = [batch for batch, _ in zip(setup.batches(7), range(40))]
            model = ns.recalibrate(ended(setup, 1, folder)[0], [(inputs[one], targets[one]) for one in at]).model
            after = score(setup, model)
        else:
            after = store.score(repr(first), setup, treated)
    except Exception as error:
        return False, f"{first.treatment}: {type(error).__name__}"
    return after - before >= (best - before) / 2, first.treatment


def healthy(name: str, setup: Setup, store: Kept) -> Row:
    """One sound run, diagnosed."""
    folder = store.place("sound", name)
    got = kept(setup, 2, folder)["score"]
    found = diagnosed(setup, 2, folder)
    return {
        "kind": "sound", "name": name, "score": got, "counts": got >= GOOD,
        "alarms": [f"{one.name}:{one.severity}" for one in found if one.severity != "note"],
        "faults": [str(one) for one in found.faults],
    }  # fmt: skip


def judged(folder: Path, sets: tuple[str, ...], mark: str) -> list[Row]:
    """The judgements of some sets under a mark, in the order of the cases."""
    known = {row["case"]: row for row in lines(Kept(folder, mark).rows)}
    return [known[case.name] for case in cases() if case.held in sets and case.name in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True, help="the folder of trainings and judgements")
    parser.add_argument("--data", type=Path, help="a folder with CIFAR-10 in parquet files")
    parser.add_argument("--kind", choices=("fault", "sound"), default="", help="one kind of case only")
    parser.add_argument("--set", default="", help="cases of one set only: seen, first, second or third")
    parser.add_argument("--only", default="", help="names that hold this word")
    parser.add_argument("--part", default="0/1", help="every n-th case, from the k-th: k/n")
    parser.add_argument("--train", action="store_true", help="train, and judge nothing yet")
    parser.add_argument("--mark", default="", help="a name for these judgements, beside others in the same folder")
    parser.add_argument("--page", action="store_true", help="write the page of what was judged")
    options = parser.parse_args()
    store = Kept(options.keep, options.mark)
    if options.page:
        sys.stdout.write(page(lambda sets, mark: judged(options.keep, sets, mark), SETUPS))
        return
    warnings.simplefilter("ignore")
    images.CIFAR[:] = [options.data] if options.data else []
    first, parts = map(int, options.part.split("/"))
    chosen = [case for case in cases() if options.only in case.name and (options.data or not of_cifar(case))]
    if options.set:
        chosen = [case for case in chosen if case.held == options.set]
    if options.kind:
        chosen = [case for case in chosen if isinstance(case.one, Fault) == (options.kind == "fault")]
    done = {row["case"] for row in lines(store.rows)}
    for case in chosen[first::parts]:
        name, one, where, _ = case
        if options.train:
            trained(case, store)
        elif name not in done:
            start = time.process_time()
            row = fault(name, one, where, store) if isinstance(one, Fault) else healthy(name, one, store)
            append(store.rows, {"case": name, **row, "seconds": round(time.process_time() - start, 2)})


if __name__ == "__main__":
    main()
