"""The manifest of a bundle, format v1: parsed into frozen values, refused with the path to the field that is wrong.

Boundary: reads bytes of JSON and nothing else; files, digests and folders are the business of `bundle`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from hardbit_deploy.attacks.threat_model import ThreatModel
from hardbit_deploy.errors import BundleError, HardbitError
from hardbit_deploy.suite import LOSSES, Suite, suite_from_document

__all__ = ["FORMAT", "MANIFEST_NAME", "SCHEMA_VERSION", "FileEntry", "IntegerNode", "Manifest", "parse_manifest"]

FORMAT = "hardbit-bundle"
SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

# One flat folder of plain names: no separators, no drive letters, nothing hidden, nothing a shell would expand.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_DEEPEST = 32  # levels of objects and arrays
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file: lower-case SHA-256 and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class IntegerNode:
    """A layer of the engine graph that must run on an integer kernel."""

    name: str
    op: str


@dataclass(frozen=True)
class Manifest:
    """A valid manifest. `document` is the JSON object it was read from, for what has no field of its own."""

    name: str
    target: str
    profile: str
    architecture: str
    classes: int
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]  # channels, height, width
    input_scale: float
    input_zero_point: int
    engine_file: str
    integer_nodes: tuple[IntegerNode, ...]
    float_nodes: tuple[str, ...]  # layers that the profile declares float
    canonical_file: str
    attack_file: str
    attack_losses: tuple[str, ...]
    images_file: str
    labels_file: str
    image_count: int
    twin_clean_logits_file: str | None  # the three are None together: a bundle without a recorded twin
    twin_adversarial_images_file: str | None
    twin_adversarial_logits_file: str | None
    threat_model: ThreatModel
    suite: Suite
    gate: Mapping[str, Any]
    provenance: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    document: Mapping[str, Any]


def parse_manifest(data: bytes) -> Manifest:
    """Parse and validate; raises BundleError with `where` as `manifest.json: path.to.field`."""
    document = _json_object(data)
    root = _Fields(document, "")
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
    manifest = Manifest(
        name=root.string("name"),
        target=root.string("target"),
        profile=root.string("profile"),
        architecture=network.string("architecture"),
        classes=classes,
        class_names=class_names,
        input_shape=network.shape("input_shape"),
        input_scale=pixels.positive("scale"),
        input_zero_point=pixels.integer("zero_point", least=0, most=255),
        engine_file=engine.listed("file", files),
        integer_nodes=_integer_nodes(engine),
        float_nodes=engine.strings("float_nodes") if "float_nodes" in engine.document else (),
        canonical_file=canonical.listed("file", files),
        attack_file=attack.listed("file", files),
        attack_losses=attack.strings("losses"),
        images_file=evaluation.listed("images", files),
        labels_file=evaluation.listed("labels", files),
        image_count=evaluation.integer("count", least=1),
        twin_clean_logits_file=twin.listed("clean_logits", files) if twin else None,
        twin_adversarial_images_file=twin.listed("adversarial_images", files) if twin else None,
        twin_adversarial_logits_file=twin.listed("adversarial_logits", files) if twin else None,
        threat_model=_threat_model(root.object("threat_model")),
        suite=_suite(root.object("suite")),
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
    network.object("bits")
    for key in ("data_set", "split"):
        evaluation.string(key)
    _refuse_unknown_keys(document)
    return manifest


_KNOWN_KEYS = {
    "": "format schema_version name target profile network input engine canonical attack evaluation twin threat_model "
    "suite gate provenance files",
    "network": "architecture classes class_names input_shape bits",
    "input": "scale zero_point",
    "engine": "file integer_nodes float_nodes",
    "canonical": "file",
    "attack": "file losses",
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
                _Fields(part, section).refuse(str(key), "is not a key of schema version 1", "remove it")


def _integer_nodes(engine: _Fields) -> tuple[IntegerNode, ...]:
    nodes = []
    for position, entry in enumerate(engine.array("integer_nodes")):
        if not isinstance(entry, dict):
            engine.refuse(f"integer_nodes[{position}]", "is not an object", "give name and op")
        fields = _Fields(entry, f"engine.integer_nodes[{position}]")
        nodes.append(IntegerNode(fields.string("name"), fields.string("op")))
    if not nodes:
        engine.refuse("integer_nodes", "is empty: nothing could be proved of the engine", "declare its integer layers")
    return tuple(nodes)


def _file_table(table: _Fields) -> dict[str, FileEntry]:
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


def _threat_model(fields: _Fields) -> ThreatModel:
    norm, eps_255 = fields.string("norm"), fields.number("eps_255")
    if eps_255 < 1:
        fields.refuse("eps_255", f"is {eps_255:g} grey levels: no byte could change", "an eps of 8/255 is 8")
    try:
        return ThreatModel.of(norm, eps_255)
    except HardbitError as error:
        raise _in_manifest(error) from None


def _suite(fields: _Fields) -> Suite:
    fields.strings("losses")
    try:
        return suite_from_document(fields.document)
    except HardbitError as error:
        raise _in_manifest(error) from None


def _in_manifest(error: HardbitError) -> BundleError:
    return BundleError(error.message, f"{MANIFEST_NAME}: {error.where}", error.remedy)


def _json_object(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            raise ValueError("a key is given twice")
        return document

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"is not valid JSON ({error})", MANIFEST_NAME, "build or copy the bundle anew") from None
    if not isinstance(document, dict):
        raise BundleError("is not a JSON object", MANIFEST_NAME, "point at the folder of a bundle")
    _refuse_odd_values(document, 0)
    return document


def _refuse_odd_values(value: Any, depth: int) -> None:
    """What Python's reader takes and no result could be written with: half characters, 1e999, numbers without end."""
    problem = ""
    if depth > _DEEPEST:
        problem = f"is nested deeper than {_DEEPEST} levels"
    elif isinstance(value, str):
        problem = "holds half a character (a lone surrogate)" * bool(_SURROGATE.search(value))
    elif isinstance(value, float):
        problem = "holds a number too large for a double" * (not math.isfinite(value))
    elif isinstance(value, int):
        problem = "holds a whole number of more than 64 bits" * (not -(2**63) <= value < 2**63)
    if problem:
        raise BundleError(problem, MANIFEST_NAME, "build or copy the bundle anew")
    if isinstance(value, dict):
        for key, entry in value.items():
            _refuse_odd_values(key, depth + 1)
            _refuse_odd_values(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _refuse_odd_values(entry, depth + 1)


class _Fields:
    """One object of the manifest and the path to it; reads typed fields or refuses with the full path."""

    def __init__(self, document: Mapping[str, Any], path: str) -> None:
        self.document = document
        self.path = path

    def refuse(self, key: str, problem: str, remedy: str) -> NoReturn:
        path = f"{self.path}.{key}" if self.path else key
        raise BundleError(f"{path} {problem}", MANIFEST_NAME, remedy)

    def value(self, key: str) -> Any:
        if key not in self.document:
            self.refuse(key, "is missing", "build the bundle anew")
        return self.document[key]

    def expect(self, key: str, condition: bool, kind: str) -> Any:
        if not condition:
            self.refuse(key, f"is {str(self.document[key])[:40]!r}, not {kind}", "build the bundle anew")
        return self.document[key]

    def string(self, key: str) -> str:
        value = self.value(key)
        good = isinstance(value, str) and 0 < len(value) <= 1024 and value.isprintable()
        return str(self.expect(key, good, "a string of one line"))

    def integer(self, key: str, least: int, most: int = 2**62) -> int:
        value = self.value(key)
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return int(
            self.expect(key, good, f"a whole number of at least {least}" + (f" and at most {most}" * (most < 2**62)))
        )

    def number(self, key: str) -> float:
        value = self.value(key)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(self.expect(key, good, "a finite number"))

    def positive(self, key: str) -> float:
        value = self.number(key)
        return float(self.expect(key, value > 0, "above zero") and value)

    def object(self, key: str) -> _Fields:
        value = self.value(key)
        self.expect(key, isinstance(value, dict), "an object")
        return _Fields(value, f"{self.path}.{key}" if self.path else key)

    def array(self, key: str) -> list[Any]:
        value = self.value(key)
        return list(self.expect(key, isinstance(value, list), "an array"))

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.array(key)
        self.expect(key, all(isinstance(value, str) for value in values), "an array of strings")
        return tuple(values)

    def shape(self, key: str) -> tuple[int, int, int]:
        values = self.array(key)
        good = len(values) == 3 and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
        self.expect(key, good, "channels, height, width")
        return values[0], values[1], values[2]

    def listed(self, key: str, files: Mapping[str, FileEntry]) -> str:
        name = self.string(key)
        self.expect(key, name in files, "one of the bundle's files")
        return name
