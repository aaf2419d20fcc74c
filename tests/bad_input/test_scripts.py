"""Scripts that raise, are interrupted or are killed, and trainings that nobody has pointed out."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

import normscope as ns
from normscope.terms.errors import RecordError
from normscope.watch.script import INTERRUPTED, run

TRAINING = """
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
loose = {loose}
optimizer = torch.optim.SGD([*model.parameters(), *loose], lr=0.1)
for step in range(12):
    optimizer.zero_grad()
    (model(torch.randn(8, 4)) * (1 + sum(loose))).square().mean().backward()
    optimizer.step()
"""


@pytest.fixture
def script(tmp_path):
    def written(code):
        file = tmp_path / "train.py"
        file.write_text(textwrap.dedent(code))
        return file

    return written


def kinds(path):
    return [event.kind for event in ns.Record(path).events]


def test_a_script_that_raises_is_told_of_once(script, tmp_path, capsys):
    code = TRAINING.format(loose="[]") + "raise KeyboardInterrupt\n"
    assert run(script(code), [], tmp_path / "r") == INTERRUPTED
    assert kinds(tmp_path / "r") == ["crash", "end"] and ns.Record(tmp_path / "r").parts == ()
    assert "KeyboardInterrupt" in capsys.readouterr().err


def test_one_model_beside_loose_parameters_is_not_called_several(script, tmp_path, capsys, four_lines):
    code = TRAINING.format(loose="[nn.Parameter(torch.zeros(1))]") + "1 / 0\n"
    assert run(script(code), [], tmp_path / "r") == 1
    capsys.readouterr()
    (word,) = ns.Record(tmp_path / "r").events
    assert word.kind == "note" and "the one model" in word.text and "Several" not in word.text
    (part,) = ns.Record(tmp_path / "r").parts
    assert part == tmp_path / "r" / "Sequential" and kinds(part).count("crash") == 1
    with pytest.raises(RecordError) as caught:
        ns.diagnose(tmp_path / "r")
    assert str(part) in four_lines(caught.value)[3]


def test_a_script_that_raises_before_any_training_keeps_what_it_raised(script, tmp_path, capsys):
    assert run(script("raise ValueError('no data')"), [], tmp_path / "r") == 1
    capsys.readouterr()
    assert kinds(tmp_path / "r") == ["note", "crash"]


def test_a_model_that_learns_in_evaluation_mode_is_found(script, tmp_path):
    code = TRAINING.format(loose="[]").replace("loose = []", "loose = []\nmodel.eval()")
    assert run(script(code), [], tmp_path / "r", every=1) == 0
    record = ns.Record(tmp_path / "r")
    assert len(record.steps) >= 10 and len(record.series("0", "gradient_norm")) >= 9


def test_a_model_that_is_evaluated_with_gradients_before_it_learns_is_not_taken_early(script, tmp_path):
    code = TRAINING.format(loose="[]").replace("for step", "model.eval()(torch.ones(2, 4))\nmodel.train()\nfor step", 1)
    assert run(script(code), [], tmp_path / "r", every=1) == 0
    assert ns.Record(tmp_path / "r").steps.tolist() == list(range(12))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_mid_run_ends_the_script_and_keeps_the_record(number, script, tmp_path):
    path = tmp_path / "läuft schon"
    endless = TRAINING.format(loose="[]").replace("range(12)", "iter(int, 1)") + "    print(1, flush=True)\n"
    code = "import sys; from normscope.watch.script import run; sys.exit(run(sys.argv[1], [], sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(script(endless)), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has interrupts ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    while not path.is_dir() or not _steps(path):
        assert process.stdout.readline()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    record = ns.Record(path)
    assert record.steps[0] == 0
    if number == signal.SIGINT:
        assert process.returncode == INTERRUPTED and "KeyboardInterrupt" in error
        assert kinds(path) == ["crash", "end"] and record.complete
    else:
        assert process.returncode == 128 + signal.SIGTERM and kinds(path)[-1] == "end" and record.complete


def _steps(path):
    try:
        return len(ns.Record(path).steps)
    except RecordError:
        return 0


def test_the_command_says_which_records_there_are(script, tmp_path, command):
    pair = """
        import torch
        from torch import nn

        one, two = nn.Linear(2, 2), nn.Linear(2, 2)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (one, two)]
        for _ in range(3):
            for model, optimizer in zip((one, two), optimizers):
                model(torch.ones(4, 2)).sum().backward()
                optimizer.step()
    """
    path = tmp_path / "two models"
    code, out, err = command("run", "--path", path, script(pair))
    assert (code, out) == (0, "")
    for part in ns.Record(path).parts:
        assert f"normscope diagnose '{part}'" in err
    assert len(ns.Record(path).parts) == 2 and os.path.isdir(path)


def test_a_second_run_does_not_cover_the_record_of_the_first(script, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = TRAINING.format(loose="[]")
    for name in ("train", "train-2"):
        assert command("run", "--every", "4", script(code))[0] == 0
        record = ns.Record(tmp_path / "runs" / name)
        assert record.steps.tolist() == [0, 4, 8] and kinds(record.path) == ["end"]
