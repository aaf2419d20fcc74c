"""Population statistics against closed forms; what torch's own update gets wrong; frozen layers, modes, bad data."""

import os
import subprocess
import sys
import textwrap
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn

import normscope as ns
from normscope.treat.treatments.recalibrate import recalibrate


def mlp(dtype=torch.float64):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.9), nn.BatchNorm1d(8), nn.Linear(8, 2)).to(dtype)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 99))
def test_one_norm_gets_the_closed_form(sizes, seed):
    torch.manual_seed(seed)
    model = mlp()
    data = [torch.randn(size, 4, dtype=torch.float64) * (1 + k) + 3 * k for k, size in enumerate(sizes)]
    recalibrate(model, data)
    hidden = model[1](model[0](torch.cat(data))).detach().numpy()
    np.testing.assert_allclose(model[3].running_mean, hidden.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(model[3].running_var, hidden.var(0), rtol=1e-11, atol=1e-14)


def sorted_by_class():
    """Ten classes, batch by batch, whose means spread so that the true variance is 100."""
    centers = torch.linspace(-1, 1, 10) * 10 / torch.linspace(-1, 1, 10).std(correction=0)
    return [
        center + torch.randn(200, 1, generator=torch.Generator().manual_seed(k)) for k, center in enumerate(centers)
    ]


def test_the_variance_between_batches_counts():
    data = sorted_by_class()
    model = nn.Sequential(nn.BatchNorm1d(1))
    update_bn(data, model)
    assert model[0].running_var.item() < 2  # torch leaves out what differs between batches
    recalibrate(model, data)
    assert model[0].running_var.item() == pytest.approx(101, rel=0.01)
    assert model[0].running_var.item() == pytest.approx(torch.cat(data).double().var(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mean_far_from_zero_gives_no_negative_variance(layout):
    data = [(30 + 0.01 * torch.randn(16, 3, 8, 8)).to(memory_format=layout) for _ in range(4)]
    model = recalibrate(nn.BatchNorm2d(3), data).model
    truth = torch.cat(data).double().var((0, 2, 3), correction=0)
    np.testing.assert_allclose(model.running_var, truth, rtol=1e-3)


def test_the_papers_estimate():
    data = [torch.randn(n, 1) * n for n in (4, 9)]
    model = recalibrate(nn.BatchNorm1d(1), data, estimator="paper").model
    expected = (4 * data[0].var() + 9 * data[1].var()) / 13
    assert model.running_var.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.running_mean.item() == pytest.approx(torch.cat(data).mean().item(), rel=1e-5)
    with pytest.raises(ns.NormscopeError, match="The paper's estimate") as one:
        recalibrate(nn.BatchNorm1d(1), [torch.randn(4, 1), torch.randn(1, 1)], estimator="paper")
    assert "m = 1 leaves undefined" in one.value.because


def test_modes_parameters_and_counts_come_back_and_buffers_are_the_same_objects():
    model = mlp(torch.float32).train()
    model[2].eval()
    buffers = dict(model.named_buffers())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    treated = recalibrate(model, torch.randn(32, 4))
    assert treated.model is model
    assert [module.training for module in model] == [True, True, False, True, True]
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters()))
    torch.randn(32, 4)
    assert not model[3]._forward_pre_hooks
    torch.set_rng_state(state)
    assert model[3].num_batches_tracked == 0


def test_frozen_norms_stay():
    def stack():
        return nn.Sequential(
            nn.BatchNorm1d(2), nn.BatchNorm1d(2), ns.nn.FrozenBatchNorm(2), nn.BatchNorm1d(2, momentum=0.0)
        )

    model, x = stack().train(), torch.randn(64, 2) + 5
    model[1].eval()
    treated = recalibrate(model, x)
    assert [path for path, _ in treated.skipped] == ["1", "2", "3"]
    assert (model[1].running_mean == 0).all() and (model[2].running_mean == 0).all()
    assert model[0].running_mean[0] == pytest.approx(x[:, 0].mean().item(), rel=1e-5)
    model = stack().eval()
    assert [path for path, _ in recalibrate(model, x).skipped] == ["2", "3"]


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.unused = nn.BatchNorm1d(3)

    def forward(self, x, scale=1.0):
        return {"out": self.norm(x) + self.norm(10 + scale * x)}


def test_a_norm_that_is_called_twice_sees_both_calls():
    model, x = Shared(), torch.randn(50, 3)
    treated = recalibrate(model, {"x": x, "scale": 2.0})
    both = torch.cat((x, 10 + 2 * x)).double()
    np.testing.assert_allclose(model.norm.running_mean, both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.norm.running_var, both.var(0, correction=0), rtol=1e-5)
    assert treated.skipped == (("unused", "it was not called by any batch"),)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    "loader",
    [
        lambda x, y: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16),
        lambda x, y: ((a, b) for a, b in zip(x.split(16), y.split(16))),
        lambda x, y: [[a, b] for a, b in zip(x.split(16), y.split(16))],
        lambda x, y: [ns.anatomy.batch.Probe((a,), target=b) for a, b in zip(x.split(16), y.split(16))],
        lambda x, y: list(x.split(16)),
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: x,
    ],
)
def test_any_loader_will_do(loader):
    x, y = torch.randn(40, 4), torch.randint(2, (40,))
    model = mlp(torch.float32)
    recalibrate(model, loader(x, y))
    np.testing.assert_allclose(model[3].running_mean, model[1](model[0](x)).detach().mean(0), atol=1e-6)


