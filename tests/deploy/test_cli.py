"""`hardbit-deploy` as people and CI jobs call it: exit codes, one-line errors, files, imports, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import bundle_examples
import planted_faults
from hardbit_deploy.bundle import Bundle
from hardbit_deploy.cli import main
from hardbit_deploy.cli.progress import ProgressLine, duration_text

SURE = {"name": "custom", "steps": 20, "restarts": 3, "losses": ["cross_entropy", "margin"], "square_queries": 0}
MILD = {"norm": "linf", "eps_255": 2.0}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "plain"
    return bundle_examples.build_bundle(path, count=200, seed=1, suite=SURE, threat_model=MILD)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    line = [sys.executable, "-m", "hardbit_deploy", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, **options)


def gate_file(text: str) -> Path:
    path = Path("gate.toml")
    path.write_text(text)
    return path


# --- verdicts are exit codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "verdict", "code"),
    [
        ("[clean]\nreference = 0.95\n", "PASS", 0),
        ("[robust]\nreference = 0.66\n", "FAIL", 1),
        ("[clean]\nreference = 1.0\nmargin = 0.01\n", "INCONCLUSIVE", 75),
        ("[environment]\nmachine = 's390x'\n", "ENV_MISMATCH", 3),
    ],
)
def test_a_ci_job_reads_the_verdict_from_the_exit_code(bundle: Bundle, gate: str, verdict: str, code: int) -> None:
    finished = command(
        "check",
        bundle.path,
        "--gate",
        gate_file(gate),
        "--no-latency",
        "--junit",
        "ci/out.xml",
        "--json",
        "ci/out.json",
    )
    assert finished.returncode == code, finished.stderr
    assert f"{verdict} (exit code {code})" in finished.stdout
    document = json.loads(Path("ci/out.json").read_text())
    assert document["verdict"]["name"] == verdict
    assert document == json.loads(Path("runs/plain-check/result.json").read_text())
    suite = ElementTree.parse("ci/out.xml").getroot()[0]
    broken = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    assert (broken == 0) == (code == 0)


def test_a_float_fallback_is_exit_code_2_for_check_and_build(tmp_path: Path) -> None:
    planted = bundle_examples.build_bundle(tmp_path / "float", engine=planted_faults.engine_with_a_float_convolution())
    checked = command("check", planted.path)
    assert checked.returncode == 2
    assert "WRONG_ENGINE" in checked.stdout
    built = command("build", planted.path)
    assert built.returncode == 2
    assert "WRONG" in built.stdout
    assert "problem: conv2 is declared integer and runs as" in built.stdout


def test_an_undecided_gate_says_how_many_images_it_needs(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    gate = gate_file("[clean]\nreference = 1.0\nmargin = 0.01\n")
    assert main(["check", str(bundle.path), "--gate", str(gate), "--no-latency", "--quiet"]) == 75
    assert capsys.readouterr().out == (
        "INCONCLUSIVE: clean accuracy 100.0 % (bounds 98.5 % and 100.0 % at 95 %) on 200 images cannot decide "
        "the promise of 100.0 % less 1 point: it takes 299 images\n"
    )


# --- mistakes are one line and exit code 64 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["chekc"], "invalid choice"),
        (["check"], "required: BUNDLE"),
        (["check", "nowhere"], "nowhere: there is no such folder"),
        (["check", "{bundle}", "--images", "0"], "at least 1"),
        (["check", "{bundle}", "--suite", "brutal"], "'brutal' is not known; choose one of quick, standard, full"),
        (["check", "{bundle}", "--gate", "none.toml"], "none.toml: the gate cannot be read"),
        (["bench", "{bundle}", "--baseline", "{bundle}"], "nothing to compare"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_64(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([argument.format(bundle=bundle.path) for argument in arguments]) == 64
    errors = capsys.readouterr().err.splitlines()
    assert message in errors[-1]
    assert "Traceback" not in "".join(errors)


def test_a_damaged_bundle_is_refused_without_a_traceback(tmp_path: Path) -> None:
    damaged = bundle_examples.build_bundle(tmp_path / "damaged")
    with (damaged.path / "engine.onnx").open("r+b") as stream:
        stream.write(b"\0\0\0\0")
    finished = command("check", damaged.path)
    assert finished.returncode == 64
    assert "engine.onnx: its content is not what the manifest lists" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_defect_is_no_verdict(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python ends with 1 after a traceback, and 1 is FAIL: a defect must not look like a judgement."""

    def break_down(*_: object) -> None:
        raise RuntimeError("kernel not implemented")

    monkeypatch.setattr("hardbit_deploy.check.check", break_down)
    assert main(["check", str(bundle.path)]) == 70
    errors = capsys.readouterr().err
    assert "RuntimeError: kernel not implemented" in errors
    assert errors.splitlines()[-1].startswith("hardbit-deploy: this is a defect")


# --- what is printed --------------------------------------------------------------------------------------------------


def test_names_that_a_terminal_cannot_show_change_neither_verdict_nor_json(tmp_path: Path) -> None:
    named = bundle_examples.build_bundle(tmp_path / "named", count=8, name="modèle 名")
    poor = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    line = ("check", named.path, "--no-latency", "--steps", "1")
    shown = command(*line, env=poor)
    assert shown.returncode in (0, 75)
    assert "mod\\xe8le \\u540d for onnxruntime" in shown.stdout
    told = command(*line, "--json", "-", env=poor, encoding="utf-8")
    assert json.loads(told.stdout)["bundle"]["name"] == "modèle 名"


def test_two_documents_on_one_stdout_are_refused(bundle: Bundle) -> None:
    finished = command("check", bundle.path, "--json", "-", "--junit", "-")
    assert (finished.returncode, finished.stdout) == (64, "")
    assert "two documents on stdout" in finished.stderr


