"""Shared memory of a CUDA program as a table, with a column for each of its threads.

Here registers can be indexed: what a thread stores at places that it has computed, it loads at
places in the code. All of it is NVIDIA's assembly, one element of each array in each thread. To
Triton, what is loaded is a function of an address, which it has only behind all stores; the
assembler knows what is memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.ptx import ptx

_WORD, _VECTOR = 4, 16  # bytes


@dataclasses.dataclass(frozen=True)
class _Table:
    """Addresses of each thread; all int32 [1, lanes].

    Attributes:
        first: of the table.
        column: of the thread's column.
        threads: of the program.
    """

    first: jax.Array
    column: jax.Array
    threads: int

    @property
    def row(self) -> int:
        """Bytes from one place of a column to the next."""
        return self.threads * _WORD

    def stored(
        self,
        places: Sequence[jax.Array | int],
        values: Sequence[jax.Array],
        *,
        for_all: bool,
    ) -> jax.Array:
        """Stores float32 values at places of each column; the address of the column behind it.

        for_all: whether all threads may load them then, and have loaded what lay there before.
        """
        computed = [place for place in places if not isinstance(place, int)]
        operands = iter(range(2, 2 + len(computed)))
        wait = _wait(self.threads) if for_all else ""
        lines = [".reg .u32 at;", wait]
        for value, place in enumerate(places, 2 + len(computed)):
            if isinstance(place, int):
                lines.append(f"st.shared.f32 [$1 + {place * self.row}], ${value};")
            else:
                lines.append(f"mad.lo.u32 at, ${next(operands)}, {self.row}, $1;")
                lines.append(f"st.shared.f32 [at], ${value};")
        lines += [wait, "mov.u32 $0, $1;"]
        constraints = ["=&r", "r", *["r"] * len(computed), *["f"] * len(values)]
        assembly = "{ " + " ".join(lines) + " }"
        return ptx(assembly, ",".join(constraints), jnp.int32, self.column, *computed, *values)


def _wait(threads: int) -> str:
    """A barrier for all of them."""
    return "bar.sync 0;" if threads > 32 else "bar.warp.sync 0xffffffff;"


def _table(rows: int, threads: int, lanes: int) -> _Table:
    row = threads * _WORD
    zero = jnp.zeros((1, lanes), jnp.int32)
    declared = f"{{ .shared .align {row} .b8 table[{rows * row}]; mov.u32 $0, table; }}"
    first = ptx(declared, "=r,r", jnp.int32, zero)
    thread = ptx("mov.u32 $0, %tid.x;", "=r,r", jnp.int32, zero)
    return _Table(first, first + thread * np.int32(_WORD), threads)


def inverse(places: Sequence[jax.Array], threads: int) -> tuple[jax.Array, ...]:
    """`Machine.inverse`, in six instructions for each place.

    Another network would take 21 for each of 64 (sm_90).
    """
    table = _table(len(places), threads, places[0].shape[1])
    numbers = [jnp.full(place.shape, i, jnp.float32) for i, place in enumerate(places)]
    column = table.stored(places, numbers, for_all=False)
    loads = (f"ld.shared.f32 $0, [$1 + {i * table.row}];" for i in range(len(places)))
    return tuple(ptx(load, "=f,r", jnp.float32, column) for load in loads)


def sums(
    places: Sequence[jax.Array | int], values: Sequence[jax.Array], width: int
) -> tuple[jax.Array, ...]:
    """`Machine.sums`: each thread adds up a row of the table, or the part of one.

    Four words at a time. Neighbours begin at different ones, else their loads would take turns. A
    sum of its own in each thread, for each value, would fill the registers, and add up over threads
    at the end of a program in 15 instructions for each (sm_90).
    """
    _, threads = values[0].shape
    table = _table(len(places), threads, threads)
    rows = min(threads, max(width, _VECTOR // _WORD))  # at a time
    vectors = table.row // (threads // rows) // _VECTOR  # of a part of one
    lane = lax.broadcasted_iota(jnp.int32, values[0].shape, 1)
    start = (lane >> np.int32(rows.bit_length() - 1)) * np.int32(vectors * _VECTOR)
    start += (lane & np.int32(vectors - 1)) * np.int32(_VECTOR) + table.first
    lines = [
        ".reg .u32 at; .reg .f32 a, b, c, d, w, x, y, z;",
        "mov.f32 w, 0f00000000; mov.f32 x, w; mov.f32 y, w; mov.f32 z, w;",
    ]
    for i in range(vectors):
        lines.append(f"xor.b32 at, $1, {i * _VECTOR}; ld.shared.v4.f32 {{a, b, c, d}}, [at];")
        lines.append("add.f32 w, w, a; add.f32 x, x, b; add.f32 y, y, c; add.f32 z, z, d;")
    lines.append("add.f32 w, w, x; add.f32 y, y, z; add.f32 $0, w, y;")
    assembly = "{ " + " ".join(lines) + " }"
    column = table.stored(places, values, for_all=True)
    found = []
    for first in range(0, width, rows):
        mine = lax.min((lane & np.int32(rows - 1)) + np.int32(first), np.int32(len(places) - 1))
        at = mine * np.int32(table.row) + start
        found.append(ptx(assembly, "=&f,r,r", jnp.float32, at, column))
    return tuple(found)


def exchanged(words: jax.Array, to: jax.Array, of: jax.Array, threads: int) -> jax.Array:
    """`Machine.exchanged`: all words of a thread at a time.

    In global memory, where neighbours would not be stored together, each is a sector of its own.
    """
    tile, lanes = words.shape
    count = words.size // threads
    first = _table(tile, lanes, lanes).first
    wait = _wait(threads)
    lines = [wait]
    lines += [f"st.shared.b32 [${count + i}], ${2 * count + i};" for i in range(count)]
    lines += [wait]
    lines += [f"ld.shared.b32 ${i}, [${3 * count + i}];" for i in range(count)]
    constraints = ",".join(["=&r"] * count + ["r"] * 3 * count)
    to, of = (first + at * np.int32(_WORD) for at in (to, of))
    return ptx(" ".join(lines), constraints, jnp.int32, to, words, of, pack=count)
