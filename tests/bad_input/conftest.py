"""Small models, a training of twelve steps under watch, and what an error of four lines looks like."""

import sys

import pytest
import torch
from torch import nn

import normscope as ns


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))


@pytest.fixture
def net():
    """A class to build on."""
    return Net


@pytest.fixture
def train(tmp_path):
    """Twelve watched steps, each third of them sampled; the record is diagnosed and reported as well."""

    def run(model, batch=lambda step: torch.randn(8, 4), loss=lambda out, model: out.square().mean(), **options):
        torch.manual_seed(0)
        path = tmp_path / "run"
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.device.type != "meta"], lr=0.1)
        with ns.watch(model, optimizer, path, every=3, **options):
            for step in range(12):
                optimizer.zero_grad()
                loss(model(batch(step)), model).backward()
                optimizer.step()
        record = ns.Record(path)
        assert record.complete and record.steps.tolist() == [0, 3, 6, 9]
        assert not [event.text for event in record.events if event.kind == "fault"]
        diagnosis = ns.diagnose(record, model=model)
        assert not diagnosis.faults
        ns.report(record, tmp_path / "report.html", diagnosis=diagnosis)
        return record

    return run


@pytest.fixture
def notes():
    return lambda record: [event.text for event in record.events if event.kind == "note"]


@pytest.fixture
def four_lines():
    """Whether an error reads in four lines; the lines."""

    def check(error):
        lines = str(error).splitlines()
        assert len(lines) == 4 and all(lines), error
        assert [line.split()[0] for line in lines[1:]] == ["found", "because", "do"]
        return lines

    return check


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line in this process: exit code, what is printed, what is printed beside it."""
    pytest.importorskip("typer")
    from normscope.cli.app import run

    def answer(*arguments):
        monkeypatch.setattr(sys, "argv", ["normscope", *map(str, arguments)])
        code = 0
        try:
            run()
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return answer
