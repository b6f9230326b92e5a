"""The clock of a GPU while it works, as nvidia-smi tells it."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile

_QUERY = "utilization.gpu,clocks.sm,power.draw"
_EVERY_MS, _AT_WORK = 100, 50  # per cent of the time


class Clocks:
    """Samples the first GPU's clock and power from `with` to its end, or until `found`."""

    def __enter__(self) -> Clocks:
        self._file = tempfile.TemporaryFile("a+")  # the tool writes at the end wherever we read
        command = ["nvidia-smi", "--id=0", f"--query-gpu={_QUERY}", f"--loop-ms={_EVERY_MS}"]
        command.append("--format=csv,noheader,nounits")
        self._process = None
        if shutil.which(command[0]):
            self._process = subprocess.Popen(command, stdout=self._file)
        return self

    def __exit__(self, *_) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
        self._file.close()

    def found(self) -> dict[str, str]:
        """Clock and power of the samples in which the device was at work."""
        self._file.seek(0)
        lines = (line.split(", ") for line in self._file.read().splitlines())
        at_work = [line for line in lines if len(line) == 3 and float(line[0]) >= _AT_WORK]
        if not at_work:
            return {"clock at work": "unknown"}
        clocks, power = ([float(line[i]) for line in at_work] for i in (1, 2))
        return {
            "clock at work": f"{statistics.median(clocks):.0f} MHz (least {min(clocks):.0f})",
            "power at work": f"{statistics.median(power):.0f} W (most {max(power):.0f})",
        }
