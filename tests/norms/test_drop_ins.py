"""The drop-ins against torch.nn: values, gradients, buffers, checkpoints, and the inputs of torch's own test suite."""

from __future__ import annotations

import copy
import itertools
import pickle
import re

import pytest
import torch
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import normscope as ns

F64 = torch.float64
NAMES = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]
NAMES += ["GroupNorm", "LayerNorm", "RMSNorm"]

CASES = [
    ("BatchNorm1d", (6,), {}, (7, 6)),
    ("BatchNorm1d", (6,), {"momentum": None}, (64, 6)),
    ("BatchNorm1d", (6,), {"affine": False}, (2, 6, 5)),
    ("BatchNorm2d", (6,), {}, (1, 6, 3, 5)),
    ("BatchNorm2d", (6,), {"bias": False, "eps": 1e-3, "momentum": 0.7}, (7, 6, 1, 3)),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, (2, 6, 3, 3)),
    ("BatchNorm3d", (6,), {}, (2, 6, 3, 1, 2)),
    ("InstanceNorm1d", (6,), {}, (2, 6, 5)),
    ("InstanceNorm2d", (6,), {"affine": True, "track_running_stats": True}, (7, 6, 3, 5)),
    ("InstanceNorm2d", (6,), {}, (6, 3, 5)),
    ("InstanceNorm3d", (6,), {"affine": True}, (1, 6, 3, 1, 2)),
    ("GroupNorm", (3, 6), {}, (7, 6)),
    ("GroupNorm", (2, 6), {"affine": False}, (2, 6, 3, 5)),
    ("GroupNorm", (1, 6), {"bias": False}, (64, 6, 3)),
    ("LayerNorm", (6,), {}, (6,)),
    ("LayerNorm", ((3, 6),), {"bias": False}, (7, 2, 3, 6)),
    ("LayerNorm", (6,), {"elementwise_affine": False}, (64, 6)),
    ("RMSNorm", (6,), {}, (7, 6)),
    ("RMSNorm", ((3, 6),), {"eps": 1e-3}, (2, 3, 6)),
]


def pair(name, args, kwargs, dtype=F64):
    ours, theirs = (getattr(home, name)(*args, **kwargs, dtype=dtype) for home in (ns.nn, torch.nn))
    with torch.no_grad():
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.copy_(torch.randn(one.shape))
            other.copy_(one)
    return ours, theirs


def compare(ours, theirs, x, **tolerance):
    """Output, gradients and buffers of one training step and one use."""
    upstream = torch.randn(x.shape, dtype=x.dtype)
    seen = []
    for layer in (ours, theirs):
        layer.train()
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        y.backward(upstream)
        layer.eval()
        seen.append([y, leaf.grad, *(p.grad for p in layer.parameters()), *layer.state_dict().values(), layer(x)])
        layer.zero_grad()
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


FLAGS = {"affine": False, "bias": False, "track_running_stats": False, "momentum": None, "eps": 1e-2}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
SIZES = {"1d": [(), (5,)], "2d": [(3, 5), (1, 2)], "3d": [(2, 1, 3)]}


def layouts(x):
    """The values of `x` as they may lie in memory."""
    yield x
    yield x.repeat_interleave(2, 0)[::2]
    if x.ndim in (4, 5):
        yield x.contiguous(memory_format=LAST[x.ndim])


def meets(kind, shape, flag):
    """Whether torch takes that: of one cell a statistic it makes nothing, and it knows not every flag everywhere."""
    cells = torch.Size(shape[2:]).numel() * (1 if "Instance" in kind else shape[0])
    unknown = flag in ("track_running_stats", "momentum") and "Group" in kind
    return cells > 1 and not unknown and (len(shape) > 2 or "Instance" not in kind)


