"""How fast the commands answer: `pytest tests/benchmarks/test_command_start.py -m slow -s`.

Wall-clock time of whole processes, the interpreter's own start included; the least of several, since a busy machine is
not what is measured.
"""

import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

LIMIT_S = 0.5
COMMANDS = {
    "hardbit --help": ["hardbit", "--help"],
    "hardbit run --help": ["hardbit", "run", "--help"],
    "hardbit check --help": ["hardbit", "check", "--help"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_at_once(command):
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", *COMMANDS[command]], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    print(f"\n{command}: least {min(seconds):.3f} s, median {sorted(seconds)[5]:.3f} s (limit {LIMIT_S} s)")
    assert min(seconds) < LIMIT_S
