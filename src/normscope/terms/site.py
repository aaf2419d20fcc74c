"""A site: one place in a network where one tensor is observed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from normscope.terms.datum import Datum
from normscope.terms.errors import UnknownNameError
from normscope.terms.spec import NormSpec

What = Literal["input", "output", "gradient", "parameter", "update", "statistic"]
Role = Literal["norm", "producer", "activation", "other"]

_KEY = re.compile(r"^(?P<path>[^#:@]*)(#(?P<call>\d+))?(@(?P<name>[^:]+))?:(?P<what>[a-z]+)$")


@dataclass(frozen=True, repr=False)
class Site(Datum):
    """Where a tensor is observed. Two sites are the same place when their `key` is the same.

    Attributes:
        path: the module's path in the model (``"layer2.0.conv1"``); the root is ``""``. A call of a function inside
            ``forward`` is ``<path of the module that called it>/<function>``, such as ``"encoder/tanh"``.
        what: which tensor: the module's ``input`` or ``output``, the ``gradient`` of the loss with respect to that
            output (or to the parameter `name`), a ``parameter``, an ``update`` (the parameter's change by one
            optimizer step), or a ``statistic`` (a buffer).
        call: which call of the module within one forward pass, from 0.
        name: which parameter or buffer, for those tensors.
        role: what the module does: ``norm``, ``producer`` (linear, convolution, recurrent, embedding),
            ``activation`` or ``other``.
        kind: the class of the module, or the name of the function.
        depth: the place in execution order, from 0; -1 when it has not been seen to run.
        channel_axis: the axis of the tensor that holds channels (features, units); None when there is none.
        spec: for a norm, its description.
        feeds: the activation function that consumes this output at once, by torch's functional name (``"tanh"``).
        aliases: further paths under which the same module is registered.
    """

    path: str
    what: What = "output"
    call: int = 0
    name: str = ""
    role: Role = "other"
    kind: str = ""
    depth: int = -1
    channel_axis: int | None = None
    spec: NormSpec | None = None
    feeds: str | None = None
    aliases: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.path, self.what, self.call, self.name))  # what tells two places apart, and quick to say

    @property
    def key(self) -> str:
        """The site as one word: ``path[#call][@name]:what``.

        >>> Site("layer2.0.conv1", call=1).key
        'layer2.0.conv1#1:output'
        >>> Site("fc", "update", name="weight").key
        'fc@weight:update'
        """
        call = f"#{self.call}" if self.call else ""
        name = f"@{self.name}" if self.name else ""
        return f"{self.path}{call}{name}:{self.what}"

    @property
    def place(self) -> str:
        """The module as people say it: its path, ``(model)`` for the root, with the call when it is not the first."""
        return (self.path or "(model)") + (f"#{self.call}" if self.call else "")

    def at(self, what: What, name: str = "") -> Site:
        """Another tensor of the same module and call."""
        return Site(
            self.path, what, self.call, name, self.role, self.kind,
            self.depth, self.channel_axis, self.spec, self.feeds, self.aliases,
        )  # fmt: skip

    @staticmethod
    def parse(key: str, what: What = "output") -> Site:
        """The site that `key` names; a bare path means its `what`.

        >>> Site.parse("fc@weight:update").name
        'weight'
        >>> Site.parse("fc").key
        'fc:output'
        """
        match = _KEY.match(key if ":" in key else f"{key}:{what}")
        if match is None or match["what"] not in What.__args__:  # type: ignore[attr-defined]
            raise UnknownNameError(
                "A site was asked for by a name that is none.",
                found=f"`{key}`",
                because="a site is written path[#call][@name]:what, and what is one of " + ", ".join(What.__args__),  # type: ignore[attr-defined]
                do="write it like `layer2.0.conv1:output`, `fc@weight:update`, or only the path",
            )
        return Site(match["path"], match["what"], int(match["call"] or 0), match["name"] or "")  # type: ignore[arg-type]
