"""Arrays beside a result: read, or refused with a reason that the page can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import report_examples as examples
from hardbit.report import evidence
from hardbit.report.evidence import Missing, read_examples, read_query_times, read_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return examples.write_artifacts(examples.document(), tmp_path)


def test_whole_artifacts_are_read(folder: Path) -> None:
    document = examples.document()
    kept, records, times = (read(document, folder) for read in (read_examples, read_records, read_query_times))
    assert not any(isinstance(found, Missing) for found in (kept, records, times))
    assert kept.clean.shape == (12, 1, 28, 28)
    assert records.worst_case.sum() == document["attacks"][-1]["survivors"]
    assert times.shape == (5, 662)


def reason(found: object) -> str:
    assert isinstance(found, Missing)
    return found.reason


def test_no_folder_no_file_and_no_entry_are_told_apart(tmp_path: Path) -> None:
    document = examples.document()
    assert "result document alone" in reason(read_records(document, None))
    assert reason(read_records(document, tmp_path)) == "records.npz does not lie beside the result"
    assert reason(read_records(document | {"files": {}}, tmp_path)) == "the result lists no records"


@pytest.mark.parametrize("name", ["../records.npz", "/etc/passwd", "sub/records.npz", "."])
def test_a_name_that_leads_elsewhere_is_not_followed(name: str, folder: Path) -> None:
    inner = folder / "inner"
    (inner / "sub").mkdir(parents=True)
    (inner / "sub" / "records.npz").write_bytes((folder / "records.npz").read_bytes())
    assert "does not lie beside" in reason(read_records(examples.document() | {"files": {"records": name}}, inner))


def test_pickled_arrays_are_not_unpacked(folder: Path) -> None:
    np.savez(folder / "records.npz", label=np.array([object()]), clean=np.array([True]), worst_case=np.array([True]))
    assert "cannot be read" in reason(read_records(examples.document(), folder))


def test_damaged_and_incomplete_files_are_told_apart(folder: Path) -> None:
    whole = (folder / "latency.npz").read_bytes()
    (folder / "latency.npz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in reason(read_query_times(examples.document(), folder))
    np.savez(folder / "records.npz", label=np.arange(3))
    assert reason(read_records(examples.document(), folder)) == "records.npz lacks clean, worst_case"


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "LARGEST_BYTES", 1000)
    assert "unpacks to more than" in reason(read_examples(examples.document(), folder))


def test_arrays_of_other_shapes_are_refused(folder: Path) -> None:
    with np.load(folder / "examples.npz") as found:
        arrays = dict(found)
    np.savez(folder / "examples.npz", **arrays | {"adversarial": arrays["clean"][:3]})
    assert "pairs of 8-bit images" in reason(read_examples(examples.document(), folder))
    np.savez(folder / "examples.npz", **arrays | {"label": arrays["label"][:3]})
    assert "one label and prediction" in reason(read_examples(examples.document(), folder))
    np.savez(folder / "records.npz", label=np.arange(3), clean=np.ones(2, bool), worst_case=np.ones(3, bool))
    assert "one entry for every image" in reason(read_records(examples.document(), folder))
