"""Results on disk: complete or absent, valid by the published schema, refused when damaged or from the future."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

import result_examples as examples
from hardbit_deploy import results
from hardbit_deploy.errors import HardbitError


def validate(document: Any, schema: str = "result-v1") -> None:
    jsonschema.Draft202012Validator(results.load_schema(schema)).validate(document)


@pytest.mark.parametrize("name", ["result-v1", "manifest-v1"])
def test_published_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(results.load_schema(name))


def test_what_is_written_is_read_back_and_valid(tmp_path: Path) -> None:
    document, records = examples.example_run(images=50, clean=40, robust=30)
    pictures = {"clean": np.zeros((2, 1, 4, 4), np.uint8), "attack": np.array(["fgsm", "pgd"])}
    samples = {"query_ms": np.ones((5, 3), np.float32)}
    written = results.write_result(tmp_path, document, records, pictures, samples)
    validate(written)
    assert written["files"] == {"records": "records.npz", "examples": "examples.npz", "latency": "latency.npz"}
    loaded = results.load_result(tmp_path)
    assert loaded == written == results.load_result(tmp_path / "result.json")
    back = results.load_records(tmp_path, loaded)
    assert {key: values.tolist() for key, values in back.items()} == {k: v.tolist() for k, v in records.items()}
    assert results.load_records(tmp_path, loaded, "examples")["attack"].tolist() == ["fgsm", "pgd"]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        results.write_result(tmp_path / folder, *examples.example_run())
    for name in ("result.json", "records.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_arrays_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    document, records = examples.example_run()
    results.write_result(tmp_path, document, records, latency={"query_ms": np.ones((1, 1), np.float32)})
    results.write_result(tmp_path, document, records)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.npz", "result.json"]


def test_numpy_scalars_and_numbers_that_json_cannot_say(tmp_path: Path) -> None:
    document, records = examples.example_run()
    document["alarms"][0] |= {"value": np.float32(0.5), "threshold": float("inf")}
    document["suite"]["seed"] = np.int64(3)
    written = results.write_result(tmp_path, document, records)
    validate(written)
    assert written["alarms"][0]["value"] == 0.5
    assert written["alarms"][0]["threshold"] is None
    assert json.loads((tmp_path / "result.json").read_text())["suite"]["seed"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, 'not a result: its "format"'),
        ({"schema_version": 2}, "schema version 2, this hardbit reads 1; install"),
        ({"attacks": None}, 'its key "attacks" is missing or of another type'),
    ],
)
def test_foreign_and_damaged_results_are_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    document, _ = examples.example_run()
    (tmp_path / "result.json").write_text(json.dumps(document | change))
    with pytest.raises(HardbitError, match=message) as caught:
        results.load_result(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_result_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HardbitError, match="no result can be read"):
        results.load_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(HardbitError, match="not a JSON document"):
        results.load_result(tmp_path)


def test_records_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    document, _ = examples.example_run()
    document["files"] = {"records": "../records.npz"}
    with pytest.raises(HardbitError, match="holds no records"):
        results.load_records(tmp_path, document)


def test_pickled_records_are_refused(tmp_path: Path) -> None:
    document, _ = examples.example_run()
    document["files"] = {"records": "records.npz"}
    np.savez(tmp_path / "records.npz", index=np.array([{"code": "runs"}], dtype=object))
    with pytest.raises(HardbitError, match="cannot be read"):
        results.load_records(tmp_path, document)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"nonsense"])
def test_damaged_records_are_refused(tmp_path: Path, content: bytes) -> None:
    document, _ = examples.example_run()
    document["files"] = {"records": "records.npz"}
    (tmp_path / "records.npz").write_bytes(content)
    with pytest.raises(HardbitError, match="the records cannot be read"):
        results.load_records(tmp_path, document)


def test_a_name_that_is_not_utf_8_is_written_as_json_can_say_it(tmp_path: Path) -> None:
    document, records = examples.example_run()
    document["gate_source"] = "g\udcfcte.toml"
    results.write_result(tmp_path, document, records)
    assert results.load_result(tmp_path)["gate_source"] == "g\udcfcte.toml"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    document, records = examples.example_run()
    (tmp_path / "file").write_text("")
    with pytest.raises(HardbitError, match=r"file: the result cannot be written: .*; make room"):
        results.write_result(tmp_path / "file", document, records)


# --- JUnit ------------------------------------------------------------------------------------------------------------


def junit(document: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(results.junit_xml(document))


def test_junit_of_a_sound_run_is_green() -> None:
    document, _ = examples.example_run()
    suite = junit(document)[0]
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("0", "0", "1")
    assert suite.get("tests") == str(len(suite.findall("testcase")))
    names = {case.get("classname"): case.get("name") for case in suite}
    assert names["hardbit.verdict"] == "verdict"
    assert names["hardbit.precision"] == "executed precision"


def test_junit_tells_broken_from_undecided() -> None:
    document, _ = examples.example_run()
    document["alarms"][0]["status"] = "alarm"
    rule = {"estimate": 0.2, "bound": 0.1, "reference": 0.6, "margin": 0.01, "images": 9, "images_needed": 99}
    document["gate"] = [
        {"name": "robust", "status": "fail", "reason": "too few", **rule},
        {"name": "clean", "status": "inconclusive", "reason": "who knows", **rule},
    ]
    document["verdict"] = {"name": "FAIL", "exit_code": 1, "reasons": ["too few"]}
    validate(document)
    suite = junit(document)[0]
    outcomes = {case.get("name"): case[0].tag for case in suite}
    assert outcomes["robust"] == outcomes["verdict"] == "failure"
    assert outcomes["clean"] == outcomes["parity"] == "error"
    assert (suite.get("failures"), suite.get("errors")) == ("2", "2")


def test_junit_escapes_markup_and_drops_what_xml_cannot_hold() -> None:
    document, _ = examples.example_run()
    document["bundle"]["name"] = 'a "quoted" & <tagged> net\x00\x1b'
    document["verdict"] = {"name": "FAIL", "exit_code": 1, "reasons": ["rate < 66 % & falling\x07"]}
    suite = junit(document)[0]
    assert suite.get("name") == 'hardbit a "quoted" & <tagged> net??'
    assert suite[-1][0].get("message") == "FAIL: rate < 66 % & falling?"
