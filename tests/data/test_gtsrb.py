"""GTSRB: archives of the official layout and a few photographs, planted where the official ones would be."""

from dataclasses import replace

import numpy as np
import pytest

from hardbit.data import load_images
from hardbit.data.gtsrb import CLASS_NAMES, GTSRB, TEST_IMAGES, TEST_LABELS, TRAINING_IMAGES
from hardbit.data.load import PUBLISHED
from hardbit_deploy.errors import HardbitError
from published_examples import leave_no_source, picture, published_as, serve, zipped

RNG = np.random.default_rng(0)
TRAINING = "GTSRB/Final_Training/Images/{:05d}/{:05d}_{:05d}.ppm"
KEYS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (42, 0, 0), (42, 7, 29)]  # class, track, frame
PHOTOGRAPHS = [RNG.integers(0, 256, (32, 32, 3), np.uint8) for _ in KEYS]  # 32x32: nothing is resized
ANNOTATIONS = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
CLASSES = {"00000.ppm": 16, "00001.ppm": 1}


def contents(training=None, labels=None, test=None):
    """The three archives, with members in another order than that of their names."""
    training = training or dict(zip(KEYS, PHOTOGRAPHS, strict=True))
    members = {TRAINING.format(*key): picture(image) for key, image in reversed(training.items())}
    members["GTSRB/Final_Training/Images/00000/GT-00000.csv"] = ANNOTATIONS.encode()
    rows = ANNOTATIONS + "".join(f"{name};53;54;6;5;48;49;{label}\n" for name, label in CLASSES.items())
    tests = {
        f"GTSRB/Final_Test/Images/{name}": picture(PHOTOGRAPHS[number])
        for number, name in reversed([*enumerate(CLASSES)])
    }
    tests["GTSRB/Final_Test/Images/GT-final_test.test.csv"] = b"without classes"
    return {
        TRAINING_IMAGES.name: zipped(members),
        TEST_IMAGES.name: zipped(tests | (test or {})),
        TEST_LABELS.name: zipped({"GT-final_test.csv": rows.encode() if labels is None else labels}),
    }


def plant(monkeypatch, files, train=5, test=2):
    monkeypatch.setitem(PUBLISHED, "gtsrb", replace(published_as(GTSRB, files), counts={"train": train, "test": test}))


def put(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def no_source(monkeypatch, tmp_path):
    leave_no_source(monkeypatch, tmp_path)


def test_photographs_come_in_order_of_class_track_and_frame_and_a_track_is_a_group(monkeypatch, tmp_path):
    files = contents()
    plant(monkeypatch, files)
    put(tmp_path, files)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    train = load_images("gtsrb", "train")
    assert np.array_equal(train.images.transpose(0, 2, 3, 1), PHOTOGRAPHS)
    assert train.labels.tolist() == [0, 0, 0, 42, 42]
    assert len(set(train.groups[:2])) == 1
    assert len(set(train.groups)) == 4, "track 0 of class 0 is not track 0 of class 42"
    test = load_images("gtsrb", "test")
    assert np.array_equal(test.images.transpose(0, 2, 3, 1), PHOTOGRAPHS[:2])
    assert [test.class_names[label] for label in test.labels] == ["no lorries", "speed limit 30"]
    assert len(CLASS_NAMES) == 43


def test_the_whole_photograph_is_resized_whatever_its_proportions(monkeypatch, tmp_path):
    """Four even quarters stay four quarters; no edge of the photograph is cut away."""
    quarters = np.zeros((60, 240, 3), np.uint8)
    quarters[:30, :120], quarters[:30, 120:], quarters[30:, :120] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    files = contents(training={(3, 0, 0): quarters})
    plant(monkeypatch, files, train=1)
    put(tmp_path, files)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    (image,) = load_images("gtsrb", "train").images.transpose(0, 2, 3, 1)
    assert image[:15, :15].reshape(-1, 3).tolist() == [[200, 0, 0]] * 225
    assert image[:15, 17:].reshape(-1, 3).tolist() == [[0, 200, 0]] * 225
    assert image[17:, :15].reshape(-1, 3).tolist() == [[0, 0, 200]] * 225


def test_each_split_downloads_what_it_needs_and_no_more(monkeypatch):
    files = contents()
    plant(monkeypatch, files)
    asked = serve(monkeypatch, files)
    address = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
    assert len(load_images("gtsrb", "test")) == 2
    assert asked == [f"{address}GTSRB_Final_Test_Images.zip", f"{address}GTSRB_Final_Test_GT.zip"]
    assert len(load_images("gtsrb", "train")) == 5
    assert asked[2:] == [f"{address}GTSRB_Final_Training_Images.zip"]


def test_a_folder_with_some_of_the_archives_is_named(monkeypatch, tmp_path):
    put(tmp_path, {TRAINING_IMAGES.name: b""})
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=r"GTSRB_Final_Test_Images\.zip, GTSRB_Final_Test_GT\.zip missing; complete"):
        load_images("gtsrb", "train")


def test_archives_with_another_digest_are_refused(monkeypatch, tmp_path):
    put(tmp_path, contents())
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=r"its MD5 is not the published one of GTSRB_Final_Training_Images\.zip"):
        load_images("gtsrb", "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (contents(labels=b"Filename;ClassId\n00000.ppm;16\n"), r"00001\.ppm has no class in GT-final_test\.csv"),
        (contents(labels=b"Filename;ClassId\n00000.ppm;stop\n"), "does not give every Filename its ClassId"),
        (contents(labels=b"Name;Class\n0;1\n"), "does not give every Filename its ClassId"),
        (contents(test={"GTSRB/Final_Test/Images/00001.ppm": b"P6 5 5 255 "}), r"00001\.ppm: this picture cannot be"),
        ({**contents(), TEST_LABELS.name: b"hello"}, "this is not a zip archive"),
        ({**contents(), TEST_LABELS.name: zipped({})}, r"'GT-final_test\.csv' in it cannot be read"),
    ],
    ids=["a file without a class", "a class in words", "other columns", "a broken picture", "no archive", "no labels"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_each_defect_is_named(monkeypatch, tmp_path, files, message):
    plant(monkeypatch, files)
    put(tmp_path, files)
    monkeypatch.setenv("HARDBIT_DATA", str(tmp_path))
    with pytest.raises(HardbitError, match=message):
        load_images("gtsrb", "test")
