"""Several processes train together: one file each, the same steps, and numbers that merge to the single process's."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope.watch.session import watch

WORKER = """
    import os, sys, torch
    import torch.distributed as dist
    from torch import nn
    from normscope.watch.session import watch

    torch.set_num_threads(1)
    place = sys.argv[1]

    def work(rank):
        dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
        model[1].eval()  # each process would normalize with its own half
        data = torch.randn(6, 16, 4)[:, rank::2]
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        with watch(parallel, optimizer, f"{place}/record"):
            for x in data:
                optimizer.zero_grad()
                parallel(x).square().mean().backward()
                optimizer.step()
        dist.barrier()
        dist.destroy_process_group()

    if os.fork():
        work(0)
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    try:
        work(1)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no processes")
def test_two_processes_record_what_one_would(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    together = ns.Record(tmp_path / "record")
    assert [event.text for event in together.events if event.kind == "fault"] == []

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, tmp_path / "alone", every=1) as watcher:
        for x in torch.randn(6, 16, 4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    alone = watcher.record
    assert list(together.steps) == list(alone.steps) == list(range(6))
    for key in ("0:input", "2:output", "3:output"):
        ours, theirs = together.summary(key, 5), alone.summary(key, 5)
        assert ours.size == theirs.size
        assert np.allclose([ours.mean, ours.std], [theirs.mean, theirs.std], rtol=1e-4, atol=1e-5)
    for what in ("parameter", "gradient", "update"):
        ours, theirs = together.summary(f"0@weight:{what}", 5), alone.summary(f"0@weight:{what}", 5)
        assert ours.mean == pytest.approx(theirs.mean, rel=1e-4)
