"""Frozen data: what they say, what they refuse, what survives JSON."""

import json
import pickle

import pytest
import torch
import torch.nn.functional as F

from normscope.terms.activations import ACTIVATIONS, SLOPE_SHARE, activation_named
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import MissingExtraError, ShapeError, SpecError, UnknownNameError
from normscope.terms.finding import Diagnosis, Evidence, Finding, Prescription
from normscope.terms.site import Site
from normscope.terms.spec import NormSpec
from normscope.terms.verdict import Arm, Effect, Trial, Verdict


def test_an_error_reads_in_four_lines_and_survives_pickling():
    error = ShapeError(
        "GroupNorm was asked to split 30 channels into 32 groups.",
        found={"num_groups": 32, "num_channels": 30},
        because="every group must hold the same number of channels",
        do="choose a divisor of 30: 1, 2, 3, 5, 6, 10, 15, 30",
    )
    assert str(error) == (
        "GroupNorm was asked to split 30 channels into 32 groups.\n"
        "  found    num_groups=32, num_channels=30\n"
        "  because  every group must hold the same number of channels\n"
        "  do       choose a divisor of 30: 1, 2, 3, 5, 6, 10, 15, 30"
    )
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_missing_extra_names_the_command_that_installs_it():
    error = MissingExtraError.of("The report", "altair", "report")
    assert isinstance(error, ImportError)
    assert "do       pip install 'normscope[report]'" in str(error)


def test_a_spec_refuses_what_contradicts_itself():
    with pytest.raises(SpecError, match="axes that do not exist") as axes:
        NormSpec(over=frozenset("NX"), train_from="batch", infer_from="running")  # pyright: ignore
    assert "over=['N', 'X']" in axes.value.found
    with pytest.raises(SpecError, match="32 groups of channels"):
        NormSpec(over=frozenset("S"), train_from="input", infer_from="input", groups=32)
    with pytest.raises(SpecError, match="train_from='bacth'"):
        NormSpec(over=frozenset("NS"), train_from="bacth", infer_from="running")  # pyright: ignore
    with pytest.raises(SpecError, match="negative eps"):
        CATALOG["BatchNorm"].but(eps=-1e-5)
    with pytest.raises(SpecError, match="negative eps"):
        CATALOG["BatchNorm"].but(eps=float("nan"))


def test_a_spec_is_a_value():
    assert CATALOG["BatchNorm"] == CATALOG["BatchNorm"].but(eps=1e-5)
    assert hash(CATALOG["LayerNorm"]) != hash(CATALOG["RMSNorm"])
    assert json.loads(json.dumps(CATALOG["BatchNorm"].to_dict()))["over"] == ["N", "S"]
    assert repr(CATALOG["BatchNorm"]).startswith("NormSpec(over={'N', 'S'}, train_from='batch'")
    assert "RMSNorm" not in repr(CATALOG["RMSNorm"]) and "scale='rms'" in repr(CATALOG["RMSNorm"])
    assert CATALOG["LayerNorm"].per_sample and not CATALOG["BatchNorm"].per_sample
    assert CATALOG["BatchNorm"].keeps_state and not CATALOG["GroupNorm"].keeps_state


@pytest.mark.parametrize(
    "site",
    [
        Site(""),
        Site("layer2.0.conv1", "input", call=3),
        Site("fc", "update", name="weight"),
        Site("encoder/tanh", "gradient"),
        Site("parametrized", "parameter", name="parametrizations.weight.original0"),
    ],
)
def test_a_site_is_found_again_by_its_key(site):
    assert Site.parse(site.key).key == site.key


def test_a_site_key_that_is_none_is_refused():
    with pytest.raises(UnknownNameError, match="found    `fc:outptu`"):
        Site.parse("fc:outptu")


def _diagnosis() -> Diagnosis:
    evidence = Evidence("saturated", 0.9, 0.5, (0, 10), "share", "Glorot & Bengio 2010", (("a:input", 0.9),))
    cure = Prescription("insert_norm", ("a",), {"norm": "BatchNorm"}, "put a norm before `a`")
    root = Finding(
        "NS202", "saturated_activation", "error", ("a:input",), "…", evidence, 0, "…", ("NS201",), (), (cure,)
    )
    symptom = Finding("NS201", "vanishing_gradient", "error", ("b",), "…", evidence, 0, "…", (), ("NS202",))
    return Diagnosis((symptom, root), ("NS201", "NS202"), (), "runs/a")


