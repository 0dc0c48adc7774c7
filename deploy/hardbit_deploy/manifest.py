"""The manifest of a bundle, format v1: parsed into frozen values, refused with the path to the field that is wrong.

Boundary: reads bytes of JSON and nothing else; files, digests and folders are the business of `bundle`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.errors import BundleError, HardbitError
from hardbit_deploy.manifest_reader import MANIFEST_NAME, Fields, FileEntry, json_object
from hardbit_deploy.network_bits import FLOAT, NetworkBits
from hardbit_deploy.suite import LOSSES, SMOOTH, Suite, suite_from_document

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "FileEntry",
    "FloatNode",
    "IntegerNode",
    "Manifest",
    "TransferSource",
    "parse_manifest",
]

FORMAT = "hardbit-bundle"
SCHEMA_VERSION = 1

# One flat folder of plain names: no separators, no drive letters, nothing hidden, nothing a shell would expand.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class IntegerNode:
    """A layer of the engine graph that must run on an integer kernel."""

    name: str
    op: str


@dataclass(frozen=True)
class FloatNode:
    """A layer of the engine graph that may run in float, and why."""

    name: str
    reason: str = ""


@dataclass(frozen=True)
class TransferSource:
    """Adversarial images that were made on another network, `candidates` for every evaluation image."""

    name: str
    images_file: str
    candidates: int


@dataclass(frozen=True)
class Manifest:
    """A valid manifest. `document` is the JSON object it was read from, for what has no field of its own."""

    name: str
    target: str
    profile: str
    architecture: str
    classes: int
    class_names: tuple[str, ...]
    bits: NetworkBits
    input_shape: tuple[int, int, int]  # channels, height, width
    input_scale: float
    input_zero_point: int
    engine_file: str
    integer_nodes: tuple[IntegerNode, ...]
    float_nodes: tuple[FloatNode, ...]
    canonical_file: str
    attack_file: str
    smooth_attack_file: str | None  # the attack graph through the smooth surrogate, where the bundle has one
    integer_attack_file: str | None  # the attack graph whose backward pass runs in integers, where it has one
    attack_losses: tuple[str, ...]
    images_file: str
    labels_file: str
    image_count: int
    twin_clean_logits_file: str | None  # the three are None together: a bundle without a recorded twin
    twin_adversarial_images_file: str | None
    twin_adversarial_logits_file: str | None
    transfers: tuple[TransferSource, ...]
    threat_model: ThreatModel
    suite: Suite
    gate: Mapping[str, Any]
    provenance: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    document: Mapping[str, Any]


def parse_manifest(data: bytes) -> Manifest:
    """Parse and validate; raises BundleError with `where` as `manifest.json: path.to.field`."""
    document = json_object(data)
    root = Fields(document, "")
    if root.value("format") != FORMAT:
        root.refuse("format", f"is {root.value('format')!r}, not {FORMAT!r}", "point at the folder of a bundle")
    version = root.integer("schema_version", least=1)
    if version > SCHEMA_VERSION:
        root.refuse(
            "schema_version",
            f"is {version}, and this hardbit reads up to {SCHEMA_VERSION}",
            "install a newer hardbit-deploy",
        )
    network, pixels, engine, attack = (root.object(key) for key in ("network", "input", "engine", "attack"))
    evaluation, canonical = root.object("evaluation"), root.object("canonical")
    classes = network.integer("classes", least=2)
    class_names = network.strings("class_names")
    if len(class_names) != classes:
        network.refuse("class_names", f"has {len(class_names)} names for {classes} classes", "name every class once")
    files = _file_table(root.object("files"))
    twin = root.object("twin") if "twin" in document else None
    bits = _bits(network.object("bits"))
    float_nodes = _float_nodes(engine)
    manifest = Manifest(
        name=root.string("name"),
        target=root.string("target"),
        profile=root.string("profile"),
        architecture=network.string("architecture"),
        classes=classes,
        class_names=class_names,
        bits=bits,
        input_shape=network.shape("input_shape"),
        input_scale=pixels.positive("scale"),
        input_zero_point=pixels.integer("zero_point", least=0, most=255),
        engine_file=engine.listed("file", files),
        integer_nodes=_integer_nodes(engine, may_be_none=bool(float_nodes)),
        float_nodes=float_nodes,
        canonical_file=canonical.listed("file", files),
        attack_file=attack.listed("file", files),
        smooth_attack_file=attack.listed("smooth_file", files) if "smooth_file" in attack.document else None,
        integer_attack_file=attack.listed("integer_file", files) if "integer_file" in attack.document else None,
        attack_losses=attack.strings("losses"),
        images_file=evaluation.listed("images", files),
        labels_file=evaluation.listed("labels", files),
        image_count=evaluation.integer("count", least=1),
        twin_clean_logits_file=twin.listed("clean_logits", files) if twin else None,
        twin_adversarial_images_file=twin.listed("adversarial_images", files) if twin else None,
        twin_adversarial_logits_file=twin.listed("adversarial_logits", files) if twin else None,
        transfers=_transfers(root, files) if "transfer" in document else (),
        threat_model=_threat_model(root.object("threat_model")),
        suite=_suite(root.object("suite"), bits),
        gate=root.object("gate").document if "gate" in document else {},
        provenance=root.object("provenance").document,
        files=files,
        document=document,
    )
    for loss in manifest.attack_losses:
        if loss not in LOSSES:
            attack.refuse("losses", f"names {loss!r}", f"known losses are {', '.join(LOSSES)}")
    for loss in manifest.suite.losses:
        if loss not in manifest.attack_losses:
            root.refuse("suite.losses", f"asks for {loss!r}, which the attack graph does not have", "build it anew")
    if SMOOTH in document["suite"].get("surrogates", ()) and manifest.smooth_attack_file is None:
        root.refuse(
            "suite.surrogates", "asks for a smooth attack graph, which the bundle does not have", "build it anew"
        )
    for key in ("data_set", "split"):
        evaluation.string(key)
    _refuse_unknown_keys(document)
    return manifest


_KNOWN_KEYS = {
    "": "format schema_version name target profile network input engine canonical attack evaluation twin threat_model "
    "transfer suite gate provenance files",
    "network": "architecture classes class_names input_shape bits",
    "input": "scale zero_point",
    "engine": "file integer_nodes float_nodes",
    "canonical": "file",
    "attack": "file smooth_file integer_file losses",
    "evaluation": "images labels data_set split count",
    "twin": "clean_logits adversarial_images adversarial_logits",
    "threat_model": "norm eps_255",
}


def _refuse_unknown_keys(document: Mapping[str, Any]) -> None:
    """A key that is not known is a typing error, or a feature of a later version: both deserve a word."""
    for section, names in _KNOWN_KEYS.items():
        part = document if section == "" else document.get(section, {})
        for key in part:
            if key not in names.split():
                Fields(part, section).refuse(str(key), "is not a key of schema version 1", "remove it")


def _bits(widths: Fields) -> NetworkBits:
    """What is not said is 8, as in a recipe."""
    kinds = ("weights", "activations", "first_layer", "last_layer")
    found: dict[str, Any] = {key: widths.integer(key, 1, FLOAT) for key in kinds if key in widths.document}
    if "layers" in widths.document:
        layers = widths.object("layers")
        found["layers"] = {name: layers.integer(name, 1, FLOAT) for name in layers.document}
    for key in widths.document:
        if key not in (*kinds, "layers"):
            widths.refuse(str(key), "is not a kind of layer", f"known are {', '.join(kinds)} and layers")
    return NetworkBits(**found)


def _float_nodes(engine: Fields) -> tuple[FloatNode, ...]:
    """Objects with name and reason; bare names too, as earlier versions wrote them."""
    nodes = []
    for position, entry in enumerate(engine.array("float_nodes") if "float_nodes" in engine.document else ()):
        fields = Fields({"name": entry} if isinstance(entry, str) else entry, f"engine.float_nodes[{position}]")
        if not isinstance(entry, str | dict):
            engine.refuse(f"float_nodes[{position}]", "is neither an object nor a name", "give name and reason")
        reason = fields.string("reason") if "reason" in fields.document else ""
        nodes.append(FloatNode(fields.string("name"), reason))
    return tuple(nodes)


def _transfers(root: Fields, files: Mapping[str, FileEntry]) -> tuple[TransferSource, ...]:
    sources: list[TransferSource] = []
    for position, entry in enumerate(root.array("transfer")):
        if not isinstance(entry, dict):
            root.refuse(f"transfer[{position}]", "is not an object", "give name, images and candidates")
        fields = Fields(entry, f"transfer[{position}]")
        name = fields.string("name")
        fields.expect("name", bool(_MODEL_NAME.fullmatch(name)), "the name of a model")
        if name in [source.name for source in sources]:
            fields.refuse("name", f"{name!r} is given twice", "name every source once")
        sources.append(TransferSource(name, fields.listed("images", files), fields.integer("candidates", least=1)))
        for key in entry:
            if key not in ("name", "images", "candidates", "made"):
                fields.refuse(str(key), "is not a key of schema version 1", "remove it")
    return tuple(sources)


def _integer_nodes(engine: Fields, *, may_be_none: bool) -> tuple[IntegerNode, ...]:
    nodes = []
    for position, entry in enumerate(engine.array("integer_nodes")):
        if not isinstance(entry, dict):
            engine.refuse(f"integer_nodes[{position}]", "is not an object", "give name and op")
        fields = Fields(entry, f"engine.integer_nodes[{position}]")
        nodes.append(IntegerNode(fields.string("name"), fields.string("op")))
    if not nodes and not may_be_none:
        engine.refuse("integer_nodes", "is empty: nothing could be proved of the engine", "declare its integer layers")
    return tuple(nodes)


def _file_table(table: Fields) -> dict[str, FileEntry]:
    entries: dict[str, FileEntry] = {}
    seen: set[str] = set()
    for name in table.document:
        if name in ("", ".", "..") or "/" in name or "\\" in name or re.match(r"[A-Za-z]:", name):
            table.refuse(repr(name), "leads out of the bundle's folder", "do not use this bundle")
        if not _PLAIN_NAME.fullmatch(name) or name.casefold() in seen or name.casefold() == MANIFEST_NAME:
            table.refuse(
                repr(name), "is not a plain file name, used once", "use letters, digits, dot, dash, underscore"
            )
        seen.add(name.casefold())
        entry = table.object(name)
        digest = entry.string("sha256")
        if not _SHA256.fullmatch(digest):
            entry.refuse("sha256", "is not 64 lower-case hexadecimal digits", "build the bundle anew")
        entries[name] = FileEntry(digest, entry.integer("bytes", least=0))
    return entries


def _threat_model(fields: Fields) -> ThreatModel:
    norm, eps_255 = fields.string("norm"), fields.number("eps_255")
    if eps_255 < 1:
        fields.refuse("eps_255", f"is {eps_255:g} grey levels: no byte could change", "an eps of 8/255 is 8")
    try:
        return ThreatModel.of(norm, eps_255)
    except HardbitError as error:
        raise _in_manifest(error) from None


def _suite(fields: Fields, bits: NetworkBits) -> Suite:
    fields.strings("losses")
    if "surrogates" in fields.document:
        fields.strings("surrogates")
    try:
        return suite_from_document(fields.document, bits)
    except HardbitError as error:
        raise _in_manifest(error) from None


def _in_manifest(error: HardbitError) -> BundleError:
    return BundleError(error.message, f"{MANIFEST_NAME}: {error.where}", error.remedy)
