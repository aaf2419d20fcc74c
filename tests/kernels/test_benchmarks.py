"""What the kernel benchmarks do beside measuring: their check of our kernels, their pages, the table of costs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from normscope.kernels import costs, dispatch
from normscope.kernels.offer import Problem

PLACE = Path(__file__).parents[2] / "benchmarks"
NAMES = ("gpu", "kernels", "fit_costs", "problems")


@pytest.fixture(scope="module", autouse=True)
def place():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLACE))
        yield
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture
def gpu():
    return importlib.import_module("gpu")


@pytest.fixture
def kernels():
    return importlib.import_module("kernels")


def on_the_host(gpu, name):
    return next(case for case in gpu.cases(*gpu.SMALL, gpu.DTYPES) if case.name == name)


def test_the_traffic_that_cannot_be_avoided(gpu):
    case = next(case for case in gpu.cases(gpu.IMAGES, gpu.ROWS, ("bfloat16",)) if case.residual)
    assert [count * case.bytes for count in case.passes] == [3 * 2 * 64**4, 4 * 2 * 64**4]


def test_a_wrong_kernel_is_seen(gpu, monkeypatch):
    pytest.importorskip("triton")
    case = on_the_host(gpu, "layer + add + relu, small, float32, contiguous")
    assert gpu.wrong(case, "triton", "cpu") is None
    right = gpu.by
    factor = {"triton": 2.0, "reference": 1.0}
    monkeypatch.setattr(gpu, "by", lambda case, offer: lambda *these: right(case, offer)(*these) * factor[offer])
    assert gpu.wrong(case, "triton", "cpu").startswith("y is off by")


def test_a_row_that_fails_says_so_and_ends_no_other(gpu, monkeypatch, capsys):
    pytest.importorskip("triton")
    case = on_the_host(gpu, "layer, small, float32, contiguous")

    def broken(case):
        raise RuntimeError("first line\nout of registers")

    monkeypatch.setattr(gpu, "liger", lambda case: lambda *these: broken(case))
    row = gpu.measured(case, False, gpu.Rehearsal(), "cpu")
    assert row["liger_failed"] == "RuntimeError: out of registers" and row["triton"] == row["aten"] == [1.0] * 3
    monkeypatch.setattr(gpu, "wrong", lambda case, offer, device: broken(case))
    row = gpu.measured(case, False, gpu.Rehearsal(), "cpu")
    assert row["wrong"] == "RuntimeError: out of registers" and "triton" not in row
    text = gpu.written({case.name: row}, "A GPU", 4000.0, [case])
    assert "| **wrong: RuntimeError: out of registers** |" in text
    capsys.readouterr()


def test_a_rehearsal_writes_its_page(gpu, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--only", "rms add", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu, "is_usual", lambda case: False)
    gpu.main()
    held = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    assert len(held["rows"]) == 3 and not any(row["wrong"] for row in held["rows"].values())
    assert "| rms + add + relu, small, float16, contiguous |" in (tmp_path / "gpu-rehearsal.md").read_text()


def faked(kernels, ours: float) -> dict:
    """Rows in which our kernel takes `ours` times what torch takes, and 50 µs more."""
    rows = {}
    for case in kernels.every():
        torchs = 10 + case.elements * 1e-3
        row = {"case": case, "torch": [torchs] * 3, "aten": [torchs] * 3, "numba": [50 + ours * torchs] * 3}
        rows[case.name] = json.loads(json.dumps(row | {"copy": [3000.0] * 3} | dict.fromkeys(KEPT, 1.0)))
    return rows


KEPT = ("torch_kept", "aten_kept", "numba_kept")


@pytest.mark.parametrize(("ours", "small", "large"), [(0.5, "aten", "numba"), (1.2, "aten", "aten")])
def test_the_fitted_table_is_what_dispatch_chooses_by(kernels, monkeypatch, tmp_path, ours, small, large):
    pytest.importorskip("numba")
    fit = importlib.import_module("fit_costs")
    rows = faked(kernels, ours)
    held = {"machine": "A machine", "device": "cpu", "fresh": False, "rows": rows}
    (tmp_path / "kernels-cpu.json").write_text(kernels.lines_of(held))
    monkeypatch.setattr(sys, "argv", ["fit", str(tmp_path / "kernels-cpu.json"), "--out", str(tmp_path / "table.py")])
    fit.main()
    table: dict = {}
    exec((tmp_path / "table.py").read_text(), table)
    monkeypatch.setattr(costs, "COSTS", table["COSTS"])
    monkeypatch.setattr(dispatch, "_CHOSEN", {})
    chosen = kernels.chosen(rows)
    assert {row["choice"] for case, row in chosen.items() if case.elements <= 1 << 16} == {small}
    assert {row["choice"] for case, row in chosen.items() if case.elements >= 1 << 20} == {large}
    text = kernels.written(chosen, "A machine.")
    assert ("slower in 0" in text) and "**" not in text.split("| --- |")[-1]
    case = next(case for case in chosen if case.elements > 1 << 20 and case.activation)
    shape = (case.shape[0] // 2, *case.shape[1:])
    between = Problem(case.spec.but(activation="leaky_relu"), shape, getattr(torch, case.dtype), case.memory)
    assert costs.cost("aten", between) == pytest.approx(10 + 1e-3 * between.elements(), rel=0.02)
