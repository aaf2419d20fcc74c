"""When to look."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normscope.terms.errors import UnknownNameError
from normscope.watch.schedule import LOAN, ON_BEAT, RESOLUTION, Budgeted, Cost, Due, Spending, schedule_of

DEAR = Spending(100.0, 10.0)
FREE = Cost(elapsed=1e9)


def sampled(schedule, steps, cost=FREE):
    return [step for step in range(steps) if schedule.due(step, cost).live]


def probed(schedule, steps):
    return [step for step in range(steps) if schedule.due(step, FREE).probe]


def test_an_interval_is_honoured_exactly_and_dense_ones_probe_every_tenth_step():
    assert sampled(schedule_of(3, 0.01), 10, Cost(1.0, live=DEAR, probe=DEAR)) == [0, 3, 6, 9]
    assert probed(schedule_of(3, 0.01), 30) == [0, 12, 24]
    assert probed(schedule_of(1, 0.01), 25) == [0, 10, 20]
    assert probed(schedule_of(10, 0.01), 25) == [0, 10, 20]
    assert probed(schedule_of(25, 0.01), 60) == [0, 25, 50]


@given(st.integers(1, 60))
def test_an_interval_samples_each_stretch_once_and_leaves_the_beat_of_a_loader(every):
    steps = sampled(schedule_of(every, 0.01), 232 * every)
    assert steps[:ON_BEAT] == [every * stretch for stretch in range(ON_BEAT)]
    assert [step // every for step in steps] == list(range(232))
    if every == 1:
        return
    for turns in (2, 3, 5):  # batches of so many kinds take turns: each kind has its share of the later samples
        shares = [sum(step % turns == kind for step in steps[ON_BEAT:]) / 200 for kind in range(turns)]
        reach = min(turns, every // 2 + 1) if every % turns == 0 else turns
        assert sum(share > 0.5 / turns for share in shares) >= min(reach, 2)
    assert set(probed(schedule_of(every, 0.01), 232 * every)) <= set(steps)


def test_a_function_chooses():
    chosen = schedule_of(lambda step: step in (4, 7), 0.01)
    assert sampled(chosen, 10) == probed(chosen, 10) == [4, 7]


@given(
    budget=st.floats(0.001, 0.5),
    live=st.floats(1e-4, 0.1),
    probe=st.floats(1e-3, 1.0),
    setup=st.floats(0.0, 5.0),
    pace=st.floats(1e-4, 1.0),
)
def test_the_budget_is_kept_beside_the_set_up_and_its_loan(budget, live, probe, setup, pace):
    schedule, spent, last, elapsed = Budgeted(budget), [0.0, 0.0], 0, setup
    for step in range(1, 2000):
        due = schedule.due(step, Cost(elapsed, setup, Spending(spent[0], live), Spending(spent[1], probe), last))
        if due:
            assert (step - last) * RESOLUTION >= step
            spent, last = [spent[0] + live, spent[1] + probe * due.probe], step
            elapsed += live + probe * due.probe
        elapsed += pace
        looks = (spent[0] - live, spent[1])  # a probe takes a look at the training along, at most one too many
        assert all(part <= (budget * elapsed + max(setup, LOAN)) / 2 + 1e-9 for part in looks) or probe < live
    if budget * elapsed > 4 * (max(setup, LOAN) + probe):  # long enough to pay back: the budget is used, not saved
        assert spent[1] >= 0.4 * min(budget * elapsed / 2, 1000 * probe)


def test_the_steps_of_powers_of_two_are_seen_on_credit():
    def due(step, spent):
        return Budgeted(0.01).due(step, Cost(1.0, 0.2, Spending(spent, 0.01), Spending(spent, 0.1), 0))

    assert [step for step in range(1, 70) if due(step, 0.3).probe] == [1, 2, 4, 8, 16, 32, 64]
    assert due(4, 0.45) == Due(live=True) and not due(4, 0.5) and not due(3, 0.01)


def test_four_probes_are_borrowed_at_most_and_looks_at_the_training_as_before():
    def due(step, probes):
        cost = Cost(1.0, 30.0, Spending(0.0, 0.01), Spending(0.1 * probes, 0.1), 0)
        return Budgeted(0.01).due(step, cost)

    assert [due(64, probes).probe for probes in range(6)] == [True] * 4 + [False] * 2
    assert due(64, 5).live and not due(63, 0).probe


def test_long_runs_are_sampled_no_finer_than_they_can_be_shown():
    schedule, last, count = Budgeted(1.0), 0, 0
    for step in range(1, 20000):
        if schedule.due(step, Cost(1e9, last=last)):
            last, count = step, count + 1
    assert count < 512 + 512 * 5.5  # log2(20000 / 512) doublings


def test_several_processes_sample_at_the_same_steps_whatever_their_clocks_say():
    schedule = schedule_of("auto", 0.01, processes=2)
    slow = Cost(1.0, live=DEAR, probe=DEAR)
    found = sampled(schedule, 5000)
    assert found == sampled(schedule, 5000, slow)
    assert found[:16] == list(range(16)) and sum(1024 <= step < 2048 for step in found) == 16


@pytest.mark.parametrize("every", [0, -1, 1.5, "often", None, True])
def test_an_interval_that_is_none_is_refused_in_four_lines(every):
    with pytest.raises(UnknownNameError) as error:
        schedule_of(every, 0.01)
    assert str(error.value).splitlines()[1] == f"  found    every={every!r}"


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, "1%"])
def test_a_budget_that_is_no_share_is_refused_in_four_lines(budget):
    with pytest.raises(UnknownNameError, match="is one percent"):
        schedule_of("auto", budget)


def test_nothing_due_is_false():
    assert not Due() and Due(probe=True) and Due(live=True)
