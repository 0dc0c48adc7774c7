"""A bundle is written whole, and refused in one sentence when anything about it is not as listed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import canonical_examples
from bundle_examples import build_bundle, manifest_fields, smooth_images
from hardbit_deploy import bundle as bundles
from hardbit_deploy.bundle import load_bundle, write_bundle
from hardbit_deploy.errors import BundleError, HardbitError


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("bundles") / "good", count=4).path


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "bundle"))


@pytest.fixture
def nothing_is_parsed(monkeypatch):
    def parse(*_, **__):
        raise AssertionError("a file was parsed before all were verified")

    monkeypatch.setattr(bundles.np, "load", parse)


def change_manifest(folder: Path, path: str, value: object) -> None:
    """Set (or with `...`, delete) the field at a dotted path."""
    file = folder / "manifest.json"
    document = json.loads(file.read_text())
    part = document
    *parents, last = path.split(".")
    for key in parents:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    file.write_text(json.dumps(document))


def npy(header: str) -> bytes:
    """An npy file of version 1.0 with this header and no data."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.remedy, "a refusal says what to do"
    assert caught.value.exit_code == 64
    return text


def test_what_was_written_is_what_is_read(good):
    bundle = load_bundle(good)
    manifest = bundle.manifest
    assert (manifest.name, manifest.target, manifest.classes) == ("example", "onnxruntime", 10)
    assert manifest.input_shape == (1, 12, 12)
    assert [node.name for node in manifest.integer_nodes] == ["conv1", "conv2", "fc1", "fc2"]
    assert bundle.images.dtype == np.uint8
    assert bundle.images.shape == (4, 1, 12, 12)
    np.testing.assert_array_equal(bundle.images, smooth_images(4, (1, 12, 12)))
    np.testing.assert_array_equal(bundle.labels, bundle.twin_clean_logits.argmax(axis=1))
    assert set(manifest.files) == {path.name for path in good.iterdir()} - {"manifest.json"}


