"""What ONNX Runtime really executes, read from its own profile of one image.

The graph that was written is a wish: the optimiser decides which kernels run, and a convolution that falls back to
float does so without a word. Its profile lists every kernel that was executed with the types of its operands.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardbit_deploy.engines.base import PrecisionReport, PrecisionRow
from hardbit_deploy.engines.onnxruntime import PROVIDER, open_session, require_engine_signature, session_options
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.manifest import FloatNode, IntegerNode

__all__ = ["Kernel", "judge_kernels", "profiled_kernels"]

# Kernels that multiply 8-bit operands into 32-bit accumulators.
INTEGER_KERNELS = frozenset(
    ["QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"]
)
# Kernels that do the bulk of a network's arithmetic, under whatever prefix a fusion gives them; and control flow, which
# may run something else on the next image than it did on the one that was profiled.
_HEAVY = re.compile(r"Conv|Gemm|MatMul|Einsum|Attention|LSTM|GRU|RNN|^If$|^Loop$|^Scan$|^SequenceMap$")
_FUSIBLE = re.compile(r"Conv|Gemm|MatMul")
_EIGHT_BITS = ("uint8", "int8")
_EVENT_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Kernel:
    """One executed kernel; `types` are of the inputs it kept, constants that were packed beforehand are not listed."""

    node: str
    op: str
    provider: str
    types: tuple[str, ...]

    @property
    def is_heavy(self) -> bool:
        return _HEAVY.search(self.op) is not None

    @property
    def operand_types(self) -> tuple[str, ...]:
        """The types of the two factors. A packed weight is missing, its zero point has the same type."""
        eight_bit = [kind for kind in self.types[1:] if kind in _EIGHT_BITS]
        if self.op in ("QLinearConv", "QGemm", "QLinearMatMul"):
            # a, a_scale, a_zero_point, [b,] b_scale, b_zero_point, ...: the first 8-bit type is a's zero point
            return (self.types[0], *eight_bit[1:2])
        if self.op in INTEGER_KERNELS:
            return (self.types[0], *eight_bit[:1])
        return self.types[:2]

    @property
    def is_integer(self) -> bool:
        operands = self.operand_types
        return self.op in INTEGER_KERNELS and len(operands) == 2 and all(kind in _EIGHT_BITS for kind in operands)


def profiled_kernels(
    engine: Path, image: NDArray[np.uint8], classes: int, appended: bytes = b"", outputs: Sequence[str] = ("logits",)
) -> tuple[Kernel, ...]:
    """Run `image` uint8 (1, channels, height, width) with the options of every engine, plus profiling.

    `appended` is merged with the graph (see `onnx_bytes`), and `outputs` are asked for.

    Raises HardbitError where the graph cannot be loaded, or does not take such images or give `classes` logits.
    """
    with tempfile.TemporaryDirectory(prefix="hardbit-profile-") as folder:
        options = session_options(threads=1)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(engine, options, appended)
        require_engine_signature(session, engine, image.shape[1:], classes)
        try:
            session.run(list(outputs), {"image": image})
        except Exception as error:  # the runtime raises a class of its own for every status code
            raise HardbitError(f"ONNX Runtime cannot run it ({error})", engine.name, "build the bundle anew") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = []
    for event in events:
        if event.get("cat") == "Node" and event.get("name", "").endswith(_EVENT_SUFFIX):
            arguments = event["args"]
            types = tuple(next(iter(shape)) for shape in arguments.get("input_type_shape", []) if shape)
            node = event["name"][: -len(_EVENT_SUFFIX)]
            kernels.append(Kernel(node, arguments.get("op_name", ""), arguments.get("provider", ""), types))
    return tuple(kernels)


def judge_kernels(
    kernels: Iterable[Kernel], integer_nodes: Sequence[IntegerNode], float_nodes: Sequence[FloatNode] = ()
) -> PrecisionReport:
    """Compare what was executed with what the manifest declares.

    A float layer that is fused with the activation behind it runs under that one's name (`relu1.out_nchwc`, `fused
    fc1`), so as many float kernels without an owner are accepted as declared float layers are missing. That hides no
    integer layer: each of those must have been executed under its own name, in integers.
    """
    names = [node.name for node in integer_nodes] + [node.name for node in float_nodes]
    heavy: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        if kernel.is_heavy:
            heavy.setdefault(_owner(kernel.node, names), []).append(kernel)
    unowned = [kernel for kernel in heavy.get("", []) if not kernel.is_integer]
    fused = [node for node in float_nodes if node.name not in heavy]
    problems = []
    if len(unowned) > len(fused) or not all(_FUSIBLE.search(kernel.op) for kernel in unowned):
        problems = [f"{kernel.node} runs as {_described(kernel)} and is not declared at all" for kernel in unowned]
    rows = []
    for node in integer_nodes:
        executed = heavy.get(node.name, [])
        worst = min(executed, key=lambda kernel: kernel.is_integer and kernel.provider == PROVIDER, default=None)
        if worst is None:
            problems.append(f"{node.name} is declared integer, and no kernel of that name was executed")
            rows.append(PrecisionRow(node.name, node.op, "", (), "", False))
            continue
        integer = worst.is_integer and worst.provider == PROVIDER
        if not integer:
            problems.append(f"{node.name} is declared integer and runs as {_described(worst)}")
        rows.append(PrecisionRow(node.name, node.op, worst.op, worst.operand_types, worst.provider, integer))
    declared_float = [
        f"{kernel.node} runs as {_described(kernel)}" + (f": {reason}" if reason else "")
        for name, reason in {node.name: node.reason for node in float_nodes}.items()
        for kernel in heavy.get(name, [])
        if not kernel.is_integer
    ]
    if unowned and not problems:
        missing = ", ".join(node.name for node in fused)
        declared_float += [f"{kernel.node} runs as {_described(kernel)}: fused, one of {missing}" for kernel in unowned]
    status: Literal["integer", "float", "wrong"] = "integer" if integer_nodes else "float"
    if problems:
        status = "wrong"
    return PrecisionReport(status, tuple(rows), tuple(problems), tuple(declared_float))


def _owner(executed: str, declared: Sequence[str]) -> str:
    """The declared layer that an executed node belongs to, or "".

    The optimiser appends `_token_12` to the names of nodes that it rewrites, and words to those that it splits:
    conv1_token_12 is conv1, conv10 is not. Where several declared names fit, as conv1 and conv1_1, the longest does.
    """
    fitting = [name for name in declared if re.fullmatch(re.escape(name) + r"(_token_\d+)?([_/ ].*)?", executed)]
    return max(fitting, key=len, default="")


def _described(kernel: Kernel) -> str:
    text = f"{kernel.op} on {' and '.join(kernel.operand_types) or 'nothing'}"
    return text if kernel.provider == PROVIDER else f"{text} by {kernel.provider}"
