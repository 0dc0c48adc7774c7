"""The CUDA kernels of the PGD step, compiled for this machine's CPU from the very source, and run by threads.

The threads of a block that has barriers are threads of the system, so that one that is missing, or not met by all,
shows. Blocks follow one another. Where there is no g++ the tests that ask for it skip.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from hardbit_deploy.engines.cuda_pgd import SOURCE

_CUDA_ON_A_CPU = """
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>
using std::max; using std::min;
#define __global__
#define __device__
#define __shared__ static
struct Place { int x, y; };
static thread_local Place threadIdx, blockIdx, blockDim;
struct Barrier {  // sleeps, where std::barrier spins; a thread that ends is waited for no longer
    std::mutex mutex; std::condition_variable changed; int members = 0, waiting = 0, turn = 0;
    void open() { waiting = 0; ++turn; changed.notify_all(); }
    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        if (++waiting == members) return open();
        const int mine = turn;
        changed.wait(lock, [&] { return turn != mine; });
    }
    void leave() { std::unique_lock<std::mutex> lock(mutex); if (--members == waiting && waiting) open(); }
};
static Barrier block_barrier;
static void __syncthreads() { block_barrier.wait(); }
static float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fdiv_rn(float a, float b) { return a / b; }
"""
_LAUNCHERS = """
template <class... A, std::size_t... I>
static void launch(void (*kernel)(A...), int columns, int rows, int threads, void **given, std::index_sequence<I...>,
                   bool has_barriers) {
    for (int y = 0; y < rows; ++y) for (int x = 0; x < columns; ++x) {
        if (!has_barriers) {
            blockIdx = {x, y}; blockDim = {threads, 1};
            for (threadIdx = {0, 0}; threadIdx.x < threads; ++threadIdx.x) kernel(*(A *)given[I]...);
            continue;
        }
        block_barrier.members = threads;
        std::vector<std::thread> block;
        for (int turn = 0; turn < threads; ++turn) block.emplace_back([=] {
            const int thread = x % 2 ? threads - 1 - turn : turn;  // whoever comes first, nothing may depend on it
            threadIdx = {thread, 0}; blockIdx = {x, y}; blockDim = {threads, 1};
            kernel(*(A *)given[I]...);
            block_barrier.leave();
        });
        for (auto &thread : block) thread.join();
    }
}
template <class... A>
static void launch(void (*kernel)(A...), int columns, int rows, int threads, void **given, bool has_barriers) {
    launch(kernel, columns, rows, threads, given, std::index_sequence_for<A...>(), has_barriers);
}
#define LAUNCHER(name, has_barriers) \\
    extern "C" void launch_##name(int columns, int rows, int threads, void **given) { \\
        launch(name, columns, rows, threads, given, has_barriers); }
LAUNCHER(begin_climb, false) LAUNCHER(begin_linf, false) LAUNCHER(begin_l2, false)
LAUNCHER(judge, true) LAUNCHER(step_linf, false) LAUNCHER(step_l2, true)
"""


class HostKernels:
    """`launch` runs a kernel to its end, with addresses of this process's memory for pointers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._lock = threading.Lock()  # shared memory and barriers are those of one block at a time

    def launch(self, name: str, grid: tuple[int, int], threads: int, formats: str, *arguments: int) -> None:
        """`formats` are those of PyCUDA: P for an address, i for an int32."""
        assert len(formats) == len(arguments), name
        kinds = {"P": ctypes.c_void_p, "i": ctypes.c_int}
        values = [kinds[kind](value) for kind, value in zip(formats, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self._lock:
            getattr(self._library, f"launch_{name}")(*grid, threads, pointers)


@functools.cache
def host_kernels() -> HostKernels:
    """Compiled once a process; skips the test without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels for the CPU with")
    folder = Path(tempfile.mkdtemp(prefix="hardbit-host-kernels-"))
    source = folder / "pgd_step.cpp"
    source.write_text(_CUDA_ON_A_CPU + SOURCE.read_text(encoding="utf-8") + _LAUNCHERS, encoding="utf-8")
    library = folder / "pgd_step.so"
    options = ["-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w"]
    subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    return HostKernels(loaded)
