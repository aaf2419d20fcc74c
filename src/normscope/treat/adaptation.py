"""A model that adapts to the batches it is used on: its norms, its affine parameters, and the way back."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from normscope.anatomy.batch import first_tensor, mapped
from normscope.kernels.reference import root, wide
from normscope.terms.errors import ModelError
from normscope.terms.spec import NormSpec

Mode = Literal["norm", "ema", "entropy"]
LOW = 0.2  # nats: the running entropy below which Niu et al. 2023 (SAR, section 4) take a model for collapsed
KEPT = 0.9  # the share of the past in that running entropy, of the same source


class AdaptedNorm(nn.Module):
    """A batch norm that mixes the statistics of its source with those of the batch it is given.

    The input is moved and scaled so that the untouched source norm, by its own stored statistics, gives what the mixed
    ones would: ``x' = (x − μ) · √(v_source + ε)/√(v + ε) + μ_source``.

    Args:
        norm: the source norm, in evaluation mode.
        spec: its description.
        prior: N of ``μ = N/(N + n) · μ_source + n/(N + n) · μ_batch``, the same for the variance, with n samples in the
            batch (Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift
            adaptation", section 3).
        momentum: None takes each batch by itself; else the weight of the newest batch in an average that starts at the
            source's statistics and goes on from batch to batch.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, norm: Any, spec: NormSpec, prior: float, momentum: float | None) -> None:
        super().__init__()
        self.norm, self.prior, self.momentum = norm, prior, momentum
        self.described = spec
        self.register_buffer("mean", norm.running_mean.detach().clone())
        self.register_buffer("var", norm.running_var.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        """The output of the source norm for the moved input."""
        axis = 1 if self.described.layout == "channels_first" else input.ndim - 1
        shape = [1] * input.ndim
        shape[axis] = -1
        x = wide(input)
        mean, var = self._mixed(x, [one for one in range(input.ndim) if one != axis])
        source = self.norm.running_mean.to(x), root(self.norm.running_var.to(x), self.described)
        scale = source[1] / root(var, self.described)
        moved = (x - mean.view(shape)) * scale.view(shape) + source[0].view(shape)
        return self.norm(moved.to(input.dtype))

    def _mixed(self, x: Tensor, over: list[int]) -> tuple[Tensor, Tensor]:
        """The mean and the variance to normalize by; the kept ones where the batch has none that are finite."""
        mean, var = x.mean(over), x.var(over, correction=0)
        kept = self.mean.to(x), self.var.to(x)
        share = x.shape[0] / (self.prior + x.shape[0]) if self.momentum is None else self.momentum
        usable = mean.isfinite() & var.isfinite()
        mean, var = (torch.where(usable, old.lerp(new, share), old) for old, new in zip(kept, (mean, var)))
        if self.momentum is not None:
            with torch.no_grad():
                self.mean.copy_(mean)
                self.var.copy_(var)
        return mean, var


class _State(NamedTuple):
    """All that adaptation changes."""

    tensors: list[Tensor]
    optimizer: Mapping[str, Any] | None
    level: float | None


class Adapted(nn.Module):
    """A model in evaluation mode that adapts each time it is called; `reset` brings the source model back.

    Attributes:
        model: the network with adapted norms.
        episodic: whether every call starts from the source.
        restored: how often a collapse was met and the source restored.

    Args:
        model: the network with adapted norms.
        learned: the parameters that minimize the entropy of the predictions; none for adapted statistics alone.
        rate: the learning rate of Adam.
        steps: how many steps on each batch.
        episodic: whether every call starts from the source.
        guard: whether a collapse restores the source.
        classes: the axis of the output that numbers the classes.
    """

    def __init__(
        self,
        model: nn.Module,
        learned: Iterable[nn.Parameter] = (),
        *,
        rate: float = 1e-3,
        steps: int = 1,
        episodic: bool = False,
        guard: bool = True,
        classes: int = 1,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self._learned = tuple(parameter.requires_grad_() for parameter in learned)
        self._optimizer = torch.optim.Adam(self._learned, lr=rate) if self._learned else None
        self.steps, self.episodic, self.guard, self.classes = steps, episodic, guard, classes
        self.restored = 0
        self._level: float | None = None
        self._source = self._state()
        self._domain: str | None = None
        self._banks: dict[str | None, _State] = {}
        self.training = False

    def train(self, mode: bool = True) -> Adapted:
        """Nothing: an adapting model stays in evaluation mode."""
        return self

    @property
    def domain(self) -> str | None:
        """The domain whose bank is in use; setting it keeps the state of the last and takes up that of the next.

        A domain that was not seen before starts from the source.
        """
        return self._domain

    @domain.setter
    def domain(self, name: str | None) -> None:
        self._banks[self._domain] = self._state()
        self._domain = name
        self._take(self._banks.get(name, self._source))

    def reset(self) -> None:
        """The source model again, in the domain at hand."""
        self._take(self._source)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network, detached where parameters are learned.

        As in Tent it is the output before the batch's last step; in episodes, which forget that step, the one after it.
        """
        if self.episodic:
            self.reset()
        if self._optimizer is None:
            return self.model(*args, **kwargs)
        with torch.inference_mode(False), torch.enable_grad():
            args, kwargs = mapped((args, kwargs), lambda x: x.clone() if x.is_inference() else x)
            output = None
            for _ in range(self.steps):
                output = self.model(*args, **kwargs)
                entropy = self._entropy(output).mean()
                # before the guard, which tries the source's parameters in the place of these
                gradients = torch.autograd.grad(entropy, self._learned, allow_unused=True)
                if self.guard and self._has_collapsed(output, float(entropy.detach()), args, kwargs):
                    self.restored += 1
                    self.reset()
                    return self._answer(args, kwargs)
                self._step(gradients)
            return self._answer(args, kwargs) if self.episodic else mapped(output, lambda x: x.detach())

    @torch.no_grad()
    def _answer(self, args: Any, kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def _entropy(self, output: Any) -> Tensor:
        """Of each prediction, in nats."""
        logits = first_tensor(output)
        if logits is None or logits.ndim < 2 or not logits.is_floating_point():
            raise ModelError(
                f"{type(self.model).__name__} was to adapt by the entropy of its predictions.",
                found=f"an output {type(output).__name__} without logits of several classes",
                because="entropy minimization needs a floating tensor with an axis of classes",
                do='use mode="norm" or "ema", or let the model return its logits first',
            )
        log = wide(logits).log_softmax(self.classes)
        return -(log.exp() * log).sum(self.classes)

    def _step(self, gradients: tuple[Tensor | None, ...]) -> None:
        assert self._optimizer is not None
        if all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients):
            for parameter, gradient in zip(self._learned, gradients):
                parameter.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad()

    def _has_collapsed(self, output: Any, entropy: float, args: Any, kwargs: Any) -> bool:
        """Whether predictions are not finite; or are sure of themselves and tell less of the batch than the source's.

        What predictions tell of a batch is their mutual information with it, H(mean p) − mean H(p): none when all
        samples are given one class.
        """
        if math.isnan(entropy):
            return not self._is_source()
        self._level = entropy if self._level is None else KEPT * self._level + (1 - KEPT) * entropy
        if self._level >= LOW or self._is_source():
            return False
        state = self._state()
        self._take(self._source)
        before = self._information(self._answer(args, kwargs))
        self._take(state)
        return self._information(output) < before

    def _information(self, output: Any) -> float:
        logits = first_tensor(output)
        assert logits is not None
        shares = wide(logits.detach()).softmax(self.classes).movedim(self.classes, -1).flatten(0, -2).mean(0)
        marginal = -(shares * shares.clamp_min(1e-30).log()).sum()
        return float(marginal - self._entropy(output).detach().mean())

    def _tensors(self) -> list[Tensor]:
        norms = [module for module in self.model.modules() if isinstance(module, AdaptedNorm)]
        return [*self._learned, *(buffer for norm in norms for buffer in (norm.mean, norm.var))]

    def _is_source(self) -> bool:
        return all(torch.equal(one, other) for one, other in zip(self._tensors(), self._source.tensors))

    def _state(self) -> _State:
        optimizer = None if self._optimizer is None else copy.deepcopy(self._optimizer.state_dict())
        return _State([tensor.detach().clone() for tensor in self._tensors()], optimizer, self._level)

    def _take(self, state: _State) -> None:
        with torch.no_grad():
            for tensor, kept in zip(self._tensors(), state.tensors):
                tensor.copy_(kept)
        if self._optimizer is not None and state.optimizer is not None:
            self._optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))
        self._level = state.level
