"""Stored plans: found again, built anew when anything of their key is another, refused where named and not fitting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardbit_deploy.engines.plan_cache import PlanKey, default_folder, named_plan, plan_for
from hardbit_deploy.engines.tensorrt_build import BuildSettings, BuiltPlan
from hardbit_deploy.engines.tensorrt_layers import LayerRow
from hardbit_deploy.errors import HardbitError
from hardbit_deploy.storage import sha256_file

KEY = PlanKey(
    device="Orin",
    compute_capability="8.7",
    driver="540.4.0",
    versions={"module": "tensorrt", "runtime": "10.3.0"},
    settings=BuildSettings().to_document(),
    digests={"graph": "a" * 64},
)
LAYER = LayerRow("fc", "gemm", ("int8",), ("int8",), ("float32",), ("int8", "int8"), "tactic", ("fc",))


class Builder:
    """Builds another plan each time, as builders do."""

    def __init__(self) -> None:
        self.builds = 0

    def __call__(self) -> BuiltPlan:
        self.builds += 1
        plan = b"plan %d" % self.builds
        digests = {"graph": "a" * 64, "plan": hashlib.sha256(plan).hexdigest()}
        return BuiltPlan(plan, (LAYER,), ("INFO: built",), digests, KEY.versions, BuildSettings(), 1.5, b"timings")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "plans"


def test_a_plan_is_built_once_and_found_again(folder: Path) -> None:
    build = Builder()
    first = plan_for(folder, KEY, build)
    again = plan_for(folder, KEY, build)
    assert build.builds == 1
    assert first.rebuilt_because == "there is no plan yet"
    assert again == replace(first, rebuilt_because="")
    assert (again.plan, again.layers, again.timing_cache) == (b"plan 1", (LAYER,), b"timings")
    assert again.plan_sha256 == sha256_file(again.path / "plan.engine")
    assert sorted(path.name for path in folder.iterdir()) == [KEY.digest]
    assert (again.path / "build.log").read_text() == "INFO: built\n"


CHANGES: dict[str, Callable[[PlanKey], PlanKey]] = {
    "device Orin, not Thor": lambda key: replace(key, device="Thor"),
    "compute_capability 8.7, not 11.0": lambda key: replace(key, compute_capability="11.0"),
    "driver 540.4.0, not 580.0": lambda key: replace(key, driver="580.0"),
    "versions.runtime 10.3.0, not 11.4.1": lambda key: replace(key, versions={**key.versions, "runtime": "11.4.1"}),
    "settings.tf32 False, not True": lambda key: replace(key, settings=BuildSettings(tf32=True).to_document()),
    f"digests.graph {'a' * 64}, not {'b' * 64}": lambda key: replace(key, digests={"graph": "b" * 64}),
    "digests.attack None, not c": lambda key: replace(key, digests={**key.digests, "attack": "c"}),
}


@pytest.mark.parametrize("difference", CHANGES)
def test_another_key_has_a_plan_of_its_own_and_the_first_is_kept(folder: Path, difference: str) -> None:
    build = Builder()
    plan_for(folder, KEY, build)
    other = plan_for(folder, CHANGES[difference](KEY), build)
    assert (build.builds, other.plan) == (2, b"plan 2")
    assert plan_for(folder, KEY, build).plan == b"plan 1"


@pytest.mark.parametrize("difference", CHANGES)
def test_a_plan_that_is_named_is_refused_with_what_differs(folder: Path, difference: str) -> None:
    path = plan_for(folder, KEY, Builder()).path
    assert named_plan(path, KEY).plan == b"plan 1"
    with pytest.raises(HardbitError) as caught:
        named_plan(path, CHANGES[difference](KEY))
    assert caught.value.message == f"is not taken: it was built for something else: {difference}"
    assert caught.value.where == str(path)


def test_all_that_differs_is_told(folder: Path) -> None:
    path = plan_for(folder, KEY, Builder()).path
    with pytest.raises(HardbitError, match=r"device Orin, not Thor; driver 540\.4\.0, not 580\.0"):
        named_plan(path, replace(KEY, device="Thor", driver="580.0"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "SHA-256 differs": lambda path: (path / "plan.engine").write_bytes(b"another"),
    "damaged (JSONDecodeError": lambda path: (path / "entry.json").write_text("{"),
    "damaged (TypeError": lambda path: (path / "entry.json").write_text("[]"),
    "damaged (KeyError": lambda path: (path / "entry.json").write_text("{}"),
    "stored in format 9, not 1": lambda path: (path / "entry.json").write_text('{"format": 9}'),
    "damaged (FileNotFoundError": lambda path: (path / "plan.engine").unlink(),
    "there is no plan yet": lambda path: (path / "entry.json").unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_plan_is_built_anew_or_refused_where_named(folder: Path, reason: str) -> None:
    build = Builder()
    path = plan_for(folder, KEY, build).path
    DAMAGES[reason](path)
    with pytest.raises(HardbitError) as caught:
        named_plan(path, KEY)
    assert reason in caught.value.message
    rebuilt = plan_for(folder, KEY, build)
    assert rebuilt.plan == b"plan 2"
    assert reason in rebuilt.rebuilt_because
    assert plan_for(folder, KEY, build).plan == b"plan 2"


def test_a_foreign_plan_under_our_name_is_built_anew(folder: Path) -> None:
    build = Builder()
    elsewhere = plan_for(folder, replace(KEY, driver="1.0"), build).path
    elsewhere.rename(folder / KEY.digest)
    rebuilt = plan_for(folder, KEY, build)
    assert rebuilt.plan == b"plan 2"
    assert rebuilt.rebuilt_because == "it was built for something else: driver 1.0, not 540.4.0"


def test_a_build_that_fails_leaves_nothing_and_changes_nothing(folder: Path) -> None:
    def fail() -> BuiltPlan:
        raise HardbitError("its process died")

    with pytest.raises(HardbitError, match="its process died"):
        plan_for(folder, KEY, fail)
    assert list(folder.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    path = plan_for(folder, KEY, Builder()).path
    assert path.parent.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(HardbitError, match="others may write to it, and a plan is executed; chmod 700"):
        plan_for(folder, KEY, Builder())


def test_a_place_that_cannot_be_a_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HardbitError, match="plans cannot be kept"):
        plan_for(tmp_path / "file" / "plans", KEY, Builder())


def test_plans_are_kept_in_the_user_s_folder_for_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "hardbit" / "plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "hardbit" / "plans"


texts = st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3)


@given(texts, texts)
def test_keys_are_equal_just_where_their_digests_are(one: dict[str, str], other: dict[str, str]) -> None:
    keys = [replace(KEY, digests=one, versions=other), replace(KEY, digests=other, versions=one)]
    assert (keys[0].digest == keys[1].digest) is (one == other)
    shuffled = dict(sorted(one.items(), reverse=True))
    assert replace(KEY, digests=shuffled).digest == replace(KEY, digests=one).digest
    assert json.loads(json.dumps(keys[0].to_document())) == keys[0].to_document()
