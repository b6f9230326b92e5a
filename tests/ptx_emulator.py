"""Runs the assembly of `perturbk/kernels/columns.py` on a CPU, with the threads of a program.

One thread after the other. Where one loads what another has stored, or stores where another has
loaded, there must have been a barrier for all of them in between.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

_ADDRESS = re.compile(r"\[(\S+?)(?: \+ (\d+))?\]")


class Program:
    """The threads of a program and their shared memory; `ptx` takes the place of `ptx.ptx`."""

    def __init__(self, threads: int):
        self.threads = threads
        self.tables: dict[str, int] = {}
        self.memory: dict[int, np.float32 | np.int32] = {}
        self.barriers = 0
        # Address -> (thread, barriers until then) of who has stored there last, and loaded since.
        self.stored: dict[int, tuple[int, int]] = {}
        self.loaded: dict[int, set[tuple[int, int]]] = {}

    def ptx(self, assembly: str, constraints: str, dtype, *args, pack: int = 1) -> jnp.ndarray:
        found = constraints.split(",")
        assert [c[0] == "=" for c in found] == [True] * pack + [False] * pack * len(args)
        shape = np.broadcast_shapes(*map(np.shape, args))
        assert np.prod(shape) <= self.threads * pack, "one call for each thread"
        # [thread, argument, element]: neighbours are in neighbouring threads.
        operands = np.stack([np.broadcast_to(a, shape).reshape(pack, -1).T for a in args], 1)
        inner = assembly[1:-1] if assembly.startswith("{") else assembly
        statements = [s.strip() for s in inner.split(";") if s.strip()]
        registers = [
            {"%tid.x": t, **{f"${i}": a for i, a in enumerate(of_thread.reshape(-1), pack)}}
            for t, of_thread in enumerate(operands)
        ]
        phases: list[list[str]] = [[]]
        for statement in statements:
            if statement.startswith("bar"):
                assert statement == "bar.sync 0" or self.threads == 32
                phases.append([])
            else:
                phases[-1].append(statement)
        for i, phase in enumerate(phases):
            self.barriers += i > 0
            for of_thread in registers:
                for statement in phase:
                    self._step(statement, of_thread)
        results = [[of_thread[f"${i}"] for of_thread in registers] for i in range(pack)]
        return jnp.asarray(np.reshape(results, shape), dtype)

    def _step(self, statement: str, registers: dict) -> None:
        name, _, rest = statement.partition(" ")
        if name == ".reg":
            return
        if name == ".shared":
            self._declare(rest)
            return
        if name == "ld.shared.v4.f32":
            targets, where = re.fullmatch(r"\{(.*)\}, (.*)", rest).groups()
            at = self._address(where, registers)
            assert at % 16 == 0, "a vector is aligned"
            for i, target in enumerate(targets.split(", ")):
                registers[target] = self._loaded(at + 4 * i, registers)
            return
        first, *others = rest.split(", ")
        if name in ("st.shared.f32", "st.shared.b32"):
            at = self._address(first, registers)
            assert at % 4 == 0
            self._alone(at, registers, {self.stored.get(at), *self.loaded.pop(at, ())} - {None})
            kind = np.float32 if name.endswith("f32") else np.int32
            self.memory[at] = kind(self._value(others[0], registers))
            self.stored[at] = registers["%tid.x"], self.barriers
            return
        if name in ("ld.shared.f32", "ld.shared.b32"):
            registers[first] = self._loaded(self._address(others[0], registers), registers)
            return
        values = [self._value(a, registers) for a in others]
        registers[first] = _ARITHMETIC[name](*values)

    def _loaded(self, at: int, registers: dict) -> np.float32 | np.int32:
        self._alone(at, registers, {self.stored[at]})
        self.loaded.setdefault(at, set()).add((registers["%tid.x"], self.barriers))
        return self.memory[at]

    def _alone(self, at: int, registers: dict, seen: set[tuple[int, int]]) -> None:
        """No other thread has been there since the last barrier."""
        thread = registers["%tid.x"]
        others = [t for t, then in seen if t != thread and then == self.barriers]
        if others:
            raise RuntimeError(f"thread {thread} does not wait for {others} at {at}")

    def _declare(self, rest: str) -> None:
        align, name, size = re.fullmatch(r"\.align (\d+) \.b8 (\w+)\[(\d+)\]", rest).groups()
        assert int(size) <= 48 << 10, "what a kernel may declare"
        self.tables[name] = 1 << 12  # as any other that is aligned so
        assert self.tables[name] % int(align) == 0

    def _address(self, text: str, registers: dict) -> int:
        base, offset = _ADDRESS.fullmatch(text).groups()
        return int(self._value(base, registers)) + int(offset or 0)

    def _value(self, text: str, registers: dict):
        if text in registers:
            return registers[text]
        if text in self.tables:
            return self.tables[text]
        if text.startswith("0f"):
            return np.uint32(int(text[2:], 16)).view(np.float32)
        return int(text)


_ARITHMETIC: dict[str, Callable] = {
    "mov.u32": lambda a: a,
    "mov.f32": lambda a: a,
    "mad.lo.u32": lambda a, b, c: int(a) * int(b) + int(c),
    "xor.b32": lambda a, b: int(a) ^ int(b),
    "add.f32": lambda a, b: np.float32(a + b),
}
