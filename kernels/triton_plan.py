"""What Triton kernels know when they are compiled: the noise they draw, and how their loop is cut.

Triton has no closures. A kernel and its device functions get these as `tl.constexpr` arguments,
DRAWS and LOOP, instead of a dozen numbers each.
"""

from __future__ import annotations

import dataclasses

import jax

from perturbk.kernels.streams import THREEFRY, Philox, Stream, Threefry
from perturbk.kernels.tuning import TUNING


@dataclasses.dataclass(frozen=True)
class Draws:
    """The noise of a launch.

    Attributes:
        noise: its name.
        words, num_samples: shape of a group's words.
        d, inner: coordinates of a row, and where they lie in the leaf; see `xla.py`.
        shared, rows: of a group, see `xla.py`.
        one_sigma: whether sigma is the same along a row.
        last: length of the leaf's last axis if the stream is Philox, 0 if it is Threefry.
        assembly: whether the compiler takes NVIDIA's inline assembly.
    """

    noise: str
    words: int
    num_samples: int
    d: int
    inner: int
    shared: int
    rows: int
    one_sigma: bool
    last: int
    assembly: bool

    @classmethod
    def of(
        cls,
        words: jax.Array,
        shape: tuple[int, ...],
        *,
        noise: str,
        inner: int,
        platform: str,
        one_sigma: bool = False,
        stream: Stream = THREEFRY,
    ) -> Draws:
        """For words [groups, words, N] and rows of `shape`, [groups, shared, rows, d].

        Raises:
            NotImplementedError: no kernel draws from this stream.
        """
        _, shared, rows, d = shape
        if not isinstance(stream, Threefry | Philox):
            raise NotImplementedError(f"no Triton kernel draws from {stream}")
        last = stream.last if isinstance(stream, Philox) else 0
        return cls(
            noise, *words.shape[1:], d, inner, shared, rows, one_sigma, last, platform == "cuda"
        )

    @property
    def gumbel(self) -> bool:
        return self.noise == "gumbel"

    @property
    def philox(self) -> bool:
        return self.last > 0

    @property
    def together(self) -> int:
        """Neighbours in a row that are drawn at once."""
        return 4 if self.last > 1 and self.inner == 1 else 1


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a plane's programs: `blocks` side by side for each of its `pieces`.

    Attributes:
        blocks, lanes: values of the plane that are taken side by side.
        pieces, piece: programs that share the loop, and the length that each goes through. The last
            may reach beyond the end.
        turn: values of one turn; it divides `piece`.
    """

    blocks: int
    lanes: int
    pieces: int
    piece: int
    turn: int

    @property
    def width(self) -> int:
        return self.pieces * self.piece


def even_turns(length: int, most: int, together: int = 1) -> tuple[int, int]:
    """(length of the loop, values in a turn): `length` or more, in equal turns of up to `most`.

    A turn is a multiple of `together`.
    """
    length, most = -(-length // together), max(1, most // together)
    turns = -(-length // most)
    turn = -(-length // turns)
    return turns * turn * together, turn * together


def cut(
    length: int,
    side_by_side: int,
    planes: int,
    *,
    together: int = 1,
    turn: int | None = None,
    least: int | None = None,
) -> Loop:
    """The loop over `length` values, in pieces of at least about `least`."""
    turn, least = turn or TUNING.triton_unroll, least or TUNING.triton_piece_least
    blocks = -(-side_by_side // TUNING.triton_lanes)
    pieces = min(max(1, length // least), -(-TUNING.triton_programs // (planes * blocks)))
    piece, turn = even_turns(-(-length // pieces), turn, together)
    return Loop(blocks, TUNING.triton_lanes, -(-length // piece), piece, turn)
