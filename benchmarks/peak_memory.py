"""Runs a command and prints its wall time, peak private (anonymous) memory and peak resident memory. Linux only.

    python benchmarks/peak_memory.py ltx-export onnx 0.9.8-2b-distilled

Pages of memory-mapped files count as resident but not as private: the system can drop them at any time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

_INTERVAL_S = 0.02


def sizes_of(status: str) -> dict[str, int]:
    """Returns the sizes in /proc/<pid>/status in bytes, by name."""
    rows = (line.split() for line in status.splitlines())
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if len(row) == 3 and row[2] == "kB"}


def main() -> None:
    started = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:])
    status = Path(f"/proc/{process.pid}/status")
    private = 0
    resident = 0
    while process.poll() is None:
        sizes = sizes_of(status.read_text())
        private = max(private, sizes.get("RssAnon", 0))
        resident = max(resident, sizes.get("VmHWM", 0))
        time.sleep(_INTERVAL_S)
    took = time.perf_counter() - started
    sys.stderr.write(
        f"wall {took:.1f} s, peak private {private / 1e9:.2f} GB, peak resident {resident / 1e9:.2f} GB, "
        f"exit code {process.returncode}\n"
    )
    raise SystemExit(process.returncode)


if __name__ == "__main__":
    main()
