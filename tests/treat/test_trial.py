"""Both arms start alike and see the same data; the verdict follows the interval; broken runs are kept as such."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope.terms.verdict import Verdict
from normscope.treat.optimizer import over
from normscope.treat.treatment import treat
from normscope.treat.trial import BROKEN_RULE, trial

NORMALIZE = ns.Prescription("insert_norm", words="add BatchNorm before each Tanh")
ADVICE = ns.Prescription("", words="lower the learning rate")


def build(seed):
    layers = []
    for _ in range(8):
        linear = nn.Linear(12, 12)
        nn.init.normal_(linear.weight, std=2.0)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(12, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train_step(model, optimizer, step):
    x = torch.randn(64, 12)
    loss = (model(x) - x[:, :1]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def test_a_treatment_that_helps_is_said_to_help():
    told = []
    result = trial(
        build,
        train_step,
        NORMALIZE,
        steps=60,
        seeds=(0, 1, 2, 3),
        progress=lambda arm, seed, step: told.append((arm, seed, step)),
    )
    assert result.verdict is Verdict.HOLDS and result.effect.high < 0
    assert result.effect.unit == "log ratio of final loss" and result.effect.confidence == 0.95
    assert result.treatment == "add BatchNorm before each Tanh"
    assert [arm.name for arm in result.arms] == ["untreated", "treated"]
    assert all(len(curve) == 60 for arm in result.arms for curve in arm.curves)
    finals = [[np.mean(curve[-6:]) for curve in arm.curves] for arm in result.arms]
    logs = np.log(finals[1]) - np.log(finals[0])
    assert result.effect.value == pytest.approx(logs.mean())
    assert len(told) == 2 * 4 * 60 and told[0] == ("untreated", 0, 0)
    assert ns.Trial.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_arms_that_differ_in_nothing_are_bitwise_alike():
    def noisy(model, optimizer, step):
        noise = random.random() + float(np.random.rand())
        return train_step(model, optimizer, step) + 0.0 * noise

    result = trial(build, noisy, ADVICE, steps=8, seeds=(5, 6))
    assert result.untreated.curves == result.treated.curves
    assert result.untreated.curves[0] != result.untreated.curves[1]
    assert (result.effect.value, result.verdict) == (0.0, Verdict.UNCLEAR)
    assert "the treatment changed nothing" in result.notes
    assert any("lower the learning rate" in note for note in result.notes)


def test_a_treatment_that_draws_random_numbers_does_not_move_the_data():
    result = trial(
        build, lambda model, step: 1 + torch.rand(()), ns.Prescription("reinitialize"), steps=5, seeds=(0, 1)
    )
    assert result.untreated.curves == result.treated.curves


def test_a_treatment_that_harms_fails():
    deaf = ns.Prescription("reinitialize", arguments={"method": "he", "seed": 0})

    def small(seed):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model, torch.optim.SGD(model.parameters(), lr=0.0)

    def step(model, optimizer, step):
        return 1 + model(torch.randn(32, 6)).square().mean()

    result = trial(small, step, deaf, steps=5, seeds=(0, 1, 2))
    assert result.verdict is Verdict.FAILS and result.effect.low > 0


def test_one_seed_is_unclear():
    result = trial(build, train_step, NORMALIZE, steps=10, seeds=(0,))
    assert result.verdict is Verdict.UNCLEAR and math.isinf(result.effect.high)
    assert "one seed gives no interval" in result.notes


def test_broken_runs_are_kept_and_count_as_worst():
    def fragile(model, optimizer, step):
        loss = train_step(model, optimizer, step).item()
        treated = any(isinstance(module, nn.Sequential) for module in model)
        return math.nan if step == 4 and not treated else loss

    result = trial(build, fragile, NORMALIZE, steps=12, seeds=(0, 1))
    assert [seed for seed, _ in result.untreated.broke] == [0, 1]
    assert result.untreated.broke[0][1] == "step 4: the loss is nan"
    assert all(math.isnan(value) for value in result.untreated.curves[0][4:])
    assert BROKEN_RULE in result.notes and result.effect.value < 0

    def raising(model, optimizer, step):
        if step == 3:
            raise ValueError("no more data")
        return train_step(model, optimizer, step)

    result = trial(build, raising, NORMALIZE, steps=12, seeds=(0, 1))
    assert result.treated.broke == ((0, "step 3: ValueError: no more data"), (1, "step 3: ValueError: no more data"))
    assert (result.effect.value, result.verdict) == (0.0, Verdict.UNCLEAR)


def test_losses_that_are_not_positive_are_compared_by_difference():
    def shifted(model, optimizer, step):
        return train_step(model, optimizer, step).item() - 100

    result = trial(build, shifted, NORMALIZE, steps=20, seeds=(0, 1))
    assert result.effect.unit == "difference of final loss" and result.effect.value < 0


def test_the_callers_random_states_are_put_back():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    trial(build, train_step, NORMALIZE, steps=2, seeds=(0,))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()


def test_build_and_train_step_may_take_less():
    def plain():
        return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))

    result = trial(plain, lambda model, step: 1.0 + step, NORMALIZE, steps=5, seeds=(0, 1))
    assert result.untreated.curves == ((1.0, 2.0, 3.0, 4.0, 5.0),) * 2


def test_what_cannot_be_tried_is_said():
    with pytest.raises(ns.NormscopeError, match="A trial of nothing"):
        trial(build, train_step, NORMALIZE, steps=0, seeds=(0,))
    with pytest.raises(ns.NormscopeError, match="a build that makes no model"):
        trial(lambda seed: 3, train_step, NORMALIZE, steps=1, seeds=(0,))
    with pytest.raises(ns.NormscopeError, match="train_step that cannot be called"):
        trial(lambda: nn.Linear(1, 1), train_step, NORMALIZE, steps=1, seeds=(0,))
    with pytest.raises(ns.NormscopeError, match="returns no loss"):
        trial(build, lambda model, step: None, NORMALIZE, steps=1, seeds=(0,))
    with pytest.raises(ns.NormscopeError, match="raises at its first step") as broken:
        trial(build, lambda model, step: model(torch.zeros(1, 5)), NORMALIZE, steps=1, seeds=(0,))
    assert isinstance(broken.value.__cause__, RuntimeError)
    with pytest.raises(ns.NormscopeError, match="treatment was prescribed that does not exist"):
        trial(build, train_step, ns.Prescription("insert_nrom"), steps=1, seeds=(0,))


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.AdamW(groups, lr=0.1),
        lambda groups: torch.optim.Adagrad(groups, lr=0.1),
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    ],
)
def test_the_optimizer_is_made_again_over_the_treated_parameters(make):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    extra = nn.Parameter(torch.zeros(1))  # of a loss, not of the model
    first, last = list(model[0].parameters()), list(model[2].parameters())
    optimizer = make([{"params": first, "lr": 0.01}, {"params": [*last, extra], "weight_decay": 0.5}])
    before = list(model.parameters())
    treat(model, NORMALIZE, inplace=True)
    fresh = over(optimizer, model, before)
    assert type(fresh) is type(optimizer) and fresh is not optimizer
    groups = [[id(parameter) for parameter in group["params"]] for group in fresh.param_groups]
    assert groups[0] == [id(p) for p in (*first, *model[1].norm.parameters())]
    assert groups[1] == [id(p) for p in (*last, extra)]
    assert (fresh.param_groups[0]["lr"], fresh.param_groups[1]["weight_decay"]) == (0.01, 0.5)
    model(torch.randn(4, 3)).sum().backward()
    fresh.step()


def test_the_trial_is_saved(tmp_path):
    result = trial(build, train_step, NORMALIZE, steps=6, seeds=(0, 1), path=tmp_path / "run")
    assert [kept.to_dict() for kept in ns.Record(tmp_path / "run").trials] == [result.to_dict()]


def test_an_early_stop_leaves_out_seeds_and_keeps_its_confidence():
    seeds = tuple(range(6))
    result = trial(build, train_step, NORMALIZE, steps=30, seeds=seeds, stop_early=True)
    ran = len(result.seeds)
    assert result.verdict is Verdict.HOLDS and 2 <= ran < 6 and result.seeds == seeds[:ran]
    assert result.effect.confidence == pytest.approx(1 - 0.05 / 5) and result.effect.high < 0
    assert f"stopped early: the interval decided without seeds {', '.join(map(str, seeds[ran:]))}" in result.notes
    short = trial(build, train_step, NORMALIZE, steps=30, seeds=seeds[:ran])
    assert short.effect.value == result.effect.value and short.effect.high < result.effect.high


def test_looking_early_does_not_find_what_is_not_there():
    """Losses without any difference: at most 5% of trials may decide, as without early stops."""
    from normscope.treat.trial import _effect, _Run

    turns, trials, seeds = np.random.default_rng(0), 400, 6
    found = 0
    for _ in range(trials):
        losses = np.exp(turns.normal(size=(2, seeds)))
        arms = [[_Run(seed, (float(loss),), None, None) for seed, loss in enumerate(arm)] for arm in losses]
        looks = (_effect(arms[0][:k], arms[1][:k], 1, 1 - 0.05 / (seeds - 1)) for k in range(2, seeds + 1))
        found += any(look.excludes(0.0) for look in looks)
    assert 0 < found <= 0.05 * trials


def test_a_model_that_is_wrapped_already_is_refused(monkeypatch):
    from torch.nn.parallel import DistributedDataParallel

    from normscope.treat.ranks import mean_over_ranks, parallel

    wrapped = object.__new__(DistributedDataParallel)
    with pytest.raises(ns.NormscopeError, match="a build that wraps its model"):
        parallel(wrapped)
    model = nn.Linear(1, 1)
    assert parallel(model) is model and mean_over_ranks(2.0) == 2.0
