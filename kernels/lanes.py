"""Vector instructions for the compiled CPU kernels: what runs over every logit, written as LLVM IR.

A block is 128 consecutive logits. Its 16-bit or 32-bit words are read from an address, 16 or 32 at a time, and every
addition has its place in a fixed tree: LLVM lowers the same IR to AVX-512, AVX2 or NEON, so the sums have the same bits
on each of them and whatever the batch. Numba's own loop vectoriser promises neither the speed nor the order.

``kind`` says how a word is to be read: `BF16`, `FP16` or `FP32`. It must be a constant where it is used.
"""

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

BLOCK: Final = 128
"""Logits per block."""

BF16: Final = 0
FP16: Final = 1
FP32: Final = 2

_WIDTH = 16
_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_F32S = ir.VectorType(_F32, _WIDTH)
_I32S = ir.VectorType(_I32, _WIDTH)
_WORD_BITS = {BF16: 16, FP16: 16, FP32: 32}
_INFINITY_BITS = {BF16: 0x7F80, FP16: 0x7C00, FP32: 0x7F800000}

EXP2 = (1.0, 0.6931472, 0.24022648, 0.05550329, 0.009618374, 0.0013399848, 0.00015370705)
"""2**f = sum of EXP2[i] * f**i for |f| <= 1/2, to 2.2e-9 of its value (8e-8 evaluated in float32): least squares of the
relative error on Chebyshev nodes, rounded to float32."""

ROUND = 1.5 * 2.0**23
"""Added to a float32 below 2**22, leaves the nearest integer in the low bits of its significand."""


def _ints(value: int, bits: int, width: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(bits), width), [value] * width)


def _floats(value: float) -> ir.Constant:
    return ir.Constant(_F32S, [value] * _WIDTH)


def _splat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(_F32S, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_I32S, [0] * _WIDTH))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return _call(builder, "llvm.fma.v16f32", _F32S, a, b, c)


