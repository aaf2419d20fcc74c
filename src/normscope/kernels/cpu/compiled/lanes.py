"""Numbers side by side as one value, float32 each: what a kernel computes with where every loop must be vector code.

Of a plain loop the compiler makes vector code only where it can prove arrays apart, and it keeps sums over rows in
memory. With lanes both are said: sums stay in registers, and a store may go past the caches. On a machine with shorter
vectors the compiler takes several.
"""

# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from normscope.kernels.cpu.compiled.machine import LINE, as_float, inlined

_FEATURES = binding.get_host_cpu_features()
# four of the machine's vectors: three sums of so many numbers and what is read stay in its registers
LANES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
_FLAGS = ("reassoc", "contract", "nsz")
FLOATS, INTEGERS, _HALF, _BIT = (
    ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(1))
)
_PLACE = ir.IntType(32)


class _Kind(types.Type):
    """`LANES` values of one kind: float32, or whether something holds."""


NUMBERS, _which = _Kind("Lanes"), _Kind("Which")


@register_model(_Kind)
class _Model(models.PrimitiveModel):  # pyright: ignore[reportUntypedBaseClass]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS if kind == NUMBERS else _BIT)


def each(value: Any) -> Any:
    """A constant of each lane."""
    return ir.Constant(INTEGERS, [value] * LANES)


# numbers and arithmetic -------------------------------------------------------------------------------------


@intrinsic
def spread(context: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), args[0], _PLACE(0))
        return builder.shuffle_vector(one, ir.Constant(FLOATS, ir.Undefined), each(0))

    return NUMBERS(types.float32), code


@intrinsic
def total(context: Any, value: Any) -> Any:
    """The sum of the lanes."""

    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        some, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = (
                builder.shuffle_vector(
                    some, some, ir.Constant(ir.VectorType(_PLACE, width), list(range(at, at + width)))
                )
                for at in (0, width)
            )
            some = builder.fadd(*halves, flags=_FLAGS)
        return builder.extract_element(some, _PLACE(0))

    return types.float32(NUMBERS), code


def _said(function: Any, instruction: str) -> None:
    """Let a Python operator work on lanes, and on lanes and a number."""

    @intrinsic
    def both(context: Any, left: Any, right: Any) -> Any:
        def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=_FLAGS)

        return NUMBERS(NUMBERS, NUMBERS), code

    @overload(function)
    def operation(left, right):
        if left == NUMBERS and right == NUMBERS:
            return lambda left, right: both(left, right)
        if left == NUMBERS and isinstance(right, types.Float):
            return lambda left, right: both(left, spread(np.float32(right)))
        if isinstance(left, types.Float) and right == NUMBERS:
            return lambda left, right: both(spread(np.float32(left)), right)
        return None


for _operator, _instruction in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"),
    (operator.iadd, "fadd"), (operator.isub, "fsub"), (operator.imul, "fmul"),
):  # fmt: skip
    _said(_operator, _instruction)


# said of lanes and of a single number, so that a formula is written once for both


def below(left, right):
    """Where `left` is less than `right`; not where either is NaN."""


def where(which, left, right):
    """`left` where it holds, `right` elsewhere."""


def floor(value):
    """The greatest whole number that is not above."""


def power(value):
    """2 to a whole number from −126 to 127."""


@intrinsic
def _below(context: Any, left: Any, right: Any) -> Any:
    return _which(NUMBERS, NUMBERS), lambda _, builder, __, args: builder.fcmp_ordered("<", *args)


@intrinsic
def _where(context: Any, which: Any, left: Any, right: Any) -> Any:
    return NUMBERS(_which, NUMBERS, NUMBERS), lambda _, builder, __, args: builder.select(*args)


@intrinsic
def _floor(context: Any, value: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        signature = ir.FunctionType(FLOATS, [FLOATS])
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.floor.v{LANES}f32"), args)

    return NUMBERS(NUMBERS), code


@intrinsic
def _power(context: Any, value: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, args: Any) -> Any:
        whole = builder.fptosi(args[0], INTEGERS)
        return builder.bitcast(builder.shl(builder.add(whole, each(127)), each(23)), FLOATS)

    return NUMBERS(NUMBERS), code


@intrinsic
def _same(context: Any, value: Any) -> Any:
    return NUMBERS(NUMBERS), lambda _, __, ___, args: args[0]


def _as_lanes(kind: Any) -> Any:
    return _same if kind == NUMBERS else spread


@overload(below)
def _(left, right):
    if left != NUMBERS and right != NUMBERS:
        return lambda left, right: left < right
    first, second = _as_lanes(left), _as_lanes(right)
    return lambda left, right: _below(first(left), second(right))


@overload(where)
def _(which, left, right):
    if which != _which:
        return lambda which, left, right: left if which else right
    first, second = _as_lanes(left), _as_lanes(right)
    return lambda which, left, right: _where(which, first(left), second(right))


@overload(floor)
def _(value):
    return (lambda value: _floor(value)) if value == NUMBERS else (lambda value: np.floor(value))


@overload(power)
def _(value):
    if value == NUMBERS:
        return lambda value: _power(value)
    return lambda value: as_float(np.uint32((np.int32(value) + np.int32(127)) << np.int32(23)))


# memory -----------------------------------------------------------------------------------------------------


def _is_half(array: Any) -> bool:
    return array.dtype == types.uint16


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _widened(builder: Any, value: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(value, INTEGERS), each(16)), FLOATS)


