"""How the fused TPU kernels cut their work: eight units of 128 samples make one vector.

A TPU's vector has 8 sublanes of 128 lanes. Here a lane is a sample, and a sublane a *unit*: one
plane (group, shared vector, row), one segment of its coordinates, 128 of its samples. The
coordinates follow each other in time, so that the key words stay in registers and nothing is
reduced across a vector but at the end of a row.

A *row tile* is eight units. If the samples of one plane fill whole vectors, its units have
everything but the samples in common, and its operands are kept once (`height` 1); otherwise they
are repeated for each unit (`height` 8), and a single short row is cut into segments, so that few
sublanes stay empty.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from perturbk.kernels.tuning import TUNING

LANES = 128
SUBLANES = 8
VECTOR = (SUBLANES, LANES)


def wrapped(n: int) -> np.int32:
    """n modulo 2**32, as the int32 of the same bits."""
    return np.uint32(n % (1 << 32)).astype(np.int32)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Cut:
    """The cut of `planes` rows of `d` coordinates under `num_samples` samples.

    Attributes:
        inner: distance between neighbouring coordinates of a row in its leaf.
        whole: keep rows in one piece, for ops that need all of it at once.
        together: coordinates that are drawn together, a cell; segments and steps begin with one.
        platform: "tpu", or "cpu" to interpret.
        seeded: bits come by whole vectors, for one seed those of a cell: a vector's samples have
            their row in common, and a step is a cell.
    """

    planes: int
    d: int
    num_samples: int
    inner: int = 1
    whole: bool = False
    together: int = 1
    platform: str = "tpu"
    seeded: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of 128 samples in a plane."""
        return -(-self.num_samples // LANES)

    @property
    def aligned(self) -> bool:
        return self.seeded or self.blocks % SUBLANES == 0 or self.blocks >= TUNING.tpu_aligned_from

    @property
    def height(self) -> int:
        return 1 if self.aligned else SUBLANES

    @property
    def segments(self) -> int:
        if self.whole or self.aligned:
            return 1
        spare = SUBLANES // (self.planes * self.blocks)
        return max(1, min(spare, self.d // TUNING.tpu_segment_least))

    @property
    def segment(self) -> int:
        """Coordinates in a segment."""
        return _up(-(-self.d // self.segments), self.together)

    @property
    def per_row(self) -> int:
        """Vectors of samples in a row tile."""
        return -(-self.blocks // SUBLANES) if self.aligned else 1

    @property
    def row_tiles(self) -> int:
        if self.aligned:
            return self.planes
        return -(-self.planes * self.segments * self.blocks // SUBLANES)

    @property
    def pieces(self) -> int:
        return 1 if self.whole else -(-self.segment // TUNING.tpu_piece)

    @property
    def piece(self) -> int:
        """Coordinates in a piece, which one program handles."""
        return _up(-(-self.segment // self.pieces), LANES)

    @property
    def step(self) -> int:
        """Coordinates drawn together: independent, so that they hide each other's latency.

        Of the sizes that do so well enough, the one that leaves the last step fullest.
        """
        if self.seeded:
            return self.together
        n = min(self.segment, self.piece)
        tuned = TUNING.tpu_step if self.platform == "tpu" else TUNING.tpu_step_interpreted
        most = min(tuned * self.together, n)
        return min(range(most, most // 2, -self.together), key=lambda u: -n % u)

    @property
    def steps(self) -> int:
        """Steps in a piece."""
        return -(-min(self.segment, self.piece) // self.step)

    @property
    def drawn(self) -> int:
        """Coordinates of a piece that are drawn, those behind its end included."""
        return self.steps * self.step

    @property
    def padded(self) -> bool:
        """Whether units draw coordinates that the rows do not have."""
        return self.segments * self.pieces * self.drawn != self.d