@pytest.mark.parametrize("kind", NAMES[:7])
def test_equals_torch_at_every_batch_size_flag_and_layout(kind):
    shapes = [(n, 6, *tail) for n in (1, 2, 7, 64) for tail in SIZES.get(kind[-2:], [(), (5,), (3, 5)])]
    for shape, (flag, value) in itertools.product(shapes, {None: None, **FLAGS}.items()):
        if not meets(kind, shape, flag):
            continue
        args, told = (3, 6) if kind == "GroupNorm" else (6,), {} if flag is None else {flag: value}
        if "Instance" in kind and flag in ("bias", "momentum"):
            told |= {"affine": True, "track_running_stats": True}
        for x in layouts(torch.randn(shape, dtype=F64) * 3 + 1):
            ours, theirs = pair(kind, args, told)
            compare(ours, theirs, x)
            y, formats = ours.train()(x), {torch.contiguous_format, LAST.get(x.ndim, torch.contiguous_format)}
            assert all(y.is_contiguous(memory_format=each) for each in formats if x.is_contiguous(memory_format=each))


def test_the_gradient_of_one_image_in_channels_last_at_inference():
    """torch 2.13 mixes up the strides of instance norm's gradient there; this is the formula's."""
    layer = ns.nn.InstanceNorm2d(6, affine=True, track_running_stats=True, dtype=F64)
    layer(torch.randn(4, 6, 3, 5, dtype=F64))
    x, upstream = (torch.randn(1, 6, 3, 5, dtype=F64).contiguous(memory_format=torch.channels_last) for _ in range(2))
    (grad,) = torch.autograd.grad(layer.eval()(x.requires_grad_()), x, upstream)
    torch.testing.assert_close(grad, upstream / (layer.running_var + 1e-5).sqrt()[:, None, None])


def without_bias(layer):
    """Older torch does not print the bias."""
    return re.sub(r", bias=\w+", "", str(layer))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch(case):
    name, args, kwargs, shape = case
    ours, theirs = pair(name, args, kwargs)
    for _ in range(3):
        compare(ours, theirs, torch.randn(shape, dtype=F64) * 3 + 1)
    ours, theirs = pair(name, args, kwargs, torch.float32)
    compare(ours, theirs, torch.randn(shape) * 3 + 1, rtol=1e-5, atol=1e-5)
    assert without_bias(ours) == without_bias(theirs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_checkpoints_go_both_ways(case):
    name, args, kwargs, shape = case
    ours, theirs = pair(name, args, kwargs)
    ours(torch.randn(shape, dtype=F64))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    fresh = getattr(ns.nn, name)(*args, **kwargs, dtype=F64)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key])
    assert str(pickle.loads(pickle.dumps(ours))) == str(copy.deepcopy(ours)) == str(ours)


def test_torchs_lists_of_inputs_are_used_for_every_drop_in():
    """Of torch's module tests; those of recurrent layers are in test_recurrent, local response in test_sample."""
    elsewhere = {"LSTM", "GRU", "RNN", "LocalResponseNorm"}
    assert {info.module_cls.__name__ for info in module_db} & set(ns.nn.__all__) == {*NAMES, *elsewhere}


@pytest.mark.parametrize("name", NAMES)
def test_torch_module_inputs(name):
    info = next(info for info in module_db if info.module_cls is getattr(torch.nn, name))
    for training in (True, False):
        torch.manual_seed(0)
        inputs = info.module_inputs_func(info, device="cpu", dtype=F64, requires_grad=True, training=training)
        for case in inputs:
            built, given = case.constructor_input, case.forward_input
            ours, theirs = (
                getattr(home, name)(*built.args, **built.kwargs).double().train(training) for home in (ns.nn, torch.nn)
            )
            torch.testing.assert_close(ours(*given.args, **given.kwargs), theirs(*given.args, **given.kwargs))
            if case.desc != "zero_batch":  # torch counts an empty batch, and learns from it
                torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), msg=f"{name} {case.desc}")


