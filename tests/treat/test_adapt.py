"""Adaptation while a network is used: the papers' formulas written out, banks, episodes, collapse, the way back."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.treat.treatments.adapt import adapt

IMAGES = {
    1: (nn.Conv1d, nn.BatchNorm1d, (6, 3, 9)),
    2: (nn.Conv2d, nn.BatchNorm2d, (6, 3, 7, 7)),
    3: (nn.Conv3d, nn.BatchNorm3d, (6, 3, 5, 5, 5)),
}


def source(rank=2, norm=None):
    torch.manual_seed(0)
    conv, batch_norm, shape = IMAGES[rank]
    model = nn.Sequential(
        conv(3, 4, 3), (norm or batch_norm)(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * (shape[-1] - 2) ** rank, 3)
    )
    model = model.double()
    model.train()
    for _ in range(20):
        model(torch.randn(shape, dtype=torch.float64))
    return model.eval()


def batch(rank=2, n=6):
    return 2 + 3 * torch.randn(n, *IMAGES[rank][2][1:], dtype=torch.float64)


@pytest.mark.parametrize("rank", IMAGES)
@pytest.mark.parametrize("prior", [0, 16, 1e12])
def test_statistics_are_mixed_by_the_formula_of_schneider_et_al(rank, prior):
    model, x = source(rank), batch(rank)
    adapted = adapt(model, prior=prior).model
    hidden = model[0](x).detach()
    over = [axis for axis in range(hidden.ndim) if axis != 1]
    share = len(x) / (prior + len(x))
    norm = copy.deepcopy(model[1])
    norm.running_mean.lerp_(hidden.mean(over), share)
    norm.running_var.lerp_(hidden.var(over, correction=0), share)
    expected = model[2:](norm(hidden))
    torch.testing.assert_close(adapted(x), expected, rtol=1e-9, atol=1e-9)
    if prior == 1e12:
        torch.testing.assert_close(adapted(x), model(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(adapted(x), adapted(x), rtol=0, atol=0)  # a batch leaves nothing behind


def test_an_average_starts_at_the_source_and_goes_on_from_batch_to_batch():
    model = source()
    adapted, norm = adapt(model, mode="ema", momentum=0.3).model, copy.deepcopy(model[1])
    for x in (batch(), batch(), batch()):
        hidden = model[0](x).detach()
        norm.running_mean.lerp_(hidden.mean((0, 2, 3)), 0.3)
        norm.running_var.lerp_(hidden.var((0, 2, 3), correction=0), 0.3)
        torch.testing.assert_close(adapted(x), model[2:](norm(hidden)), rtol=1e-9, atol=1e-9)
    adapted.reset()
    assert torch.equal(adapted.model[1].mean, model[1].running_mean)


def tent(model, batches, rate=1e-3):
    """Wang et al. 2021 as published: norms on batch statistics, Adam on their weights and biases, outputs before."""
    model = copy.deepcopy(model).requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().requires_grad_()
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    optimizer = torch.optim.Adam([parameter for norm in norms for parameter in norm.parameters()], lr=rate)
    for x in batches:
        output = model(x)
        loss = -(output.softmax(1) * output.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield output.detach()


def test_without_a_prior_entropy_minimization_is_tent():
    model, data = source(), [batch() for _ in range(5)]
    adapted = adapt(model, mode="entropy", prior=0, guard=False).model
    for x, expected in zip(data, tent(model, data)):
        torch.testing.assert_close(adapted(x), expected, rtol=1e-8, atol=1e-8)


def test_entropy_falls_and_nothing_but_weights_and_biases_of_norms_moves():
    model, x = source(), batch()
    adapted = adapt(model, mode="entropy", rate=0.01, guard=False).model
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}

    def entropy():
        output = adapted(x)
        return -(output.softmax(1) * output.log_softmax(1)).sum(1).mean().item()

    first = entropy()
    for _ in range(10):
        last = entropy()
    assert last < first
    moved = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"model.1.norm.weight", "model.1.norm.bias"}
    assert all(parameter.grad is None for parameter in adapted.parameters())


@pytest.mark.parametrize("norm", [lambda n: nn.GroupNorm(2, n), ns.nn.RMSNorm, ns.nn.LayerNorm2d])
def test_norms_of_single_samples_learn_from_the_entropy_and_have_no_statistics_to_adapt(norm):
    if norm is ns.nn.RMSNorm:
        model = nn.Sequential(nn.Linear(3, 4), ns.nn.RMSNorm(4), nn.Linear(4, 3)).double()
        x = torch.randn(6, 3, dtype=torch.float64)
    else:
        model, x = source(norm=norm), batch()
    plain = adapt(model)
    assert plain.changes == () and "those of each input already" in plain.skipped[0][1]
    learning = adapt(model, mode="entropy", rate=0.01)
    before = model[1].weight.detach().clone()
    learning.model(x)
    assert not torch.equal(learning.model.model[1].weight, before) and torch.equal(model[1].weight, before)


def test_each_domain_has_a_bank_and_a_new_one_starts_from_the_source():
    for settings in ({"mode": "ema"}, {"mode": "entropy", "rate": 0.01}):
        model, day, night = source(), [batch() for _ in range(3)], [batch() - 9 for _ in range(3)]
        alone = {}
        for name, data in (("day", day), ("night", night)):
            one = adapt(model, **settings).model
            alone[name] = [one(x) for x in data]
        mixed = adapt(model, **settings).model
        for k in range(3):
            for name, data in (("day", day), ("night", night)):
                mixed.domain = name
                torch.testing.assert_close(mixed(data[k]), alone[name][k], rtol=0, atol=0)


def test_episodes_forget_and_predict_after_their_step():
    model, x = source(), batch()
    adapted = adapt(model, mode="entropy", rate=0.05, episodic=True).model
    first = adapted(x)
    adapted(batch())
    torch.testing.assert_close(adapted(x), first, rtol=0, atol=0)
    once = adapt(model, mode="entropy", rate=0.05).model
    assert not torch.equal(once(x), first)
    torch.testing.assert_close(once(x), adapt(model, mode="entropy", rate=0.05, episodic=True, steps=1).model(x))


def collapsing(guard):
    """A rate at which the entropy goes down by giving every sample one class."""
    model = source()
    with torch.no_grad():
        model[4].weight.mul_(3)
    adapted = adapt(model, mode="entropy", rate=1.0, prior=0, guard=guard).model
    torch.manual_seed(1)
    for _ in range(30):
        answer = adapted(batch(n=32))
    return model, adapted, answer


def test_a_collapse_restores_the_source():
    model, adapted, answer = collapsing(guard=False)
    assert answer.argmax(1).unique().numel() == 1 and adapted.restored == 0
    x = batch(n=32)
    assert adapt(model, prior=0).model(x).argmax(1).unique().numel() > 1
    _, adapted, _ = collapsing(guard=True)
    assert adapted.restored > 0


def test_sure_predictions_that_tell_of_the_batch_are_no_collapse():
    model, x = source(), batch(n=32)
    with torch.no_grad():
        model[4].weight.mul_(50)
    adapted = adapt(model, mode="entropy").model
    for _ in range(3):
        sure = adapted(x).softmax(1).max(1).values.mean()
    assert sure > 0.95 and adapted.restored == 0
    assert not torch.equal(adapted.model[1].norm.weight, model[1].weight)  # it went on learning


def test_a_batch_that_is_not_finite_leaves_the_source():
    model, x = source(), batch()
    x[0, 0, 0, 0] = float("nan")
    adapted = adapt(model, mode="ema").model
    adapted(x)
    torch.testing.assert_close(adapted.model[1].mean, model[1].running_mean)
    learning = adapt(model, mode="entropy").model
    learning(x)
    assert torch.equal(learning.model[1].norm.weight, model[1].weight)


def test_the_source_stays_and_the_copy_copies_saves_compiles_and_exports():
    model, x = source(), batch()
    state = copy.deepcopy(model.state_dict())
    for settings in ({}, {"mode": "ema"}, {"mode": "entropy", "rate": 0.01}):
        adapted = adapt(model, **settings).model
        adapted(x)
        twin = copy.deepcopy(adapted)
        torch.testing.assert_close(twin(x), adapted(x), rtol=0, atol=0)
        other = adapt(model, **settings).model
        other.load_state_dict(adapted.state_dict())
        torch.testing.assert_close(other.model[1].mean, adapted.model[1].mean)
        torch.save(adapted, io.BytesIO())
        assert not adapted.train().training and not any(module.training for module in adapted.modules())
        with torch.inference_mode():
            adapted(x.clone())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    adapted = adapt(model.float()).model
    x = x.float()
    torch.testing.assert_close(torch.compile(adapted, backend="eager")(x), adapted(x))
    if torch.__version__ >= "2.8":  # before, buffers inside of a list of modules lose their names
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(adapted, (x,))
        torch.testing.assert_close(program.module()(x), adapted(x))


def test_half_precision_is_measured_in_float32():
    model = source().bfloat16()
    model.float()
    x = batch().float() + 200
    close = adapt(model).model(x)
    assert (adapt(model.bfloat16()).model(x.bfloat16()).float() - close).abs().max() < 0.2 * close.std() + 1


def test_what_cannot_be_is_said():
    with pytest.raises(ns.NormscopeError, match="mode that does not exist"):
        adapt(source(), mode="tent")
    with pytest.raises(ns.NormscopeError, match="numbers that cannot be") as wrong:
        adapt(source(), prior=-1)
    assert "'prior': -1" in wrong.value.found or "prior=-1" in wrong.value.found
    with pytest.raises(ns.NormscopeError, match="entropy of its predictions"):
        adapt(nn.Sequential(nn.BatchNorm1d(2), nn.Flatten(0)), mode="entropy").model(torch.randn(4, 2))
    assert adapt(nn.Linear(2, 2)).skipped == (("", "no norm here can adapt"),)