def test_exact_statistics_make_evaluation_consistent_with_itself():
    torch.manual_seed(0)
    data = [shift + torch.randn(64, 4) for shift in range(4)]
    layers = [layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))]
    model = nn.Sequential(*layers)
    recalibrate(model, data)
    x = torch.cat(data)

    def worst():
        model.eval()
        inputs = {norm: model[:norm](x).detach().double() for norm in (2, 5, 8)}
        return max(
            ((inputs[norm].mean(0) - model[norm].running_mean).abs() / inputs[norm].std(0)).max().item()
            for norm in inputs
        )

    assert worst() > 0.01  # one pass normalizes lower layers by the batch
    treated = recalibrate(model, data, exact=True)
    assert worst() < 1e-4
    assert treated.error is not None
    with pytest.raises(ns.NormscopeError, match="on an iterator"):
        recalibrate(model, iter(data), exact=True)


def test_exact_statistics_know_no_dropout():
    model, x = mlp().train(), torch.randn(64, 4, dtype=torch.float64)
    recalibrate(model, [x], exact=True)
    hidden = model[1](model[0](x)).detach()
    np.testing.assert_allclose(model[3].running_var, hidden.var(0, correction=0), rtol=1e-10)


def test_the_gap_is_told_before_and_after():
    torch.manual_seed(0)
    model = mlp(torch.float32)
    model[3].running_mean.fill_(7.0)
    treated = recalibrate(model, torch.randn(256, 4))
    assert treated.changes[0].site == "" and treated.changes[0].before.startswith("train/eval gap ")
    assert float(treated.changes[0].before.split()[-1]) > 1
    assert treated.error < 1e-5 and treated.preserves == "approximate"
    assert "standard deviations off" in treated.changes[1].before and "256 values a channel" in treated.changes[1].after


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the data yields no batch"),
        ([torch.randn(8, 4), torch.full((8, 4), float("nan"))], "are not finite"),
        ([torch.randn(8, 4), torch.randn(8, 4), torch.randn(8, 5)], "RuntimeError"),
        (3, "int"),
    ],
)
def test_bad_data_leaves_the_model_as_it_was(data, words, inplace):
    model = mlp(torch.float32).train()
    model[3].running_mean.fill_(0.5)
    with pytest.raises(ns.NormscopeError) as error:
        recalibrate(model, data, inplace=inplace)
    assert words in error.value.found
    assert (model[3].running_mean == 0.5).all() and (model[3].running_var == 1).all()
    assert model.training and model[3].training and not model[3]._forward_pre_hooks


def test_a_model_without_running_statistics_and_an_unknown_estimator():
    treated = recalibrate(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), torch.randn(4, 2)
    )
    assert treated.changes == () and treated.skipped == (("", "no norm here keeps statistics of batches"),)
    with pytest.raises(ns.NormscopeError, match="estimator that does not exist"):
        recalibrate(mlp(), torch.randn(4, 4), estimator="mean")  # pyright: ignore


