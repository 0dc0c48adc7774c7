"""The command `hardbit`: help at once, mistakes in one line, exit codes that mean one thing."""

import errno
import json
import subprocess
import sys
import time

import pytest

from hardbit import cli
from recipe_examples import write_bars

HEAVY = ("torch", "brevitas", "onnx", "onnxruntime", "pydantic", "rich", "numpy", "jinja2", "pooch", "safetensors")


def hardbit(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "hardbit", *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], *[[verb, "--help"] for verb in cli.VERBS]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom hardbit.cli import main\n"
        f"code = main({arguments!r})\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "0 []\n"
    assert done.stdout


def test_help_answers_in_half_a_second():
    """The best of a few: a busy machine is not what is measured here."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert hardbit("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_help_names_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, summary in cli.VERBS.items():
        assert f"  {verb}" in text
        assert summary in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_every_verb_says_what_it_does_and_gives_examples(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: hardbit {verb}")
    assert f"examples:\n  hardbit {verb}" in text or f"hardbit {verb} " in text.partition("examples:")[2]
    assert "--json" in text


ACCEPTED = (
    "accepted are a recipe (recipe.toml) with its weights, a weights file (.safetensors) with --recipe, and an ONNX "
    "file (.onnx) with --calibrate"
)
MISTAKES = {
    "chekc": "hardbit: there is no verb 'chekc'; did you mean 'check'?",
    "xyz": "hardbit: there is no verb 'xyz'; the verbs are run, train, convert, check, bench, report, zoo, doctor",
    "run": "hardbit run: the following arguments are required: RECIPE; 'hardbit run --help' tells what there is",
    "run r.toml --fast": "hardbit run: unrecognized arguments: --fast; 'hardbit run --help' tells what there is",
    "run r.toml --images 0": "hardbit run: argument --images: must be a whole number of at least 1; "
    "'hardbit run --help' tells what there is",
    "run nowhere.toml": "nowhere.toml: there is no such recipe; name a recipe.toml",
    "report nowhere": "nowhere: no result can be read: No such file or directory",
    "check nowhere": "nowhere: there is no such folder; point at the folder of a bundle",
    "bench nowhere --no-latency --svg x.svg": "--svg: there is no picture without latencies; leave out --no-latency",
    "convert model.onnx": f"model.onnx: there is no such file; {ACCEPTED}",
    "convert w.safetensors": "w.safetensors: weights alone do not say which network they belong to; name its recipe "
    "with --recipe",
    "convert net.pt": f"net.pt: this is neither a recipe, nor weights, nor ONNX; {ACCEPTED}",
    "convert a.toml --recipe b.toml": f"--recipe: two recipes are named; {ACCEPTED}",
    "train r.toml --out no/w.safetensors": "r.toml: there is no such recipe; name a recipe.toml",
    "report r --out .": ".: this is a folder; name a file",
    "report r --out no/page.html": "no: there is no such folder; make it first",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_64(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 64
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == MISTAKES[command]
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_place_that_cannot_be_written_is_one_line_too(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(write_bars(tmp_path).parent)
    assert cli.main(["run", "recipe.toml", "--run-dir", "recipe.toml"]) == 64
    assert capsys.readouterr().err == "recipe.toml: File exists; name a place that can be written\n"
    assert cli.main(["run", "recipe.toml", "--run-dir", "recipe.toml/run"]) == 64
    assert capsys.readouterr().err == "recipe.toml/run: Not a directory; name a place that can be written\n"
    assert cli.main(["train", "recipe.toml", "--out", "."]) == 64
    assert capsys.readouterr().err == ".: this is a folder; name a file\n"


def test_a_run_that_ends_before_its_check_is_not_begun_to_be_published(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(write_bars(tmp_path).parent)
    assert cli.main(["run", "recipe.toml", "--until", "bundle", "--publish"]) == 64
    assert capsys.readouterr().err.startswith("--publish: a run that ends before its check cannot be published; ")
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_no_defect(capsys, monkeypatch):
    from hardbit.cli import doctor

    def fail(args):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor", "--json"]) == 64
    captured = capsys.readouterr()
    assert captured.err == "runs/x: No space left on device; name a place that can be written\n"
    assert json.loads(captured.out)["error"]["where"] == "runs/x"


def test_a_mistake_in_a_process_of_its_own_has_no_traceback(tmp_path):
    (tmp_path / "recipe.toml").write_text("nam = 1")
    done = hardbit("run", tmp_path)
    assert done.returncode == 64
    assert "Traceback" not in done.stderr
    assert f"{tmp_path}/recipe.toml:1: nam: unknown key; did you mean 'name'?" in done.stderr.splitlines()
    assert done.stdout == ""


def test_machines_get_the_mistake_as_json_too(capsys, tmp_path):
    assert cli.main(["run", str(tmp_path / "nowhere.toml"), "--json"]) == 64
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {
            "message": "there is no such recipe",
            "where": str(tmp_path / "nowhere.toml"),
            "remedy": "name a recipe.toml",
        }
    }
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last finished piece of work"),
        (ZeroDivisionError("by zero"), 70, "this is a defect of hardbit, not of your input"),
    ],
)
def test_how_a_verb_may_end_otherwise(raised, code, message, capsys, monkeypatch):
    from hardbit.cli import doctor

    def fail(args):
        raise raised

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == code
    text = capsys.readouterr().err
    assert text.splitlines()[-1] == message
    assert ("Traceback" in text) is (code == 70)


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m hardbit doctor | head -n 1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.startswith("found")
