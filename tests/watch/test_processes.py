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
    import os, sys, torch, warnings
    from contextlib import nullcontext
    import torch.distributed as dist
    from torch import nn
    from normscope.watch import shards
    from normscope.watch.session import watch

    PROBES = {"sharded": {"probes": ("activation", "gradient", "dead", "gradient_shift", "landscape")}}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    place, kind, size = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def work(rank):
        dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=size)
        gathered = torch.distributed.tensor.DTensor.full_tensor

        def only_for_the_fixed_batch(*told, **more):
            assert sys._getframe(1).f_code.co_name == "whole", "a parameter was gathered for a statistic"
            return gathered(*told, **more)

        torch.distributed.tensor.DTensor.full_tensor = only_for_the_fixed_batch
        unwatched, watched = train(rank, None), [train(rank, "record")]
        if kind == "sharded":  # one process alone, in vain
            shards.PATIENCE = 0.3
            watched.append(train(rank, "lonely" if rank == 0 else None))
        for parameters in watched:
            assert all(torch.equal(a, b) for a, b in zip(parameters, unwatched)), "watching changed the training"
        dist.barrier()
        dist.destroy_process_group()

    def train(rank, name):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
        model[1].eval()  # each process would normalize with its own part
        data = torch.randn(6, 16, 4)[:, rank::size]
        if kind == "replicated":
            model = nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (size,))
            fully_shard(model[0], mesh=mesh)
            fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"every": lambda step: True, "loss_fn": lambda y, _: y.square().mean()}
        settings |= PROBES.get(kind, {})
        with watch(model, optimizer, f"{place}/{name}", **settings) if name else nullcontext():
            for x in data:
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                with torch.no_grad():
                    model(x)  # leaves the parameters of a sharded root gathered
        return [getattr(p, "to_local", lambda p=p: p)().detach().clone() for p in model.parameters()]

    import torch.distributed.tensor
    ranks = []
    for rank in range(1, size):
        child = os.fork()
        if child == 0:
            try:
                work(rank)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ranks.append(child)
    work(0)
    os._exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks) if ranks else 0)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The record of one process on whole batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"every": lambda step: True, "loss_fn": lambda y, _: y.square().mean()}
    with watch(model, optimizer, tmp_path_factory.mktemp("alone"), **settings) as watcher:
        for x in torch.randn(6, 16, 4):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return watcher.record


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no processes")
@pytest.mark.parametrize(("kind", "size"), [("replicated", 2), ("replicated", 4), ("sharded", 2)])
def test_processes_record_together_what_one_would(kind, size, alone, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path), kind, str(size)],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    together = ns.Record(tmp_path / "record")
    assert sorted(path.name for path in (tmp_path / "record").glob("*.sqlite")) == [
        f"rank{n}.sqlite" for n in range(size)
    ]
    assert [event.text for event in together.events if event.kind == "fault"] == []
    assert list(together.steps) == list(alone.steps) == list(range(6))
    for key in ("0:input", "2:output", "3:output"):
        for source in ("live", "probe", "probe_eval"):
            ours, theirs = together.summary(key, 5, source), alone.summary(key, 5, source)
            assert ours.size == theirs.size, (key, source)
            assert np.allclose([ours.mean, ours.std], [theirs.mean, theirs.std], rtol=1e-4, atol=1e-5)
    assert list(together.series(None, "probe_loss").steps) == list(range(6))
    assert together.series(None, "probe_loss").values == pytest.approx(
        alone.series(None, "probe_loss").values, rel=1e-4
    )
    for key in ("0@weight:gradient", "3@bias:gradient"):  # once, of the first process's fixed batch
        assert together.summary(key, 5, "probe").size == alone.summary(key, 5, "probe").size
    if kind == "sharded":
        assert list(together.series("3", "gradient_shift").steps) == list(range(5))
        assert (together.series("3", "gradient_shift").values > 0).all()
    for place in ("0@weight", "1@bias", "3@weight"):
        for what in ("parameter", "gradient", "update"):
            ours, theirs = together.summary(f"{place}:{what}", 5), alone.summary(f"{place}:{what}", 5)
            assert ours.size == theirs.size, (place, what)
            assert [ours.mean, ours.std] == pytest.approx([theirs.mean, theirs.std], rel=1e-3, abs=1e-6), (place, what)
        for quantity in ("weight_norm", "update_ratio"):
            ours, theirs = together.series(place, quantity), alone.series(place, quantity)
            assert list(ours.steps) == list(theirs.steps)
            assert ours.values == pytest.approx(theirs.values, rel=1e-3)
    norms = [record.series("0@weight:gradient", "gradient_norm").values for record in (together, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    if kind == "sharded":
        lonely = ns.Record(tmp_path / "lonely")
        assert [event.text for event in lonely.events if event.kind == "fault"] == []
        (note,) = [event.text for event in lonely.events if "fixed batch" in event.text]
        assert "one stayed away" in note and "call watch(…) in every process" in note
        assert list(lonely.series("0@weight:update", "mean").steps) == list(range(6))