def test_arrays_are_mapped_read_only_not_loaded(good):
    images = load_bundle(good).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_only_listed_files_are_handed_out(good):
    bundle = load_bundle(good)
    assert bundle.file("engine.onnx").read_bytes()
    with pytest.raises(BundleError, match="has no file"):
        bundle.file("../secret")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_refused(good, tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in good.iterdir() if path.name != "manifest.json")))
    content = bytearray((good / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("flipped") / "bundle"
    shutil.copytree(good, folder, copy_function=os.link)
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    text = refusal(folder)
    assert text.startswith(f"{name}: its content is not what the manifest lists")
    shutil.rmtree(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_lists_the_same_files(good, tmp_path_factory, data):
    """Text may change unseen, digests may not, and no damage ends in another exception."""
    content = bytearray((good / "manifest.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged") / "bundle"
    shutil.copytree(good, folder, copy_function=os.link)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(content)
    try:
        assert load_bundle(folder).manifest.files == load_bundle(good).manifest.files
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017 -- both outcomes are right
    shutil.rmtree(folder)


@pytest.mark.usefixtures("nothing_is_parsed")
class TestRefusedBeforeAnythingIsParsed:
    def test_no_folder_and_no_bundle(self, tmp_path):
        assert "there is no such folder" in refusal(tmp_path / "nowhere")
        assert "is not a bundle: it has no manifest.json" in refusal(tmp_path)

    def test_a_missing_file(self, copy):
        (copy / "attack.onnx").unlink()
        assert refusal(copy).startswith("attack.onnx: is in the manifest but not in the folder")

    def test_an_unlisted_file(self, copy):
        (copy / "extra.so").write_bytes(b"")
        assert refusal(copy).startswith("extra.so: is in the folder but not in the manifest")

    def test_an_unlisted_folder(self, copy):
        (copy / "more").mkdir()
        assert refusal(copy).startswith("more: is in the folder but not in the manifest")

    def test_a_folder_in_the_place_of_a_file(self, copy):
        (copy / "attack.onnx").unlink()
        (copy / "attack.onnx").mkdir()
        assert refusal(copy).startswith("attack.onnx: is not a regular file")

    def test_a_number_that_json_can_spell_and_no_double_can_hold(self, copy):
        file = copy / "manifest.json"
        file.write_text(file.read_text().replace('"eps_255": 4.0', '"eps_255": 4.0, "extra": 1e999'))
        assert "too large for a double" in refusal(copy)

    @pytest.mark.parametrize("name", ["attack.onnx", "manifest.json"])
    def test_a_symbolic_link_even_to_the_right_content(self, copy, tmp_path, name):
        (copy / name).rename(tmp_path / name)
        (copy / name).symlink_to(tmp_path / name)
        assert refusal(copy).startswith(f"{name}: is ")

    def test_a_pipe_that_would_block_for_ever(self, copy):
        (copy / "attack.onnx").unlink()
        os.mkfifo(copy / "attack.onnx")
        assert refusal(copy).startswith("attack.onnx: is not a regular file")

    def test_another_size_than_listed(self, copy):
        with (copy / "images.npy").open("ab") as stream:
            stream.write(b"x")
        assert "bytes where the manifest lists" in refusal(copy)

    def test_a_file_over_the_limit(self, copy):
        assert "over the limit of 1000" in refusal(copy, max_file_bytes=1000)

    def test_a_listed_size_over_the_limit(self, copy):
        document = json.loads((copy / "manifest.json").read_text())
        document["files"]["images.npy"]["bytes"] = 3 << 30
        (copy / "manifest.json").write_text(json.dumps(document))
        assert "over the limit" in refusal(copy)

    def test_a_huge_manifest(self, copy):
        with (copy / "manifest.json").open("ab") as stream:
            stream.write(b" " * (5 << 20))
        assert refusal(copy).startswith("manifest.json: is larger than 4 MiB")

    @pytest.mark.parametrize(
        "name", ["../engine.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "C:engine.onnx", "..", ".", ""]
    )
    def test_a_name_that_leads_out_of_the_folder(self, copy, name):
        document = json.loads((copy / "manifest.json").read_text())
        document["files"][name] = document["files"]["engine.onnx"]
        (copy / "manifest.json").write_text(json.dumps(document))
        assert "leads out of the bundle's folder" in refusal(copy)

    @pytest.mark.parametrize("name", [".hidden", "ENGINE.ONNX", "manifest.json", "a b", "x\n", "ä", "n" * 200])
    def test_a_name_that_is_not_plain(self, copy, name):
        document = json.loads((copy / "manifest.json").read_text())
        document["files"][name] = document["files"]["engine.onnx"]
        (copy / "manifest.json").write_text(json.dumps(document))
        assert "is not a plain file name" in refusal(copy)

    def test_a_newer_schema(self, copy):
        change_manifest(copy, "schema_version", 2)
        assert refusal(copy) == (
            "manifest.json: schema_version is 2, and this hardbit reads up to 1; install a newer hardbit-deploy"
        )

    def test_another_format(self, copy):
        change_manifest(copy, "format", "zip")
        assert "format is 'zip', not 'hardbit-bundle'" in refusal(copy)

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{", "nonsense", '{"format": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a":' * 50_000, "\xff"],
        ids=["empty", "array", "open", "word", "nan", "twice", "deep", "deeper", "latin-1"],
    )
    def test_what_is_not_json(self, copy, text):
        (copy / "manifest.json").write_bytes(text.encode("latin-1"))
        assert refusal(copy).startswith("manifest.json: is not ")

    @pytest.mark.parametrize(
        ("path", "value", "expected"),
        [
            ("name", ..., "name is missing"),
            ("name", "two\nlines", "name is 'two"),
            ("target", 7, "target is '7', not a string"),
            ("network", [], "network is '[]', not an object"),
            ("network.classes", 1, "network.classes is '1', not a whole number of at least 2"),
            ("network.classes", True, "network.classes is 'True'"),
            ("network.class_names", ["a"], "network.class_names has 1 names for 10 classes"),
            ("network.input_shape", [28, 28], "network.input_shape is"),
            ("input.scale", 0, "input.scale is '0', not above zero"),
            ("input.zero_point", 256, "input.zero_point is '256'"),
            ("engine.file", "other.onnx", "engine.file is 'other.onnx', not one of the bundle's files"),
            ("engine.integer_nodes", [{"name": "conv1"}], "engine.integer_nodes[0].op is missing"),
            ("engine.integer_nodes", ["conv1"], "engine.integer_nodes[0] is not an object"),
            ("engine.integer_nodes", [], "engine.integer_nodes is empty"),
            ("engine.float_nodes", [3], "engine.float_nodes[0] is neither an object nor a name"),
            ("engine.float_nodes", [{"reason": "x"}], "engine.float_nodes[0].name is missing"),
            ("network.bits", {"weights": 0}, "network.bits.weights is '0', not a whole number of at least 1"),
            ("network.bits", {"weights": 33}, "at most 32"),
            ("network.bits", {"layers": {"conv1": "2"}}, "network.bits.layers.conv1 is '2'"),
            ("network.bits", {"biases": 8}, "network.bits.biases is not a kind of layer"),
            ("attack.smooth_file", "no.onnx", "attack.smooth_file is 'no.onnx', not one of the bundle's files"),
            ("transfer", {}, "transfer is '{}', not an array"),
            ("transfer", ["a"], "transfer[0] is not an object"),
            (
                "transfer",
                [{"name": "a b", "images": "images.npy"}],
                "transfer[0].name is 'a b', not the name of a model",
            ),
            ("transfer", [{"name": "a", "images": "x.npy"}], "transfer[0].images is 'x.npy', not one of"),
            ("transfer", [{"name": "a", "images": "images.npy", "candidates": 0}], "transfer[0].candidates is '0'"),
            (
                "transfer",
                [{"name": "a", "images": "images.npy", "candidates": 1}] * 2,
                "transfer[1].name 'a' is given twice",
            ),
            ("suite.surrogates", "smooth", "suite.surrogates is 'smooth', not an array"),
            ("engine.plan", "x", "engine.plan is not a key of schema version 1"),
            ("surprise", 1, "surprise is not a key of schema version 1"),
            ("attack.losses", ["hinge"], "attack.losses names 'hinge'"),
            ("attack.losses", ["margin"], "suite.losses asks for 'cross_entropy'"),
            ("evaluation.count", 0, "evaluation.count is '0'"),
            ("evaluation.split", ..., "evaluation.split is missing"),
            ("twin.clean_logits", ..., "twin.clean_logits is missing"),
            ("threat_model.norm", "l1", "threat_model.norm: norm 'l1' is not known"),
            ("threat_model.eps_255", -1, "threat_model.eps_255"),
            ("threat_model.eps_255", 0.03, "threat_model.eps_255 is 0.03 grey levels: no byte could change"),
            ("threat_model.eps_255", 10**400, "more than 64 bits"),
            ("threat_model.eps_255", "8", "threat_model.eps_255 is '8', not a finite number"),
            ("suite.steps", 0, "suite.steps"),
            ("suite.steps", 11, "suite: its settings are not those of quick"),
            ("suite.name", "mine", "suite.name"),
            ("suite.name", ["quick"], "suite.name"),
            ("suite.seed", 2**63, "more than 64 bits"),
            ("network.class_names", ["\ud800"] * 10, "half a character"),
            ("provenance", {"note": "\udc80"}, "half a character"),
            (
                "provenance",
                {"nested": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]},
                "nested deeper",
            ),
            ("suite.losses", "margin", "suite.losses is 'margin', not an array"),
            ("suite.eps_factors", 3, "suite: a setting has the wrong type"),
            ("files", ..., "files is missing"),
            ("provenance", ..., "provenance is missing"),
        ],
    )
    def test_a_malformed_manifest_by_the_path_of_the_field(self, copy, path, value, expected):
        change_manifest(copy, path, value)
        text = refusal(copy)
        assert text.startswith("manifest.json: ")
        assert expected in text

    def test_a_digest_that_is_no_digest(self, copy):
        document = json.loads((copy / "manifest.json").read_text())
        document["files"]["images.npy"]["sha256"] = "X" * 64
        (copy / "manifest.json").write_text(json.dumps(document))
        assert "images.npy.sha256 is not 64 lower-case hexadecimal digits" in refusal(copy)


def test_a_file_that_may_not_be_read_is_named_with_the_reason(good, monkeypatch):
    def forbidden(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(bundles, "sha256_file", forbidden)
    with pytest.raises(HardbitError, match=r"good/\S+: the bundle cannot be read: Permission denied; look at"):
        load_bundle(good)


class TestArraysThatDoNotFit:
    """Digests may be right and arrays still wrong: whoever wrote the bundle made a mistake."""

    def rewrite(self, good: Path, target: Path, name: str, content) -> None:
        names = [path.name for path in good.iterdir() if path.name != "manifest.json"]
        files = {each: good / each for each in names} | {name: content}
        fields = json.loads((good / "manifest.json").read_text())
        for key in ("format", "schema_version", "files"):
            del fields[key]
        write_bundle(target, fields, files)

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            (
                "images.npy",
                np.zeros((3, 1, 12, 12), np.uint8),
                r"holds uint8 \(3, 1, 12, 12\), not uint8 \(4, 1, 12, 12",
            ),
            ("images.npy", np.zeros((4, 1, 12, 12), np.float32), "holds float32"),
            ("labels.npy", np.array([0, 1, 2, 10]), "labels run from 0 to 10 with 10 classes"),
            ("labels.npy", np.array([0, 1, 2, -1]), "labels run from -1"),
            ("twin_clean_logits.npy", np.zeros((4, 9), np.float32), "holds float32"),
            ("images.npy", b"\x93NUMPY nonsense", "is not an npy file"),
            ("images.npy", b"", "is not an npy file"),
            ("images.npy", b"PK\x03\x04 no archive", "is not an npy file"),
            ("images.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': ((4L, }"), "is not an npy file"),
            ("images.npy", npy("("), "is not an npy file"),
            ("images.npy", npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**30},)}}"), "is not an npy"),
            ("images.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-4,)}"), "is not an npy file"),
        ],
    )
    def test_refused(self, good, tmp_path, name, content, expected):
        with pytest.raises(BundleError, match=expected):
            self.rewrite(good, tmp_path / "bundle", name, content)
        assert not (tmp_path / "bundle").exists()

    def test_pickled_objects_are_refused_unread(self, good, tmp_path):
        class Trap:
            def __reduce__(self):
                return (pytest.fail, ("a pickle was executed",))

        np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
        with pytest.raises(BundleError, match="is not an npy file"):
            self.rewrite(good, tmp_path / "bundle", "images.npy", tmp_path / "trap.npy")


