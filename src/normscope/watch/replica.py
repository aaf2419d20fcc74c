"""`Replica`: a copy of the model to run the fixed batch on. It shares the memory of the parameters and nothing else."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter, is_lazy

from normscope.anatomy.isolate import computed
from normscope.terms.errors import ModelError
from normscope.watch.hooks import Hook
from normscope.watch.shards import LIMIT, Meeting, class_of, is_sharded, whole

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Replica:
    """A copy of `model` whose parameters are other names for the live ones' memory.

    Running it and differentiating it reaches neither the live model's buffers, caches, counters and hooks nor the
    gradients, gradient hooks and autocast copies of its parameters. `refresh` before each use: it takes over buffers,
    numbers, flags, and parameters that were exchanged.

    Hooks that users put on the model are not copied, those of `torch.nn.utils` (weight normalization, pruning) are:
    they are part of what the model computes. Compiled parts are copied uncompiled, synchronized norms as local ones.
    Of a model that is split over processes the copy is whole between `refresh` and `rest`, in each of them.

    Attributes:
        model: the copy.
        hooks_left_out: how many hooks on the forward pass the copy does without.
        meeting: of the processes that the model is split over; None where it is not.

    Raises:
        ModelError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._live = model
        self.hooks_left_out = sum(_own_hooks(module) for module in model.modules())
        _refuse(model)
        self.meeting = Meeting.of(model)
        try:
            self.model: nn.Module = _copied(model)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} was to be copied for the fixed batch, and cannot be.",
                found=f"{type(error).__name__}: {error}",
                because="the fixed batch runs on a copy, so that nothing in the training changes",
                do="keep what cannot be copied (open files, locks, trainers) out of the module's attributes",
            ) from error
        self._pairs = list(_paired(model, self.model))
        for _, twin in self._pairs:
            _make_local(twin)
        _uncompile(self.model)

    @property
    def fits(self) -> bool:
        """Whether the live model still consists of the same modules."""
        return [id(live) for live, _ in self._pairs] == [id(module) for module in self._live.modules()]

    def refresh(self) -> None:
        """Take over what the live model holds now; gradients are cleared.

        Raises:
            NobodyCame: a process that holds a part of the model stayed away.
        """
        if self.meeting is not None:
            self.meeting.agree()
        with torch.no_grad():
            for live, twin in self._pairs:
                twin.training = live.training
                if isinstance(live, torch.jit.ScriptModule):
                    _take_scripted(live, twin)
                    continue
                _take_numbers(live, twin)
                _take_parameters(live, twin)
                _take_buffers(live, twin)

    def rest(self) -> None:
        """Let go of what was gathered."""
        if self.meeting is not None:
            for twin in self.model.modules():
                for parameter in twin._parameters.values():
                    if parameter is not None:
                        parameter.data = parameter.data.new_empty(0)


def _copied(model: nn.Module) -> nn.Module:
    memo = _memo(model)
    sharded = [module for module in model.modules() if class_of(module) is not type(module)]
    for module in sharded:  # these refuse to be copied: what stands in for them is made first, and filled then
        kind = class_of(module)
        memo[id(module)] = kind.__new__(kind)
    for module in sharded:
        memo[id(module)].__dict__.update(copy.deepcopy(module.__dict__, memo))
    return copy.deepcopy(model, memo)


