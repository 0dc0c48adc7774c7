"""The weights file of a network: the state of its frozen quantized module, with what it belongs to in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx

from hardbit import nets
from hardbit.quantize import Bits, freeze, load_state, quantize
from hardbit.train.plan import InitialWeights
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file, write_atomically

__all__ = ["load_twin", "read_initial_weights", "read_weights_metadata", "write_weights"]


def write_weights(path: Path, twin: fx.GraphModule, metadata: Mapping[str, Any]) -> None:
    """Write the frozen `twin`; every value of `metadata` is stored as JSON."""
    tensors = {name: value.contiguous() for name, value in twin.state_dict().items()}
    write_atomically(path, save(tensors, {key: json.dumps(value) for key, value in metadata.items()}))


def read_weights_metadata(path: Path) -> dict[str, Any]:
    """What `write_weights` noted down; raises HardbitError for a file that is not safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise HardbitError(f"this is not a weights file of hardbit ({error})", where=str(path)) from error


def read_initial_weights(path: Path, batch_norm: str = "folded") -> InitialWeights:
    """The tensors of a weights file, for a network of any widths to begin with."""
    return InitialWeights(_read_tensors(path), sha256_file(path), batch_norm)


def load_twin(path: Path, architecture: str, options: Mapping[str, Any], profile: str, bits: Bits) -> fx.GraphModule:
    """The frozen module of a network in evaluation mode, with the weights of `path`.

    Raises HardbitError where the file's tensors are not those of this network at these widths.
    """
    twin = freeze(quantize(nets.build(architecture, **options), profile, bits))
    expected = twin.state_dict()
    tensors = _read_tensors(path)
    if odd := sorted(tensors.keys() ^ expected.keys()):
        raise HardbitError(
            f"tensor '{odd[0]}' is in the file or in the network, not in both",
            where=str(path),
            remedy="the weights were made by another recipe: train again",
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise HardbitError(
                f"tensor '{name}' has shape {tuple(tensor.shape)}, the network's has {tuple(expected[name].shape)}",
                where=str(path),
                remedy="the weights were made by another recipe: train again",
            )
    load_state(twin, tensors)
    return twin.eval()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise HardbitError(f"this is not a weights file of hardbit ({error})", where=str(path)) from error
