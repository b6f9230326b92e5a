"""Every tuning number, with its reason. None of them changes a result, only time and memory."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tuning:
    # Elements that a streamed block on XLA stores; of an argmax in fours, a fourth of its variates.
    # Flat from 2^15 to 2^18 on a CPU: above it leaves the second-level cache, below it the loop's
    # own cost shows. An argmax in fours: 16 rows of 100, 1000 samples, took 2.5 ms with 2^15 stored
    # and 2.1 with 2^17.
    block: int = 1 << 17
    # The same on a GPU, where each step of a loop starts several programs, 5 us each: 20 million
    # variates took 20 ms in blocks of 2^17, 1.6 at once (H100, the five largest). What is one block
    # is also sorted once for value and gradient, else twice.
    gpu_block: int = 1 << 25
    # Elements of a block of the general path, which holds several arrays of that size at a time
    # and is multiplied by the batch when the user maps over it; on a CPU, and elsewhere. There a
    # block takes 18 us for its start and another 18 in the backward pass, where 2^25 variates take
    # 400 (H100).
    general_block: int = 1 << 16
    general_wide_block: int = 1 << 25
    # Up to this many variates the general path keeps its samples for the backward pass (16 bytes
    # for each, optax 20) rather than drawing them again. Above it optax waits for new pages; below
    # it, value and gradient of 1.6 million took 6.3 ms drawn again, 4.8 kept, and 5.4 by optax.
    kept_most: int = 1 << 21
    # From this many coordinates on, four are drawn per stored element (argmax) or added up
    # before storing (scores): the noise is compute bound, the reduction memory bound. Below it,
    # drawing the winner's four again costs as much as it saves.
    fours_from: int = 64
    # Largest residual (bytes, per unbatched call) that differentiation may keep instead of
    # drawing and ranking again. Bounded, so that memory does not grow with the samples.
    residual_bytes: int = 8 << 20
    # Up to here XLA counts ranks by comparing all pairs (vectorised, d steps) wherever it runs, and
    # on a CPU up to the second number. Above it, it sorts: d = 1024 takes 22-36 us by counting,
    # 32-118 by sorting, with jax 0.12 and 0.10; d = 2048 takes 77-142 and 55-246.
    counting_least: int = 64
    counting_most: int = 1024
    # Values that are sorted by a network on a CPU, one pass over the block for each level: 64 rows
    # of 2048 take 0.7 ms where XLA's sort takes 3.9, 16 of 8192 3.3 where it takes 4.7 (jax 0.10).
    sorting_network_most: int = 1 << 13
    # Comparisons unrolled in one step of the counting loop: one pass over the accumulator each.
    counting_unroll: int = 8
    # Neighbours whose largest XLA keeps, to find the next of the k largest. From 4 to 32 are alike
    # for 1000 coordinates, 4 and 8 for 100.
    top_k_group: int = 8
    # Most winners of a row with a kernel: two registers of a GPU's thread for each.
    top_k_most: int = 32
    # Values that fill the widest vector of a CPU. Where elements of a leaf, or samples, are fewer,
    # other axes are laid along it: value and gradient of 15 coordinates with Normal noise and 1000
    # samples took 248 us, and 107 so (jax 0.12).
    vector_lanes: int = 16
    # Variates that a CPU draws in the thread that runs the program, since the start of a second one
    # takes longer than it saves: 8000 took 39 us so, 69 in two, 16000 from 62 to 115 and 51 to 113
    # (two cores, argmax, rankings and arbitrary functions).
    one_thread_most: int = 1 << 13
    # Up to this width the winners are counted by comparison with every index, above by scatter.
    compare_most: int = 32
    # Tile of the fused kernels, coordinates x samples: a sample for each thread of a program's
    # warps. Four warps are one for each scheduler of a multiprocessor, and 8 coordinates stay in
    # registers. Where they would draw a quarter more than they need to, behind the last sample,
    # fewer warps are taken, and then several threads for each sample: down to 8 samples, whose keys
    # are a sector of memory. One or two warps take as many instructions per variate; two or four
    # threads up to 5% more with Threefry and 17% with Philox, most often 3% (sm_90).
    kernel_tile: int = 8
    # What a tile of a score product takes beside its cells, as many as these: four cells by Philox
    # take 3 to 7% more instructions for each than eight, two 4 to 12% (sm_90).
    kernel_tile_start: float = 0.4
    kernel_warp_lanes: int = 32
    kernel_warps: int = 4
    kernel_least_lanes: int = 8
    kernel_idle: float = 1 / 4
    # A race of 75 instructions per variate rather than 127 (sm_90, Threefry) pays from here on for
    # the four that are drawn again, and with k winners from so many coordinates for each of them.
    # Longer rows end in doubt too often: a winner leads by about 1/d, and the error of a bound is
    # 2^-21; of 128 samples, one in a tile of sixty for the five largest of 32768.
    race_least: int = 24
    race_least_for_each: int = 10
    race_most: int = 1 << 15
    # Of the four variates drawn together, how many fours; one if there are more winners than the
    # second number, since a thread keeps as many for each.
    race_piece: int = 2
    race_pieces_most: int = 6
    # From so many coordinates on, and so many for each winner, two and four fours are in front
    # together. A variate takes 1.4 and 2.5 instructions less (sm_90; of 5 winners 5 and 8, of 32 21
    # and 32). For each winner one and three more fours are drawn again, at 120 instructions by
    # Philox and 510 by Threefry: for a single winner, four are level with two at 190 and 820.
    race_twos_least: int = 512
    race_twos_least_for_each: int = 24
    race_fours_one_least: int = 768
    race_fours_least: int = 2048
    race_fours_least_for_each: int = 96
    # Coordinates that are ranked together: the noise of the whole row is drawn once for each tile,
    # and the tile with its ranks stays in registers.
    kernel_ranking_tile: int = 32
    # Coordinates drawn together before they are inserted among the k largest: their rounds are
    # independent.
    kernel_top_k_unroll: int = 2
    # Totals of a tile that a score product keeps in registers, eight in a thread for each: one for
    # every vector and every variate that is drawn together. Vectors that see the same noise, as
    # those of a Jacobian do, share its drawing up to this.
    kernel_totals: int = 16
    # Runs of samples per row, each a program with partial sums of its own: enough programs to
    # fill a device, few enough that the partial sums stay small, whatever num_samples.
    kernel_runs: int = 32
    # Programs of an op, many times what a device holds. Where runs are more, each takes several; a
    # row has one at least. 512,000 took 15 ms to rank 16 coordinates, by Threefry and Philox alike
    # (H100).
    kernel_programs: int = 1 << 14
    # Tiles of samples that a program of sums over samples takes, if there are so many: its start,
    # and the sum over lanes at its end, take as long as one of them.
    kernel_run_tiles: int = 8
    # A row that few warps go through is cut into pieces, to fill a GPU: so many are at work on it.
    # Pieces are no shorter than so many tiles of a score product, or coordinates of a row, so that
    # their start stays cheap.
    kernel_cut_warps: int = 4096
    kernel_piece_tiles: int = 16
    kernel_piece_least: int = 128
    # Coordinates of a row that are sorted in the registers of one thread, a word for each. A rank
    # of 100 takes 66 instructions so by Philox, and 129 where many threads hold 128 words (sm_90).
    kernel_network_most: int = 128
    # Warps of such a program. Four would store more than the 48 kB of shared memory that a kernel
    # may declare, and wait for each other.
    kernel_network_warps: int = 2
    # Those that are ranked in the registers of many, which are powers of two. Above it, ranks are
    # counted tile by tile if the kernel is named; if not, XLA sorts.
    kernel_sorted_most: int = 4096
    # Of these, rows in which three values rarely share a level. Then whole keys are sorted. Of 1024
    # with Gumbel noise three do in one row of 300, and 1.8 pairs; of 512 0.2 pairs, of 128 0.001.
    kernel_levels_most: int = 1024
    # Pairs of a row that are put in order one after the other, at 4 instructions per variate
    # (sm_90). Of more, whole keys are sorted.
    kernel_pairs_most: int = 16
    # Sorts of that kind, rows times samples, for which a kernel is chosen. Of these one follows the
    # other in a program: 1000 rows of 1000 took 340 us where XLA's sort took 90 (H100).
    kernel_sorts_least: int = 8000
    # Words of a program, if rows are no longer: 16 for each thread of a warp, beside as many totals
    # and the noise. Twice as many take twice the registers (sm_90), to save a fortieth.
    kernel_sorted_tile: int = 512
    # Most words of a warp. More warps exchange words through shared memory.
    kernel_sorted_warp: int = 1024
    # Programs, if they need no more than one for a row; more runs of samples take turns. Each of
    # them is a warp and needs memory for a tile of words, 4 MB of them all if rows are short. Those
    # of ranks by levels need two words for each, and are half as many. A device holds about as many
    # at a time.
    kernel_whole_programs: int = 2048
    # Coordinates, or fours of them, that are drawn in one turn of a loop, at whose end all words
    # move on. Of 64 by Threefry, 16 in a turn take 2 instructions more than 32, and half as long to
    # compile; by Philox, 16 take 4 more than 32, and 64 spill (sm_90).
    kernel_network_ones: int = 20
    kernel_network_fours: int = 8
    # Stores of a sample's numbers in the code of a kernel; more take turns. A store of 128 lanes
    # costs a compiler of Triton a search through the whole kernel: 64 took 20 s.
    kernel_stores: int = 16
    # Coordinates compared with a tile in one step of the ranking kernel: a TPU's sublanes.
    kernel_compare: int = 8
    # Triton. Lanes of a program, one for each thread of four warps, and variates that a turn of its
    # loop draws: their rounds are independent and hide each other's latency. Score products, which
    # leave out turns of samples that weigh nothing, have shorter turns.
    triton_lanes: int = 128
    triton_unroll: int = 8
    triton_score_unroll: int = 4
    # A loop is cut into pieces, each a program of its own, until there are so many: eight for each
    # multiprocessor of the largest devices. No piece is shorter than the second number, so that its
    # start stays cheap.
    triton_programs: int = 1024
    triton_piece_least: int = 64
    # Coordinates of a row that are ranked in registers: their keys, and in sums as many totals. All
    # of them move on at every turn of a loop, which therefore draws or ranks several.
    triton_ranking_most: int = 64
    triton_ranking_unroll: int = 8
    # From so many coordinates for each of the k largest on, only the largest of a turn is inserted
    # among them, which takes 5 k instructions, and the k turns of the winners are drawn once more.
    # Level at 24 for the 5 largest with Philox, 58 with Threefry; at 15 and 20 for the 32 largest.
    triton_top_k_turns_from: int = 32
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
    # Samples that XLA draws all at once, where a kernel would draw 128. Static cycles per 1024
    # variates of value and gradient on v5e, XLA's, a kernel's and optax's: argmax of 1000 with 10
    # samples 63, 937 and 105, with 64 90, 150 and 117; ranking of 100 with 40 218, 509 and 456; the
    # five largest of 100 with 40 256, 284 and 262, with 80 256, 146 and 272.
    tpu_at_once_most: int = 48
    # From this many blocks of 128 samples on, a row's samples are padded to whole vectors rather
    # than its coordinates repeated for each block.
    tpu_aligned_from: int = 32
    # A short row is cut into segments, to fill the sublanes, if they keep as many coordinates.
    tpu_segment_least: int = 256


TUNING = Tuning()