def _load(builder: ir.IRBuilder, address: ir.Value, offset: int, lanes: ir.VectorType) -> ir.Value:
    """Lanes of integers; their address is a multiple of one lane's size."""
    at = builder.add(address, address.type(offset))
    return builder.load(builder.inttoptr(at, lanes.as_pointer()), align=lanes.element.width // 8)


def _load_floats(builder: ir.IRBuilder, kind: int, address: ir.Value, first: int) -> ir.Value:
    """Logits ``first`` to ``first + 15`` of the block, as float32."""
    if kind == FP32:
        return builder.bitcast(_load(builder, address, 4 * first, _I32S), _F32S)
    words = _load(builder, address, 2 * first, ir.VectorType(ir.IntType(16), _WIDTH))
    if kind == FP16:
        return builder.fpext(builder.bitcast(words, ir.VectorType(ir.HalfType(), _WIDTH)), _F32S)
    return builder.bitcast(builder.shl(builder.zext(words, _I32S), _ints(16, 32, _WIDTH)), _F32S)


def _halved(builder: ir.IRBuilder, lanes: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """One value of all lanes: the upper half onto the lower, until one is left."""
    width = lanes.type.count
    while width > 1:
        width //= 2
        low, high = (ir.Constant(ir.VectorType(_I32, width), list(range(at, at + width))) for at in (0, width))
        lanes = combine(builder.shuffle_vector(lanes, lanes, low), builder.shuffle_vector(lanes, lanes, high))
    return builder.extract_element(lanes, _I32(0))


def _paired(values: list[ir.Value], combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """One value of a power of two of them, neighbours first."""
    while len(values) > 1:
        values = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _key(builder: ir.IRBuilder, kind: int, words: ir.Value) -> ir.Value:
    """Unsigned integers in the order of the floats: 0 for -inf, NaN of either sign above +inf, -0 just below +0."""
    bits, width = _WORD_BITS[kind], words.type.count
    sign = builder.ashr(words, _ints(bits - 1, bits, width))
    ordered = builder.xor(words, builder.and_(sign, _ints(2 ** (bits - 1) - 1, bits, width)))
    return builder.add(ordered, _ints(_INFINITY_BITS[kind] + 1, bits, width))


def _from_key(builder: ir.IRBuilder, kind: int, key: ir.Value) -> ir.Value:
    """The float32 of one key."""
    bits = _WORD_BITS[kind]
    word = ir.IntType(bits)
    ordered = builder.sub(key, word(_INFINITY_BITS[kind] + 1))
    sign = builder.ashr(ordered, word(bits - 1))
    raw = builder.xor(ordered, builder.and_(sign, word(2 ** (bits - 1) - 1)))
    if kind == FP32:
        return builder.bitcast(raw, _F32)
    if kind == FP16:
        return builder.fpext(builder.bitcast(raw, ir.HalfType()), _F32)
    return builder.bitcast(builder.shl(builder.zext(raw, _I32), _I32(16)), _F32)


def _allowed(builder: ir.IRBuilder, mask: ir.Value, first: int, width: int) -> ir.Value:
    """Bits ``first`` to ``first + width - 1`` of the bitmask at an address, as lanes of one bit."""
    at = builder.add(mask, mask.type(first // 8))
    word = ir.IntType(width)
    bits = builder.load(builder.inttoptr(at, word.as_pointer()), align=1)
    return builder.bitcast(bits, ir.VectorType(ir.IntType(1), width))


def _powers(builder: ir.IRBuilder, d: ir.Value, rate: ir.Value, rate_rest: ir.Value) -> ir.Value:
    """2**(d * (rate + rate_rest)), for exponents from -126 to 126: range reduction, then the polynomial."""
    shifted = _fma(builder, d, rate, _floats(ROUND))
    n = builder.fsub(shifted, _floats(ROUND))
    f = _fma(builder, d, rate, builder.fneg(n))
    f = _fma(builder, d, rate_rest, f)
    power = _floats(EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        power = _fma(builder, power, f, _floats(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _I32S), _ints(23, 32, _WIDTH))
    return builder.bitcast(builder.add(builder.bitcast(power, _I32S), exponent), _F32S)


def _within(builder: ir.IRBuilder, x: ir.Value, lower: ir.Value, upper: ir.Value) -> ir.Value:
    return builder.and_(builder.fcmp_ordered(">=", x, lower), builder.fcmp_ordered("<=", x, upper))


def _packed(builder: ir.IRBuilder, lanes: ir.Value, chosen: ir.Value, address: ir.Value) -> None:
    """Writes the chosen lanes (of 32 bits) one after the other; what follows them, up to 16, is overwritten."""
    lanes = builder.bitcast(lanes, _I32S)
    together = _call(
        builder, "llvm.experimental.vector.compress.v16i32", _I32S, lanes, chosen, ir.Constant(_I32S, ir.Undefined)
    )
    builder.store(together, builder.inttoptr(address, _I32S.as_pointer()), align=4)


def _num_chosen(builder: ir.IRBuilder, chosen: ir.Value) -> ir.Value:
    return builder.zext(builder.ctpop(builder.bitcast(chosen, ir.IntType(_WIDTH))), ir.IntType(64))


@intrinsic(prefer_literal=True)
def block_max(typing_context: Any, kind: Any, masked: Any, address: Any, mask: Any) -> Any:
    """The largest of the block's logits as float32: -inf if none is allowed, NaN if an allowed one is NaN.

    ``masked`` (a constant) says whether ``mask`` is the address of the block's 16 bytes of bitmask.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        bits = _WORD_BITS[kind.literal_value]
        width = 512 // bits
        lanes = ir.VectorType(ir.IntType(bits), width)
        keys = []
        for first in range(0, BLOCK, width):
            key = _key(builder, kind.literal_value, _load(builder, args[2], first * bits // 8, lanes))
            if masked.literal_value:
                key = builder.select(_allowed(builder, args[3], first, width), key, _ints(0, bits, width))
            keys.append(key)
        most = _paired(keys, lambda a, b: _call(builder, f"llvm.umax.v{width}i{bits}", lanes, a, b))
        most = _call(builder, f"llvm.vector.reduce.umax.v{width}i{bits}", lanes.element, most)
        return _from_key(builder, kind.literal_value, most)

    return types.float32(kind, masked, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def block_sum(typing_context: Any, kind: Any, masked: Any, address: Any, mask: Any, scale: Any) -> Any:
    """The sum of the weights of the block's allowed logits, float32, and whether every logit of the block, allowed or
    not, was above the scale's ``least``. ``scale`` is a `Scale`."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        top, *rate, least = (_splat(builder, value) for value in cgutils.unpack_tuple(builder, args[4], 4))
        sums, counted = [], []
        for first in range(0, BLOCK, _WIDTH):
            d = builder.fsub(_load_floats(builder, kind.literal_value, args[2], first), top)
            counts = builder.fcmp_ordered(">", d, least)
            counted.append(counts)
            if masked.literal_value:
                counts = builder.and_(counts, _allowed(builder, args[3], first, _WIDTH))
            sums.append(builder.select(counts, _powers(builder, d, *rate), _floats(0.0)))
        mass = _halved(builder, _paired(sums, builder.fadd), builder.fadd)
        bits = builder.bitcast(_paired(counted, builder.and_), ir.IntType(_WIDTH))
        return context.make_tuple(
            builder, signature.return_type, [mass, builder.icmp_unsigned("==", bits, bits.type(2**_WIDTH - 1))]
        )

    return types.Tuple([types.float32, types.boolean])(kind, masked, types.int64, types.int64, scale), emit


@intrinsic(prefer_literal=True)
def reaching(typing_context: Any, kind: Any, address: Any, bound: Any) -> Any:
    """Which of 64 logits are at least ``bound``: bit i, of 64, for the i-th. NaN never is."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        least = _splat(builder, args[2])
        found = []
        for first in range(0, 64, _WIDTH):
            x = _load_floats(builder, kind.literal_value, args[1], first)
            bits = builder.bitcast(builder.fcmp_ordered(">=", x, least), ir.IntType(_WIDTH))
            found.append(builder.shl(builder.zext(bits, ir.IntType(64)), ir.IntType(64)(first)))
        return _paired(found, builder.or_)

    return types.uint64(kind, types.int64, types.float32), emit


@intrinsic
def weigh(typing_context: Any, logits: Any, weights: Any, scale: Any) -> Any:
    """The weights of 16 float32 logits at the address ``logits``, written to the address ``weights``."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        top, *rate, least = (_splat(builder, value) for value in cgutils.unpack_tuple(builder, args[2], 4))
        d = builder.fsub(_load_floats(builder, FP32, args[0], 0), top)
        counts = builder.fcmp_ordered(">", d, least)
        weights = builder.select(counts, _powers(builder, d, *rate), _floats(0.0))
        builder.store(weights, builder.inttoptr(args[1], _F32S.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, scale), emit


@intrinsic
def sum_reaching(typing_context: Any, logits: Any, weights: Any, bound: Any) -> Any:
    """The sum of those of 128 weights whose logit is at least ``bound``: float32, of float32 at two addresses."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        least = _splat(builder, args[2])
        sums = []
        for first in range(0, BLOCK, _WIDTH):
            chosen = builder.fcmp_ordered(">=", _load_floats(builder, FP32, args[0], first), least)
            sums.append(builder.select(chosen, _load_floats(builder, FP32, args[1], first), _floats(0.0)))
        return _halved(builder, _paired(sums, builder.fadd), builder.fadd)

    return types.float32(types.int64, types.int64, types.float32), emit


@intrinsic(prefer_literal=True)
def pack_block(typing_context: Any, kind: Any, masked: Any, address: Any, mask: Any, bound: Any, target: Any) -> Any:
    """Writes id and logit of the block's allowed logits that are at least ``bound``, ids ascending; how many they are.

    ``target`` is the id of the block's first token, and the addresses of int32 ids and float32 logits: there must be
    room for 16 beyond what is written.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        least = _splat(builder, args[4])
        first_id, ids, logits = cgutils.unpack_tuple(builder, args[5], 3)
        first_id = builder.bitcast(_splat(builder, builder.bitcast(builder.trunc(first_id, _I32), _F32)), _I32S)
        written = ir.IntType(64)(0)
        for first in range(0, BLOCK, _WIDTH):
            x = _load_floats(builder, kind.literal_value, args[2], first)
            chosen = builder.fcmp_ordered(">=", x, least)
            if masked.literal_value:
                chosen = builder.and_(chosen, _allowed(builder, args[3], first, _WIDTH))
            at = builder.shl(written, written.type(2))
            _packed(builder, x, chosen, builder.add(logits, at))
            offsets = ir.Constant(_I32S, list(range(first, first + _WIDTH)))
            _packed(builder, builder.add(first_id, offsets), chosen, builder.add(ids, at))
            written = builder.add(written, _num_chosen(builder, chosen))
        return written

    target_type = types.UniTuple(types.int64, 3)
    return types.int64(kind, masked, types.int64, types.int64, types.float32, target_type), emit


@intrinsic
def pack(typing_context: Any, sources: Any, targets: Any, lower: Any, upper: Any) -> Any:
    """Of 16 entries of several arrays, moves those whose logit is from ``lower`` to ``upper``; how many they are.

    ``sources`` and ``targets`` are the addresses of the arrays' entries, 32 bits each; the float32 logits come first. A
    target may be its own source, or lie before it: 16 entries are read before 16 are written.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        addresses = [cgutils.unpack_tuple(builder, arg, sources.count) for arg in args[:2]]
        lanes = [_load(builder, source, 0, _I32S) for source in addresses[0]]
        bounds = (_splat(builder, bound) for bound in args[2:])
        chosen = _within(builder, builder.bitcast(lanes[0], _F32S), *bounds)
        for lane, target in zip(lanes, addresses[1], strict=True):
            _packed(builder, lane, chosen, target)
        return _num_chosen(builder, chosen)

    return types.int64(sources, targets, types.float32, types.float32), emit


@intrinsic(prefer_literal=True)
def copy_block(typing_context: Any, kind: Any, masked: Any, address: Any, mask: Any, target: Any) -> Any:
    """Writes the block as float32 to the address ``target``, -inf for what is not allowed."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        for first in range(0, BLOCK, _WIDTH):
            x = _load_floats(builder, kind.literal_value, args[2], first)
            if masked.literal_value:
                x = builder.select(_allowed(builder, args[3], first, _WIDTH), x, _floats(float("-inf")))
            at = builder.add(args[4], args[4].type(4 * first))
            builder.store(x, builder.inttoptr(at, _F32S.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(kind, masked, types.int64, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def mask_block(typing_context: Any, kind: Any, address: Any, mask: Any) -> Any:
    """Overwrites with -inf those of the block's logits that the bitmask at ``mask`` does not allow."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        bits = _WORD_BITS[kind.literal_value]
        width = 512 // bits
        lanes = ir.VectorType(ir.IntType(bits), width)
        infinity = _ints(_INFINITY_BITS[kind.literal_value] | 1 << (bits - 1), bits, width)
        for first in range(0, BLOCK, width):
            words = _load(builder, args[1], first * bits // 8, lanes)
            words = builder.select(_allowed(builder, args[2], first, width), words, infinity)
            at = builder.add(args[1], args[1].type(first * bits // 8))
            builder.store(words, builder.inttoptr(at, lanes.as_pointer()), align=bits // 8)
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def forbid(typing_context: Any, kind: Any, address: Any) -> Any:
    """Overwrites the logit at an address with -inf."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        bits = _WORD_BITS[kind.literal_value]
        integer = ir.IntType(bits)
        infinity = integer(_INFINITY_BITS[kind.literal_value] | 1 << (bits - 1))
        builder.store(infinity, builder.inttoptr(args[1], integer.as_pointer()))
        return context.get_dummy_value()

    return types.void(kind, types.int64), emit


@intrinsic(prefer_literal=True)
def logit(typing_context: Any, kind: Any, address: Any) -> Any:
    """The logit at an address, as float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        word = ir.IntType(_WORD_BITS[kind.literal_value])
        raw = builder.load(builder.inttoptr(args[1], word.as_pointer()))
        if kind.literal_value == FP32:
            return builder.bitcast(raw, _F32)
        if kind.literal_value == FP16:
            return builder.fpext(builder.bitcast(raw, ir.HalfType()), _F32)
        return builder.bitcast(builder.shl(builder.zext(raw, _I32), _I32(16)), _F32)

    return types.float32(kind, types.int64), emit


@intrinsic(prefer_literal=True)
def word(typing_context: Any, width: Any, address: Any) -> Any:
    """The unsigned integer of ``width`` bits (a constant) at an address that is a multiple of 4."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        integer = ir.IntType(width.literal_value)
        return builder.zext(builder.load(builder.inttoptr(args[1], integer.as_pointer()), align=4), ir.IntType(64))

    return types.uint64(width, types.int64), emit


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """The index of the lowest bit set; ``bits`` is not 0."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), emit


@intrinsic
def num_bits(typing_context: Any, bits: Any) -> Any:
    """How many bits are set."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), emit
