"""One training, with or without a watcher; what is kept of it, and what it is known by."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import setups
import torch
from setups import Setup
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import normscope as ns

EVERY = 10
PROBE = 64


def train(setup: Setup, seed: int, model: nn.Module, optimizer: Optimizer, watcher: Any = None) -> nn.Module:
    """Train the model as the setup says; the model to be judged, which is an average of it where that is asked for."""
    inputs, targets = setup.samples()
    schedule = LambdaLR(optimizer, setup.schedule) if setup.schedule else None
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True) if setup.loop == "averaged" else None
    model.train()
    for number, chosen in enumerate(setup.batches(seed)):
        fourth = setup.loop != "accumulated" or number % 4 == 3
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.loop == "autocast"):
            loss = setup.loss(model(inputs[chosen]), targets[chosen])
        (loss / (4 if setup.loop == "accumulated" else 1)).backward()
        if setup.loop == "cleared before the step":
            optimizer.zero_grad()
        if fourth:
            if setup.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
            optimizer.step()
            if setup.loop != "never cleared":
                optimizer.zero_grad()
            if schedule:
                schedule.step()
            if watcher:
                watcher.loss(loss.item())
        if averaged:
            averaged.update_parameters(model)
    return averaged.module if averaged else model


@torch.no_grad()
def score(setup: Setup, model: nn.Module) -> float:
    """From 0, as good as a constant, to 1: of held-out samples, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    inputs, targets = setup.held_out()
    output = model(inputs)
    if setup.score == "error":
        value = 1 - torch.nn.functional.mse_loss(output, targets).item() / targets.var().item()
    elif setup.score == "copy":
        value = 1 - torch.nn.functional.mse_loss(output, inputs).item() / inputs.var(0).mean().item()
    elif setup.score == "binary":
        value = 2 * ((output > 0.5).float() == targets).float().mean().item() - 1
    else:
        chance = 1 / output.shape[1]
        value = ((output.argmax(1) == targets).float().mean().item() - chance) / (1 - chance)
    return max(0.0, value) if value == value else 0.0


def scored(setup: Setup, seed: int, model: nn.Module | None = None) -> float:
    """The score of an unwatched training, of a fresh model unless one is given."""
    model = setup.model(seed) if model is None else model
    return score(setup, train(setup, seed, model, setup.made(model)))


def kept(setup: Setup, seed: int, folder: Path) -> dict[str, Any]:
    """A watched training in a folder: its record, its end, its score. Made when that of this setup is not there."""
    facts = folder / "facts.json"
    if facts.is_file() and (known := json.loads(facts.read_text()))["of"] == fingerprint(setup):
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = setup.model(seed)
    optimizer = setup.made(model)
    with ns.watch(
        model, optimizer, folder / "run", probe=probe(setup), loss_fn=setup.loss, every=EVERY, seed=seed
    ) as watcher:
        judged = train(setup, seed, model, optimizer, watcher)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "end.pt")
    told = {"of": fingerprint(setup), "score": score(setup, judged)}
    facts.write_text(json.dumps(told))
    return told


def ended(setup: Setup, seed: int, folder: Path) -> tuple[nn.Module, Optimizer]:
    """The model and the optimizer as the training in a folder left them."""
    end = torch.load(folder / "end.pt", weights_only=True)
    model = setup.model(seed)
    model.load_state_dict(end["model"])
    optimizer = setup.made(model)
    optimizer.load_state_dict(end["optimizer"])
    return model.train(), optimizer


def probe(setup: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    """The fixed batch."""
    inputs, targets = setup.samples()
    return inputs[:PROBE], targets[:PROBE]


def fingerprint(setup: Setup) -> str:
    """What the training does, as far as it is written in the setup and in this folder's networks."""
    told = [_told(getattr(setup, field.name)) for field in fields(setup)]
    source = inspect.getsource(setup.build), inspect.getsource(setups.headed), inspect.getsource(train)
    return hashlib.sha256(repr((told, source, EVERY, PROBE)).encode()).hexdigest()[:16]


def _told(value: Any) -> Any:
    """A value as text that stays the same from one process to the next; a function by what it computes."""
    if isinstance(value, FunctionType):
        cells = [_told(cell.cell_contents) for cell in value.__closure__ or ()]
        return value.__qualname__, _code(value.__code__), cells, _told(value.__defaults__)
    if isinstance(value, partial):
        return _told(value.func), _told(value.args), _told(value.keywords)
    if isinstance(value, dict):
        return [(key, _told(one)) for key, one in value.items()]
    if isinstance(value, tuple | list):
        return [_told(one) for one in value]
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type | Callable) else repr(value)


def _code(code: CodeType) -> Any:
    constants = [_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return code.co_code.hex(), code.co_names, constants
