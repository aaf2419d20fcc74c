"""`Update`: the parameters before an optimizer step, the gradients it saw, and what it changed."""

from __future__ import annotations

from torch import Tensor
from torch.nn.parameter import Parameter
from torch.optim import Optimizer

from normscope.watch.callers import calling_scaler
from normscope.watch.plan import Place, Plan
from normscope.watch.sample import Row, change_of, is_copy, row_of, rows_of_all


class Update:
    """Samples of every trainable parameter around one optimizer step, the same elements before and after.

    Attributes:
        parameters: values before the step.
        gradients: as the optimizer sees them: accumulated, unscaled, clipped.
        changes: values after the step less values before, of the parameters that the optimizer owns.
        scale: what the loss was multiplied with by the gradient scaler that called the optimizer; 1 without one.
        skipped: whether the optimizer was called, but left the parameters alone because a gradient overflowed.
    """

    def __init__(self, plan: Plan) -> None:
        there = [(place, parameter) for place in plan.places if (parameter := place.parameter) is not None]
        there = [(place, parameter) for place, parameter in there if not is_copy(parameter)]
        rows = rows_of_all([(place.value, parameter) for place, parameter in there])
        self._before: list[tuple[Place, Parameter, Row]] = [
            (place, parameter, row) for (place, parameter), row in zip(there, rows) if row is not None
        ]
        self.gradients: list[Row] = []
        self.changes: list[Row] = []
        self.scale = 1.0
        self.skipped = False
        self._begun = False

    @property
    def parameters(self) -> list[Row]:
        """Values before the step."""
        return [row for _, _, row in self._before]

    @property
    def cleared(self) -> bool:
        """Whether no parameter has a gradient now."""
        # Both, for of sharded parameters only one has the gradient.
        known = (parameter for place, then, _ in self._before for parameter in (place.parameter, then))
        return all(parameter is None or parameter.grad is None for parameter in known)

    def begin(self, optimizer: Optimizer | None) -> None:
        """The optimizer is about to step."""
        self._begun = True
        scaler = calling_scaler() if optimizer is not None else None
        self.scale = scaler.get_scale() if scaler is not None else 1.0
        # A fused optimizer divides by the scale inside its step, and is called even when it must not change anything.
        fused = getattr(optimizer, "grad_scale", None) is not None
        overflow = getattr(optimizer, "found_inf", None)
        self.skipped = isinstance(overflow, Tensor) and bool(overflow)
        self._before = [self._as_now(*each) for each in self._before]
        gradients = [(place.gradient, parameter.grad) for place, parameter, _ in self._before]
        rows = rows_of_all([(site, gradient) for site, gradient in gradients if gradient is not None])
        self.gradients = [row.over(self.scale if fused else 1.0) for row in rows if row is not None]

    @staticmethod
    def _as_now(place: Place, parameter: Parameter, row: Row) -> tuple[Place, Parameter, Row]:
        """The same, or with the shard that the optimizer updates, where the forward pass ran on the whole parameter."""
        now = place.parameter
        if now is None or now is parameter:
            return place, parameter, row
        return place, now, row_of(place.value, now) or row

    def end(self, optimizer: Optimizer | None) -> None:
        """The optimizer has stepped."""
        if not self._begun:
            self.begin(optimizer)
        owned = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
        moved = [each for each in self._before if owned is None or id(each[1]) in owned]
        moved = [(place, now, before) for place, now, before in moved if place.parameter is now]
        rows = rows_of_all([(place.update, now) for place, now, _ in moved])
        changes = (change_of(before, row) for (_, _, before), row in zip(moved, rows))
        self.changes = [change for change in changes if change is not None]
