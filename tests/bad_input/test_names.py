"""Names that do not exist and places that cannot be, in Python and on the command line: four lines, exit code 2."""

import pytest

import normscope as ns
from normscope.terms.errors import DataError, ModelError, UnknownNameError


@pytest.mark.parametrize("name", ["NS999", "vanishing", ""])
def test_a_rule_that_does_not_exist(name, train, net, four_lines):
    record = train(net())
    for act in (
        lambda: ns.diagnose(record, select=name),
        lambda: ns.diagnose(record, ignore=[name]),
        lambda: ns.lint(net(), select=[name]),
    ):
        with pytest.raises(UnknownNameError) as caught:
            act()
        do = four_lines(caught.value)[3]
        assert "`normscope rules` lists all" in do
        assert ("did you mean `vanishing_gradient`?" in do) == (name == "vanishing")


def test_a_severity_that_does_not_exist(train, net, four_lines):
    record = train(net())
    for act in (lambda: ns.diagnose(record, fail_on="fatal"), lambda: ns.lint(net(), fail_on="fatal")):  # type: ignore
        with pytest.raises(UnknownNameError) as caught:
            act()
        assert "error, warning, note" in four_lines(caught.value)[3]


def test_the_command_line_says_it_in_four_lines_and_exits_with_two(train, net, command, tmp_path, four_lines):
    path = train(net()).path
    (tmp_path / "broken.py").write_text("def build():\n    raise ValueError('no weights')\n")
    file = tmp_path / "file"
    file.write_text("a file")
    for arguments, kind in {
        ("diagnose", tmp_path / "nowhere"): "RecordError",
        ("diagnose", path, "--select", "NS999"): "UnknownNameError",
        ("explain", "NS999"): "UnknownNameError",
        ("lint", "no_such_module:build"): "UnknownNameError",
        ("report", path, "-o", file / "below" / "report.html"): "DataError",
        ("run", "--path", file, tmp_path / "broken.py"): "RecordError",
    }.items():
        code, out, err = command(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith(f"{kind}: "), err
        four_lines(err.strip())


def test_a_function_that_cannot_build_the_model(tmp_path, monkeypatch, four_lines):
    from normscope.cli.factory import build

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "raising_factory.py").write_text("def build():\n    raise ValueError('no weights')\n")
    with pytest.raises(ModelError) as caught:
        build("raising_factory:build")
    assert "no weights" in four_lines(caught.value)[1]


def test_a_page_that_cannot_be_written(train, net, tmp_path, four_lines):
    (tmp_path / "file").write_text("a file")
    record = train(net())
    for out in (tmp_path / "file" / "report.html", tmp_path):
        with pytest.raises(DataError) as caught:
            ns.report(record, out)
        assert str(out) in four_lines(caught.value)[1]
    assert (tmp_path / "file").read_text() == "a file"
