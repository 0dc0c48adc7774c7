"""Sets that somebody publishes: where they are looked for, what may stand for them, and what is said of a part."""

import os
from pathlib import Path

import numpy as np
import pytest

from hardbit.data import ImageFacts, carve_validation, image_facts, load_images
from hardbit.data.load import PUBLISHED, data_fingerprint
from hardbit.recipe import RecipeError, parse_recipe
from hardbit_deploy.errors import HardbitError
from published_examples import leave_no_source

HERE = os.environ.get("HARDBIT_DATA", "")
"""The folder of real images, before `no_source` hides it."""
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_source(monkeypatch, tmp_path):
    leave_no_source(monkeypatch, tmp_path)


def write_part(file, train=30, test=12, shape=(32, 32, 3), **more):
    """A file in the form of npz that holds a part of a set."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = RNG.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"y_{split}"] = np.arange(count, dtype=np.uint8) % 10
    np.savez(file, **arrays | more)
    return arrays


@pytest.mark.parametrize("place", ["data", "data/cifar10", "cache/hardbit/cifar10"])
def test_a_part_of_a_set_is_found_in_each_place_and_says_how_much_it_is(monkeypatch, tmp_path, place):
    arrays = write_part(tmp_path / place / "cifar10.npz")
    if place.startswith("data"):
        monkeypatch.setenv("HARDBIT_DATA", str(tmp_path / "data"))
    train = load_images("cifar10", "train")
    assert np.array_equal(train.images, arrays["x_train"].transpose(0, 3, 1, 2))
    assert train.class_names[train.labels[8]] == "ship"
    assert train.source == (
        "CIFAR-10 train: 30 of 50,000 official training images, 12 of 10,000 official test images (cifar10.npz)"
    )
    assert image_facts("cifar10", "test") == ImageFacts((3, 32, 32), count=12, classes=10)
    assert len(load_images("cifar10", "test", 5)) == 5


def test_the_digest_is_of_the_content_and_not_of_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    arrays = write_part(tmp_path / "cifar10.npz")
    first, fingerprint = load_images("cifar10", "train").sha256(), data_fingerprint("cifar10", "train")
    np.savez_compressed(tmp_path / "cifar10.npz", **arrays)
    assert load_images("cifar10", "train").sha256() == first
    assert data_fingerprint("cifar10", "train") != fingerprint, "it may be another set until it is read"
    for name in ("x_train", "y_train"):
        changed = {**arrays, name: np.roll(arrays[name], 1, axis=0)}
        np.savez(tmp_path / "cifar10.npz", **changed)
        assert load_images("cifar10", "train").sha256() != first


def test_the_fingerprint_of_a_set_that_is_verified_is_its_name():
    assert data_fingerprint("cifar10", "train") == "cifar10"


def test_facts_without_any_images_are_those_of_the_published_set(monkeypatch, tmp_path):
    counts = {name: [image_facts(name, split).count for split in ("train", "test")] for name in PUBLISHED}
    assert counts == {
        "mnist": [60_000, 10_000],
        "fashion-mnist": [60_000, 10_000],
        "cifar10": [50_000, 10_000],
        "gtsrb": [39_209, 12_630],
    }
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path / "nowhere"))
    assert image_facts("gtsrb", "train") == ImageFacts((3, 32, 32), 39_209, 43)


def test_a_recipe_that_asks_for_more_than_the_part_has_is_told_so(monkeypatch, tmp_path):
    write_part(tmp_path / "cifar10.npz")
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    recipe = 'name = "x"\n[network]\narchitecture = "resnet8"\n[data]\nset = "cifar10"\n[[training.phases]]\nepochs = 1'
    with pytest.raises(RecipeError, match="2,000 images are asked for, cifar10 has 12; write count = 12"):
        parse_recipe(recipe)
    parsed = parse_recipe(recipe.replace('"cifar10"', '"cifar10"\nevaluation.count = 12'))
    assert parsed.threat_model.eps_255 == 8.0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"shape": (28, 28)}, r"30 images \(1, 28, 28\) of 10 classes are no part of CIFAR-10's train split: 50,000"),
        ({"y_train": np.arange(30)}, "of 30 classes are no part"),
        ({"train": 50_001, "shape": (1, 1, 3)}, "50,001 images"),
    ],
)
def test_a_file_that_cannot_be_a_part_is_refused(monkeypatch, tmp_path, arrays, message):
    write_part(tmp_path / "cifar10.npz", **arrays)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    for look in (image_facts, load_images):
        with pytest.raises(HardbitError, match=message):
            look("cifar10", "train")


def test_a_part_without_a_split_says_none_of_it(monkeypatch, tmp_path):
    arrays = write_part(tmp_path / "cifar10.npz")
    np.savez(tmp_path / "cifar10.npz", x_train=arrays["x_train"], y_train=arrays["y_train"])
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    assert "0 of 10,000 official test images" in load_images("cifar10", "train").source
    with pytest.raises(HardbitError, match="the split 'test' is not in it"):
        load_images("cifar10", "test")


def test_tracks_of_gtsrb_are_groups_that_no_split_parts(monkeypatch, tmp_path):
    tracks = RNG.integers(0, 9, 30)
    write_part(tmp_path / "gtsrb32.npz", track_train=tracks)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    train = load_images("gtsrb", "train")
    assert train.groups.tolist() == tracks.tolist()
    rest, validation = carve_validation(train, 5, seed=1)
    assert len(rest) + len(validation) == 30
    assert not set(rest.groups) & set(validation.groups)
    assert load_images("gtsrb", "test").groups is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_set_that_nothing_brings_is_one_line_with_every_way(name):
    with pytest.raises(HardbitError) as caught:
        load_images(name, "train")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(
        f"data.set = {name}: {PUBLISHED[name].title} is not on this machine, and downloading it failed"
    )
    assert f"{PUBLISHED[name].npz} into a folder and set HARDBIT_DATA to that" in text
    assert "let this machine reach http" in text


def test_no_two_sets_share_a_name_of_their_own():
    assert len({data_set.npz for data_set in PUBLISHED.values()}) == len(PUBLISHED)
    for name, data_set in PUBLISHED.items():
        assert data_set.name == name
        assert len(set(data_set.class_names)) == len(data_set.class_names)


@pytest.mark.skipif(not (Path(HERE) / "gtsrb32.npz").is_file(), reason="HARDBIT_DATA names no folder with gtsrb32.npz")
def test_the_real_tracks_never_stand_on_both_sides(monkeypatch):
    monkeypatch.setenv("HARDBIT_DATA", HERE)
    train = load_images("gtsrb", "train")
    assert len(set(train.groups)) == 1307, "as Stallkamp et al. count them"
    rest, validation = carve_validation(train, 512, seed=0)
    assert 512 <= len(validation) < 512 + 30
    assert not set(rest.groups) & set(validation.groups)
