"""Processes at fixed addresses, as seen from inside such a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hardbit_deploy.engines.fixed_addresses import fixed_addresses

ADDRESS = "import ctypes; print(ctypes.addressof(ctypes.c_int.in_dll(ctypes.pythonapi, 'Py_OptimizeFlag')))"


def address_of_a_variable() -> str:
    return subprocess.run([sys.executable, "-c", ADDRESS], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not Path("/proc/self/personality").exists(), reason="this system has no personalities")
def test_processes_lie_where_the_last_one_lay_and_our_own_is_as_before() -> None:
    ours = Path("/proc/thread-self/personality").read_text()
    with fixed_addresses() as fixed:
        if not fixed:
            pytest.skip("this system does not let processes have fixed addresses")
        within = subprocess.run(["cat", "/proc/self/personality"], check=True, capture_output=True, text=True).stdout
        assert int(within, 16) & 0x0040000
        assert len({address_of_a_variable() for _ in range(4)}) == 1
    assert Path("/proc/thread-self/personality").read_text() == ours


def test_it_ends_with_an_error_inside() -> None:
    with pytest.raises(ZeroDivisionError), fixed_addresses():
        raise ZeroDivisionError
    with fixed_addresses() as fixed:
        assert fixed in (True, False)
