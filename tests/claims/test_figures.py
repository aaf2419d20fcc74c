"""The figures: every one draws the runs of its claim, as an image and on the page."""

import pytest
from typer.testing import CliRunner

from normscope.claims import image, runner
from normscope.claims.bench import Bench
from normscope.claims.figure import figures
from normscope.claims.ledger import ledger
from normscope.claims.outcomes import Outcome, Outcomes
from normscope.claims.page import tree
from normscope.claims.registry import claim
from normscope.cli.app import app
from normscope.report.parts import Axis, Curve, Curves, Row

OUTCOMES = {
    "4.1": lambda case: {"final": 0.5 + 0.01 * case["batch"]},
    "2.1": lambda case: {"decades": [-2.0, -1.0, 0.0], "at_zero": 0.0},
    "4.7": lambda case: {"steps": [0, 5], "quantiles": [[-2, -1, 0, 1, 2]] * 2, "shift": 0.1, "final": 0.9},
    "0.11": lambda case: {"epochs_to": 3.0, "accuracy": [0.1, 0.9]},
    "1.7": lambda case: {"final": 0.9, "diverged": False},
    "0.14": lambda case: {
        "steps": [0, 1, 11],
        "moves": [0.1, 0.2],
        "landscape": {
            name: [1.0, 2.0, 3.0] for name in ("loss_variation", "gradient_predictiveness", "effective_smoothness")
        },
    },
    "4.2": lambda case: {"none": 1.0, "BatchNorm": 1.3, "kinds": {"convolution": 0.8, "batch norm": 0.2}},
}


def test_seven_figures_stand_for_seven_claims():
    assert sorted(figure.of for figure in figures()) == sorted(OUTCOMES)


@pytest.mark.parametrize("figure", figures(), ids=lambda figure: figure.name)
def test_a_figure_draws_the_runs_of_its_claim(figure):
    told = OUTCOMES[figure.of]
    cases = [case for case in claim(figure.of).cases_of("quick") if case["seed"] < 2]
    if figure.of == "4.7":
        told = lambda case: {**OUTCOMES["4.7"](case), "quantiles": [[at, at] for at in (-2, -1, 0, 1, 2)]}  # noqa: E731
    panels = figure.draw(Outcomes(Outcome(case, told(case)) for case in cases))
    assert panels and figure.en.endswith(".") and figure.zh.endswith("。") and figure.known_from
    for chart in panels.values():
        drawn = image.svg(chart)
        assert chart.title.endswith((".", ")")) and drawn.startswith("<svg") and "NaN" not in drawn


def test_an_image_holds_its_title_and_its_legend():
    chart = Curves("What one sees.", Axis("step"), Axis("loss"), tuple(Curve(name, (0, 1), (1, 2)) for name in "ab"))
    drawn = image.svg(chart)
    assert "What one sees." in drawn and ">a<" in drawn and ">b<" in drawn


def test_figures_are_written_where_the_runs_are(tmp_path):
    cache = tmp_path / "cache"
    for one in ("4.1", "2.1"):
        for job in runner.jobs(claim(one), "quick", Bench()):
            runner._keep(
                job.file(cache),
                {"values": OUTCOMES[one](job.case), "seconds": 1.0, "day": "2026-01-01", "case": job.case},
            )
    ran = CliRunner().invoke(app, ["claims", "figures", "-o", str(tmp_path / "out"), "--cache", str(cache)])
    assert ran.exit_code == 1 and "share_of_time: 21 runs are missing; normscope claims run 4.2" in ran.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "batch_sizes.svg",
        *(f"gradient_by_depth-{name}.svg" for name in ("sigmoid", "tanh", "relu", "leaky_relu")),
    }
    page = tree(ledger([claim("4.1")], cache=cache), lang="zh")
    (section,) = (section for section in page.sections if section.anchor == "figures")
    assert isinstance(section.parts[1], Row) and "Wu & He 2018" in section.parts[0].text
