"""Synchronized statistics over gloo processes equal one process that holds the whole batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import warnings
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist

import normscope as ns
from normscope.norms.sources import meeting

F64 = torch.float64
SIZES = {2: (5, 2), 4: (3, 0, 1, 4)}  # uneven, and one rank without data
PATIENCE = 1.5  # seconds that the ranks wait for one that does not come


def whole(ranks, masked):
    generator = torch.Generator().manual_seed(0)
    size = sum(SIZES[ranks])
    x = torch.randn(size, 3, 4, generator=generator, dtype=F64) * 2 + 1
    mask = torch.rand(size, 4, generator=generator) > 0.3
    upstream = torch.randn(size, 3, 4, generator=generator, dtype=F64)
    return x, mask if masked else None, upstream


def own(ranks, masked, rank):
    """The share of one rank."""
    return [None if part is None else part.split(SIZES[ranks])[rank] for part in whole(ranks, masked)]


def step(layer, x, mask, upstream):
    """One step: the output and the gradient of the input; the parameters have theirs."""
    x = x.clone().requires_grad_()
    y = layer(x, mask)
    layer.zero_grad()
    (y * upstream).sum().backward()
    return y.detach(), x.grad


def gradients(layer):
    return [parameter.grad for parameter in layer.parameters()]


# on each rank --------------------------------------------------------------------------------------------------------


def work(rank, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    found = {}
    for masked in (False, True):
        found["plain", masked] = plain(*own(ranks, masked, rank))
        for broadcast in (True, False):
            found["ddp", masked, broadcast] = under_ddp(*own(ranks, masked, rank), broadcast)
    if ranks == 2:
        found["kernel"] = by_kernel(*own(ranks, False, rank))
    if ranks == 4:
        found["pairs"] = in_pairs(rank, *own(ranks, False, rank))
        found["alone"] = left_alone(rank, own(ranks, False, rank)[0])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that is gone would break the connections of those that still work
    dist.destroy_process_group()


def plain(x, mask, upstream):
    layer = ns.nn.SyncBatchNorm(3, dtype=F64)
    y, grad = step(layer, x, mask, upstream)
    for each in gradients(layer):
        dist.all_reduce(each)
    layer.eval()(x[:1])  # no rank waits for another at inference
    return y, grad, gradients(layer), layer.state_dict()


def under_ddp(x, mask, upstream, broadcast):
    """Two steps; DDP averages over the ranks what one process would sum."""
    layer = ns.nn.SyncBatchNorm(3, dtype=F64)
    model = torch.nn.parallel.DistributedDataParallel(layer, broadcast_buffers=broadcast)
    for _ in range(2):
        y, grad = step(model, x, mask, upstream)
    return y, grad, [each * dist.get_world_size() for each in gradients(layer)], layer.state_dict()


def by_kernel(x, mask, upstream):
    """One step by the kernel for a GPU, in its interpreter, and the gradient of a gradient; None without Triton."""
    if find_spec("triton") is None:
        return None
    layer = ns.nn.SyncBatchNorm(3)
    with ns.kernels.using("triton"):
        y, grad = step(layer, x.float(), None, upstream.float())
        for each in gradients(layer):
            dist.all_reduce(each)
        state, parameters = {name: value.clone() for name, value in layer.state_dict().items()}, gradients(layer)
        return y, grad, parameters, state, curvature(layer, x.float(), upstream.float())


def curvature(layer, x, upstream):
    """The gradient of the square of the gradient."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(((layer(x) * upstream) ** 2).sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def in_pairs(rank, x, mask, upstream):
    """Ranks 0 and 1 know nothing of 2 and 3."""
    groups = [dist.new_group(pair) for pair in ((0, 1), (2, 3))]
    layer = ns.nn.SyncBatchNorm(3, process_group=groups[rank // 2], dtype=F64)
    y, grad = step(layer, x, mask, upstream)
    for each in gradients(layer):
        dist.all_reduce(each, group=groups[rank // 2])
    return y, grad, gradients(layer), layer.state_dict()


def left_alone(rank, x):
    """Ranks 1 and 3 make no call: what the others are told, and after how long."""
    layer = ns.nn.SyncBatchNorm(3, process_group=dist.new_group(), patience=PATIENCE, dtype=F64)
    dist.barrier()
    start, meeting.SIGNING, meeting.TOLD = time.monotonic(), 0.2, PATIENCE / 2
    if rank in (1, 3):
        return None
    time.sleep(0.1 * rank)
    with warnings.catch_warnings(record=True) as warned, pytest.raises(ns.NormscopeError) as caught:
        layer(x)
    return str(caught.value), str(warned[0].message), time.monotonic() - start, layer.state_dict()


# of all ranks --------------------------------------------------------------------------------------------------------


def expected(x, mask, upstream, steps=1):
    layer = ns.nn.SyncBatchNorm(3, dtype=F64)
    for _ in range(steps):
        y, grad = step(layer, x, mask, upstream)
    return y, grad, gradients(layer), layer.state_dict()


def compare(found, wanted):
    torch.testing.assert_close(torch.cat([part[0] for part in found]), wanted[0])
    torch.testing.assert_close(torch.cat([part[1] for part in found]), wanted[1])
    for part in found:
        torch.testing.assert_close(part[2], wanted[2])
        torch.testing.assert_close(part[3], wanted[3])


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """How many ranks, and what each of them found."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    words = [sys.executable, __file__, str(request.param), str(folder)]
    running = [subprocess.Popen([*words, str(rank)]) for rank in range(request.param)]
    assert [process.wait(timeout=120) for process in running] == [0] * request.param
    return request.param, [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("masked", [False, True])
def test_ranks_equal_one_process(ranks, masked):
    count, found = ranks
    compare([part["plain", masked] for part in found], expected(*whole(count, masked)))
    for broadcast in (True, False):
        compare([part["ddp", masked, broadcast] for part in found], expected(*whole(count, masked), steps=2))


def test_groups_within_the_group_and_a_rank_that_stays_away(ranks):
    count, found = ranks
    if count != 4:
        return
    x, mask, upstream = whole(4, False)
    cut = sum(SIZES[4][:2])
    for pair, part in ((found[:2], slice(None, cut)), (found[2:], slice(cut, None))):
        compare([one["pairs"] for one in pair], expected(x[part], mask, upstream[part]))
    for rank in (0, 2):
        told, warned, seconds, state = found[rank]["alone"]
        assert f"absent=ranks 1, 3, rank={rank} of 4, told=no sum in {PATIENCE:g} s" in told
        assert "call the model on an empty batch, x[:0]" in told and "patience=seconds" in told
        assert re.search(rf"has waited {PATIENCE / 2:g} s for the batch of ranks 1, (2, )?3\.", warned)  # 2 came later
        assert seconds < 20 * PATIENCE  # not the half hour of the default group
        assert state["num_batches_tracked"] == 0


def test_one_process_is_batch_norm():
    x = torch.randn(4, 3, 5, dtype=F64)
    torch.testing.assert_close(ns.nn.SyncBatchNorm(3, dtype=F64)(x), ns.nn.BatchNorm1d(3, dtype=F64)(x))


def test_ranks_equal_one_process_by_the_kernel(ranks):
    count, found = ranks
    if count != 2 or found[0]["kernel"] is None:
        pytest.skip("two ranks with Triton tell it")
    x, _, upstream = whole(count, False)
    y, grad, affine, state = expected(x, None, upstream)
    told = [part["kernel"] for part in found]
    again = curvature(ns.nn.SyncBatchNorm(3, dtype=F64), x, upstream)
    for place, wanted in ((0, y), (1, grad), (4, again)):
        torch.testing.assert_close(torch.cat([part[place] for part in told]).double(), wanted, rtol=1e-4, atol=1e-4)
    for part in told:
        torch.testing.assert_close([each.double() for each in part[2]], affine, rtol=1e-4, atol=1e-4)
        for name, value in part[3].items():
            torch.testing.assert_close(value.double(), state[name].double(), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    work(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
    os._exit(0)  # all is checked and saved; torch's own threads may abort an interpreter that ends around them
