"""Record the public names of a TensorRT release from its bindings on PyPI: `python record.py FOLDER OUT.json`.

FOLDER is where the wheel `tensorrt_cu12_bindings` of the running Python was unpacked. Its extension module holds every
class, method and enumeration; it is linked with TensorRT's own libraries, of which it calls nine plain C functions, by
name. Libraries of the same names are compiled here whose functions do nothing, so that the module can be imported and
looked at on any machine, without a download of some GB. Nothing of TensorRT is called.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_FUNCTIONS = re.compile(r" U ((?:create|get|init)\w+)$", re.MULTILINE)


def public_names(module: ModuleType) -> list[str]:
    """`Class`, `Class.member`, `Enumeration.VALUE`, `function`: sorted, without special names."""
    names = set()
    for name in dir(module):
        value = getattr(module, name)
        if name.startswith("__") or isinstance(value, ModuleType):
            continue
        names.add(name)
        if isinstance(value, type):
            names.update(f"{name}.{member}" for member in dir(value) if not member.startswith("__"))
    return sorted(names)


def import_bindings(folder: Path) -> ModuleType:
    """The extension module under `folder`, with empty libraries in the place of TensorRT's."""
    (binary,) = folder.rglob("tensorrt.so")
    needed = re.findall(r"Shared library: \[(libnv\S+)\]", _output("readelf", "-d", str(binary)))
    functions = _FUNCTIONS.findall(_output("nm", "-D", "--undefined-only", str(binary)))
    with tempfile.TemporaryDirectory() as empty:
        source = Path(empty) / "empty.c"
        source.write_text("".join(f"void* {function}(void) {{ return 0; }}\n" for function in functions))
        for library in needed:
            path = str(Path(empty) / library)
            subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", path, str(source)], check=True)
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        specification = importlib.util.spec_from_file_location("tensorrt", binary)
        if specification is None or specification.loader is None:
            raise ImportError(str(binary))
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    return module


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    (wheel,) = folder.glob("*.dist-info")
    record = {"source": f"{wheel.stem} from PyPI, read by record.py", "names": public_names(import_bindings(folder))}
    target.write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")
