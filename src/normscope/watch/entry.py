"""Where in a forward pass a parameter comes in that belongs to no norm or producer: a class token, a scale, a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.anatomy.batch import Probe
from normscope.anatomy.observe import Call, observe


def entries(
    model: nn.Module, probe: Probe, parameters: Sequence[Tensor | None], depth_of: Callable[[Call], int | None]
) -> list[float | None]:
    """Of each parameter, between which layers it is first used: half past the depth of the last layer that had begun.

    Parameters that come in between the same two layers follow each other in the order of their first use. None for one
    that is not seen to be used. The model runs once, as it stands.
    """
    seen = _FirstUses(parameters)

    def before(call: Call, inputs: Any) -> None:
        depth = depth_of(call)
        seen.depth = seen.depth if depth is None else max(seen.depth, depth)

    with seen:
        observe(model, lambda *_: None, probe, before=before)
    order = {at: place for place, at in enumerate(seen.found)}
    return [
        seen.found[at] + (order[at] + 1) / (len(order) + 1) if at in order else None for at in range(len(parameters))
    ]


class _FirstUses(TorchFunctionMode):
    """Notes at which depth each parameter is first an argument of a torch function."""

    def __init__(self, parameters: Sequence[Tensor | None]) -> None:
        super().__init__()
        self._wanted = {id(parameter): at for at, parameter in enumerate(parameters) if parameter is not None}
        self.depth = -1
        self.found: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._look((args, tuple((kwargs or {}).values())))
        return func(*args, **(kwargs or {}))

    def _look(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                at = self._wanted.get(id(value))
                if at is not None:
                    self.found.setdefault(at, self.depth)
            elif isinstance(value, tuple | list):
                self._look(value)
