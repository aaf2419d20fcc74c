"""A record that holds a trial and no step is a page all the same, a text, and a diagnosis without findings."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import normscope as ns
from normscope.cli.app import app
from normscope.terms.finding import Prescription


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    path = tmp_path_factory.mktemp("trial") / "alone"
    x = torch.randn(32, 8)

    def build():
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def step(model, optimizer, number):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    def both(seed):
        model = build()
        return model, torch.optim.SGD(model.parameters(), 0.1)

    norm = Prescription("insert_norm", ("1",), {"norm": "BatchNorm"}, words="a norm before tanh")
    ns.trial(both, step, [norm], steps=4, seeds=range(2), path=path)
    return path


def told(*args):
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_its_page_shows_both_arms(trial, tmp_path):
    pytest.importorskip("altair")
    page = ns.report(trial, tmp_path / "trial.html").read_text()
    assert "The record holds no sampled step." in page
    assert "2 seeds, 4 steps in each arm" in page


@pytest.mark.parametrize(
    ("lang", "words"), [("en", "No rule had anything to look at."), ("zh", "没有可供规则检查的内容")]
)
def test_its_text_says_that_no_rule_looked(trial, lang, words):
    assert words in told("report", trial, "--text", "--lang", lang)


def test_its_diagnosis_is_empty(trial):
    assert json.loads(told("diagnose", trial, "--format", "json"))["findings"] == []
    assert "No rule had anything to look at." in told("diagnose", trial)


def test_with_the_model_the_rules_that_read_models_look(trial):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    found = ns.diagnose(trial, model=model)
    assert [finding.name for finding in found] == ["bias_before_norm"]
    assert all(code.startswith("NS1") for code in found.rules)
