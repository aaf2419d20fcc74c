"""The engine: which rules run, what a failing one does, in which order findings come, what is an error."""

import json
from dataclasses import replace
from functools import partial
from importlib import metadata

import pytest
import torch
from torch import nn

from normscope.diagnose import engine
from normscope.diagnose.engine import diagnose, explain, lint, rule, rules
from normscope.diagnose.relations import causes_first, related
from normscope.diagnose.rules import poor_initialization
from normscope.diagnose.scene import Scene, sgd
from normscope.record.writer import Writer
from normscope.terms.errors import RecordError, UnknownNameError
from normscope.terms.finding import Diagnosis, Evidence, Finding, Removal


def biased():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def unlearnable():
    return torch.randn(256, 4), torch.randint(2, (256,))


def finding(name, *, sites=("a",), severity="warning", since=0, steps=(0,)):
    return Finding(rule(name).code, name, severity, sites, "1", Evidence("q", 1.0, 0.5, steps), since)


@pytest.fixture(scope="module")
def sick_record(tmp_path_factory):
    """Sixteen small tanh layers: the signal dies from the first step on, and with it the gradient."""
    build = partial(poor_initialization._stack, nn.Tanh, 16, 0.4)
    return Scene(build, steps=16, optimizer=sgd(0.05)).record(tmp_path_factory.mktemp("sick"))


# choosing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "ignore", "ran"),
    [
        ("NS101", None, {"NS101"}),
        ("NS1", None, {"NS101", "NS102"}),
        ("bias_before_norm", None, {"NS101"}),
        (["NS1", "dead_units"], "NS102", {"NS101"}),
        (None, ["NS101"], {"NS102"}),
        ([], None, set()),
    ],
)
def test_rules_are_selected_and_ignored_by_code_prefix_and_name(select, ignore, ran):
    assert {code for code in lint(biased(), select=select, ignore=ignore).rules if code in ("NS101", "NS102")} == ran


@pytest.mark.parametrize("argument", ["select", "ignore"])
def test_an_unknown_rule_is_an_error_that_names_the_nearest(argument):
    with pytest.raises(UnknownNameError) as caught:
        lint(biased(), **{argument: "dead_unit"})
    first, found, because, do = str(caught.value).splitlines()
    assert first == "A rule was asked for as 'dead_unit'."
    assert found == "  found    no rule has that code or name"
    assert because == "  because  rules go by their code (NS201), the start of a code (NS2) or their name"
    assert do.startswith("  do       did you mean `dead_units`")
    assert do.endswith(f"? `normscope rules` lists all {len(rules())} of them")


def test_an_empty_selector_selects_nothing():
    with pytest.raises(UnknownNameError):
        lint(biased(), select="")


def test_a_rule_is_had_by_code_and_name():
    assert rule("NS203") is rule("dead_units")
    with pytest.raises(UnknownNameError):
        explain("NS999")


# faults --------------------------------------------------------------------------------------------------------------


def test_a_rule_that_raises_becomes_a_fault_and_the_others_go_on(monkeypatch):
    def broken(subject):
        yield from ()
        raise ZeroDivisionError("by a rule")

    found, faults = engine._find()
    sick = tuple(replace(one, check=broken) if one.code == "NS102" else one for one in found)
    monkeypatch.setattr(engine, "_find", lambda: (sick, faults))
    diagnosis = lint(biased(), batch_size=2)
    assert [(fault.code, fault.error) for fault in diagnosis.faults] == [("NS102", "ZeroDivisionError: by a rule")]
    assert [one.code for one in diagnosis] == ["NS101"]


