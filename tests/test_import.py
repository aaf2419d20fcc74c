"""``import normscope`` is light, and every public name is there."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import normscope

OPTIONAL = {
    *("altair", "vl_convert", "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "typer", "click", "rich"),
    *("triton", "numba", "lightning", "pytorch_lightning", "transformers", "timm", "torchvision"),
    *("wandb", "tensorboard", "mlflow"),
}


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_normscope_loads_no_optional_package_and_not_even_torch():
    loaded = loaded_by("import normscope")
    assert "normscope" in loaded
    assert not loaded & (OPTIONAL | {"torch"})


def test_the_whole_core_loads_no_optional_package():
    loaded = loaded_by("import normscope as ns\nfor name in ns.__all__: getattr(ns, name)")
    assert {"torch", "numpy"} <= loaded
    # torch brings its own: what a bare `import torch` loads is not ours to answer for.
    assert not (loaded - loaded_by("import torch, torch.fx, torch.distributed")) & OPTIONAL


@pytest.mark.parametrize("name", normscope.__all__)
def test_every_public_name_is_there(name):
    assert getattr(normscope, name) is not None
    assert name in dir(normscope)


@pytest.mark.parametrize("verb", ["watch", "diagnose", "treat", "report"])
def test_a_verb_is_not_hidden_by_the_folder_of_its_name(verb):
    loaded_by(f"import normscope.verbs, normscope.{verb}\nimport normscope as ns\nns.{verb}.__call__")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'diagnoze'"):
        _ = normscope.diagnoze  # pyright: ignore


def test_editors_see_the_names_that_are_there():
    stub = Path(normscope.__file__).with_suffix(".pyi")
    typed = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {name: place if ":" in place else f"normscope:{name}" for name, place in normscope._FACE.items()}
    assert typed == table