@pytest.mark.parametrize("name", [name for name in NAMES if "Batch" in name or "Group" in name])
def test_torch_error_inputs(name):
    info = next(info for info in module_db if info.module_cls is getattr(torch.nn, name))
    made = info.module_error_inputs_func(info, device="cpu", dtype=F64, requires_grad=False, training=True)
    assert made
    for case in made:
        built, given = case.module_error_input.constructor_input, case.module_error_input.forward_input
        if case.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type):
                getattr(ns.nn, name)(*built.args, **built.kwargs)
        elif built.kwargs.get("eps") == 0.0:  # ATen refuses it; the formula needs no eps where the data spread
            (x,) = given.args
            y = getattr(ns.nn, name)(*built.args, **built.kwargs).double()(x)
            dims = [dim for dim in range(x.ndim) if dim != 1]
            torch.testing.assert_close(y.var(dims, unbiased=False), torch.ones(10, dtype=F64))
        else:
            with pytest.raises(case.error_type):
                getattr(ns.nn, name)(*built.args, **built.kwargs).double()(*given.args, **given.kwargs)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm2d"])
def test_layout_and_strides(name):
    args = (2, 6) if name == "GroupNorm" else (6,)
    layer = getattr(ns.nn, name)(*args)
    x = torch.randn(4, 6, 5, 3)
    wanted = copy.deepcopy(layer)(x)
    last = copy.deepcopy(layer)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, wanted)
    assert last.is_contiguous(memory_format=torch.channels_last) and wanted.is_contiguous()
    torch.testing.assert_close(copy.deepcopy(layer)(x.repeat_interleave(2, -1)[..., ::2]), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [case for case in CASES if not case[2]], ids=str)
def test_half_types(case, dtype):
    name, args, kwargs, shape = case
    ours, theirs = pair(name, args, kwargs, dtype)
    x = torch.randn(shape).to(dtype)
    one, other = ours(x), theirs(x)
    assert one.dtype is dtype
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d"])
def test_mixed_precision_and_autocast(name):
    args = (3, 6) if name == "GroupNorm" else (6,)
    ours, theirs = pair(name, args, {}, torch.float32)
    x = torch.randn(4, 6, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        one, other = ours(x.bfloat16()), theirs(x.bfloat16())
    assert one.dtype is other.dtype
    torch.testing.assert_close(one, other)


def test_layer_norm_2d_is_layer_norm_over_channels():
    layer = ns.nn.LayerNorm2d(6).double()
    x = torch.randn(2, 6, 3, 4, dtype=F64)
    wanted = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(x), wanted)


def test_frozen_stays_frozen():
    trained = ns.nn.BatchNorm2d(3)
    trained(torch.randn(8, 3, 4, 4))
    frozen = ns.nn.FrozenBatchNorm(3)
    frozen.load_state_dict(trained.state_dict())
    assert not list(frozen.parameters())
    x = torch.randn(2, 3, 4, 4)
    before = copy.deepcopy(frozen.state_dict())
    torch.testing.assert_close(frozen.train()(x), trained.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def test_old_checkpoints_without_a_count_load():
    state = {key: value for key, value in torch.nn.BatchNorm1d(3).state_dict().items() if "num" not in key}
    ns.nn.BatchNorm1d(3).load_state_dict(state)


def test_errors_name_what_was_found():
    with pytest.raises(ValueError, match=r"input=\(2, 5, 3, 3\)"):
        ns.nn.BatchNorm2d(6)(torch.randn(2, 5, 3, 3))
    with pytest.raises(ValueError, match="with 4 axes"):
        ns.nn.BatchNorm2d(6)(torch.randn(2, 6))
    with pytest.raises(ValueError, match="one cell a statistic"):
        ns.nn.BatchNorm1d(6)(torch.randn(1, 6))
    with pytest.raises(ValueError, match="one cell a statistic"):
        ns.nn.InstanceNorm1d(6)(torch.randn(4, 6, 1))
    with pytest.raises(ValueError, match="choose a divisor of 10: 1, 2, 5, 10"):
        ns.nn.GroupNorm(3, 10)
    with pytest.raises(ValueError, match="made for"):
        ns.nn.LayerNorm((3, 6))(torch.randn(2, 6, 3))
    assert ns.nn.BatchNorm1d(6).eval()(torch.randn(1, 6)).shape == (1, 6)


def test_a_group_of_one_cell_is_told():
    with pytest.warns(UserWarning, match="one cell a statistic"):
        ns.nn.GroupNorm(6, 6)(torch.randn(4, 6))
