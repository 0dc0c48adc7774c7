"""Capture and replay: what is asked of the driver is what its header declares, and refusals end in plain launches."""

from __future__ import annotations

import subprocess

import pytest

from hardbit_deploy.engines.cuda_graphs import GraphDriver, ReplayedLaunches
from hardbit_deploy.engines.cuda_pgd import find_nvcc
from hardbit_deploy.errors import HardbitError
from recording_gpu import GraphLibrary, Machine, Queue

# Each assignment is an error of the compiler where the driver declares the function otherwise.
_DECLARED = """
#include <cuda.h>
CUresult (*begin)(CUstream, CUstreamCaptureMode) = cuStreamBeginCapture_v2;
CUresult (*end)(CUstream, CUgraph *) = cuStreamEndCapture;
CUresult (*instantiate)(CUgraphExec *, CUgraph, unsigned long long) = cuGraphInstantiateWithFlags;
CUresult (*launch)(CUgraphExec, CUstream) = cuGraphLaunch;
CUresult (*destroy)(CUgraph) = cuGraphDestroy;
CUresult (*destroy_executable)(CUgraphExec) = cuGraphExecDestroy;
static_assert(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == 1, "of its own thread alone");
static_assert(CU_STREAM_NON_BLOCKING == 1, "not waiting for the default stream");
"""
STREAM = (1 << 40) + 16


@pytest.fixture
def machine() -> Machine:
    made = Machine()
    made.pushed.depth = 1
    made.streams[STREAM] = Queue()
    return made


def replayed(machine: Machine, enqueue, can_be_captured=lambda: True) -> ReplayedLaunches:
    return ReplayedLaunches(GraphDriver(GraphLibrary(machine)), STREAM, enqueue, can_be_captured)


def test_the_driver_declares_what_is_called(tmp_path):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc, and so no header of the driver, on this machine")
    (tmp_path / "declared.cu").write_text(_DECLARED, encoding="utf-8")
    command = [nvcc, "-c", "declared.cu", "-o", "declared.o"]
    compiled = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr


def test_the_first_run_is_plain_the_second_captured_the_others_replayed(machine):
    done = []
    launches = replayed(machine, lambda: machine.enqueue(STREAM, "kernel", lambda: done.append(1)))
    for _ in range(5):
        launches.run()
    begin_to_end = ["begin capture", "kernel", "end capture", "graph.destroy"]
    assert machine.names() == ["kernel", *begin_to_end, *["graph launch"] * 4]
    for work in machine.streams[STREAM].waiting:
        work()
    assert len(done) == 5
    launches.close()
    launches.close()
    assert machine.names()[-1] == "executable.destroy"
    assert machine.live == {"graph": 0, "executable": 0}


def test_what_says_that_it_cannot_be_captured_is_not_tried(machine):
    launches = replayed(machine, lambda: machine.enqueue(STREAM, "kernel", list), lambda: False)
    for _ in range(3):
        launches.run()
    assert machine.names() == ["kernel"] * 3
    assert "cannot be captured" in launches.refusal


def test_a_failure_within_a_capture_ends_the_capture_and_launches_plainly(machine):
    def enqueue() -> None:
        if machine.streams[STREAM].captured is not None:
            raise HardbitError("TensorRT does not run it")
        machine.enqueue(STREAM, "kernel", list)

    launches = replayed(machine, enqueue)
    for _ in range(3):
        launches.run()
    assert machine.names() == ["kernel", "begin capture", "end capture", "graph.destroy", "kernel", "kernel"]
    assert launches.refusal == "TensorRT does not run it"
    assert machine.streams[STREAM].captured is None


def test_an_interruption_within_a_capture_leaves_the_stream_usable(machine):
    def enqueue() -> None:
        if machine.streams[STREAM].captured is not None:
            raise KeyboardInterrupt

    launches = replayed(machine, enqueue)
    launches.run()
    with pytest.raises(KeyboardInterrupt):
        launches.run()
    assert machine.streams[STREAM].captured is None
    assert not machine.graphs
