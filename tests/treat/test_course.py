"""A course of treatment keeps what helped, undoes what did not, and says which was which."""

import copy

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.terms.finding import Diagnosis, Evidence, Finding, Prescription
from normscope.treat.course import course

BATCH = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
NORMALIZE = Prescription("insert_norm", words="normalize before each tanh")
NOTHING_NEW = Prescription("freeze", words="freeze the norms")
WORSE = Prescription("reinitialize", arguments={"method": "he", "seed": 0}, words="draw the weights again")


def saturated():
    torch.manual_seed(0)
    layers = []
    for _ in range(4):
        linear = nn.Linear(8, 8)
        nn.init.normal_(linear.weight, std=3.0)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, 1))


def finding(*prescribed, code="NS202", name="saturated_activation", caused_by=()):
    told = Evidence("saturated", 0.9, 0.5)
    return Finding(code, name, "error", ("1",), name, told, 0, prescriptions=prescribed, caused_by=caused_by)


def share(model, found):
    """How much of what reaches the tanh layers is saturated."""
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.append((args[0].abs() > 2.18).float().mean()))
        for module in model.modules()
        if isinstance(module, nn.Tanh)
    ]
    with torch.no_grad():
        model(BATCH)
    for hook in hooks:
        hook.remove()
    return float(sum(seen) / len(seen))


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("inplace", [True, False])
def test_what_helps_is_kept_and_what_does_not_is_undone(inplace):
    model = saturated()
    before = bits(model)
    done = course(model, Diagnosis((finding(NOTHING_NEW, NORMALIZE, WORSE),)), share, data=BATCH, inplace=inplace)
    assert share(done.model, None) < 0.2 < 0.5 < share(saturated(), None)
    assert (done.model is model) == inplace
    told = done.changes[0]
    assert told.site == "" and told.before.startswith("NS202 saturated_activation: 0.")
    assert told.after.startswith("normalize before each tanh: 0.")
    assert [change.site for change in done.changes[1:]] == ["1", "3", "5", "7"]
    assert done.skipped[0][1] == (
        "undone, for it did not help against saturated_activation: freeze the norms (it changed nothing)"
    )
    weights = bits(done.model)
    assert all(torch.equal(before[name], weights[name]) for name in before if name in weights)  # not drawn again
    if not inplace:
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_nothing_is_left_of_what_did_not_help():
    model = saturated()
    before, modes = bits(model), [module.training for module in model.modules()]
    done = course(model, Diagnosis((finding(NORMALIZE, WORSE),)), lambda m, f: 1.0, data=BATCH, inplace=True)
    assert done.changes == () and done.preserves == "exact" and done.model is model
    assert [why.split(": ")[1].split(" (")[0] for _, why in done.skipped] == [
        "normalize before each tanh",
        "draw the weights again",
    ]
    assert all("(1 before, 1 after)" in why for _, why in done.skipped)
    assert [type(module) for module in model] == [type(module) for module in saturated()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]


def test_causes_come_first_and_what_went_with_them_needs_nothing():
    effect = finding(WORSE, code="NS201", name="vanishing_gradient", caused_by=("NS202",))
    done = course(
        saturated(), Diagnosis((effect, finding(NORMALIZE))),
        lambda model, found: 0.0 if len(list(model.modules())) > 12 else 1.0, data=BATCH,
    )  # fmt: skip
    assert done.changes[0].before.startswith("NS202") and len(done.changes) == 5
    assert done.skipped == (("", "NS201 vanishing_gradient is not there any more"),)


def test_what_a_batch_does_not_show_is_said_to_be_unmeasured():
    done = course(saturated(), Diagnosis((finding(NORMALIZE),)), lambda model, found: None, data=BATCH)
    assert done.changes[0].after == "normalize before each tanh; not measured: a batch does not show it"
    advice = finding(Prescription("", words="lower the learning rate"))
    assert course(saturated(), Diagnosis((advice,)), share, data=BATCH).skipped == (("", "lower the learning rate"),)


def test_a_treatment_that_refuses_is_passed_over():
    refused = Prescription("insert_norm", ("nowhere",), words="normalize nowhere")
    done = course(saturated(), Diagnosis((finding(refused, NORMALIZE),)), share, data=BATCH)
    assert done.skipped[0][1].startswith("normalize nowhere: A treatment was asked for at `nowhere`")
    assert share(done.model, None) < 0.2


def test_a_diagnosis_of_a_model_at_rest_is_treated_until_it_is_clean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    images = torch.randn(8, 1, 9, 9)
    found = ns.lint(model, example=images)
    assert "bias_before_norm" in {one.name for one in found}
    done = ns.treat(model, found, data=images)
    assert done.model[0].bias is None and done.changes[0].after.endswith(": 0") and model[0].bias is not None
    assert "bias_before_norm" not in {one.name for one in ns.lint(done.model, example=images)}


def test_a_symptom_of_the_rules_is_measured_on_the_batch():
    model = saturated()
    found = finding(NOTHING_NEW, NORMALIZE)
    done = ns.treat(model, Diagnosis((found,)), data=iter([BATCH]), loss_fn=lambda output, target: output.mean())
    assert done.changes[0].before.startswith("NS202 saturated_activation: 0.") and len(done.changes) == 5
    assert len(ns.treat(model, Diagnosis((found,))).changes) == 0  # without data: the first prescription, unmeasured
    assert len(ns.treat(copy.deepcopy(model), NORMALIZE).changes) == 4