def _memo(model: nn.Module) -> dict[int, Any]:
    """What `copy.deepcopy` is to use instead of copying: for parameters, hooks, and tensors that autograd made."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = _empty(parameter) if is_sharded(parameter) else _alias(parameter)
        for name in _HOOKS:
            if name in module.__dict__:
                memo[id(module.__dict__[name])] = OrderedDict()
        memo[id(module._forward_pre_hooks)] = OrderedDict(
            (key, hook) for key, hook in module._forward_pre_hooks.items() if _is_of_torch(hook)
        )
        for name, value in module.__dict__.items():
            if name.startswith("__composable_api_"):  # what `fully_shard` knows of it
                memo[id(value)] = OrderedDict()
    return {**computed(model), **memo}


def _alias(parameter: Parameter) -> Parameter:
    return Parameter(whole(parameter), requires_grad=parameter.requires_grad)


def _empty(parameter: Parameter) -> Parameter:
    return Parameter(parameter.new_empty(0), requires_grad=parameter.requires_grad)


def _is_of_torch(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def _is_of_processes(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed")


def _own_hooks(module: nn.Module) -> int:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return sum(not (_is_of_torch(hook) or _is_of_processes(hook) or isinstance(hook, Hook)) for hook in hooks)


def _refuse(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise ModelError(
                "A model was to be run on the fixed batch, and cannot be run yet.",
                found=f"a parameter of `{path or '(model)'}` has no values yet",
                because="a lazy module makes its parameters in its first forward pass, and that must be the training's",
                do="watch its training batches; they need no copy",
            )
    bytes_in_whole = sum(p.numel() * p.element_size() for p in model.parameters() if is_sharded(p))
    if bytes_in_whole > LIMIT:
        raise ModelError(
            "A model that is split over processes was to be run on the fixed batch, and is too large.",
            found=f"{bytes_in_whole / 2**30:.1f} GiB of parameters",
            because=f"each process would gather all of them beside the training, and does so up to {LIMIT >> 30} GiB",
            do="watch its training batches; they need no copy",
        )


def _paired(live: nn.Module, twin: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The modules of both trees side by side, each once."""
    twins = twin.modules()
    for module in live.modules():
        other = next(twins, None)
        kind = class_of(module)
        if type(other) is not kind and kind.__name__ != type(other).__name__:
            raise ModelError(
                f"{type(live).__name__} was copied for the fixed batch, and the copy is another model.",
                found=f"{type(other).__name__} where {type(module).__name__} was",
                because="the model's own __deepcopy__ or __reduce__ builds something else",
                do="let copy.deepcopy(model) give the same modules",
            )
        assert other is not None
        yield module, other


def _take_numbers(live: nn.Module, twin: nn.Module) -> None:
    known = twin.__dict__
    for name, value in live.__dict__.items():
        if type(value) in _PLAIN and name in known and known[name] is not value and name != "_compiled_call_impl":
            known[name] = value


def _take_parameters(live: nn.Module, twin: nn.Module) -> None:
    for name, parameter in live._parameters.items():
        alias = twin._parameters.get(name)
        if parameter is None:
            twin._parameters[name] = None
        elif alias is None or is_sharded(parameter) or not _same_memory(parameter, alias):
            twin._parameters[name] = _alias(parameter)
        else:
            alias.requires_grad_(parameter.requires_grad)
            alias.grad = None


def _same_memory(parameter: Tensor, alias: Tensor) -> bool:
    return (
        parameter.data_ptr() == alias.data_ptr()
        and parameter.shape == alias.shape
        and parameter.dtype == alias.dtype
        and parameter.device == alias.device
    )


def _take_buffers(live: nn.Module, twin: nn.Module) -> None:
    for name, buffer in live._buffers.items():
        own = twin._buffers.get(name)
        if buffer is None:
            twin._buffers[name] = None
        elif own is None or own.shape != buffer.shape or own.dtype != buffer.dtype or own.device != buffer.device:
            twin._buffers[name] = buffer.detach().clone()
        else:
            own.copy_(buffer)


def _take_scripted(live: nn.Module, twin: nn.Module) -> None:
    """A scripted module's tensors cannot be exchanged, but their memory can."""
    theirs = dict(twin.named_parameters(recurse=False))
    for name, parameter in live.named_parameters(recurse=False):
        theirs[name].data = parameter.data
        theirs[name].requires_grad_(parameter.requires_grad)
        theirs[name].grad = None
    for own, buffer in zip(twin.buffers(recurse=False), live.buffers(recurse=False)):
        own.data = buffer.clone()


class _LocalBatchNorm(_BatchNorm):
    """What a synchronized norm computes from this process's batch: a lone process must not wait for the others."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _make_local(module: nn.Module) -> None:
    if isinstance(module, nn.SyncBatchNorm):
        module.__class__ = _LocalBatchNorm  # pyright: ignore[reportAttributeAccessIssue]


def _uncompile(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        module._compiled_call_impl = None
        for name, child in module._modules.items():
            while child is not None and isinstance(inner := getattr(child, "_orig_mod", None), nn.Module):
                module._modules[name] = child = inner
