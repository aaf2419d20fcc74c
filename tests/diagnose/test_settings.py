"""Settings of a project: the nearest pyproject.toml, what it may hold, and rules that are silent at some sites."""

import pytest
import torch
from torch import nn

from normscope.diagnose.engine import lint
from normscope.diagnose.settings import Settings
from normscope.terms.errors import SpecError, UnknownNameError

pytest.importorskip("tomllib")

TABLE = """
[tool.normscope]
select = ["NS1", "NS2"]
ignore = "NS204"
fail-on = "warning"

[tool.normscope.per-site-ignores]
"backbone.*" = ["NS215", "bias_before_norm"]
"""


def test_the_nearest_file_upwards_is_read(tmp_path):
    (tmp_path / "pyproject.toml").write_text(TABLE)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = Settings.nearest(below)
    assert found == Settings(
        ("NS1", "NS2"),
        ("NS204",),
        "warning",
        {"backbone.*": ("NS215", "bias_before_norm")},
        tmp_path / "pyproject.toml",
    )


def test_a_nearer_file_without_the_table_ends_the_search(tmp_path):
    (tmp_path / "pyproject.toml").write_text(TABLE)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert Settings.nearest(tmp_path / "a") == Settings()


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("[tool.normscope]\nselct = ['NS1']", "the key `selct`"),
        ("[tool.normscope]\nselect = 3", "select = 3"),
        ("[tool.normscope]\nfail-on = 'fatal'", "fail-on = 'fatal'"),
        ("[tool.normscope]\nper-site-ignores = ['a']", "per-site-ignores = ['a']"),
        ("[tool.normscope", "Expected"),
    ],
)
def test_what_cannot_be_used_says_so_in_four_lines(tmp_path, table, found):
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(SpecError) as caught:
        Settings.nearest(tmp_path)
    told = str(caught.value).splitlines()
    assert len(told) == 4
    assert told[1].startswith("  found    " + found)
    assert told[3].startswith("  do       write it like")


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))


def test_a_rule_is_silent_at_the_sites_that_are_excused():
    example = torch.randn(32, 4)
    assert lint(_model(), example=example, select="NS101")[0].sites == ("0", "3")
    assert lint(_model(), example=example, select="NS101", per_site={"3": ["bias_before_norm"]})[0].sites == ("0",)
    assert not lint(_model(), example=example, select="NS101", per_site={"*": "NS1"})
    with pytest.raises(UnknownNameError):
        lint(_model(), per_site={"*": ["NS999"]})