def test_every_rank_gets_the_same_statistics(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, torch, torch.distributed as dist
            from torch import nn
            from normscope.treat.treatments.recalibrate import recalibrate
            rank, folder = int(sys.argv[1]), sys.argv[2]
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
            data = torch.load(f"{folder}/data.pt")
            model = nn.BatchNorm1d(3)
            recalibrate(model, list(data[rank::2]), group=dist.group.WORLD)
            torch.save(model.state_dict(), f"{folder}/{rank}.pt")
            dist.barrier()
            dist.destroy_process_group()
            os._exit(0)
            """
        )
    )
    data = torch.stack([shift + torch.randn(10, 3) for shift in range(5)])
    torch.save(data, tmp_path / "data.pt")
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], env=os.environ) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one[key], other[key]) for key in one)
    whole = data.flatten(0, 1).double()
    np.testing.assert_allclose(one["running_var"], whole.var(0, correction=0), rtol=1e-6)


def test_domains_count_by_their_weights_and_not_by_their_sizes():
    data = {"a": [torch.randn(30, 2), torch.randn(10, 2)], "b": [torch.randn(8, 2) * 3 + 5]}
    model = recalibrate(nn.BatchNorm1d(2), data, weights={"a": 1, "b": 3}).model
    a, b = (torch.cat(data[name]).double() for name in "ab")
    mean = (a.mean(0) + 3 * b.mean(0)) / 4
    square = (a.square().mean(0) + 3 * b.square().mean(0)) / 4
    np.testing.assert_allclose(model.running_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(model.running_var, square - mean**2, rtol=1e-5)
    equal = recalibrate(nn.BatchNorm1d(2), data, weights={"a": 40, "b": 8}).model
    np.testing.assert_allclose(equal.running_var, torch.cat((a, b)).var(0, correction=0), rtol=1e-6)
    alone = recalibrate(nn.BatchNorm1d(2), data, weights={"a": 0, "b": 1}, exact=True).model
    np.testing.assert_allclose(alone.running_mean, b.mean(0), rtol=1e-6)
    for wrong in ({"a": 1}, {"a": 1, "b": -1}, {"a": 0, "b": 0}):
        with pytest.raises(ns.NormscopeError, match="weights do not fit"):
            recalibrate(nn.BatchNorm1d(2), data, weights=wrong)


def test_each_domain_has_its_bank():
    torch.manual_seed(0)
    model = mlp(torch.float32).eval()
    data = {"day": torch.randn(64, 4), "night": torch.randn(64, 4) - 3}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    banks = ns.domain_banks(model, data)
    assert banks.domains == ("day", "night")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for name, x in data.items():
        banks.use(model, name)
        np.testing.assert_allclose(model[3].running_mean, model[1](model[0](x)).detach().mean(0), atol=1e-6)
    with pytest.raises(ns.NormscopeError, match="domain `dusk`"):
        banks.use(model, "dusk")


def test_a_stream_without_an_end_is_left_when_nothing_moves_any_more():
    turns, drawn = torch.Generator().manual_seed(0), []

    def stream():
        while True:
            drawn.append(1)
            yield torch.randn(256, 3, generator=turns) * 2 + 1

    model = recalibrate(nn.BatchNorm1d(3), stream(), settle=0.01).model
    assert 4 <= len(drawn) <= 256
    np.testing.assert_allclose(model.running_mean, np.ones(3), atol=0.1)
    np.testing.assert_allclose(model.running_var, np.full(3, 4.0), rtol=0.1)


def test_averaged_weights_get_the_statistics_of_their_own_activations():
    model = mlp(torch.float32)
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(model)
    x = torch.randn(64, 4)
    treated = recalibrate(average, x)
    inner = average.module
    assert [change.site for change in treated.changes] == ["", "module.3"]
    np.testing.assert_allclose(inner[3].running_mean, inner[1](inner[0](x)).detach().mean(0), atol=1e-6)
    assert model[3].running_mean.abs().sum() == 0


def test_an_exact_recalibration_stops_when_nothing_moves_and_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4)))).double()
    told = recalibrate(model, torch.randn(32, 4, dtype=torch.float64), exact=True).changes[0].after
    assert "after 1 more passes, the last of which moved nothing by more than" in told  # a batch is its own population
