"""Import: anybody's ONNX image classifier -> hardbit's convention -> a bundle. No training framework on the way."""

from hardbit.importing.network import ImportedNetwork, import_network
from hardbit.importing.preprocessing import Preprocessing, read_sidecar
from hardbit.importing.words import Shape

__all__ = ["ImportedNetwork", "Preprocessing", "Shape", "import_network", "read_sidecar"]
