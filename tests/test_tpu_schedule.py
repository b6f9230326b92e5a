"""The reader of the TPU compiler's schedules, on one as libtpu writes them for v4 to v7x."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"

pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="bench/ is not here")

EXIT = "%p1_p0 = scmp.ge.s32.totalorder %s1_s2, {} /* loop exit test */"

# A grid of 6 trips, two of which fill and drain it, around a loop of 5 trips and one that ends on
# data.
SCHEDULE = f"""= control target key start
LB: loop body
= control target key end

     0   :  {{ %s1_s0 = inlined_call_operand.vmem [shape: u32[1,2,8,128]] }}
   0x1   :  {{ %2 = vsyncpa [#allocation4], 0 }} /* Start region 1 */
   0x2 LB: > {{ %s3_s1 = sadd.s32 1, %s3_s1 }}
   0x3 LB: >> {{ {EXIT.format(5)}  ;;  %v4_v1 = vmov 0 }}
   0x4   : >> {{ %v5_v1 = vmov 1 }}
   0x5 LB: >> {{ %v6_v1 = vmov 2 }}
   0x6 PF: > {{ {EXIT.format(6)} }}
   0x7   :  {{ %7 = vsyncpa [#allocation4], 1 }}
"""


@pytest.fixture
def schedule(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import tpu_schedule

    return tpu_schedule


def test_bundles_times_trips(schedule, tmp_path):
    path = tmp_path / "schedule.txt"
    path.write_text(SCHEDULE)
    grid, inner, by_data = 4, 5, 1
    assert schedule.schedule_cycles(str(path)) == 3 + grid * (2 + 2 * inner + by_data)


def test_programs_of_a_dump(schedule, tmp_path):
    for name in (
        "17-perturbk_argmax.1-02-final_bundles.txt",
        "17-perturbk_argmax.1-01-schedule-analysis_final_bundles.txt",
        "18-TLP-02-final_bundles.txt",
        "19-<late-finalization>-02-final_bundles.txt",
        "17-perturbk_argmax.1-hlo.txt",
    ):
        (tmp_path / name).write_text(SCHEDULE)
    assert schedule.program_cycles(str(tmp_path)) == {"perturbk_argmax.1": 55}
    assert not list(tmp_path.iterdir())
