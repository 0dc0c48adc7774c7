"""The page on data: its sets, counts, files and checksums are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hardbit.data.folder import SUFFIXES
from hardbit.data.load import PUBLISHED

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
ROWS = {
    row[0]: row[1:]
    for row in re.findall(r"^\| ([\w-]+) \| ([\d,]+), ([\d,]+) \| (.+?) \| .+? \| (.+?) \|$", PAGE, re.M)
}


def test_every_published_set_has_its_row() -> None:
    assert list(ROWS) == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_what_the_set_is(name: str) -> None:
    train, test, shape, held_to = ROWS[name]
    data_set = PUBLISHED[name]
    assert (train, test) == (f"{data_set.counts['train']:,}", f"{data_set.counts['test']:,}")
    assert shape.startswith("x".join(map(str, data_set.shape)))
    kinds = {file.digest.partition(":")[0] for files in data_set.files.values() for file in files}
    assert kinds == {"md5" if held_to.startswith("MD5") else "sha256"}
    assert f"`{data_set.npz}`" in PAGE


@pytest.mark.parametrize("name", ["cifar10", "gtsrb"])
def test_the_archives_are_named(name: str) -> None:
    for files in PUBLISHED[name].files.values():
        assert all(f"`{file.name}`" in PAGE for file in files)


def test_folders_hold_pictures_of_the_usual_kinds() -> None:
    assert {".png", ".jpg", ".jpeg"} <= set(SUFFIXES)
