"""Class folders, the ImageNet way: what is read, in which order, and how every defect is named."""

from collections import Counter

import numpy as np
import pytest

from hardbit import pipeline
from hardbit.data import ImageFacts, data_fingerprint, extract, folder, image_facts, load_images
from hardbit.recipe import RecipeError, parse_recipe
from hardbit_deploy.errors import HardbitError
from published_examples import picture
from recipe_examples import RECIPE

SHAPE = (3, 8, 8)
CLASSES = {"boat": 40, "cat": 10, "10 dogs": 25}


def level(name: str, number: int) -> np.ndarray:
    """A picture of even colour that tells which it is."""
    return np.full((8, 8, 3), (sorted(CLASSES).index(name), number, 200), np.uint8)


def write(place, split="train", kind="PNG", classes=CLASSES):
    for name, count in classes.items():
        (place / split / name).mkdir(parents=True)
        for number in range(count):
            (place / split / name / f"{number}.{kind.lower()}").write_bytes(picture(level(name, number), kind))
    return f"folder:{place}"


def test_every_picture_comes_once_with_the_label_of_its_sorted_class(tmp_path):
    name = write(tmp_path)
    (tmp_path / "train" / "boat" / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "train" / "boat" / "notes.txt").write_bytes(b"no picture")
    train = load_images(name, "train", shape=SHAPE)
    assert train.class_names == ("10 dogs", "boat", "cat")
    assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist()
    assert Counter(map(tuple, train.images[:, :2, 3, 5].tolist())) == {
        (sorted(CLASSES).index(each), number): 1 for each, count in CLASSES.items() for number in range(count)
    }
    assert image_facts(name, "train", SHAPE) == ImageFacts(SHAPE, 75, 3)
    assert train.source == f"{tmp_path.name} train: 75 pictures, each cut to 8x8 in RGB"


def test_the_first_images_are_a_sample_of_all_classes_and_the_order_is_of_names_alone(tmp_path):
    first = load_images(write(tmp_path / "a"), "train", 30, SHAPE)
    counts = np.bincount(first.labels, minlength=3)
    assert counts.min() >= 1
    assert counts[1] > counts[2], "boats are many, cats are few"
    again = load_images(write(tmp_path / "b", classes=dict(reversed(CLASSES.items()))), "train", shape=SHAPE)
    assert np.array_equal(again.images[:30], first.images)


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_test_images_have_the_labels_of_the_training_images(tmp_path, split):
    write(tmp_path)
    name = write(tmp_path, split, classes={"cat": 2})
    test = load_images(name, "test", shape=SHAPE)
    assert test.labels.tolist() == [2, 2]
    assert image_facts(name, "test", SHAPE) == ImageFacts(SHAPE, 2, 3)


def test_grey_and_other_sizes_by_the_rule_of_covering(tmp_path):
    (tmp_path / "train" / "wide").mkdir(parents=True)
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 100
    (tmp_path / "train" / "wide" / "x.JPEG").write_bytes(picture(pixels, "PNG"))
    train = load_images(f"folder:{tmp_path}", "train", shape=(1, 5, 5))
    assert train.images.shape == (1, 1, 5, 5)
    assert np.unique(train.images[..., 1:4]).tolist() == [100], "the middle third, but for what the edges average"
    assert train.images.min() > 50


def break_picture(place):
    (place / "train" / "cat" / "4.png").write_bytes(b"hello")


def empty_class(place):
    (place / "train" / "duck").mkdir()


def unknown_class(place):
    write(place, "test", classes={"cat": 1})
    (place / "test" / "horse").mkdir()


def empty_split(place):
    (place / "test").mkdir()


