"""Synchronized statistics over gloo processes equal one process that holds the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import normscope as ns

F64 = torch.float64
SIZES = {2: (5, 2), 4: (3, 0, 1, 4)}  # uneven, and one rank without data


def whole(ranks):
    generator = torch.Generator().manual_seed(0)
    size = sum(SIZES[ranks])
    x = torch.randn(size, 3, 4, generator=generator, dtype=F64) * 2 + 1
    mask = torch.rand(size, 4, generator=generator) > 0.3
    upstream = torch.randn(size, 3, 4, generator=generator, dtype=F64)
    return x, mask, upstream


def step(layer, x, mask, upstream):
    x = x.clone().requires_grad_()
    y = layer(x, mask)
    (y * upstream).sum().backward()
    return y.detach(), x.grad


def work(rank, ranks, masked, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    x, mask, upstream = (part.split(SIZES[ranks])[rank] for part in whole(ranks))
    layer = ns.nn.SyncBatchNorm(3, dtype=F64)
    y, grad = step(layer, x, mask if masked else None, upstream)
    layer.eval()
    alone = layer(x[:1])  # no rank waits for another at inference
    for name, parameter in layer.named_parameters():
        dist.all_reduce(parameter.grad)
        assert parameter.grad is not None, name
    grads = [parameter.grad for parameter in layer.parameters()]
    torch.save((y, grad, layer.state_dict(), grads, alone), f"{folder}/{rank}.pt")
    if ranks == 2:
        for broadcast in (True, False):
            under_ddp(layer, x, mask if masked else None, broadcast)
    dist.barrier()  # a rank that is gone would break the connections of those that still work
    dist.destroy_process_group()


def under_ddp(layer, x, mask, broadcast):
    """Two steps under DDP: buffers stay equal on all ranks, and nothing hangs."""
    model = torch.nn.parallel.DistributedDataParallel(layer.train(), broadcast_buffers=broadcast)
    for _ in range(2):
        model(x, mask).square().sum().backward()
    seen = [torch.zeros(3, dtype=F64) for _ in range(2)]
    dist.all_gather(seen, layer.running_var)
    assert torch.equal(*seen)


@pytest.mark.parametrize(("ranks", "masked"), [(2, True), (4, False)])
def test_ranks_equal_one_process(ranks, masked, tmp_path):
    words = [str(ranks), str(int(masked)), str(tmp_path)]
    running = [subprocess.Popen([sys.executable, __file__, str(rank), *words]) for rank in range(ranks)]
    assert [process.wait(timeout=120) for process in running] == [0] * ranks
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    x, mask, upstream = whole(ranks)
    layer = ns.nn.SyncBatchNorm(3, dtype=F64)
    y, grad = step(layer, x, mask if masked else None, upstream)
    torch.testing.assert_close(torch.cat([part[0] for part in found]), y)
    torch.testing.assert_close(torch.cat([part[1] for part in found]), grad)
    for part in found:
        torch.testing.assert_close(part[2], layer.state_dict())
        torch.testing.assert_close(part[3], [parameter.grad for parameter in layer.parameters()])


def test_one_process_is_batch_norm():
    x = torch.randn(4, 3, 5, dtype=F64)
    torch.testing.assert_close(ns.nn.SyncBatchNorm(3, dtype=F64)(x), ns.nn.BatchNorm1d(3, dtype=F64)(x))


if __name__ == "__main__":
    work(*map(int, sys.argv[1:3]), bool(int(sys.argv[3])), sys.argv[4])
    os._exit(0)  # all is checked and saved; torch's own threads may abort an interpreter that ends around them
