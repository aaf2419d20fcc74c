"""An unchanged script under watch: the same output, arguments and exit code, and a record."""

import signal
import subprocess
import sys
import textwrap

import pytest

import normscope as ns
from normscope.terms.errors import RecordError
from normscope.watch.script import INTERRUPTED, run

PLAIN = """
import sys, torch
from torch import nn

def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss()
    with torch.no_grad():
        model(torch.randn(2, 4))
    for step in range(6):
        x = torch.randn(16, 4)
        optimizer.zero_grad()
        loss = criterion(model(x), (x.sum(1) > 0).long())
        loss.backward()
        optimizer.step()
    print(sys.argv[1:], __name__, f"{loss.item():.17g}", torch.rand(1).item())

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script(tmp_path):
    def written(code, name="train.py"):
        (tmp_path / name).write_text(textwrap.dedent(code))
        return tmp_path / name

    return written


@pytest.fixture
def kinds():
    return lambda path: [event.kind for event in ns.Record(path).events]


def alone(script, *args):
    return subprocess.run([sys.executable, str(script), *args], capture_output=True, text=True, cwd=script.parent)


def watched(script, *args, path="record"):
    code = f"import sys; from normscope.watch.script import run; sys.exit(run({str(script)!r}, {args!r}, {path!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=script.parent)


def test_a_script_prints_raises_and_exits_as_it_does_alone(script, tmp_path):
    (tmp_path / "sibling.py").write_text("def fail(text):\n    raise ValueError(text)\n")
    failing = script(
        PLAIN.replace("import sys, torch", "import sys, torch, sibling") + "    sibling.fail('to the end')\n"
    )
    one, other = alone(failing, "--rate", "0.1"), watched(failing, "--rate", "0.1")
    assert (one.stdout, one.stderr, one.returncode) == (other.stdout, other.stderr, other.returncode)
    record = ns.Record(tmp_path / "record")
    assert record.steps[0] == 0 and record.complete
    (crash,) = [event for event in record.events if event.kind == "crash"]
    assert crash.step == 6 and "to the end" in crash.text and "script.py" not in crash.data["traceback"]


def test_worker_processes_that_are_spawned_find_the_script(script, tmp_path):
    spawning = script(
        """
        import torch
        from torch.utils.data import DataLoader, Dataset

        class Numbers(Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                return torch.tensor([float(index)])

        if __name__ == "__main__":
            model = torch.nn.Linear(1, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
            loader = DataLoader(Numbers(), batch_size=4, num_workers=1, multiprocessing_context="spawn")
            for batch in loader:
                model(batch).sum().backward()
                optimizer.step()
            print("done")
        """
    )
    done = watched(spawning)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert list(ns.Record(tmp_path / "record").steps) == [0, 1]


def test_the_model_and_the_optimizer_are_found(script, tmp_path, capsys):
    assert run(script(PLAIN), ["a", "--b"], tmp_path / "r", every=2) == 0
    assert capsys.readouterr().out.startswith("['a', '--b'] __main__ ")
    record = ns.Record(tmp_path / "r")
    assert list(record.steps) == [0, 2, 4]
    assert record.summary("0:input", 0) is not None and record.summary("2@weight:update", 0) is not None
    assert len(record.series(None, "loss").values) == 3  # at the root of the backward pass
    assert {"0", "1", "2", ""} == {site.path for site in record.sites}
    from torch.nn.modules import module
    from torch.optim import optimizer

    assert not module._global_forward_pre_hooks and not optimizer._global_optimizer_pre_hooks
    assert "__main__" in sys.modules and sys.argv[1:] != ["a", "--b"]


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('no data')", 1, "no data\n"),
        ("raise KeyboardInterrupt", INTERRUPTED, "KeyboardInterrupt"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_every_end_of_a_script_is_its_own(end, code, said, script, tmp_path, capsys, kinds):
    assert run(script(f"{PLAIN}    {end}\n"), [], tmp_path / "r") == code
    error = capsys.readouterr().err
    assert error.strip().endswith(said.strip()) and "normscope" not in error
    told = [
        kind for kind in kinds(tmp_path / "r")[:-1] if kind != "note"
    ]  # which experiments so short a run is without
    assert told == (["crash"] if "Error" in error or "Interrupt" in error else [])


def test_a_script_that_is_none(script, tmp_path, capsys, kinds):
    assert run(tmp_path / "missing.py", [], tmp_path / "r") == 2
    assert "can't open file" in capsys.readouterr().err and not (tmp_path / "r").exists()
    assert run(script("def ("), [], tmp_path / "s") == 1
    assert "SyntaxError" in capsys.readouterr().err
    with pytest.raises(RecordError):
        run(script("pass"), [], tmp_path / "train.py")


def test_a_script_that_never_trains_says_so(script, tmp_path):
    assert run(script("import torch; torch.nn.Linear(2, 2)(torch.ones(1, 2))"), [], tmp_path / "r") == 0
    record = ns.Record(tmp_path / "r")
    assert list(record.steps) == []  # a forward pass in training mode is no training
    assert any("No training was seen" in event.text for event in record.events)


def test_several_models_have_a_record_each(script, tmp_path):
    gan = """
        import torch
        from torch import nn
        from torch.nn.functional import softplus

        class Generator(nn.Sequential): pass
        class Critic(nn.Sequential): pass

        g, d = Generator(nn.Linear(2, 4), nn.Linear(4, 2)), Critic(nn.Linear(2, 1))
        og, od = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters())
        for _ in range(3):
            od.zero_grad()
            (softplus(-d(torch.randn(8, 2))).mean() + softplus(d(g(torch.randn(8, 2)).detach())).mean()).backward()
            od.step()
            og.zero_grad()
            softplus(-d(g(torch.randn(8, 2)))).mean().backward()
            og.step()
    """
    assert run(script(gan), [], tmp_path / "r", every=1) == 0
    for name in ("Generator", "Critic"):
        assert list(ns.Record(tmp_path / "r" / name).steps) == [0, 1, 2]
    assert {place.name for place in (tmp_path / "r").iterdir() if place.is_dir()} == {"Generator", "Critic"}
    (note,) = ns.Record(tmp_path / "r").events
    assert "Critic" in note.text and "Generator" in note.text


def test_a_model_that_is_called_by_its_parts(script, tmp_path):
    parts = """
        import torch
        from torch import nn

        class Encoder(nn.Linear): pass
        class Decoder(nn.Linear): pass

        whole = nn.ModuleDict({"e": Encoder(4, 2), "d": Decoder(2, 4)})
        scale = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([*whole.parameters(), scale], lr=0.01)
        for _ in range(5):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            (scale * whole["d"](whole["e"](x)) - x).square().mean().backward()
            optimizer.step()
    """
    assert run(script(parts), [], tmp_path / "r", every=1) == 0
    for name in ("Encoder", "Decoder"):
        record = ns.Record(tmp_path / "r" / name)
        assert list(record.steps) == [0, 1, 2, 3, 4]
        assert record.summary("@weight:update", 4) is not None and record.summary(":output", 4) is not None
    assert any("1 parameters" in event.text for event in record.events)


def test_an_optimizer_that_comes_late_and_a_second_training(script, tmp_path):
    late = """
        import torch
        from torch import nn

        for fold in range(2):
            model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
            model(torch.ones(1, 2))  # before there is an optimizer
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(4):
                model(torch.ones(4, 2)).sum().backward()
                optimizer.step()
    """
    assert run(script(late), [], tmp_path / "r", every=1) == 0
    assert list(ns.Record(tmp_path / "r").steps) == [0, 1, 2, 3]
    second = ns.Record(tmp_path / "r" / "Sequential")
    assert len(second.steps) >= 3 and second.summary("0@weight:update", 2) is not None


TWO = """
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    body, head = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.01)
    {more}
    for number in range(12):
        x = torch.randn(16, 4)
        loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long())
        loss.backward()
        {steps}
