"""CIFAR-10: an archive of the official form and a few images, planted where the official one would be."""

from dataclasses import replace

import numpy as np
import pytest

from hardbit.data import load_images
from hardbit.data.cifar10 import ARCHIVE, CIFAR10
from hardbit.data.load import PUBLISHED
from hardbit_deploy.errors import HardbitError
from published_examples import leave_no_source, published_as, serve, tar_gz

RNG = np.random.default_rng(0)
LABELS, PIXELS = RNG.integers(0, 10, 18, np.uint8), RNG.integers(0, 256, (18, 3, 32, 32), np.uint8)
NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def archive(**changes):
    """Six files of three images each, in the layout of the official page: a label, then red, green and blue rows."""
    members = {}
    for number, name in enumerate(NAMES):
        rows = range(3 * number, 3 * number + 3)
        records = b"".join(bytes([LABELS[row]]) + PIXELS[row].tobytes() for row in rows)
        members[f"cifar-10-batches-bin/{name}"] = changes.get(name.removesuffix(".bin"), records)
    return tar_gz({name: content for name, content in members.items() if content is not None})


def plant(monkeypatch, content):
    """Let `content` be what is published."""
    planted = replace(published_as(CIFAR10, {ARCHIVE.name: content}), counts={"train": 15, "test": 3})
    monkeypatch.setitem(PUBLISHED, "cifar10", planted)


@pytest.fixture(autouse=True)
def no_source(monkeypatch, tmp_path):
    leave_no_source(monkeypatch, tmp_path)


def assert_whole():
    train, test = load_images("cifar10", "train"), load_images("cifar10", "test")
    assert np.array_equal(np.concatenate([train.images, test.images]), PIXELS)
    assert [*train.labels, *test.labels] == LABELS.tolist()
    assert train.class_names[3] == "cat"
    assert train.groups is None


@pytest.mark.parametrize("subfolder", ["", "cifar10"])
def test_the_archive_is_read_where_the_environment_variable_says(monkeypatch, tmp_path, subfolder):
    plant(monkeypatch, archive())
    (tmp_path / subfolder).mkdir(exist_ok=True)
    (tmp_path / subfolder / ARCHIVE.name).write_bytes(archive())
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    assert_whole()


def test_the_archive_is_downloaded_once_from_its_official_address(monkeypatch):
    content = archive()
    plant(monkeypatch, content)
    asked = serve(monkeypatch, {ARCHIVE.name: content})
    assert_whole()
    assert_whole()
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]


def test_the_whole_archive_goes_before_a_part(monkeypatch, tmp_path):
    plant(monkeypatch, archive())
    (tmp_path / ARCHIVE.name).write_bytes(archive())
    np.savez(tmp_path / "cifar10.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS, y_test=LABELS)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    assert_whole()


def test_another_file_of_that_name_is_refused_wherever_it_lies(monkeypatch, tmp_path):
    (tmp_path / ARCHIVE.name).write_bytes(archive())
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=r"its SHA256 is not the published one of cifar-10-binary\.tar\.gz; replace"):
        load_images("cifar10", "train")
    monkeypatch.delenv("HARDBIT_DATA")
    serve(monkeypatch, {ARCHIVE.name: archive()})
    with pytest.raises(HardbitError, match=r"downloading it failed .*SHA256 hash"):
        load_images("cifar10", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(data_batch_3=b"x" * 3073 + b"y"), r"data_batch_3\.bin in it does not hold whole images"),
        (archive(data_batch_3=b""), r"data_batch_3\.bin in it does not hold whole images"),
        (archive(data_batch_3=None), "cannot be read: .*data_batch_3"),
        (archive(data_batch_3=b"\x0a" + bytes(3072)), "it holds 13 images, CIFAR-10's train split has 15"),
        (archive(data_batch_3=(b"\x0a" + bytes(3072)) * 3), "labels run from 0 to 10, but there are 10 class names"),
        (archive()[:-60], "cannot be read"),
        (b"hello", "cannot be read"),
    ],
    ids=["ragged", "empty", "missing", "too few", "label", "truncated", "no archive"],
)
def test_each_defect_is_named(monkeypatch, tmp_path, content, message):
    plant(monkeypatch, content)
    (tmp_path / ARCHIVE.name).write_bytes(content)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=message):
        load_images("cifar10", "train")


def test_the_published_digest_is_a_sha256():
    assert ARCHIVE.digest == "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
