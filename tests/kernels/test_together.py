"""The batch of several processes by the stages of a kernel, against one batch in float64; threads stand for them."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

import normscope as ns
from normscope.kernels import dispatch, together
from normscope.kernels.offer import Operands, Problem
from normscope.kernels.reference import Statistics, normalize

pytest.importorskip("triton")
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
SPEC = ns.NormSpec("NS", "synchronized", "running")


class Meeting:
    """Threads that gather; one at a time works, since Triton's interpreter knows no threads."""

    def __init__(self, ranks: int) -> None:
        self.turn, self.barrier, self.held = threading.Lock(), threading.Barrier(ranks, timeout=20), {}

    def gather(self, rank: int, own: torch.Tensor) -> torch.Tensor:
        self.held[rank] = own
        self.turn.release()
        self.barrier.wait()
        found = torch.stack([self.held[one] for one in sorted(self.held)])
        self.barrier.wait()
        self.turn.acquire()
        return found

    def all(self, work) -> list:
        """What `work(rank, gather)` returns on each rank."""
        found: dict = {}

        def one(rank: int) -> None:
            with self.turn:
                found[rank] = work(rank, partial(self.gather, rank))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.barrier.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[rank] for rank in sorted(found)]


def leaves(x, residual, dtype):
    torch.manual_seed(1)
    weight, bias = torch.randn(2, x.shape[1])
    keep = {"memory_format": torch.preserve_format}
    these = [x, weight, bias, residual]
    wide = [None if one is None else one.to(dtype or one.dtype).detach().clone(**keep) for one in these]
    return [None if one is None else one.requires_grad_() for one in wide]


@pytest.mark.parametrize(
    ("activation", "residual", "memory", "dtype"),
    [
        (None, False, torch.contiguous_format, F32),
        ("relu", True, torch.channels_last, F32),
        ("silu", True, torch.contiguous_format, BF16),
    ],
)
def test_ranks_of_different_sizes_equal_one_batch(activation, residual, memory, dtype):
    torch.manual_seed(0)
    spec, sizes = SPEC.but(activation=activation, weight_offset=0.5), (3, 0, 2)
    x = (torch.randn(5, 6, 4, 7) + 100 * (dtype is F32)).to(dtype).contiguous(memory_format=memory)
    added, up = torch.randn_like(x) if residual else None, torch.randn_like(x)

    def work(rank, gather):
        own, other = x.split(sizes)[rank], None if added is None else added.split(sizes)[rank]
        these = leaves(own, other, None)
        operands = Operands(*these)
        problem = Problem.of(spec, operands, told=True)
        with ns.kernels.using("triton"):
            offer = dispatch.staged(problem)
        y, seen = together.measured(offer, problem, operands, gather, normalize)
        y.backward(up.split(sizes)[rank])
        return y.detach(), seen, [None if one is None else one.grad for one in these]

    found = Meeting(3).all(work)
    these = leaves(x, added, F64)
    y = normalize(these[0], spec, weight=these[1], bias=these[2], residual=these[3])
    y.backward(up.double())
    rounding = 3e-6 if dtype is F32 else 2.0**-8

    def near(value, truth):
        assert (value.double() - truth).abs().max() <= rounding * truth.abs().max()

    near(torch.cat([part[0] for part in found]), y.detach())
    for place in (0, 3) if residual else (0,):
        near(torch.cat([part[2][place] for part in found]), these[place].grad)
    for place in (1, 2):
        near(sum(part[2][place] for part in found), these[place].grad)
    for _, seen, _ in found:
        assert isinstance(seen, Statistics) and seen.size == 5 * 28
        assert torch.equal(seen.mean, found[0][1].mean) and torch.equal(seen.var, found[0][1].var)
        near(seen.var.flatten(), x.double().transpose(0, 1).flatten(1).var(1, correction=0))


def test_all_ranks_choose_alike_whatever_their_batch():
    operands = Operands(torch.randn(2, 6, 4))
    problem = Problem.of(SPEC, operands, told=True)
    assert dispatch.staged(problem) is None  # nobody has measured it
    with ns.kernels.using("triton"):
        for x in (torch.randn(2, 6, 4), torch.randn(0, 6, 4), torch.randn(2, 4, 6).transpose(1, 2)):
            assert dispatch.staged(Problem.of(SPEC, Operands(x), told=True)).part == "channels"
        assert dispatch.staged(problem._replace(mask=True)) is None
        assert dispatch.staged(problem._replace(dtype=F64)) is None
    with ns.kernels.using("aten"):
        assert dispatch.staged(problem) is None


def test_a_batch_with_gaps_between_its_numbers_is_taken_too():
    spec = SPEC.but(activation="relu")
    x = torch.randn(2, 4, 6).transpose(1, 2)
    problem = Problem.of(spec, Operands(x), told=True)
    with ns.kernels.using("triton"):
        offer = dispatch.staged(problem)
    y, _ = together.measured(offer, problem, Operands(x), lambda own: own[None], normalize)
    torch.testing.assert_close(y, normalize(x, spec))
