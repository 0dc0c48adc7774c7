"""What this board has of what a check uses: runtimes, integer instructions, GPUs, a quiet machine with steady clocks.

Boundary: looks and reports. Installs nothing, and imports a runtime only to ask for its version.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardbit_deploy.finding import Finding
from hardbit_deploy.nvidia_doctor import gpu_findings
from hardbit_deploy.preflight import describe_machine, grade

__all__ = ["Finding", "diagnose"]

# Flags of /proc/cpuinfo, best first. Without such instructions ONNX Runtime multiplies bytes in 16 bits, which clips.
_DOT_PRODUCTS = {
    "amx_int8": "AMX INT8",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "Arm I8MM",
    "asimddp": "Arm dot product",
}


def diagnose(root: Path = Path("/")) -> list[Finding]:
    """Every finding, what is most needed first; `root` is where proc/ and sys/ are looked for."""
    machine = describe_machine(root)
    return [
        Finding("python", "found", f"{machine['python']} ({sys.executable})"),
        Finding("numpy", "found", machine["numpy"]),
        _onnxruntime(machine),
        _processor(machine, root),
        _timing(machine),
        *gpu_findings(root),
        _package(
            "hardbit",
            "train, convert and report, on a workstation",
            "pip install hardbit (not needed to check a bundle)",
        ),
    ]


def _onnxruntime(machine: Mapping[str, Any]) -> Finding:
    if machine["onnxruntime"] is None:
        return Finding("onnxruntime", "missing", "needed for the target onnxruntime", "pip install onnxruntime")
    return Finding("onnxruntime", "found", f"{machine['onnxruntime']} with {', '.join(machine['providers'])}")


def _processor(machine: Mapping[str, Any], root: Path) -> Finding:
    described = f"{machine['cpu']} ({machine['machine']}, {machine['cores']} cores)"
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Finding("processor", "found", f"{described}; its instructions cannot be read")
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    flags = set(lines[0].split()) if lines else set()
    if present := [label for flag, label in _DOT_PRODUCTS.items() if flag in flags]:
        return Finding("processor", "found", f"{described}; integer products by {', '.join(present)}")
    return Finding(
        "processor",
        "limited",
        f"{described}; no instructions for sums of byte products were found",
        "expect 8-bit layers to clip on x86 without VNNI: build the bundle with 7-bit weights",
    )


def _timing(machine: Mapping[str, Any]) -> Finding:
    found = grade(machine)
    detail = f"timings here are of grade {found.letter}: {'; '.join(found.reasons)}"
    if found.letter == "A":
        return Finding("timing", "found", detail)
    if found.letter == "C":
        return Finding("timing", "limited", detail, "stop the other programs before timing")
    if machine["clocks_locked"] is None:
        return Finding("timing", "limited", detail, "a virtual machine hides its clocks: time on the board itself")
    return Finding("timing", "limited", detail, "lock the clocks: sudo jetson_clocks on a Jetson, else cpupower")


def _package(name: str, purpose: str, remedy: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, "optional", f"for {purpose}", remedy)
    return Finding(name, "found", f"for {purpose}")
