"""Pages are written from the catalog, and the committed ones are the present ones."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import normscope as ns
from normscope.kernels import measure
from normscope.norms import pages, picture
from normscope.terms.catalog import CATALOG, ENTRIES

DOCS = Path(__file__).parents[2] / "docs" / "norms"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_has_a_whole_page(entry):
    text = pages.page(entry.name)
    for heading in ("**Use**", "**Avoid**", "**Make**", "**Paper**"):
        assert heading in text
    assert "None" not in text and "  " not in re.sub(r"```.*?```", "", text, flags=re.S)
    for name in re.findall(r"normscope\.nn\.(\w+)", entry.build):
        assert hasattr(ns.nn, name), name


@pytest.mark.parametrize("name", [name for name in CATALOG if CATALOG[name].scale != "whiten"])
def test_the_picture_shows_the_cells_that_share(name):
    """A change of one cell moves exactly the statistics of the cells drawn with it."""
    spec = CATALOG[name]
    spec = spec.but(groups=2) if spec.groups > 1 else spec
    x = torch.zeros(picture.SAMPLES, picture.CHANNELS, picture.POSITIONS)
    x[0, 0, 0] = 1
    first = x if spec.layout == "channels_first" else x.movedim(1, -1)
    seen = measure(first, spec).var.expand(
        first.unflatten(
            1 if spec.layout == "channels_first" else -1, (spec.groups if "C" in spec.over else 6, -1)
        ).shape
    )
    axis = 1 if spec.layout == "channels_first" else first.ndim - 1
    moved = seen.flatten(axis, axis + 1)
    moved = moved if spec.layout == "channels_first" else moved.movedim(-1, 1)
    assert {tuple(cell) for cell in (moved > 0).nonzero().tolist()} == picture.together(spec)


def test_text_of_a_page():
    text = pages.page("groupnorm")
    assert "`y = g · (x − μ) / σ + b`, σ = √(var + ε); ε = 1e-05." in text
    assert "Statistics over the channels of a group and the positions, for each sample apart." in text
    assert "C3 ■ ■ ■ ■ ■   · · · · ·" in text and "C4 · · · · ·" in text
    with pytest.raises(ns.NormscopeError, match="choose one of BatchNorm, SyncBatchNorm"):
        pages.page("GrupNorm")


def test_pictures_are_svg():
    root = ElementTree.fromstring(picture.as_svg(CATALOG["BatchNorm"]))
    filled = [shape for shape in root.iter() if shape.get("class") == "on"]
    assert len(filled) == picture.SAMPLES * picture.POSITIONS


def test_committed_pages_are_up_to_date(tmp_path):
    pages.write(tmp_path)
    fresh = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    held = {path.name: path.read_text(encoding="utf-8") for path in DOCS.iterdir()}
    assert held == fresh, "run: python -m normscope.norms.pages docs/norms"
