"""Does a check need more memory for more images? `pytest tests/benchmarks/test_memory.py -m slow -s`.

The greatest resident set of a whole `hardbit-deploy check` process, over bundles of the shipped network whose images
are its 2,000 test images, repeated. Nothing is asserted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hardbit import cli
from hardbit_deploy.bundle import load_bundle, write_bundle

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[2] / "models/fashion-cnn-w4a4"
COUNTS = (1000, 2000, 5000, 10_000)
# Reports its own peak in KiB. (ru_maxrss would not do: across fork and exec it keeps the parent's.)
PROGRAM = """
import re, sys
from hardbit_deploy.cli import main
main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
sys.stderr.write(f"peak {peak}\\n")
"""


@pytest.mark.timeout(1200)
def test_memory_of_a_check_over_more_and_more_images(tmp_path, capsys):
    assert cli.main(["run", str(MODEL), "--run-dir", str(tmp_path / "run"), "--until", "bundle"]) == 0
    original = load_bundle(tmp_path / "run/bundle")
    rows = []
    for count in COUNTS:
        bundle = repeated(original, count, tmp_path / f"bundle-{count}")
        command = [sys.executable, "-c", PROGRAM, "check", str(bundle), "--no-latency", "--out", str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        peak = int(done.stderr.rsplit("peak ", 1)[1].split()[0])
        on_disk = sum(file.stat().st_size for file in bundle.glob("*.npy"))
        rows.append((count, peak / 1024, on_disk / 2**20))
    with capsys.disabled():
        print("\nPeak resident set of hardbit-deploy check, suite standard; what the arrays take of it is mapped files")
        for count, peak_mib, disk_mib in rows:
            rest = f"less the arrays ({disk_mib:4.1f}) {peak_mib - disk_mib:6.1f} MiB"
            print(f"  {count:6,} images  {peak_mib:6.1f} MiB, {rest}")


def repeated(bundle, count: int, path: Path) -> Path:
    """The bundle with its images over and over, until there are `count`."""
    rows = np.arange(count) % len(bundle.labels)
    fields = {k: v for k, v in bundle.manifest.document.items() if k not in ("files", "format", "schema_version")}
    fields["evaluation"] = {**fields["evaluation"], "count": count}
    files = {name: bundle.file(name) for name in bundle.manifest.files if not name.endswith(".npy")}
    files |= {name: np.load(bundle.file(name))[rows] for name in bundle.manifest.files if name.endswith(".npy")}
    return write_bundle(path, fields, files).path
