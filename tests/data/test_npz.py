"""Image sets in .npz: the forms that are read, and the ones that are refused."""

import numpy as np
import pytest

from hardbit.data import ImageFacts, ImageSet, image_facts, load_images
from hardbit.data.npz import write_npz
from hardbit_deploy.errors import HardbitError

RNG = np.random.default_rng(0)
LABELS = np.array([0, 2, 1, 2, 0], np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("stored", "to_stored", "expected_shape"),
    [
        ((5, 3, 6, 7), lambda x: x, (3, 6, 7)),
        ((5, 6, 7, 3), lambda x: x.transpose(0, 2, 3, 1), (3, 6, 7)),
        ((5, 6, 7, 1), lambda x: x.transpose(0, 2, 3, 1), (1, 6, 7)),
        ((5, 6, 7), lambda x: x[:, 0], (1, 6, 7)),
        ((5, 1, 6, 3), lambda x: x, (1, 6, 3)),
    ],
    ids=["NCHW", "NHWC colour", "NHWC grey", "NHW", "ambiguous is channels first"],
)
def test_layouts(tmp_path, stored, to_stored, expected_shape):
    images = RNG.integers(0, 256, (5, *expected_shape), np.uint8)
    stored_images = to_stored(images)
    assert stored_images.shape == stored
    name = save(tmp_path / "set.npz", images=stored_images, labels=LABELS)
    loaded = load_images(name, "test")
    assert np.array_equal(loaded.images, images)
    assert loaded.images.flags.c_contiguous
    assert loaded.labels.dtype == np.int64
    assert loaded.labels.tolist() == LABELS.tolist()
    assert loaded.class_names == ("0", "1", "2")
    assert image_facts(name, "test") == ImageFacts(expected_shape, count=5, classes=3)
    assert loaded.shape == expected_shape


def test_several_splits_in_one_file(tmp_path):
    train, test = RNG.integers(0, 256, (5, 4, 4), np.uint8), RNG.integers(0, 256, (5, 4, 4), np.uint8)
    name = save(tmp_path / "set.npz", x_train=train, y_train=LABELS, x_test=test, y_test=LABELS[::-1])
    assert np.array_equal(load_images(name, "train").images[:, 0], train)
    assert np.array_equal(load_images(name, "test", 2).images[:, 0], test[:2])
    assert load_images(name, "test", 2).labels.tolist() == [0, 2]


def test_tracks_are_groups(tmp_path):
    images = RNG.integers(0, 256, (5, 4, 4), np.uint8)
    tracks = np.array([7, 7, 3, 3, 3], np.int32)
    name = save(tmp_path / "set.npz", x_train=images, y_train=LABELS, track_train=tracks)
    assert load_images(name, "train").groups.tolist() == tracks.tolist()
    name = save(tmp_path / "set.npz", x_train=images, y_train=LABELS, track_train=tracks / 2)
    with pytest.raises(HardbitError, match=r"'track_train' is float64 \(5,\), tracks are integers of shape \(n,\)"):
        load_images(name, "train")
    name = save(tmp_path / "set.npz", x_train=images, y_train=LABELS, track_train=tracks[:4])
    with pytest.raises(HardbitError, match=r"5 images have groups int64 \(4,\)"):
        load_images(name, "train")


def test_training_on_the_evaluation_images_is_refused(tmp_path):
    name = save(tmp_path / "set.npz", images=RNG.integers(0, 256, (5, 4, 4), np.uint8), labels=LABELS)
    with pytest.raises(HardbitError, match="holds the 'test' split, 'train' is asked for; add arrays 'x_train'"):
        load_images(name, "train")


def test_what_is_written_is_read_and_does_not_depend_on_the_clock(tmp_path):
    images = ImageSet(
        RNG.integers(0, 256, (5, 3, 4, 4), np.uint8), LABELS.astype(np.int64), ("cat", "dog", "boat"), "made here"
    )
    write_npz(tmp_path / "a.npz", images, "train", "mine")
    write_npz(tmp_path / "b.npz", images, "train", "mine")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = load_images(f"npz:{tmp_path / 'a.npz'}", "train")
    assert np.array_equal(loaded.images, images.images)
    assert np.array_equal(loaded.labels, images.labels)
    assert loaded.class_names == images.class_names
    assert loaded.source == "a.npz train: mine"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "the split 'test' is not in it: arrays are labels; name them 'x_test'"),
        ({"images": np.zeros((5, 4, 4), np.float32), "labels": LABELS}, "is float32, images are uint8"),
        ({"images": np.zeros((5, 4, 4, 4), np.uint8), "labels": LABELS}, r"shape \(5, 4, 4, 4\); shapes are"),
        ({"images": np.zeros((5, 16), np.uint8), "labels": LABELS}, r"shape \(5, 16\)"),
        ({"images": np.zeros((4, 4, 4), np.uint8), "labels": LABELS}, "4 images have labels"),
        ({"images": np.zeros((5, 4, 4), np.uint8), "labels": LABELS / 2}, "labels are integers"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": LABELS[:0]}, "labels are integers of shape"),
        ({"images": np.zeros((5, 4, 4), np.uint8), "labels": LABELS, "class_names": ["a"]}, "labels run from 0 to 2"),
        ({"images": np.zeros((5, 4, 4), np.uint8), "labels": np.array([{}] * 5)}, "'labels' cannot be read"),
        ({"images": np.zeros((5, 4, 4), np.uint8), "labels": np.array([0, 1, -1, 2, 2])}, "labels run from -1"),
    ],
)
def test_each_defect_is_named(tmp_path, arrays, message):
    with pytest.raises(HardbitError, match=message):
        load_images(save(tmp_path / "set.npz", **arrays), "test")


def test_files_that_are_not_npz(tmp_path):
    with pytest.raises(HardbitError, match=r"missing\.npz: there is no such file"):
        load_images(f"npz:{tmp_path / 'missing.npz'}", "test")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(HardbitError, match=r"text\.npz: this is not an \.npz file"):
        load_images(f"npz:{tmp_path / 'text.npz'}", "test")
    np.save(tmp_path / "one.npy", LABELS)
    with pytest.raises(HardbitError, match="this holds a single array"):
        load_images(f"npz:{tmp_path / 'one.npy'}", "test")
    name = save(tmp_path / "cut.npz", images=RNG.integers(0, 256, (5, 40, 40), np.uint8), labels=LABELS)
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:1000] + bytes(1000) + content[2000:])
    with pytest.raises(HardbitError, match="'images' cannot be read"):
        load_images(name, "test")