class Entry:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def load(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_rules_come_from_entry_points_and_a_broken_one_is_a_fault(monkeypatch):
    foreign = replace(rule("NS101"), code="XY101", name="foreign_ailment")
    entries = [
        Entry("good", foreign),
        Entry("missing", ImportError("no such module")),
        Entry("wrong", object()),
        Entry("taken", replace(foreign, name="another")),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries if group == "normscope.rules" else [])
    assert "XY101" in {one.code for one in rules()}
    diagnosis = lint(biased(), select="XY")
    assert [one.code for one in diagnosis] == ["NS101"]  # its check is the other rule's own
    assert [fault.code for fault in diagnosis.faults] == ["missing", "wrong", "taken"]
    assert "not a Rule" in diagnosis.faults[1].error


# records -------------------------------------------------------------------------------------------------------------


def test_a_record_without_a_step_is_an_error(tmp_path):
    Writer(tmp_path).close()
    with pytest.raises(RecordError) as caught:
        diagnose(tmp_path)
    assert str(caught.value) == (
        "A run was to be diagnosed that has no step in its record.\n"
        "  found    0 sampled steps, 0 events\n"
        "  because  every rule compares what was measured while the network ran\n"
        "  do       let the run make at least one optimizer step under watch"
    )


def test_a_diagnosis_names_the_cause_first_and_survives_json(sick_record):
    diagnosis = diagnose(sick_record.path)
    assert diagnosis.primary is not None
    assert diagnosis.primary.name == "poor_initialization"
    assert diagnosis[0] is diagnosis.primary
    assert "NS201" in diagnosis.primary.cause_of
    vanishing = next(one for one in diagnosis if one.code == "NS201")
    assert "NS206" in vanishing.caused_by
    assert diagnosis.exit_code == 1
    assert diagnosis.subject == str(sick_record.path)
    assert not diagnosis.faults
    assert Diagnosis.from_dict(json.loads(diagnosis.to_json())) == diagnosis


def test_with_the_model_the_rules_at_rest_run_too(sick_record):
    model = biased()
    told = diagnose(sick_record, model=model)
    assert {"NS101", "NS201"} <= {one.code for one in told}
    assert "NS101" not in diagnose(sick_record).rules


def test_fail_on_decides_the_exit_code():
    assert lint(biased(), select="NS101").exit_code == 0
    assert lint(biased(), select="NS101", fail_on="note").exit_code == 1


def test_linting_leaves_the_model_as_it_was():
    model = biased()
    example = torch.randn(4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    lint(model, example=example, batch_size=2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# relations -----------------------------------------------------------------------------------------------------------


def linked(*findings, depths=None):
    depth_of = None if depths is None else depths.get
    return {one.name: one for one in related(findings, rules(), depth_of=depth_of)}


def test_a_declared_cause_at_the_same_site_explains_its_effect_and_is_as_severe():
    told = linked(finding("saturated_activation", severity="note"), finding("vanishing_gradient", severity="error"))
    assert told["saturated_activation"].cause_of == ("NS201",)
    assert told["vanishing_gradient"].caused_by == ("NS202",)
    assert told["saturated_activation"].severity == "error"


def test_what_no_rule_declares_is_not_linked():
    told = linked(finding("vanishing_gradient"), finding("train_eval_gap"))
    assert not any(one.cause_of or one.caused_by for one in told.values())


def test_a_backward_effect_has_its_cause_behind_it_and_a_forward_effect_before_it():
    depths = {"early": 1, "late": 9}
    told = linked(
        finding("saturated_activation", sites=("late",)), finding("vanishing_gradient", sites=("early",)), depths=depths
    )
    assert told["vanishing_gradient"].caused_by == ("NS202",)
    told = linked(
        finding("saturated_activation", sites=("early",)), finding("vanishing_gradient", sites=("late",)), depths=depths
    )
    assert not told["vanishing_gradient"].caused_by
    told = linked(
        finding("stale_running_stats", sites=("late",)), finding("train_eval_gap", sites=("early",)), depths=depths
    )
    assert not told["train_eval_gap"].caused_by


def test_a_cause_does_not_begin_after_its_effect_unless_it_was_only_seen_late():
    after = finding("dead_units", since=40, steps=(0, 20, 40, 60))
    assert linked(after, finding("vanishing_gradient", since=10))["vanishing_gradient"].caused_by == ()
    between = finding("dead_units", since=40, steps=(0, 20, 40, 60))
    assert linked(between, finding("vanishing_gradient", since=25))["vanishing_gradient"].caused_by == ("NS203",)


def test_findings_come_by_severity_then_causes_first():
    told = causes_first(
        related(
            [
                finding("vanishing_gradient", severity="error"),
                finding("bias_before_norm", severity="note"),
                finding("dead_units", severity="warning"),
                finding("saturated_activation", severity="warning"),
                finding("nonfinite_values", severity="error", since=9),
            ],
            rules(),
        )
    )
    assert [one.name for one in told] == [
        "saturated_activation",
        "nonfinite_values",
        "dead_units",
        "vanishing_gradient",
        "bias_before_norm",
    ]


def test_units_that_died_stay_dead_in_a_copy_without_what_killed_them():
    findings = [finding("dead_units", severity="error", since=9), finding("unstandardized_input", severity="error")]
    told = related(findings, rules(), explains=lambda cause, effect: False)
    assert told[0].caused_by == ("NS209",)
    others = [finding("saturated_activation", since=9), finding("unstandardized_input")]
    assert not related(others, rules(), explains=lambda cause, effect: False)[0].caused_by


def test_what_a_schedule_shows_by_itself_comes_before_a_symptom_that_a_norm_would_relieve():
    spent = replace(finding("rate_too_low", severity="error"), evidence=Evidence("spent", 0.0, 0.02))
    dead = replace(finding("dead_units", severity="error"), removals=(Removal("a norm", "dead units", 1.0, 0.0),))
    told = causes_first(related([dead, spent], rules()), rules())
    assert [one.name for one in told] == ["rate_too_low", "dead_units"]


def test_a_note_is_no_primary_finding_of_a_run_that_did_not_learn(tmp_path):
    still = Scene(biased, data=unlearnable, optimizer=sgd(0.0), steps=16).record(tmp_path)
    found = diagnose(still, select=["bias_before_norm"], model=biased())
    assert found.learns is False
    assert [one.severity for one in found] == ["note"]
    assert found.primary is None and found.unexplained and not found.prescriptions
    assert "nothing found explains why the loss does not fall" in repr(found)
    assert lint(biased(), select=["bias_before_norm"]).primary is not None


def test_frozen_layers_come_before_the_norm_that_is_frozen_by_half(tmp_path):
    """A body frozen by `requires_grad_(False)`: the norm whose statistics still move is its effect."""
    built = []

    def network():
        body = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32)).requires_grad_(False)
        built.append(nn.Sequential(body, nn.ReLU(), nn.Linear(32, 8)))
        return built[-1]

    record = Scene(network, steps=16).record(tmp_path)
    found = diagnose(record, model=built[-1], select=["unmoved_layer", "half_frozen"])
    assert [finding.name for finding in found] == ["unmoved_layer", "half_frozen"]
    body, norm = found
    assert body.sites == ("0.0",) and norm.sites == ("0.1",)
    assert body.cause_of == (norm.code,) and norm.caused_by == (body.code,)
    assert body.severity == norm.severity == "warning"  # a cause is as severe as what it brings about
    assert found.primary is body
