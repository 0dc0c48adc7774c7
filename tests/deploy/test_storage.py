"""What storage promises: whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hardbit_deploy import storage
from hardbit_deploy.errors import BundleError, HardbitError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_error_is_one_line_that_says_where_what_and_the_remedy():
    error = BundleError("digest\ndiffers", where="engine.onnx", remedy="copy the bundle again")
    assert str(error) == "engine.onnx: digest differs; copy the bundle again"
    assert error.exit_code == 64
    assert str(HardbitError("only this")) == "only this"


def test_write_atomically_replaces_and_leaves_nothing_behind(tmp_path):
    storage.write_atomically(tmp_path / "a.txt", "eins")
    storage.write_atomically(tmp_path / "a.txt", b"zwei")
    assert (tmp_path / "a.txt").read_bytes() == b"zwei"
    assert names_in(tmp_path) == ["a.txt"]


def test_write_atomically_gives_the_permissions_of_any_other_file(tmp_path):
    storage.write_atomically(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    storage.write_atomically(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a"]


def test_what_the_system_refuses_is_a_mistake_of_the_user_in_one_line(tmp_path):
    with (
        pytest.raises(HardbitError, match=r"missing/a: cannot be kept: No such file or directory; make room"),
        storage.refused_by_system("cannot be kept", tmp_path, "make room"),
    ):
        (tmp_path / "missing" / "a").write_text("")


def test_replace_directory_takes_the_place_of_the_whole_folder(tmp_path):
    for content in ("first", "second"):
        with storage.replace_directory(tmp_path / "out") as folder:
            (folder / content).write_text(content)
    assert names_in(tmp_path / "out") == ["second"]
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_failed_body_keeps_the_old_folder(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(storage, "_exchange", lambda *_: False)
    for content in ("zero", "first"):
        with storage.replace_directory(tmp_path / "out") as folder:
            (folder / content).write_text("x")

    class InterruptedBuildError(Exception):
        pass

    def half_written() -> None:
        with storage.replace_directory(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise InterruptedBuildError

    with pytest.raises(InterruptedBuildError):
        half_written()
    assert names_in(tmp_path / "out") == ["first"]
    assert names_in(tmp_path) == ["out"]


def test_sha256_file_agrees_with_hashlib(tmp_path):
    data = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(data)
    assert storage.sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
