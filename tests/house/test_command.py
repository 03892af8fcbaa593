"""The command `sagkit`: every help at once and without torch, and what is wrong in one line."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

import sagkit
from sagkit import __main__ as command
from sagkit.train.record import command_line

pytestmark = pytest.mark.xdist_group("command")  # costly fixtures, made once

ALL = {name: (name,) for name in command.COMMANDS} | {name: ("study", name) for name in command.studies()}
CALLED = {**command.COMMANDS, **command.studies()}
CALLED.pop("train")

HELPS = """
import json, sys, time
from contextlib import redirect_stdout
from io import StringIO
from sagkit.__main__ import main

found = {}
for words in json.loads(sys.argv[1]):
    begin, shown = time.process_time(), StringIO()
    with redirect_stdout(shown):
        try:
            main([*words, "--help"])
        except SystemExit as end:
            assert not end.code, end.code
    found[" ".join(words)] = [time.process_time() - begin, shown.getvalue()]
print(json.dumps({"helps": found, "modules": sorted(sys.modules), "start": time.process_time()}))
"""


@pytest.fixture(scope="module")
def told():
    """Seconds and text of every help, and the modules that a process has loaded once it has told them all."""
    words = [[], ["study"], *map(list, ALL.values())]
    run = [sys.executable, "-c", HELPS, json.dumps(words)]
    return json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


def test_every_help_costs_little_and_loads_nothing_heavy(told):
    heavy = {"torch", "torchvision", "numpy", "pandas", "scipy", "sklearn", "optuna", "matplotlib", "lightly"}
    assert heavy.isdisjoint(told["modules"])
    assert all(seconds < 1 for seconds, _ in told["helps"].values())


def test_the_overviews_name_every_command(told):
    top, studies = told["helps"][""][1], told["helps"]["study"][1]
    for name, words in ALL.items():
        assert re.search(rf"^  {name} +\S.*\w.*\.$", studies if words[0] == "study" else top, re.MULTILINE), name
    assert {"versus", "sharpen", "line", "purity", "validity", "tune", "confirm", "select-pairing"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_help_has_examples_that_the_command_takes(name, told, monkeypatch):
    prog = " ".join(ALL[name])
    lines = re.findall(rf"^ +(sagkit {prog}\b.*)$", told["helps"][prog][1], re.MULTILINE)
    assert lines
    monkeypatch.setattr(command, "function_of", lambda of: command.Source(of).signature())  # takes all and does nothing
    if name == "train":
        monkeypatch.setattr(command, "function_of", lambda of: lambda config: SimpleNamespace(record={}))
    for line in lines:
        command.main(shlex.split(re.split(r" {2,}", line)[0])[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLED)
def test_what_is_read_from_the_source_is_the_signature(name):
    at = CALLED[name]
    real, read = getattr(import_module(at.module), at.function), command.Source(at).signature()
    assert str(inspect.signature(read)) == str(inspect.signature(real))
    assert read.__doc__ == real.__doc__
    assert set(inspect.signature(real).parameters) == set(re.findall(r"^ {8}(\w+): \S", real.__doc__, re.MULTILINE))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "sagkit: unknown command 'trian': did you mean train?"),
        (["study", "verses"], "sagkit study: unknown command 'verses': did you mean versus?"),
        (["pilot"], "sagkit pilot: missing --out STR"),
        pytest.param(
            ["pilot", "--out", "x"], "sagkit pilot: give a folder of images, or --demo", marks=pytest.mark.slow
        ),
        (["pilot", "f", "--out", "x", "--seed", "y"], "sagkit pilot: Error parsing --seed: .*'y'"),
        pytest.param(["assess"], "sagkit assess: nothing to assess: give pixels, timm:NAME", marks=pytest.mark.slow),
        (["study", "versus", "--bootstraps", "3"], "sagkit study versus: .*--bootstraps.* meant: --bootstrap"),
        (["train", "--profile", "laptp"], "sagkit train: unknown profile 'laptp': did you mean laptop"),
        (["train", "--epochs", "many"], "sagkit train: .*--epochs.*'many'"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line_with_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.match(rf"{message}.* \(see sagkit .*--help\)$", err)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("k = 9 of 3"), "sagkit doctor: k = 9 of 3", ""),
        (FileNotFoundError(2, "No such file", "x"), "sagkit doctor: [Errno 2] No such file: 'x'", ""),
        (ModuleNotFoundError(name="numpy"), "sagkit doctor: numpy is not installed: pip install 'sagkit[train]'", ""),
        (KeyboardInterrupt(), 130, "\nsagkit doctor: interrupted\n"),
    ],
)
def test_work_that_fails_is_told_in_one_line(error, code, message, monkeypatch, capsys):
    def fails(path, /):
        raise error

    monkeypatch.setattr(command, "function_of", lambda of: fails)
    with pytest.raises(SystemExit) as end:
        command.main(["doctor", "record.json"])
    assert (end.value.code, capsys.readouterr().err) == (code, message)  # Python prints text and exits with 1


def test_a_fault_of_the_kit_keeps_its_traceback(monkeypatch):
    def fails(path, /):
        raise ModuleNotFoundError(name="sagkit.nowhere")

    monkeypatch.setattr(command, "function_of", lambda of: fails)
    with pytest.raises(ModuleNotFoundError):
        command.main(["doctor", "record.json"])


@pytest.mark.parametrize("name", ["train", "report", "pilot", "assess"])
def test_python_dash_m_is_the_command(name):
    told = subprocess.run(
        [sys.executable, "-m", f"sagkit.{name}", "--help"], capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith(f"usage: sagkit {name} ")


def test_records_say_the_command_that_made_them_however_it_was_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/sagkit", "study", "versus", "--profile", "a b"])
    assert command_line("study versus") == "sagkit study versus --profile 'a b'"
    monkeypatch.setattr(sys, "argv", ["assess.py", "pixels"])
    assert command_line("assess") == "sagkit assess pixels"


def test_without_an_extra_the_commands_are_listed_and_their_use_says_what_to_install():
    script = "import sys; sys.modules['tyro'] = None; from sagkit.__main__ import main; main(sys.argv[1:])"
    listed, used = (
        subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        for words in ((), ("pilot", "photos", "--out", "x"))
    )
    assert "  pilot   " in listed.stdout
    assert (used.returncode, used.stderr) == (1, "sagkit pilot: tyro is not installed: pip install 'sagkit[pilot]'\n")


@pytest.mark.parametrize("name", dir(sagkit))
def test_every_name_of_the_face_is_there(name):
    assert getattr(sagkit, name) is not None or name == "__doc__"


@pytest.mark.parametrize(
    ("package", "names"),
    {
        "sagkit": "WalkPairing walk_term vicreg_loss sag_vicreg_loss load_encoder",
        "sagkit.data": "load_images ImageSet",
        "sagkit.train": "fit configure stored_run",
        "sagkit.metrics": "rank_correlation structure_score knn_accuracy linear_probe class_distances",
        "sagkit.pilot": "pilot near_duplicates Index SCORES",
    }.items(),
)
def test_names_that_users_rely_on_are_handed_on(package, names):
    module = import_module(package)
    for name in names.split():
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_a_name_whose_extra_is_missing_says_what_to_install(monkeypatch):
    homes = {"found": "json", "lost": "sagkit.nowhere"}
    get = sagkit.lazily("some.package", homes, extra="pilot")
    with pytest.raises(AttributeError):
        get("absent")
    with pytest.raises(
        ModuleNotFoundError, match=r"some\.package\.lost: .* is not installed: pip install 'sagkit\[pilot"
    ):
        get("lost")
