"""Fashion-MNIST: three sources in order, each verified; the original download is rebuilt to test the third."""

import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hardbit.data import extract, fashion_mnist, load_images
from hardbit.data.load import PUBLISHED
from hardbit_deploy.errors import HardbitError
from published_examples import leave_no_source

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
installed = pytest.mark.skipif(
    not (DEBIAN / TEST_FILES[0]).exists(), reason="Fashion-MNIST is not here: apt-get install dataset-fashion-mnist"
)


@pytest.fixture(autouse=True)
def no_source(monkeypatch, tmp_path):
    leave_no_source(monkeypatch, tmp_path)


def put_package_into(folder, monkeypatch):
    """Let the system's package lie in `folder`."""
    monkeypatch.setitem(PUBLISHED, "fashion-mnist", replace(fashion_mnist.FASHION_MNIST, system_folder=folder))


def original_gzip(name: str) -> bytes:
    """Zalando's file: Debian's with the file name and the time of August 2017 put back into the gzip header."""
    debian = (DEBIAN / name).read_bytes()
    time = 1504176606 if name.startswith("train") else 1504176627
    return b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\x00\x03" + name[:-3].encode() + b"\x00" + debian[10:]


@installed
@pytest.mark.parametrize(
    ("name", "published_md5"),
    [
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ],
)
def test_the_digests_are_those_of_the_files_that_zalando_publishes(name, published_md5):
    content = original_gzip(name)
    assert hashlib.md5(content).hexdigest() == published_md5
    assert hashlib.sha256(content).hexdigest() == fashion_mnist.GZIP_SHA256[name]
    assert hashlib.sha256(gzip.decompress(content)).hexdigest() == fashion_mnist.IDX_SHA256[name]


@installed
def test_debian_package(monkeypatch):
    put_package_into(DEBIAN, monkeypatch)
    test = load_images("fashion-mnist", "test")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.class_names[test.labels[0]] == "Ankle boot"
    train = load_images("fashion-mnist", "train", limit=5)
    assert train.images.shape == (5, 1, 28, 28)
    assert train.labels.tolist() == [9, 0, 0, 3, 0]


@installed
@pytest.mark.parametrize("subfolder", ["", "fashion-mnist"])
def test_the_environment_variable_comes_first(monkeypatch, tmp_path, subfolder):
    folder = tmp_path / "data" / subfolder
    folder.mkdir(parents=True)
    for name in fashion_mnist.IDX_SHA256:
        (folder / name).symlink_to(DEBIAN / name)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path / "data"))
    put_package_into(DEBIAN, monkeypatch)
    assert PUBLISHED["fashion-mnist"].find() == folder
    assert load_images("fashion-mnist", "test", 1).source == "Fashion-MNIST test, as published"


@installed
def test_an_environment_variable_without_the_set_leaves_it_to_the_next_source(monkeypatch, tmp_path):
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    put_package_into(DEBIAN, monkeypatch)
    assert PUBLISHED["fashion-mnist"].find() == DEBIAN


def test_a_wrong_environment_variable_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(HardbitError, match="nowhere: this folder does not exist; mend or unset HARDBIT_DATA"):
        load_images("fashion-mnist", "test")
    (tmp_path / TEST_FILES[0]).write_bytes(b"")
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=r"t10k-labels-idx1-ubyte\.gz missing; complete the folder"):
        load_images("fashion-mnist", "test")


@installed
def test_a_download_is_verified_and_kept(monkeypatch, tmp_path):
    fetched = []

    def serve(self, url, output_file, pooch, check_only=False):
        name = url.removeprefix("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/")
        fetched.append(name)
        Path(output_file).write_bytes(original_gzip(name))

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", serve)
    assert load_images("fashion-mnist", "test", 1).labels.tolist() == [9]
    assert load_images("fashion-mnist", "test", 1).labels.tolist() == [9]
    assert fetched == list(TEST_FILES), "the second call must find both files in the cache"
    assert sorted(file.name for file in (tmp_path / "cache" / "hardbit" / "fashion-mnist").iterdir()) == [*TEST_FILES]


def test_a_download_with_another_digest_is_refused_and_not_kept(monkeypatch, tmp_path):
    def serve(self, url, output_file, pooch, check_only=False):
        Path(output_file).write_bytes(gzip.compress(b"something else"))

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", serve)
    with pytest.raises(HardbitError, match="SHA256 hash"):
        load_images("fashion-mnist", "test")
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_when_no_source_works_one_error_lists_the_three_ways():
    with pytest.raises(HardbitError) as caught:
        load_images("fashion-mnist", "train")
    text = str(caught.value)
    assert "\n" not in text
    for way in ("HARDBIT_DATA", "apt-get install dataset-fashion-mnist", "let this machine reach http://fashion-mnist"):
        assert way in text
    assert "downloading it failed (Name or service not known); " in text


def test_a_data_folder_without_the_images_is_named_when_nothing_else_works(monkeypatch, tmp_path):
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=f"neither in HARDBIT_DATA={tmp_path} nor elsewhere on this machine"):
        load_images("fashion-mnist", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(bytes(16)), "SHA-256 of its unpacked content is not"),
        (gzip.compress(bytes(100_000_000), 1), "SHA-256 of its unpacked content is not"),
        (b"plain text", "cannot be unpacked"),
        (gzip.compress(bytes(10_000))[:-20], "cannot be unpacked"),
        (b"", "SHA-256 of its unpacked content is not"),
    ],
    ids=["other content", "too much content", "not gzip", "truncated", "empty"],
)
def test_a_file_that_is_not_the_original_is_refused_by_name(monkeypatch, tmp_path, content, message):
    for name in fashion_mnist.IDX_SHA256:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=rf"t10k-images-idx3-ubyte\.gz: .*{message}"):
        load_images("fashion-mnist", "test")


@installed
def test_the_images_that_the_model_carries_are_the_first_2000_of_the_test_split(monkeypatch, tmp_path):
    put_package_into(DEBIAN, monkeypatch)
    shipped = Path(__file__).parents[2] / "models" / "fashion-cnn-w4a4" / "images.npz"
    carried, original = load_images(f"npz:{shipped}", "test"), load_images("fashion-mnist", "test", 2000)
    assert np.array_equal(carried.images, original.images)
    assert np.array_equal(carried.labels, original.labels)
    assert carried.class_names == original.class_names
    assert "MIT" in carried.source
    assert shipped.stat().st_size < 1_500_000
    assert extract.main(["fashion-mnist", "test", "2000", str(tmp_path / "again.npz")]) == 0
    again = load_images(f"npz:{tmp_path / 'again.npz'}", "test")
    assert np.array_equal(again.images, carried.images)


def test_extract_ends_with_one_line_on_an_error(capsys, tmp_path):
    source = Path(__file__).parents[2] / "models" / "fashion-cnn-w4a4" / "images.npz"
    assert extract.main([f"npz:{source}", "test", "1", str(tmp_path / "nowhere" / "out.npz")]) == 64
    assert capsys.readouterr().err == f"{tmp_path}/nowhere/out.npz: it cannot be written: No such file or directory\n"
    assert extract.main(["npz:nowhere.npz", "test", "1", str(tmp_path / "out.npz")]) == 64
    assert capsys.readouterr().err == "nowhere.npz: there is no such file\n"
