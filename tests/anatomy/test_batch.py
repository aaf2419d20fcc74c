"""`Probe`: how a batch becomes a call."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from normscope.anatomy.batch import Probe, first_tensor, mapped, tensors
from normscope.terms.errors import DataError

X, Y, Z = torch.ones(4, 2), torch.zeros(4), torch.full((4, 3), 2.0)
Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Box:
    inside: object
    note: str = "kept"


BOX = Box(X)


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "target"),
    [
        (X, (X,), {}, None),
        ((X, Y), (X,), {}, Y),
        ([X, Y], (X,), {}, Y),
        ((X,), (X,), {}, None),
        ((X, Y, Z), (X,), {}, (Y, Z)),
        (((X, Z), Y), (X, Z), {}, Y),
        (({"a": X}, Y), (), {"a": X}, Y),
        ({"a": X, "b": Z}, (), {"a": X, "b": Z}, None),
        (UserDict(a=X), (), {"a": X}, None),
        (Pair(X, Y), (Pair(X, Y),), {}, None),
        (BOX, (BOX,), {}, None),
    ],
    ids=[
        "tensor",
        "pair",
        "list",
        "single",
        "longer",
        "several inputs",
        "named inputs",
        "dict",
        "mapping",
        "named tuple",
        "object",
    ],
)
def test_the_convention(batch, args, kwargs, target):
    probe = Probe.of(batch)
    assert probe.args == args and dict(probe.kwargs) == kwargs and (probe.target is target or probe.target == target)
    assert Probe.of(probe) is probe


def test_a_packed_sequence_is_one_input():
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    probe = Probe.of(packed)
    assert probe.args == (packed,) and probe.batch_size == 2
    copied = probe.detached().args[0]
    assert torch.equal(copied.data, packed.data) and copied.data.data_ptr() != packed.data.data_ptr()
    assert Probe.of((packed, Y)).target is Y


@pytest.mark.parametrize("batch", [None, (), [], {}, "text", 3, np.ones(3), (None, Y)])
def test_what_no_model_takes_is_refused_in_four_lines(batch):
    with pytest.raises(DataError) as error:
        Probe.of(batch)
    assert len(str(error.value).splitlines()) == 4
    assert "give a tensor, an (inputs, target) pair" in str(error.value)


def test_a_batch_that_does_not_fit_the_signature_is_told_before_the_run():
    with pytest.raises(DataError) as error:
        Probe.of({"y": X}).run(nn.Linear(2, 3))
    assert str(error.value) == (
        "A batch was given to Linear, which does not take it.\n"
        "  found    model(y=float32[4, 2]); missing a required argument: 'input'\n"
        f"  because  forward{'(input: torch.Tensor) -> torch.Tensor'} has other parameters\n"
        "  do       give a tensor, an (inputs, target) pair, a dict of keyword arguments, or a "
        "Probe(args=(…), kwargs={…}, target=…) that spells the call"
    )


def test_run_calls_the_model_and_lets_its_own_error_through():
    assert torch.equal(Probe.of((X, Y)).run(nn.Identity()), X)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Probe.of(Z).run(nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("batch", "size"),
    [(X, 4), ((torch.tensor(1.0), Y), None), ({"scale": 2.0, "x": Z}, 4), ((([X], 1), Y), 4), (Box(X), 4)],
)
def test_batch_size_is_the_first_axis_of_the_first_tensor(batch, size):
    assert Probe.of(batch).batch_size == size


def test_detached_is_out_of_reach_of_the_original():
    x = torch.ones(2, 2, requires_grad=True)
    probe = Probe((x, [Box(x)], Pair(x, 3)), {"mask": None, "more": {"x": x}}, target=(x,))
    copied = probe.detached()
    found = tensors((copied.args, copied.kwargs, copied.target))
    assert len(found) == 5
    with torch.no_grad():
        x.zero_()
    assert all(bool(tensor.eq(1).all()) and not tensor.requires_grad for tensor in found)
    assert isinstance(copied.args[2], Pair) and copied.args[1][0].note == "kept" and copied.kwargs["mask"] is None


def test_to_moves_everything_target_included():
    moved = Probe.of(({"x": X}, Y)).to("meta")
    assert moved.kwargs["x"].is_meta and moved.target.is_meta


def test_tensors_and_the_main_one_among_them():
    loss, logits, ids = torch.tensor(1.0), torch.ones(2, 3), torch.ones(2, dtype=torch.long)
    assert tensors({"a": [ids, None, Box(logits)], "b": 3}) == (ids, logits)
    assert first_tensor({"loss": loss, "ids": ids, "logits": logits}) is logits
    assert first_tensor((ids, None)) is ids
    assert first_tensor((loss,)) is loss
    assert first_tensor({"nothing": None}) is None and first_tensor(None) is None


def test_mapped_keeps_what_holds_no_tensor():
    untouched = {"a": [1, 2]}
    assert mapped(untouched, torch.neg) is untouched
    assert mapped([X, "word"], torch.neg)[1] == "word"