def _rounded(builder: Any, value: Any) -> Any:
    """As bfloat16, to nearest even; NaN stays."""
    words = builder.bitcast(value, ir.VectorType(ir.IntType(16), 2 * LANES))
    low, high = (
        builder.shuffle_vector(words, words, ir.Constant(ir.VectorType(_PLACE, LANES), list(range(at, 2 * LANES, 2))))
        for at in (0, 1)
    )
    # more than half of the last place, or half of it behind an odd one
    one, half, nan = (ir.Constant(_HALF, [number] * LANES) for number in (1, 0x8000, 0x7FC0))
    up = builder.icmp_unsigned(">", builder.or_(low, builder.and_(high, one)), half)
    near = builder.add(high, builder.zext(up, _HALF))
    return builder.select(builder.fcmp_unordered("uno", value, value), nan, near)


@intrinsic
def within(context: Any, first: Any, last: Any) -> Any:
    """The lanes from `first` on and before `last`."""
    return _which(types.int64, types.int64), lambda _, builder, __, args: _between(builder, *args)


def _between(builder: Any, first: Any, last: Any) -> Any:
    places = ir.Constant(INTEGERS, list(range(LANES)))
    ends = []
    for end in (first, last):
        one = builder.insert_element(ir.Constant(INTEGERS, ir.Undefined), builder.trunc(end, ir.IntType(32)), _PLACE(0))
        ends.append(builder.shuffle_vector(one, ir.Constant(INTEGERS, ir.Undefined), each(0)))
    return builder.and_(builder.icmp_signed(">=", places, ends[0]), builder.icmp_signed("<", places, ends[1]))


def _masked(builder: Any, name: str, vector: Any, answer: Any, *args: Any) -> Any:
    """A call of LLVM's masked load or store."""
    kind = f"v{LANES}" + ("i16" if vector is _HALF else "f32")
    signature = ir.FunctionType(answer, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.{name}.{kind}.p0")
    return builder.call(function, args)


@intrinsic
def lanes(context: Any, array: Any, index: Any) -> Any:
    """The numbers of `array` from `index` on."""
    vector, size = (_HALF, 2) if _is_half(array) else (FLOATS, 4)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.load(_at(context, builder, signature.args[0], *args, vector), align=size)
        return _widened(builder, found) if size == 2 else found

    return NUMBERS(array, types.int64), code


@intrinsic
def some(context: Any, array: Any, index: Any, which: Any) -> Any:
    """`lanes`, but reading only some; 0 in the others."""
    vector, size = (_HALF, 2) if _is_half(array) else (FLOATS, 4)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _at(context, builder, signature.args[0], args[0], args[1], vector)
        found = _masked(
            builder, "load", vector, vector, place, ir.IntType(32)(size), args[2], ir.Constant(vector, None)
        )
        return _widened(builder, found) if size == 2 else found

    return NUMBERS(array, types.int64, _which), code


@intrinsic
def put(context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write all lanes from `index` on, rounded to nearest even."""
    vector, size = (_HALF, 2) if _is_half(array) else (FLOATS, 4)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _rounded(builder, args[2]) if size == 2 else args[2]
        builder.store(value, _at(context, builder, signature.args[0], args[0], args[1], vector), align=size)
        return context.get_dummy_value()

    return types.void(array, types.int64, NUMBERS), code


@intrinsic
def put_some(context: Any, array: Any, index: Any, value: Any, which: Any) -> Any:
    """`put`, but only some lanes."""
    vector, size = (_HALF, 2) if _is_half(array) else (FLOATS, 4)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _rounded(builder, args[2]) if size == 2 else args[2]
        place = _at(context, builder, signature.args[0], args[0], args[1], vector)
        _masked(builder, "store", vector, ir.VoidType(), value, place, ir.IntType(32)(size), args[3])
        return context.get_dummy_value()

    return types.void(array, types.int64, NUMBERS, _which), code


@intrinsic
def stream(context: Any, array: Any, index: Any, value: Any) -> Any:
    """`put` past the caches; the address must be that of a line of memory."""
    size = 2 if _is_half(array) else 4
    pieces = [list(range(at, at + min(LANES, LINE // size))) for at in range(0, LANES, LINE // size)]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _rounded(builder, args[2]) if size == 2 else args[2]
        # line by line, for a store of the form of `put`'s would be taken for the same, and go to the caches
        for places in pieces:
            kind = ir.VectorType(value.type.element, len(places))
            piece = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_PLACE, len(places)), places))
            at = builder.add(args[1], args[1].type(places[0]))
            written = builder.store(
                piece, _at(context, builder, signature.args[0], args[0], at, kind), align=min(LINE, size * LANES)
            )
            written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(array, types.int64, NUMBERS), code


@inlined
def load(array: Any, index: Any, which: Any, part: bool) -> Any:
    """`lanes`, or of a part `some`."""
    return some(array, index, which) if part else lanes(array, index)


@inlined
def store(array: Any, index: Any, value: Any, past: bool) -> None:
    """`put`, or `stream` with `past`."""
    if past:
        stream(array, index, value)
    else:
        put(array, index, value)


@intrinsic
def fetch(context: Any, array: Any, index: Any) -> Any:
    """Ask for the lines of the lanes at `index`, which need not be there, into the second cache.

    Into the first one it would wait for the same few buffers as loads do.
    """
    size = 2 if _is_half(array) else 4

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _at(context, builder, signature.args[0], *args, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [place.type, *(ir.IntType(32),) * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for line in range(0, LANES * size, LINE):
            builder.call(function, [builder.gep(place, [_PLACE(line)]), *map(ir.IntType(32), (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), code


@intrinsic
def once(context: Any) -> Any:
    """Compile this function once, rather than into each place that calls it."""

    def code(context: Any, builder: Any, _: Any, __: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), code
