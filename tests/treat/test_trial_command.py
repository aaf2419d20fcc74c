"""`normscope trial`: from the command line, from a record's diagnosis, and on two ranks that torchrun starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import normscope as ns
from normscope.cli.app import app

PARTS = f"""
import runpy

made = runpy.run_path({str(Path(__file__).with_name("test_trial.py"))!r})


def parts():
    return made["build"], made["train_step"]


def without_step():
    return made["build"]
"""
ASKED = ("--treatment", "insert_norm", "--argument", "norm=BatchNorm", "--steps", "40", "--seeds", "3")


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "toy_trial.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("toy_trial", None)
    return "toy_trial:parts"


def test_a_trial_from_the_command_line_is_told_and_kept(factory, tmp_path):
    done = CliRunner().invoke(app, ["trial", factory, *ASKED, "--path", "run"])
    assert done.exit_code == 0 and "insert_norm norm=BatchNorm: holds" in done.output
    assert "log ratio of final loss -" in done.output and "seed 2  treated  40 steps" in done.output
    (kept,) = ns.Record(tmp_path / "run").trials
    assert kept.treatment == "insert_norm norm=BatchNorm" and len(kept.seeds) == 3


def test_as_json_and_with_code_1_when_it_does_not_help(factory):
    done = CliRunner().invoke(
        app, ["trial", factory, "--treatment", "freeze", "--steps", "5", "--seeds", "2", "--json", "-q"]
    )
    told = json.loads(done.output)
    assert done.exit_code == 1 and told["verdict"] == "unclear" and told["effect"]["value"] == 0.0


def test_what_cannot_be_tried_from_the_command_line(factory):
    run = CliRunner().invoke
    assert run(app, ["trial", factory]).exit_code == 2
    assert run(app, ["trial", factory, "--treatment", "insert_norm", "--argument", "norm"]).exit_code == 2
    wrong = run(app, ["trial", "toy_trial:without_step", "--treatment", "insert_norm"])
    assert isinstance(wrong.exception, ns.NormscopeError) and "parts of a trial" in str(wrong.exception)


def test_two_ranks_of_torchrun_agree_and_one_saves(factory, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "normscope"]
    done = subprocess.run(
        [*launch, "trial", factory, *ASKED, "--seeds", "2", "--path", "run", "--json", "-q"],
        capture_output=True, text=True, cwd=tmp_path, timeout=240,
    )  # fmt: skip
    told = json.loads(done.stdout)  # of rank 0 alone
    assert told["settings"]["ranks"] == 2 and told["effect"]["value"] < 0
    assert len(ns.Record(tmp_path / "run").trials) == 1
    alone = CliRunner().invoke(app, ["trial", factory, *ASKED, "--seeds", "2", "--json", "-q"])
    assert json.loads(alone.stdout)["arms"][0]["curves"][0] != told["arms"][0]["curves"][0]  # each rank has its data