def no_pictures(place):
    (place / "test" / "cat").mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (break_picture, "train", r"train/cat/4\.png: this picture cannot be read"),
        (empty_class, "train", "train/duck: this class has no pictures; remove it, or add some"),
        (unknown_class, "test", "class 'horse' of test is not in train"),
        (empty_split, "test", "test: there is no folder of a class in it"),
        (no_pictures, "test", "test: there are no pictures in it"),
        (lambda place: None, "test", "there is no folder 'test or val' in it; test images lie in test or val/CLASS/"),
    ],
)
def test_each_defect_is_named(tmp_path, change, split, message):
    name = write(tmp_path)
    change(tmp_path)
    with pytest.raises(HardbitError, match=message):
        load_images(name, split, shape=SHAPE)


def test_mistakes_in_the_call(tmp_path, monkeypatch):
    name = write(tmp_path)
    with pytest.raises(HardbitError, match="nowhere: there is no such folder"):
        load_images(f"folder:{tmp_path}/nowhere", "train", shape=SHAPE)
    with pytest.raises(HardbitError, match="76 images are asked for, there are 75; ask for 1 to 75"):
        load_images(name, "train", 76, SHAPE)
    with pytest.raises(HardbitError, match="pictures in folders have sizes of their own; say which shape"):
        load_images(name, "train")
    monkeypatch.setattr(folder.os, "sysconf", lambda key: 100)
    with pytest.raises(HardbitError, match=r"75 images of \[3, 8, 8\] take 0\.0 GB, this machine has 0\.0 GB; choose"):
        load_images(name, "train", shape=SHAPE)


def test_another_picture_is_another_fingerprint(tmp_path):
    name = write(tmp_path)
    before = data_fingerprint(name, "train")
    assert data_fingerprint(name, "train") == before
    (tmp_path / "train" / "cat" / "4.png").write_bytes(picture(level("boat", 255), "PNG") + b" ")
    assert data_fingerprint(name, "train") != before
    assert data_fingerprint(f"folder:{tmp_path}/nowhere", "train") == "folder"


def recipe(place):
    """The bars of `recipe_examples`, from pictures that `place` holds."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("test", 24)):
        for number in range(count):
            bars = rng.integers(0, 60, (40, 28), np.uint8)  # 40 high: six rows are cut away at either end
            bars[6 + 9 * (number % 3) : 14 + 9 * (number % 3), 4:24] += 150
            file = place / "bars" / split / "abc"[number % 3] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(bars, "PNG"))
    text = RECIPE.replace("npz:bars.npz", "folder:bars").replace("count = 64", "count = 24")
    return text.replace("validation = 32", "validation = 8")


def test_a_recipe_trains_and_exports_from_a_folder(tmp_path):
    parsed = parse_recipe(recipe(tmp_path), folder=tmp_path)
    result = pipeline.run(parsed, tmp_path / "run", until="export")
    assert result.steps[0].note.startswith("weights: trained for 2 epochs on 88 images")
    assert np.load(tmp_path / "run/export/images.npy").shape == (24, 1, 28, 28)
    assert all(step.skipped for step in pipeline.run(parsed, tmp_path / "run", until="export").steps)


def test_a_recipe_is_compared_with_the_folder(tmp_path):
    text = recipe(tmp_path)
    with pytest.raises(RecipeError, match=r"the network tells 4 classes apart, folder:bars has 3; write classes = 3$"):
        parse_recipe(text.replace("classes = 3", "classes = 4"), folder=tmp_path)
    (tmp_path / "bars/test/d").mkdir()
    with pytest.raises(RecipeError, match="class 'd' of test is not in train"):
        parse_recipe(text, folder=tmp_path)


def test_images_of_a_folder_can_travel_with_a_model(tmp_path, capsys):
    name = write(tmp_path / "set", "test")
    file = tmp_path / "images.npz"
    assert extract.main([name, "test", "20", str(file)]) == 64
    assert "say which shape" in capsys.readouterr().err
    assert extract.main([name, "test", "20", str(file), "--shape", "3", "8", "8"]) == 0
    carried, original = load_images(f"npz:{file}", "test"), load_images(name, "test", 20, SHAPE)
    assert np.array_equal(carried.images, original.images)
    assert carried.class_names == original.class_names
