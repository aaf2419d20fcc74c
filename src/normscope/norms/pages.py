"""A page for each normalization, written from its catalog entry and its description.

``python -m normscope.norms.pages docs/norms`` writes them all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from normscope.norms import picture
from normscope.norms.conventions import CONVENTIONS
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
_CONVENTIONS = "# Batch normalization as Keras and flax write it\n"
_CONVERTED = """Keras' former fused kernel on a GPU kept the unbiased variance.

`normscope.norms.conventions` turns one library's numbers into another's: `momentum(0.99, "keras", "torch")` is 0.01,
`running_variance(value, "keras", "torch", cells=n)` takes the n cells that a statistic was taken over (batch size times
positions), and `state_dict(values, "flax", "torch")` renames a layer's arrays.
"""
_WITH_TORCH = """Keras' and flax' momentum, eps and variance: [conventions](conventions.md).

## With the rest of torch

Every layer has second derivatives, compiles with `fullgraph=True` to the same numbers and gradients, exports, copies,
works in `functional_call` and under activation checkpointing (a batch run again is normalized as it was the first time
and counted once), is one node to `torch.fx`, and keeps the dtype of its input. The exceptions:

| what | which | why |
| --- | --- | --- |
| second derivative | OnlineNorm | its gradient is a control process, not the derivative of a function |
| ONNX | DecorrelatedBatchNorm | ONNX has no eigen-decomposition: use IterNorm |
| pickle | layers with normalized weights | torch's parametrizations save their `state_dict` only |
| vmap | LSTM, GRU, RNN with norm None or "weight" | ATen's recurrent loop has no batching rule |
| vmap, in training | norms over the batch | their buffers hold one state |
| compile and checkpoint together | BatchRenorm, EstimatedBatchNorm, BatchChannelNorm, OnlineNorm, spectral_norm | \
compiled code would read statistics that have moved on, and raises |
| checkpoint around a compiled layer | norms over the batch | as torch's: compiled code counts the batch again |
| checkpoints out of order | spectral_norm | of several runs that wait at once, the last is taken to come back first |
| dtype | RMSNorm with a wider weight | torch's promotes |
| masks | LocalResponseNorm, DynamicTanh | they share nothing between positions |
"""
_SIGMA = {"rms": "√(mean x² + ε)", "l1": "mean |x − μ| · √(π/2)", "l2": "‖x − μ‖", "max": "max |x − μ|"}


def page(name: str) -> str:
    """The page of one normalization, as plain text that is Markdown too.

    Raises:
        UnknownNameError: no normalization of that name.
    """
    found = entry(name)
    parts = [f"# {found.name}", formula(found)]
    if found.spec is not None:
        parts += [_sharing(found.spec), "```text\n" + picture.as_text(found.spec) + "\n```"]
        parts += ["**Statistics**\n" + sources(found.spec)]
    parts += [f"**Use**\n{found.use}", f"**Avoid**\n{found.avoid}"]
    parts += [f"**Make**\n`{found.build}`", f"**Paper**\n{found.paper}."]
    return "\n\n".join(parts) + "\n"


def entry(name: str) -> Entry:
    """The row of one normalization.

    Raises:
        UnknownNameError: no normalization of that name.
    """
    found = {one.name.lower(): one for one in ENTRIES}.get(name.lower())
    if found is None:
        near = get_close_matches(name.lower(), [one.name.lower() for one in ENTRIES], 1)
        guess = "".join(f"did you mean {one.name}? " for one in ENTRIES if one.name.lower() in near)
        raise UnknownNameError(
            "The page of a normalization was asked for by a name that is none.",
            found=f"`{name}`",
            because="the catalog has no such row",
            do=f"{guess}choose one of " + ", ".join(one.name for one in ENTRIES),
        )
    return found


def formula(entry: Entry) -> str:
    """What the normalization computes, in a line."""
    spec = entry.spec
    if spec is None:
        return f"`{entry.formula}`"
    more = f" {entry.formula}" if entry.formula else ""
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
    return f"`y = {body}`, {where}; {eps}{cast}.{more}"


def sources(spec: NormSpec) -> str:
    """Where the statistics come from, in training and in use."""
    training = _LEARNED_FIRST if spec.train_from == "running" else _FROM[spec.train_from]
    told = f"- training: {training}\n- inference: {_FROM[spec.infer_from]}"
    return told + (f"\n- momentum {spec.momentum:g} (the weight of the newest batch)" if spec.momentum else "")


def conventions() -> str:
    """The page of what other libraries mean by the same words, from `normscope.norms.conventions`."""
    head = "| library | momentum m means | default | eps | running variance | weight, bias, mean, variance |"
    rows = [head, "| --- | --- | --- | --- | --- | --- |"]
    for row in CONVENTIONS.values():
        update = "r ← (1 − m) r + m · batch" if row.momentum_of_new else "r ← m r + (1 − m) · batch"
        kept = "unbiased, n/(n − 1)" if row.unbiased else "biased"
        rows.append(f"| {row.name} | {update} | {row.momentum:g} | {row.eps:g} | {kept} | {', '.join(row.keys)} |")
    return "\n".join([_CONVENTIONS, *rows, "", _CONVERTED])


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
    (folder / "index.md").write_text("\n".join([*rows, "", _WITH_TORCH]), encoding="utf-8")
    (folder / "conventions.md").write_text(conventions(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
