"""Every Triton kernel compiles to machine code for an H200 (sm_90), which needs no GPU and no interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest

INTEGERS = ("P", "sn", "sc", "sp", "tiles", "items", "chunk", "splits", "plane", "inner", "of_sample", "C", "groups")
INTEGERS = (*INTEGERS, "size", "R", "share", "programs", "gap", "pitch")
FLOATS = {"found": "fp64", "numbers": "fp64", "counts": "i32", "told": "i64"} | dict.fromkeys(
    ("mean", "var", "of_weight", "of_bias", "of_scale", "of_centre"), "fp32"
)
TILE = {"BJ": 4, "BP": 128, "AJ": 1, "AP": 4}  # smaller than on a GPU: what takes time here is the registers
SIDE = {"AJ": 8, "AP": 1}  # channels side by side
LINE = {"BJ": 64, "BP": 1, "AJ": 2, "AP": 1}
FIRST, LAST = ("sp", "inner"), ("sc", "tiles")  # arguments that are 1, which Triton makes constants of
BARE = ("weight", "bias", "residual", "more", "dr", "of_scale", "of_centre")

# module, kernel, arguments that are 1, arguments that are None, constants
KERNELS = [
    ("channels", "moments", FIRST, (), TILE),
    ("channels", "moments", ("sc", "C", "splits", "chunk"), (), {"BJ": 64, "BP": 8, "AJ": 1, "AP": 1}),
    ("channels", "settled", (), (), {"BJ": 4, "BK": 64, "EACH": False}),
    ("channels", "settled", ("inner", "splits", "groups"), (), {"BJ": 64, "BK": 1, "EACH": True}),
    ("channels", "mapped", FIRST, (), {"KIND": "relu", **TILE}),
    ("channels", "mapped", LAST, BARE, {"KIND": None, **TILE, **SIDE}),
    ("channels", "sums", FIRST, (), {"KIND": "leaky_relu", "KEPT": "y", **TILE}),
    ("channels", "sums", ("C", *LAST), BARE, {"KIND": "silu", "KEPT": None, **TILE, "AP": 1}),
    ("channels", "settled_back", ("inner", "splits"), BARE[:1], {"BJ": 64, "BK": 1, "EACH": True}),
    ("channels", "settled_back", (), (), {"BJ": 4, "BK": 64, "EACH": False}),
    ("channels", "mapped_back", FIRST, (), {"KIND": "gelu", "KEPT": "residual", **TILE}),
    ("channels", "mapped_back", LAST, BARE, {"KIND": None, "KEPT": None, **TILE, **SIDE}),
    ("groups", "forward", ("sp",), (), {"KIND": "gelu", "ONE": True, **TILE}),
    ("groups", "forward", ("sc", "P", "groups"), BARE, {"KIND": None, "ONE": False, **LINE}),
    ("groups", "backward", FIRST, BARE, {"KIND": None, "KEPT": None, "ONE": True, **TILE}),
    ("groups", "backward", ("sc",), (), {"KIND": "relu", "KEPT": "y", "ONE": False, **TILE, **SIDE}),
    ("rows", "forward", (), BARE, {"KIND": None, "RMS": True, "BR": 1, "BC": 1024, "ONE": True}),
    ("rows", "forward", ("R",), (), {"KIND": "silu", "RMS": False, "BR": 1, "BC": 512, "ONE": False}),
    ("rows", "backward", ("share",), BARE, {"KIND": None, "KEPT": None, "RMS": True, "BR": 2, "BC": 512}),
    ("rows", "backward_long", (), (), {"KIND": "relu", "KEPT": "y", "RMS": False, "BR": 1, "BC": 512}),
    ("summary", "summed", (), (), {"BINS": 2048, "LOWEST": -32, "ROOM": 4096, "BLOCK": 512}),
    ("summary", "summed", ("gap", "programs"), (), {"BINS": 2048, "LOWEST": -32, "ROOM": 4096, "BLOCK": 512}),
    ("summary", "merged", (), (), {"CELLS": 2052, "ROOM": 4096, "BJ": 256, "BK": 16}),
    ("summary", "merged", ("programs",), (), {"CELLS": 2052, "ROOM": 4096, "BJ": 256, "BK": 1}),
]


def compiled(number: int) -> tuple[int, bool]:
    """Compile a row of the table; how many bytes of machine code that is, and whether it reads many numbers at once."""
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    part, name, ones, none, constants = KERNELS[number]
    kernel = getattr(import_module(f"normscope.kernels.triton.compiled.{part}"), name)
    constants = {**constants, **{one: 1 for one in ones if one in kernel.arg_names}}
    constants |= {absent: None for absent in none if absent in kernel.arg_names}
    dtype = ("fp32", "bf16", "fp16")[number % 3]
    signature = {}
    for argument in kernel.arg_names:
        kind = FLOATS.get(argument, dtype)
        signature[argument] = (
            "constexpr" if argument in constants else "i32" if argument in INTEGERS
            else "fp32" if argument in ("eps", "offset") else f"*{kind}"
        )  # fmt: skip
    pointers = [place for place, argument in enumerate(kernel.arg_names) if signature[argument].startswith("*")]
    aligned = {(place,): [["tt.divisibility", 16]] for place in pointers}  # as torch's memory is
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm
    return len(made["cubin"]), re.search(r"ld\.global\S*\.v[248]", made["ptx"]) is not None


def test_every_kernel_compiles_for_a_gpu(tmp_path):
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
        pytest.skip("the way to compile without a GPU is that of Triton 3.6")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.split() for line in done.stdout.splitlines()]
    assert len(told) == len(KERNELS)
    for row, (_, wide) in zip(KERNELS, told, strict=True):
        hint = max(row[-1].get("AJ", 1), row[-1].get("AP", 1))
        assert hint < 4 or wide == "True", row


def test_the_table_holds_every_kernel():
    from pathlib import Path

    import normscope.kernels.triton.compiled as place

    written = set()
    for path in Path(place.__file__).parent.glob("*.py"):
        lines = path.read_text().splitlines()
        starts = [after for line, after in pairwise(lines) if line == "@triton.jit"]
        names = [line.removeprefix("def ").split("(")[0] for line in starts]
        written |= {(path.stem, name) for name in names if path.stem != "parts" and not name.startswith("_")}
    assert written == {row[:2] for row in KERNELS}


if __name__ == "__main__":
    for row in range(len(KERNELS)):
        print(*compiled(row))
