"""A page for each normalization, written from its catalog entry and its description.

``python -m normscope.norms.pages docs/norms`` writes them all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from normscope.norms import picture
from normscope.terms.catalog import ENTRIES, Entry
from normscope.terms.errors import UnknownNameError
from normscope.terms.spec import NormSpec

_AXES = {"N": "the batch", "C": "the channels", "S": "the positions"}
_FROM: Mapping[str, str] = MappingProxyType(
    {
        "input": "each input by itself",
        "batch": "this batch",
        "running": "an exponential average over batches",
        "cumulative": "the plain average of all batches",
        "population": "all batches merged as one population, within- and between-batch variance",
        "renormalized": "this batch, corrected towards the running statistics by bounded r and d outside the gradient",
        "ghost": "virtual batches, each by itself",
        "synchronized": "the batches of all processes",
        "online": "the stream of samples before each one",
        "given": "constants",
        "none": "nowhere: nothing is measured",
    }
)
_LEARNED_FIRST = "an exponential average that learns from the batch first, outside the gradient"
_SIGMA = {"rms": "√(mean x² + ε)", "l1": "mean |x − μ| · √(π/2)", "l2": "‖x − μ‖", "max": "max |x − μ|"}


def page(name: str) -> str:
    """The page of one normalization, as plain text that is Markdown too.

    Raises:
        UnknownNameError: no normalization of that name.
    """
    found = {entry.name.lower(): entry for entry in ENTRIES}.get(name.lower())
    if found is None:
        raise UnknownNameError(
            "The page of a normalization was asked for by a name that is none.",
            found=f"`{name}`",
            because="the catalog has no such row",
            do="choose one of " + ", ".join(entry.name for entry in ENTRIES),
        )
    parts = [f"# {found.name}", formula(found)]
    if found.spec is not None:
        parts += [_sharing(found.spec), "```text\n" + picture.as_text(found.spec) + "\n```"]
        parts += ["**Statistics**\n" + sources(found.spec)]
    parts += [f"**Use**\n{found.use}", f"**Avoid**\n{found.avoid}"]
    parts += [f"**Make**\n`{found.build}`", f"**Paper**\n{found.paper}."]
    return "\n\n".join(parts) + "\n"


def formula(entry: Entry) -> str:
    """What the normalization computes, in a line."""
    spec = entry.spec
    if spec is None:
        return f"`{entry.formula}`"
    top = "x − μ" if spec.center else "x"
    if spec.scale == "whiten":
        steps = "exact root" if spec.iterations is None else f"{spec.iterations} Newton steps"
        body, where = f"Σ^(−½) ({top})", f"Σ the covariance of the channels of a group, plus ε; {steps}"
    else:
        body, where = (
            f"({top}) / σ" if spec.center else f"{top} / σ",
            f"σ = {_SIGMA.get(spec.scale or '', '√(var + ε)')}",
        )
    if spec.affine:
        body = (f"({spec.weight_offset:g} + g) · " if spec.weight_offset else "g · ") + body
    if spec.bias:
        body += " + b"
    cast = "; in half precision the cast back comes before g" if spec.cast == "normalized" else ""
    eps = "ε the machine epsilon" if spec.eps is None else f"ε = {spec.eps:g}"
    return f"`y = {body}`, {where}; {eps}{cast}."


def sources(spec: NormSpec) -> str:
    """Where the statistics come from, in training and in use."""
    training = _LEARNED_FIRST if spec.train_from == "running" else _FROM[spec.train_from]
    told = f"- training: {training}\n- inference: {_FROM[spec.infer_from]}"
    return told + (f"\n- momentum {spec.momentum:g} (the weight of the newest batch)" if spec.momentum else "")


def _sharing(spec: NormSpec) -> str:
    axes = [_AXES[axis] for axis in "NCS" if axis in spec.over]
    if "C" in spec.over and spec.groups > 1:
        axes[axes.index(_AXES["C"])] = "the channels of a group"
    each = [word for axis, word in (("N", "sample"), ("C", "channel"), ("S", "position")) if axis not in spec.over]
    apart = f", for each {' and '.join(each)} apart" if each else ""
    return f"Statistics over {' and '.join(axes)}{apart}. Layout: {spec.layout.replace('_', ' ')}."


def write(folder: Path) -> None:
    """Write every page, its picture and the list of all into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["# Normalizations", "", "| name | training | inference | paper |", "| --- | --- | --- | --- |"]
    for entry in ENTRIES:
        text = page(entry.name)
        if entry.spec is not None:
            (folder / f"{entry.name}.svg").write_text(picture.as_svg(entry.spec), encoding="utf-8")
            drawn = f"![cells that share statistics]({entry.name}.svg)"
            text = text.replace("```text\n" + picture.as_text(entry.spec) + "\n```", drawn)
        (folder / f"{entry.name}.md").write_text(text, encoding="utf-8")
        told = (entry.spec.train_from, entry.spec.infer_from) if entry.spec is not None else ("", "")
        rows.append(f"| [{entry.name}]({entry.name}.md) | {told[0]} | {told[1]} | {entry.paper} |")
    (folder / "index.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