"""


@pytest.mark.parametrize(
    ("more", "steps", "every", "seen"),
    [
        ("", "[(one.step(), one.zero_grad()) for one in (body, head)]", 1, (range(12), range(12))),
        ("", "one = (body, head)[number % 2]; one.step(), model.zero_grad()", 1, (range(0, 12, 2), range(1, 12, 2))),
        ("", "body.step(); number % 3 == 2 and (head.step(), head.zero_grad()); body.zero_grad()", 1,
         (range(12), range(2, 12, 3))),
        ("later = lambda: torch.optim.SGD(model[2].parameters(), lr=0.1)",
         "head = later() if number == 5 else head; body.step(), head.step(), model.zero_grad()", 1,
         (range(12), [*range(5), *range(6, 12)])),
    ],
    ids=["both", "in turn", "each third", "made later"],
)  # fmt: skip
def test_two_optimizers_of_one_model(more, steps, every, seen, script, tmp_path):
    path = tmp_path / "r"
    assert run(script(TWO.format(more=more, steps=steps)), [], path, every=every) == 0
    record = ns.Record(path)
    assert list(record.steps) == list(range(12)) and "fault" not in [event.kind for event in record.events]
    for key, steps_seen in zip(("0@weight", "2@weight"), seen):
        assert list(record.series(f"{key}:update", "update_ratio").steps) == list(steps_seen)
    assert not [finding for finding in ns.diagnose(record) if finding.name in ("unmoved_layer", "uneven_updates")]
    assert not any("not own" in event.text for event in record.events)


def test_keyword_arguments_and_compiled_models_are_found(script, tmp_path, capsys):
    keywords = """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, 2)

            def forward(self, *, x, mask=None):
                return {"loss": self.layer(x).square().mean()}

        for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
            model = Net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            called = wrap(model)
            for _ in range(3):
                optimizer.zero_grad()
                called(x=torch.ones(3, 2))["loss"].backward()
                optimizer.step()
    """
    assert run(script(keywords), [], tmp_path / "r", every=1) == 0
    for place in (tmp_path / "r", tmp_path / "r" / "Net"):
        record = ns.Record(place)
        assert record.meta["probe_gradient"] == "output.loss"
        assert record.summary("layer:output", 0, "probe") is not None
        assert "fault" not in [event.kind for event in record.events]
    assert capsys.readouterr().err == ""


def test_a_script_that_leaves_at_once_has_a_whole_record_and_last_words(script, tmp_path):
    """`os._exit` runs no `finally` and no `atexit`; a forked child that leaves so says nothing."""
    code = PLAIN.replace(
        "    print(sys.argv",
        """    import os
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    os._exit(7)
    print(sys.argv""",
    )
    said = """
import sys
from normscope.watch.script import run
last = lambda watchers, hurried: print("steps", len(watchers[0].record.steps))
sys.exit(run(sys.argv[1], [], sys.argv[2], every=1, afterwards=last))
"""
    call = [sys.executable, "-u", "-W", "ignore", "-c", said, str(script(code)), str(tmp_path / "r")]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, "steps 6\n", "")
    assert ns.Record(tmp_path / "r").complete


TERMINATED_BY_ITSELF = """
    import os, signal, torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    {before}
    try:
        for number in range(9):
            model(torch.ones(4, 2)).sum().backward()
            optimizer.step()
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("cleaned up")
    print("to the end")
"""


def test_a_script_that_is_asked_to_end_says_what_was_found(script, tmp_path, capsys, kinds):
    told = []
    code = run(
        script(TERMINATED_BY_ITSELF.format(before="")),
        [],
        tmp_path / "r",
        every=1,
        afterwards=lambda watchers, hurried: told.append((len(watchers[0].record.steps), hurried)),
    )
    assert (code, told) == (143, [(5, True)]) and capsys.readouterr().out == "cleaned up\n"
    (crash,) = [event for event in ns.Record(tmp_path / "r").events if event.kind == "crash"]
    assert crash.step == 5 and "Terminated" in crash.text and ns.Record(tmp_path / "r").complete
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_handles_the_wish_to_end_is_left_alone(script, tmp_path, capsys, kinds):
    before = "signal.signal(signal.SIGTERM, lambda *_: print('saved'))"
    assert run(script(TERMINATED_BY_ITSELF.format(before=before)), [], tmp_path / "r", every=1) == 0
    assert capsys.readouterr().out == "saved\ncleaned up\nto the end\n"
    assert "crash" not in kinds(tmp_path / "r") and len(ns.Record(tmp_path / "r").steps) == 9
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_child_of_a_watched_script_can_be_ended(script, tmp_path, capsys):
    forking = """
        import os, signal, time
        child = os.fork()
        if child == 0:
            try:
                time.sleep(60)
            finally:
                os._exit(9)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]))
    """
    assert run(script(forking), [], tmp_path / "r") == 0
    assert capsys.readouterr().out == "15\n"
