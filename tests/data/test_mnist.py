"""MNIST: the files of Fashion-MNIST with other content, held to digests of that content."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from hardbit.data import load_images, mnist
from hardbit_deploy.errors import HardbitError
from published_examples import leave_no_source, serve

HERE = Path(os.environ.get("HARDBIT_DATA", "")) / "mnist.npz"


@pytest.fixture(autouse=True)
def no_source(monkeypatch, tmp_path):
    leave_no_source(monkeypatch, tmp_path)


def packed(array):
    """The array as a gzipped IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), 1)


@pytest.mark.skipif(not HERE.is_file(), reason="HARDBIT_DATA names no folder with mnist.npz")
def test_the_digests_are_those_of_the_real_test_images():
    with np.load(HERE) as real:
        for name, array in (("images-idx3", real["x_test"]), ("labels-idx1", real["y_test"])):
            content = gzip.decompress(packed(array))
            assert hashlib.sha256(content).hexdigest() == mnist.IDX_SHA256[f"t10k-{name}-ubyte.gz"]


def test_images_are_read_from_files_that_are_verified_by_content(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 256, (10_000, 28, 28)), "labels": np.arange(10_000) % 10}
    for kind, form in (("images", "idx3"), ("labels", "idx1")):
        for split in ("train", "t10k"):
            name = f"{split}-{kind}-{form}-ubyte.gz"
            content = packed(arrays[kind])
            (tmp_path / name).write_bytes(content)
            monkeypatch.setitem(mnist.IDX_SHA256, name, hashlib.sha256(gzip.decompress(content)).hexdigest())
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    test = load_images("mnist", "test")
    assert np.array_equal(test.images[:, 0], arrays["images"])
    assert test.class_names[test.labels[13]] == "3"
    with pytest.raises(HardbitError, match="it holds 10,000 images, MNIST's train split has 60,000"):
        load_images("mnist", "train")


def test_the_files_of_fashion_mnist_are_not_taken_for_it(monkeypatch, tmp_path):
    for name in mnist.IDX_SHA256:
        (tmp_path / name).write_bytes(packed(np.zeros((5, 28, 28))))
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=r"not that of MNIST's t10k-images.* give each a subfolder of its own"):
        load_images("mnist", "test")


def test_a_download_with_another_digest_is_refused(monkeypatch, tmp_path):
    asked = serve(monkeypatch, {"t10k-images-idx3-ubyte.gz": packed(np.zeros((10, 28, 28)))})
    with pytest.raises(HardbitError, match=r"downloading it failed .*SHA256 hash"):
        load_images("mnist", "test")
    assert asked == ["https://storage.googleapis.com/cvdf-datasets/mnist/t10k-images-idx3-ubyte.gz"]
    assert not list((tmp_path / "cache").rglob("*.gz"))
