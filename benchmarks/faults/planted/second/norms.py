"""Bad normalization."""

from __future__ import annotations

from functools import partial

import torch
from changes import batch_norms, norms, set_norms
from fault import Fault, batch, stepped
from setups import Setup
from torch import Tensor, nn

Held = partial(Fault, held="second")
GAP = ("train_eval_gap", "stale_running_stats", "unripe_running_stats")
SHARED = ("statistics_updated_twice", "mixed_domains")


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(model.get_submodule(above), name, module)


def _one_for_all(model: nn.Module) -> None:
    """The same batch normalization after every layer."""
    places = batch_norms(model)
    for path in places[1:]:
        _put(model, path, model.get_submodule(places[0]))


def _repeated(model: nn.Module) -> None:
    """A list of one block, multiplied."""
    blocks: nn.ModuleList = model.blocks  # type: ignore[assignment]
    model.blocks = nn.ModuleList([blocks[0]] * len(blocks))


def _of_blocks(model: nn.Module) -> list[str]:
    return [path for path in batch_norms(model) if path.startswith("blocks")]


class Twins(nn.Module):
    """Two halves of the image through one layer; the norm behind is shared, or each half has its own."""

    def __init__(self, width: int = 48, shared: bool = False) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(32, width), nn.Linear(2 * width, 10)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(1 if shared else 2))

    def forward(self, x: Tensor) -> Tensor:
        halves = zip((x[:, :32], x[:, 32:]), (self.norms[0], self.norms[-1]))
        return self.head(torch.cat([norm(self.layer(half)).relu() for half, norm in halves], 1))


class Stepwise(nn.Module):
    """A recurrence with a norm inside."""

    def __init__(self, width: int = 40, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.width = width
        self.read, self.keep = nn.Linear(8, width), nn.Linear(width, width)
        self.norm, self.head = norm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.width)
        for row in x.unbind(1):
            state = self.norm(self.read(row) + self.keep(state)).tanh()
        return self.head(state)


def _unlike(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The lower half of the image is brighter and of higher contrast."""
    return torch.cat([images[:, :32], 5 * images[:, 32:] + 8], 1), labels


def _growing(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Later rows are brighter and of higher contrast."""
    place = torch.arange(8.0).repeat_interleave(8)
    return images * 1.5**place + 2 * place, labels


def _twins(shared: bool):
    return lambda s: s.but(build=Twins, options={"shared": shared}, data=_unlike)


def _stepwise(norm: type[nn.Module]):
    return lambda s: s.but(build=Stepwise, options={"norm": norm}, rate=3e-3, data=_growing)


class Fixed(nn.BatchNorm2d):
    """Stays in evaluation, whatever is asked."""

    def train(self, mode: bool = True) -> Fixed:
        return super().train(False)


class Fixed1d(nn.BatchNorm1d):
    """Stays in evaluation, whatever is asked."""

    def train(self, mode: bool = True) -> Fixed1d:
        return super().train(False)


def _fixed(model: nn.Module) -> None:
    """Batch norms in evaluation before they have seen a batch."""
    for path in batch_norms(model):
        one = model.get_submodule(path)
        kind = Fixed if isinstance(one, nn.BatchNorm2d) else Fixed1d
        _put(model, path, kind(one.num_features).train())  # type: ignore[arg-type]


def _raw(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return 60 * images + 50, labels


def _of_raw(setup: Setup) -> Setup:
    return stepped(batch(setup)).but(data=_raw)


def _every(model: nn.Module) -> list[str]:
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm
    return [path for path, one in model.named_modules() if isinstance(one, kinds)]


def _wide_eps(model: nn.Module) -> None:
    for path in _every(model):
        model.get_submodule(path).eps = 1e3  # type: ignore[assignment]


def _scaled(factor: float):
    """Sets γ of every norm."""

    def change(model: nn.Module) -> None:
        for path in _every(model):
            nn.init.constant_(model.get_submodule(path).weight, factor)  # type: ignore[arg-type]

    return change


def _lost(model: nn.Module) -> None:
    """The first norm's running variance was saved as infinite."""
    nn.init.constant_(norms(model)[0].running_var, float("inf"))  # type: ignore[arg-type]


def _trios(setup: Setup) -> Setup:
    return setup.but(batch=3, rate=setup.rate / 4, steps=300)


FAULTS = (
    Held(
        "one batch norm for every layer", ("mlp", "depthwise", "series"), SHARED,
        lambda s: batch(s).but(changes=(_one_for_all,)), batch, lambda m: batch_norms(m)[:1],
    ),
    Held(
        "one block repeated by reference", ("residual",), SHARED,
        lambda s: s.but(options={"depth": 5}, changes=(_repeated,)), lambda s: s.but(options={"depth": 5}), _of_blocks,
    ),
    Held(
        "one batch norm for two unlike branches", ("mlp",), SHARED, _twins(True), _twins(False), batch_norms,
    ),
    Held(
        "one batch norm for all time steps", ("lstm",), ("recurrent_batch_norm", "statistics_updated_twice"),
        _stepwise(nn.BatchNorm1d), _stepwise(nn.LayerNorm), batch_norms,
    ),
    Held(
        "batch norms fixed before they saw a batch", ("mlp", "conv", "series"),
        ("half_frozen", "stale_running_stats"), lambda s: _of_raw(s).but(changes=(_fixed,)), _of_raw, batch_norms,
    ),
    Held(
        "running statistics move by a thousandth", ("depthwise", "hourglass"), GAP,
        lambda s: batch(s).but(changes=(set_norms(momentum=1e-3),)), batch, batch_norms,
    ),
    Held(
        "ε of a thousand", ("mlp", "conv", "series"), ("dominant_eps",),
        lambda s: batch(s).but(changes=(_wide_eps,)), batch, _every,
    ),
    Held(
        "γ of every norm at a hundred", ("vision", "transformer"), ("poor_initialization",),
        lambda s: s.but(changes=(_scaled(100.0),)), sites=_every,
    ),
    Held(
        "running variance infinite", ("conv", "series", "hourglass"), ("broken_running_stats",),
        lambda s: batch(s).but(changes=(_lost,)), batch, lambda m: batch_norms(m)[:1],
    ),
    Held(
        "batches of three", ("mlp",), ("batch_too_small", "noisy_batch_statistics"),
        lambda s: _trios(batch(s)), lambda s: _trios(s.but(options={"norm": "layer"})), batch_norms,
    ),
)  # fmt: skip