def test_json_on_stdout_is_nothing_but_json(bundle: Bundle) -> None:
    finished = command("check", bundle.path, "--images", 20, "--no-latency", "--json", "-")
    document = json.loads(finished.stdout)
    assert document["suite"]["images"] == 20
    assert document["verdict"]["name"] in finished.stderr


def test_people_see_attacks_alarms_and_the_verdict_last(bundle: Bundle) -> None:
    out = command("check", bundle.path, "--no-latency", "--out", "here").stdout
    assert Path("here/result.json").is_file()
    order = [
        "Executed precision: 4 of 4",
        "Agreement",
        "Attacks",
        "worst case",
        "Alarms",
        "parity",
        "PASS (exit code 0)",
    ]
    places = [out.index(part) for part in order]
    assert places == sorted(places)
    rows = [line for line in out.splitlines() if " of 200 " in line and " to " in line]
    assert len({line.index(" %") for line in rows}) == 1  # aligned


def test_build_shows_what_is_executed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(bundle.path), "--json", "precision.json"]) == 0
    shown = capsys.readouterr().out
    assert "conv2  Conv  QLinearConv  uint8 x int8" in shown
    table = json.loads(Path("precision.json").read_text())
    assert [node["name"] for node in table["nodes"]] == ["conv1", "conv2", "fc1", "fc2"]


def test_doctor_names_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "-"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["onnxruntime"]["status"] == "found"
    assert findings["timing"]["detail"].startswith("timings here are of grade")


def test_bench_sets_latency_beside_robustness(bundle: Bundle, tmp_path: Path) -> None:
    wrong = bundle_examples.build_bundle(tmp_path / "float", engine=planted_faults.engine_with_a_float_convolution())
    again = bundle_examples.build_bundle(tmp_path / "again" / "plain", suite=SURE, threat_model=MILD)
    finished = command(
        "bench", bundle.path, again.path, wrong.path, "--images", 20, "--quick-latency", "--json", "b.json"
    )
    assert finished.returncode == 2, finished.stderr  # one of them is no integer engine
    rows = {row["label"]: row for row in json.loads(Path("b.json").read_text())["rows"]}
    assert rows["plain"]["latency"]["protocol"] == "latency-v1-short"
    assert rows["plain-2"]["robust"]["images"] == 20
    assert rows["float"]["latency"] is None
    assert rows["float"]["verdict"] == "WRONG_ENGINE"
    assert json.loads(Path("runs/bench/plain-2/result.json").read_text())["latency"] == rows["plain-2"]["latency"]
    assert "query_ms by latency-v1-short, interleaved" in finished.stdout


# --- light to start, and able to go on --------------------------------------------------------------------------------


def test_help_is_there_at_once_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom hardbit_deploy.cli import main\ncode = main(['check', '--help'])\n"
        "print(code, sorted({'numpy', 'onnxruntime', 'tomllib'} & set(sys.modules)), file=sys.stderr)"
    )
    started = time.perf_counter()
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stderr.strip() == "0 []"
    assert "--junit FILE" in finished.stdout
    assert time.perf_counter() - started < 2  # 0.1 s as a rule; a loaded machine is let off


def test_check_imports_nothing_heavier_than_numpy_and_onnxruntime(bundle: Bundle) -> None:
    program = (
        "import sys\nbefore = set(sys.modules)\nfrom hardbit_deploy.cli import main\n"
        f"main(['check', {str(bundle.path)!r}, '--images', '8', '--no-latency', '--quiet'])\n"
        "names = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(' '.join(sorted(names - set(sys.stdlib_module_names))), file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(finished.stderr.splitlines()[-1].split())
    theirs = {"cython_runtime"}  # a pseudo-module of numpy's random generators
    assert {name for name in imported - theirs if name[0] != "_"} == {"hardbit_deploy", "numpy", "onnxruntime"}


def heed_interrupts() -> None:
    """As a terminal starts it: a shell's background job ignores Ctrl-C, and so does whatever it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(tmp_path: Path) -> None:
    slow = {**SURE, "square_queries": 1500, "chunk": 16}
    sliced = bundle_examples.build_bundle(tmp_path / "long", count=512, suite=slow)
    arguments = [sys.executable, "-m", "hardbit_deploy", "check", str(sliced.path), "--no-latency", "--out", "out"]
    running = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 60
    while not list(Path("out").glob("unfinished/*/images-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from out/unfinished"
    finished = command("check", sliced.path, "--no-latency", "--out", "out", "--json", "out.json")
    assert finished.returncode in (0, 75)
    assert json.loads(Path("out.json").read_text())["resumed_images"] >= 16


# --- progress ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def draw(is_terminal: bool, seconds_per_unit: float) -> str:
    stream, now_s = Terminal(is_terminal), 0.0
    with ProgressLine(stream, lambda: now_s) as progress:
        progress("verify the bundle", 0, 1)
        for done in range(101):
            now_s = done * seconds_per_unit
            progress("fgsm" if done < 50 else "pgd", done, 100)
    return stream.getvalue()


def test_a_terminal_shows_one_moving_line_with_the_time_left() -> None:
    shown = draw(True, 1.2)
    assert "\n" not in shown
    assert "] pgd  75 %, 0:30 left" in shown
    assert shown.endswith("\r\x1b[K")


def test_a_log_gets_a_line_now_and_then() -> None:
    lines = draw(False, 1.2).splitlines()
    assert lines[0] == "verify the bundle"
    assert [line.split("  ")[1][:4].strip() for line in lines[1:]] == ["0 %", "25 %", "50 %", "75 %", "100"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (45.4, "0:45"), (723, "12:03"), (3729, "1:02:09")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