def test_the_primary_finding_is_a_cause_and_a_diagnosis_survives_json():
    diagnosis = _diagnosis()
    assert diagnosis.primary is not None and diagnosis.primary.code == "NS202"
    assert diagnosis.prescriptions[0].treatment == "insert_norm"
    assert Diagnosis.from_dict(json.loads(diagnosis.to_json())) == diagnosis


@pytest.mark.parametrize(("fail_on", "code"), [("error", 0), ("warning", 1), ("note", 1)])
def test_the_exit_code_counts_findings_at_least_as_severe(fail_on, code):
    note = Finding("NS101", "x", "warning", (), "…", Evidence("q", 1.0, 0.5))
    assert Diagnosis((note,), fail_on=fail_on).exit_code == code
    assert Diagnosis((), fail_on=fail_on).exit_code == 0


def test_a_trial_survives_json_with_its_nans():
    arms = (Arm("untreated", ((1.0, float("nan")),), ((0, "diverged"),)), Arm("treated", ((1.0, 0.5),)))
    trial = Trial("norm", (0,), 2, arms, Effect(-1.0, -2.0, float("nan")), Verdict.UNCLEAR)
    again = Trial.from_dict(json.loads(json.dumps(trial.to_dict(), allow_nan=False)))
    assert again.treated == trial.treated and again.verdict is Verdict.UNCLEAR
    assert again.untreated.curves[0][1] != again.untreated.curves[0][1]
    assert again.untreated.broke == ((0, "diverged"),)


def test_every_datum_shows_itself_in_a_notebook_escaped():
    assert "&lt;b&gt;" in Site("<b>", kind="Linear")._repr_html_()


_SMOOTH = ["sigmoid", "tanh", "softsign", "logsigmoid", "elu", "celu", "selu", "softplus", "gelu", "silu", "mish"]


@pytest.mark.parametrize("name", _SMOOTH)
def test_saturation_points_solve_their_equation(name):
    function = getattr(torch, name, None) or getattr(F, name)
    x = torch.linspace(-12, 12, 2_400_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    steep = (slope.abs() >= SLOPE_SHARE * slope.abs().max()).nonzero().flatten()
    low, high = x[steep[0]].item(), x[steep[-1]].item()
    row = ACTIVATIONS[name]
    assert row.low == pytest.approx(low, abs=2e-4) if low > -11 else row.low is None
    assert row.high == pytest.approx(high, abs=2e-4) if high < 11 else row.high is None


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains_are_those_of_torch_but_for_selu_and_leaky_defaults(name):
    assert ACTIVATIONS[name].gain == pytest.approx(torch.nn.init.calculate_gain(name))


def test_an_activation_is_found_by_either_name():
    assert activation_named("ReLU") is activation_named("relu_") is ACTIVATIONS["relu"]
    assert activation_named("Linear") is None and activation_named(None) is None
    assert ACTIVATIONS["gelu"].saturates and not ACTIVATIONS["relu"].saturates


def test_a_diagnosis_reads_finding_by_finding():
    evidence = Evidence("saturated", 0.9, 0.5)
    cure = Prescription("insert_norm", ("1",), words="put a norm before `1`")
    found = Finding(
        "NS202", "saturated_activation", "error", ("1",), "90% of <b> is flat.", evidence, prescriptions=(cure,)
    )
    diagnosis = Diagnosis((found,), ("NS201", "NS202"), subject="runs/a")
    assert repr(diagnosis).splitlines() == [
        "Diagnosis of runs/a: 1 finding by 2 rules",
        "  NS202 saturated_activation (error): 90% of <b> is flat.",
    ]
    assert "90% of &lt;b&gt; is flat." in diagnosis._repr_html_() and "put a norm before" in diagnosis._repr_html_()
    assert repr(Diagnosis()) == "Diagnosis: no findings by 0 rules"
