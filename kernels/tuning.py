"""Every tuning number, with its reason. None of them changes a result, only time and memory."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tuning:
    # Elements of a streamed block on XLA. Flat from 2^15 to 2^18 on a CPU: above it leaves the
    # second-level cache, below it the loop's own cost shows.
    block: int = 1 << 17
    # Elements of a block of the general path, which holds several arrays of that size at a time
    # and is multiplied by the batch when the user maps over it.
    general_block: int = 1 << 16
    # Coordinates drawn per stored element (argmax) or added up before storing (scores): the noise
    # is compute bound, the reduction memory bound. Four from 64 coordinates on; fewer below
    # that, where redrawing the winner's group costs as much as it saves.
    group: int = 4
    group_from: int = 64
    # Largest residual (bytes, per unbatched call) that differentiation may keep instead of
    # drawing and ranking again. Bounded, so that memory does not grow with the samples.
    residual_bytes: int = 8 << 20
    # Up to here ranks are counted by comparing all pairs (vectorised, n steps); above it sorted.
    counting_most: int = 256
    # Comparisons unrolled in one step of the counting loop: one pass over the accumulator each.
    counting_unroll: int = 8
    # Up to this width the winners are counted by comparison with every index, above by scatter.
    compare_most: int = 32
    # Tile of the fused kernels: coordinates x samples. 128 lanes are a TPU's vector and a GPU's
    # block of four warps; 8 coordinates are a TPU's sublanes, and keep a GPU in registers.
    kernel_tile: int = 8
    kernel_lanes: int = 128
    # Coordinates that are ranked together: the noise of the whole row is drawn once for each tile,
    # and the tile with its ranks stays in registers.
    kernel_ranking_tile: int = 32
    # Runs of samples per row, each a program with partial sums of its own: enough programs to
    # fill a device, few enough that the partial sums stay small, whatever num_samples.
    kernel_runs: int = 32
    # Ranks are counted in a fused kernel up to here; above it XLA sorts. Counting takes 7 d
    # instructions per variate (sm_90, the noise included), a sort of 64 some hundreds.
    kernel_counting_most: int = 64
    # Coordinates compared with a tile in one step of the ranking kernel: a TPU's sublanes.
    kernel_compare: int = 8
    # TPU. Most coordinates drawn together. Their rounds are independent and fill the four vector
    # slots of a bundle but at the start and the end of a step: 8 cost a tenth more cycles, 40 save
    # 2% and compile for longer.
    tpu_step: int = 25
    # The same where a CPU interprets the kernels for tests, and compiles what is unrolled.
    tpu_step_interpreted: int = 3
    # Coordinates of a row that one program takes: enough to make its start cheap; sums over
    # samples hold a vector (4 KB) for each.
    tpu_piece: int = 1024
    # Ranking d values by counting takes about this times d^2 cycles of the compiler's schedule, by
    # a network of n = 2^k about n k^2: d = 32 and 90 are counted, 64 and 100 are sorted.
    tpu_counting_cost: float = 0.72
    # Values that fit the vector memory of every chip with their keys, places and sums: 12 MB. XLA
    # ranks longer rows.
    tpu_ranking_most: int = 1024
    # Vectors that see the same noise, for which a kernel draws it anew each time and XLA only once.
    tpu_shared_most: int = 2
    # From this many blocks of 128 samples on, a row's samples are padded to whole vectors rather
    # than its coordinates repeated for each block.
    tpu_aligned_from: int = 32
    # A short row is cut into segments, to fill the sublanes, if they keep as many coordinates.
    tpu_segment_least: int = 256


TUNING = Tuning()