class TestWriting:
    def test_an_older_bundle_is_replaced_whole(self, copy):
        before = load_bundle(copy).manifest_sha256
        after = build_bundle(copy, count=5)
        assert after.manifest_sha256 != before
        assert after.manifest.image_count == 5

    def test_a_failure_keeps_the_older_bundle(self, copy):
        before = load_bundle(copy).manifest_sha256
        canonical = canonical_examples.plain_cnn()
        with pytest.raises(BundleError, match=r"engine\.file"):
            write_bundle(copy, manifest_fields(canonical, smooth_images(4, (1, 12, 12))), {"other.onnx": b""})
        assert load_bundle(copy).manifest_sha256 == before
        assert [path.name for path in copy.parent.iterdir()] == [copy.name]

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(BundleError, match="holds other files"):
            build_bundle(tmp_path, count=4)
        assert (tmp_path / "thesis.tex").exists()

    def test_names_that_lead_out_are_not_written(self, tmp_path):
        canonical = canonical_examples.plain_cnn()
        with pytest.raises(BundleError, match="leads out"):
            write_bundle(
                tmp_path / "bundle", manifest_fields(canonical, smooth_images(4, (1, 12, 12))), {"../outside": b"x"}
            )
        assert list(tmp_path.iterdir()) == []

    def test_equal_content_gives_equal_bundles(self, good, tmp_path):
        again = build_bundle(tmp_path / "bundle", count=4)
        assert again.manifest_sha256 == load_bundle(good).manifest_sha256

    def test_a_bundle_without_a_recorded_twin(self, good, tmp_path):
        fields = json.loads((good / "manifest.json").read_text())
        for key in ("format", "schema_version", "files", "twin"):
            del fields[key]
        names = [path.name for path in good.iterdir() if path.name != "manifest.json" and "twin" not in path.name]
        bundle = write_bundle(tmp_path / "bundle", fields, {name: good / name for name in names})
        assert bundle.twin_clean_logits is None
        assert bundle.twin_adversarial_images is None
