"""`Update`: the parameters before a training step, the gradients that its optimizers saw, and what they changed."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor
from torch.nn.parameter import Parameter
from torch.optim import Optimizer

from normscope.watch.callers import calling_scaler
from normscope.watch.optimizers import owned
from normscope.watch.plan import Place, Plan
from normscope.watch.sample import Row, change_of, is_copy, row_of, rows_of_all


class Update:
    """Samples of the trainable parameters around one training step, the same elements before and after.

    Each optimizer that steps in it is told of by `begin` and `end`. What two of them change counts as one change.

    Args:
        plan: where the parameters are.
        only: the identities of the parameters to look at; all when None.

    Attributes:
        scale: what the loss was multiplied with by the gradient scaler that called the optimizer; 1 without one.
        skipped: whether an optimizer was called, but left the parameters alone because a gradient overflowed.
    """

    def __init__(self, plan: Plan, only: Collection[int] | None = None) -> None:
        there = [(place, parameter) for place in plan.places if (parameter := place.parameter) is not None]
        there = [(place, parameter) for place, parameter in there if only is None or id(parameter) in only]
        there = [(place, parameter) for place, parameter in there if not is_copy(parameter)]
        rows = rows_of_all([(place.value, parameter) for place, parameter in there])
        self._before: list[tuple[Place, Parameter, Row]] = [
            (place, parameter, row) for (place, parameter), row in zip(there, rows) if row is not None
        ]
        self._gradients: dict[int, Row] = {}
        self._changes: dict[int, Row] = {}
        self._overflowed: set[int] = set()  # parameters whose gradient was not finite when another's owner stepped
        self.scale = 1.0
        self.skipped = False
        self._begun: set[int] = set()

    @property
    def parameters(self) -> list[Row]:
        """Values before the step."""
        return [row for _, _, row in self._before]

    @property
    def gradients(self) -> list[Row]:
        """As the optimizers see them: accumulated, unscaled, clipped."""
        return [self._gradients[id(now)] for _, now, _ in self._before if id(now) in self._gradients]

    @property
    def changes(self) -> list[Row]:
        """Values after the step less values before, of the parameters whose optimizers stepped."""
        return [self._changes[id(now)] for _, now, _ in self._before if id(now) in self._changes]

    @property
    def cleared(self) -> bool:
        """Whether no parameter has a gradient now."""
        # Both, for of sharded parameters only one has the gradient.
        known = (parameter for place, then, _ in self._before for parameter in (place.parameter, then))
        return all(parameter is None or parameter.grad is None for parameter in known)

    def begin(self, optimizer: Optimizer | None, elsewhere: Collection[int] = ()) -> None:
        """An optimizer is about to step, one that has nothing to do with the parameters `elsewhere`."""
        if not self._begun:
            self._before = [each if each[0].parameter is each[1] else self._as_now(*each) for each in self._before]
        self._begun.add(id(optimizer))
        scaler = calling_scaler() if optimizer is not None else None
        self.scale = scaler.get_scale() if scaler is not None else 1.0
        # A fused optimizer divides by the scale inside its step, and is called even when it must not change anything.
        fused = getattr(optimizer, "grad_scale", None) is not None
        overflow = getattr(optimizer, "found_inf", None)
        self.skipped |= isinstance(overflow, Tensor) and bool(overflow)
        mine = None if optimizer is None or self.scale == 1.0 else owned([optimizer])
        told = [
            (key, (place.gradient, gradient))
            for place, now, _ in self._before
            if (gradient := now.grad) is not None
            and (key := id(now)) not in self._gradients
            and (scaler is not None or key not in elsewhere)
        ]
        for (key, _), row in zip(told, rows_of_all([pair for _, pair in told])):
            if row is None:
                continue
            if key not in elsewhere:  # and nobody unscales what no optimizer owns
                scaled = fused or (mine is not None and key not in mine)
                self._gradients[key] = row.over(self.scale) if scaled else row
            elif not row.finite:
                self._overflowed.add(key)

    def overflowed(self, optimizer: Optimizer) -> bool:
        """Whether a gradient of `optimizer` was not finite while another stepped and it did not."""
        return bool(self._overflowed & owned([optimizer]))

    @staticmethod
    def _as_now(place: Place, parameter: Parameter, row: Row) -> tuple[Place, Parameter, Row]:
        """With the shard that the optimizer updates, where the forward pass ran on the whole parameter."""
        now = place.parameter
        return (place, parameter, row) if now is None else (place, now, row_of(place.value, now) or row)

    def end(self, optimizer: Optimizer | None, elsewhere: Collection[int] = ()) -> None:
        """The optimizer has stepped; of one whose passes ran inside its step this is the first that is told."""
        if id(optimizer) not in self._begun:
            self.begin(optimizer, elsewhere)
        mine = None if optimizer is None else owned([optimizer])
        moved = [each for each in self._before if mine is None or id(each[1]) in mine]
        moved = [(place, now, before) for place, now, before in moved if place.parameter is now]
        rows = rows_of_all([(place.update, now) for place, now, _ in moved])
        for (_, now, before), row in zip(moved, rows):
            change = change_of(before, row)
            if change is not None:
                self._changes[id(now)] = change
