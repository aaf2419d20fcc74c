"""The command line as a user meets it: real processes, exit codes, what is printed where."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from normscope.__main__ import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def normscope(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "normscope", *args], capture_output=True, text=True, cwd=cwd, timeout=240
    )


@pytest.fixture
def here(monkeypatch, capsys):
    """The same command in this process, which has loaded torch already: (exit code, stdout, stderr)."""

    def normscope(*args: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["normscope", *args])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return end.value.code, told.out, told.err

    return normscope


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    done = normscope("run", "--path", str(path), "--every", "5", str(EXAMPLES / "plain_loop.py"), "--epochs", "1")
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize(
    "command",
    ["demo", "run", "lint", "diagnose", "trial", "report", "live", "compare", "export", "explain", "rules", "norms"],
)
def test_every_command_has_help_with_an_example(command):
    done = normscope(command, "--help")
    assert done.returncode == 0
    assert f"Example: normscope {command}" in " ".join(done.stdout.split())


def test_the_version_is_the_package_version():
    import normscope as ns

    assert normscope("--version").stdout.strip() == f"normscope {ns.__version__}"


@pytest.mark.parametrize("script", ["mixed_precision.py", "forgotten_zero_grad.py"])  # and `record` the third
def test_an_unchanged_script_runs_as_without_and_leaves_a_record(script, tmp_path):
    import normscope as ns

    bare = subprocess.run([sys.executable, str(EXAMPLES / script)], capture_output=True, text=True, check=True)
    watched = normscope("run", "--path", str(tmp_path / "run"), "--quiet", str(EXAMPLES / script))
    assert (watched.returncode, watched.stdout) == (0, bare.stdout)
    found = ns.Record(tmp_path / "run")
    assert found.complete
    assert 0 in found.steps
    assert len(found.sites) > 3


def test_diagnose_prints_findings_and_exits_with_their_code(record):
    done = normscope("diagnose", str(record), "--format", "json", "--fail-on", "note")
    told = json.loads(done.stdout)
    assert done.returncode == int(bool(told["findings"]))
    assert told["rules"]


def test_report_writes_the_page_and_prints_its_path(record, tmp_path):
    done = normscope("report", str(record), "-o", str(tmp_path / "deep" / "a.html"))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "deep" / "a.html"
    assert "<html" in (tmp_path / "deep" / "a.html").read_text(encoding="utf-8")


def test_report_as_text_needs_no_page(record):
    done = normscope("report", str(record), "--text")
    assert done.returncode == 0 and done.stdout.strip()


def test_lint_names_the_bias_before_the_norm(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())\n"
    )
    done = normscope("lint", "net:build", "--fail-on", "note", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "NS101" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["diagnose", "nowhere"], "RecordError"),
        (["report", "nowhere"], "RecordError"),
        (["explain", "NS999"], "UnknownNameError"),
        (["diagnose", "nowhere", "--select", "NS999"], "Error"),
        (["lint", "no_such_module:build"], "there is no module 'no_such_module'"),
        (["lint", "json"], "no colon"),
        (["lint", "json:nothing"], "'json' has no 'nothing'"),
        (["lint", "json:JSONEncoder"], "gives a JSONEncoder"),
    ],
)
def test_input_that_cannot_be_used_is_four_lines_and_exit_code_2(args, said, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    code, _, told = here(*args)
    assert code == 2
    assert said in told
    assert "\n  found    " in told and "\n  do       " in told


def test_an_error_of_ours_leaves_a_process_as_it_leaves_a_test(tmp_path):
    done = normscope("explain", "NS999", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("UnknownNameError") and "Traceback" not in done.stderr


def test_a_script_that_raises_raises_the_same_and_keeps_its_record(tmp_path):
    import normscope as ns

    script = tmp_path / "bad.py"
    script.write_text(
        "import torch\nm = torch.nn.Linear(2, 2); o = torch.optim.SGD(m.parameters(), 0.1)\n"
        "for i in range(5):\n    m(torch.ones(3, 2)).sum().backward(); o.step()\nraise RuntimeError('out of luck')\n"
    )
    done = normscope("run", "--path", str(tmp_path / "run"), str(script))
    assert done.returncode == 1
    assert "RuntimeError: out of luck" in done.stderr
    assert any(event.kind == "crash" and "out of luck" in event.text for event in ns.Record(tmp_path / "run").events)


def test_an_interrupted_script_ends_with_its_diagnosis_and_the_settings_say_of_what(tmp_path):
    script = tmp_path / "flat.py"
    script.write_text(
        "import torch; from torch import nn; torch.manual_seed(0)\n"
        "m = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))\n"
        "for p in m.parameters(): nn.init.normal_(p, std=3.0)\n"
        "o = torch.optim.SGD(m.parameters(), 0.01)\n"
        "for i in range(24):\n"
        "    x = torch.randn(64, 8); o.zero_grad()\n"
        "    nn.functional.cross_entropy(m(x), x[:, :4].argmax(1)).backward(); o.step()\n"
        "raise KeyboardInterrupt\n"
    )
    done = normscope("run", "--path", "run", "--every", "2", "flat.py", cwd=tmp_path)
    assert done.returncode == 130
    assert 0 < done.stderr.index("KeyboardInterrupt") < done.stderr.index("NS202")
    assert "With a norm before the activations" in " ".join(done.stderr.split()), "causes are tried on the model"
    (tmp_path / "pyproject.toml").write_text('[tool.normscope.per-site-ignores]\n"*" = ["NS2"]\n')
    assert normscope("diagnose", "run", "--select", "NS2", cwd=tmp_path).returncode == 0
    (tmp_path / "pyproject.toml").write_text('[tool.normscope]\nselect = ["NS202"]\nfail-on = "note"\n')
    assert normscope("diagnose", "run", cwd=tmp_path).returncode == 1
    assert normscope("diagnose", "run", "--select", "NS205", cwd=tmp_path).returncode == 0


def test_a_script_chooses_its_own_exit_code(tmp_path):
    (tmp_path / "s.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    done = normscope("run", "--quiet", "s.py", "--path", "mine", "-x", cwd=tmp_path)
    assert done.returncode == 7
    assert done.stdout == "['--path', 'mine', '-x']\n"


def test_explain_and_the_lists(here):
    assert "NS201" in here("rules")[1]
    assert {row["code"] for row in json.loads(here("rules", "--json")[1])} >= {"NS101", "NS201"}
    assert "GroupNorm" in here("norms")[1]
    assert "vanishing_gradient" in here("explain", "NS201")[1]
    assert "GroupNorm" in here("explain", "GroupNorm")[1]
