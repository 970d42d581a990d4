"""Gaps to steps from each rank to the next, compiled; importing it fails where numba is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from softlabels.codecs.ranks import LARGE
from softlabels.compiled import compiled

Bytes = NDArray[np.uint8]
Uint32s = NDArray[np.uint32]

_LANES = 16


@compiled
def steps(
    first: Bytes, rests: Bytes, large: int, of_rests: int, scratch: tuple[Uint32s, Uint32s, Uint32s]
) -> bool:
    """Of the entries of one record, to the first array of `scratch`.

    Args:
        first: the smaller of each gap and 255, (E,).
        rests: `of_rests` planes of what large gaps have beyond that, (of_rests · large,).
        scratch: of E entries or more each.

    Returns:
        whether there are as many large gaps as `large` says.
    """
    found, where, rest = scratch
    if of_rests:
        for i in range(large):
            rest[i] = np.uint32(rests[i])
        for byte in range(1, of_rests):
            plane, shift = rests[byte * large :][:large], np.uint32(8 * byte)
            for i in range(large):
                rest[i] |= np.uint32(plane[i]) << shift
        whole: bool = _widen(first, rest, np.uint64(large), found, where)
        return whole
    for i in range(len(first)):
        found[i] = np.uint32(first[i]) + np.uint32(1)
    return True


@compiled
def widen_by_entry(
    first: Bytes, rest: Uint32s, large: np.uint64, out: Uint32s, where: Uint32s
) -> bool:
    """Gaps whose rests stand one after another; false if they are not as many as `large`."""
    # Large gaps are as if at random: to find them without a branch, and then to add their rests,
    # takes three quarters of the time of one loop with both.
    done = np.uint64(0)
    for i in range(len(first)):
        out[i] = np.uint32(first[i]) + np.uint32(1)
    for i in range(len(first)):
        where[done] = np.uint32(i)
        done += np.uint64(1) if first[i] == LARGE else np.uint64(0)
    if done != large:
        return False
    for i in range(np.int64(large)):
        out[where[i]] += rest[i]
    return True


@compiled
def widen_by_sixteen(
    first: Bytes, rest: Uint32s, large: np.uint64, out: Uint32s, where: Uint32s
) -> bool:
    """As `widen_by_entry`."""
    # Of rests only as many are read as there are gaps of 255, and `rest` has room for E of them.
    done, whole = np.uint64(0), len(first) // _LANES * _LANES
    for i in range(0, whole, _LANES):
        done = _sixteen(first, np.uint64(i), rest, done, out)
    for i in range(whole, len(first)):
        out[i] = np.uint32(first[i]) + np.uint32(1)
        if first[i] == LARGE:
            out[i] += rest[done]
            done += np.uint64(1)
    as_many: bool = done == large
    return as_many


def _generated(function: Any) -> Any:
    return intrinsic(function)


@_generated
def _sixteen(typing: Any, first: Any, at: Any, rest: Any, done: Any, out: Any) -> Any:
    """Sixteen entries from `at` on: AVX-512 spreads rests over the large ones in one instruction.

    Returns:
        how many rests are done with, uint64.
    """
    signature = types.uint64(first, at, rest, done, out)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        one, four = ir.IntType(8), ir.IntType(32)
        bytes_, words, bits = (ir.VectorType(kind, _LANES) for kind in (one, four, ir.IntType(1)))

        def address(array: int, place: int) -> Any:
            of_type = context.make_array(signature.args[array])
            return builder.gep(of_type(context, builder, args[array]).data, [args[place]])

        gaps = builder.load(builder.bitcast(address(0, 1), bytes_.as_pointer()), align=1)
        is_large = builder.icmp_unsigned("==", gaps, ir.Constant(bytes_, [LARGE] * _LANES))
        expand = builder.module.declare_intrinsic(
            f"llvm.masked.expandload.v{_LANES}i32",
            (),
            ir.FunctionType(words, [four.as_pointer(), bits, words]),
        )
        zeros = ir.Constant(words, [0] * _LANES)
        more = builder.call(expand, [address(2, 3), is_large, zeros])
        gap = builder.add(builder.zext(gaps, words), more)
        found = builder.add(gap, ir.Constant(words, [1] * _LANES))
        builder.store(found, builder.bitcast(address(4, 1), words.as_pointer()), align=4)
        mask = builder.bitcast(is_large, ir.IntType(_LANES))
        return builder.add(args[3], builder.zext(builder.ctpop(mask), ir.IntType(64)))

    return signature, generate


# Elsewhere LLVM makes sixteen branches of it.
_widen = widen_by_sixteen if binding.get_host_cpu_features().get("avx512f") else widen_by_entry
