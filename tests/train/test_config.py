"""Config: every field has a role and a range, bad settings are refused by name, and what two runs may differ in."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from sagkit.graph import KERNELS
from sagkit.train import config as told
from sagkit.train.config import PROFILES, RECIPES, ROLES, Config, check, configure, differing, flags, may_differ, parse

NAMES = [f.name for f in fields(Config)]
BASE = configure("dino", local_views=1)  # the method that local views are of
NUMBERS = [f for f in fields(Config) if type(f.default) in (int, float)]


def test_every_field_has_a_role_a_line_of_help_and_every_number_a_range():
    for f in fields(Config):
        assert f.metadata["role"] in ROLES, f.name
        assert f.metadata["help"], f.name
    assert {f.metadata["role"] for f in fields(Config)} == set(ROLES)
    assert all(isinstance(f.metadata["among"], str) for f in NUMBERS)
    assert Config.__dataclass_fields__["kernel"].metadata["among"] == KERNELS


def test_every_profile_and_recipe_is_within_the_ranges():
    for profile in PROFILES:
        for method in ("vicreg", "sag-vicreg", *RECIPES):
            check(configure(method, profile))


@pytest.mark.parametrize("f", NUMBERS, ids=lambda f: f.name)
def test_a_number_outside_its_range_is_refused_in_one_line_that_names_field_and_value(f):
    kind, among = type(f.default), f.metadata["among"]
    low, high = (float(bound) for bound in among[1:-1].split(","))
    outside = [low - 1] + [low] * (among[0] == "(")
    outside += [high + 1] * (high < float("inf")) + [high] * (among[-1] == ")" and kind is float)
    outside += [float("nan")] * (kind is float)
    for value in map(kind, outside):
        with pytest.raises(ValueError, match=f"{f.name}.*{value}") as refused:
            check(replace(BASE, **{f.name: value}))
        assert "\n" not in str(refused.value)
    for value in {low, high} - set(outside) - {float("inf")}:
        check(replace(BASE, **{f.name: kind(value)}))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"walk_start": 5.0}, r"walk_start must lie in \[0, 1\], got 5.0: fraction of the epochs .* \(default 0.25\)"),
        ({"walk_warmup": -0.5}, r"walk_warmup must lie in \[0, 1\], got -0.5"),
        ({"crop_min": 0.0}, r"crop_min must lie in \(0, 1\], got 0.0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"lr": float("inf")}, "lr must be at least 0, got inf"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam': choose one of lars, adamw, sgd"),
    ],
)
def test_a_refusal_says_what_the_value_may_be_and_what_the_field_means(setting, words):
    with pytest.raises(ValueError, match=words):
        check(replace(Config(), **setting))


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    for given, near in (
        ({"method": "vicregg"}, "vicreg"),
        ({"profile": "laptp"}, "laptop"),
        ({"warmup": 1}, "warmup_"),
    ):
        with pytest.raises(ValueError, match=f"did you mean .*{near}"):
            configure(**given)


WALKS = {"alpha", "keep", "walk_start", "walk_warmup", "pairs", "matched", "k", "length", "walks", "temperature"}
WALKS |= {"expected", "null", "weight", "sinkhorn"}
WALKS |= {"kernel", "mutual", "restart", "unique", "confident", "every", "scope", "queue_batches", "graph_epochs"}
KEPT = {"readout_every", "snapshots", "probe", "resamplings", "keep_at", "overwrite", "trunk", "variant"}
PLACES = {"threads", "results", "runs", "data_root"}
MACHINE = {*PLACES, "accelerator", "devices", "nodes", "precision"}


@pytest.mark.parametrize(
    ("purpose", "free"),
    [
        ("resume", KEPT | PLACES | {"accelerator"}),
        ("branch", KEPT | PLACES | {"accelerator", "method"} | WALKS),
        ("decay", KEPT | PLACES | {"accelerator", "method", "seed", "epochs", "decay"} | WALKS),
        ("stored", KEPT | MACHINE),
        ("row", KEPT | MACHINE | {"seed"}),
        ("pairing", KEPT | MACHINE | {"method"} | WALKS),
        ("study", PLACES | {"variant", "precision"}),
    ],
)
def test_what_two_runs_may_differ_in_by_purpose(purpose, free):
    assert {name for name in NAMES if may_differ(name, purpose)} == free
    one = Config().to_dict()
    for name in NAMES:
        other = one | {name: "another"}
        assert differing(one, other, purpose) == ({} if name in free else {name: (one[name], "another")})
    assert "alpha" in differing({"alpha": 0.7}, {}, "row")  # what is newer than a record had its default
    assert differing({"alpha": 0.3}, {}, "row") == {}


def test_a_command_line_gives_any_configuration_back():
    changed = configure("barlow-twins", "laptop", keep=False, mutual=True, keep_at=(2, 4), kernel="shared", seed=7)
    assert parse(flags(changed)) == changed
    assert parse(["--method=dino", "--profile", "tour", "--walk-start", "0.5"]) == configure("dino", walk_start=0.5)


def _flag(f) -> str:
    name = f.name.replace("_", "-")
    return f"--{name}, --no-{name} " if isinstance(f.default, bool) else f"--{name} "


def test_help_is_grouped_by_role_with_choices_ranges_and_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    groups = re.split(rf"({'|'.join(ROLES)}) options", shown[shown.index(f"{ROLES[0]} options") :])[1:]
    assert groups[::2] == list(ROLES)
    for f in fields(Config):
        (role,) = (role for role, text in zip(groups[::2], groups[1::2], strict=True) if _flag(f) in text)
        assert role == f.metadata["role"], f.name
    for words in ("{lars,adamw,sgd}", "{walk,random,hub,own,nearest,unweighted,oracle}", "in [0, 1]", "examples:"):
        assert words in shown


def test_the_command_line_refuses_a_name_that_is_none_of_the_choices(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--kernel", "cosin"])
    assert stop.value.code == 2
    assert "cosine" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"walk_start must lie in \[0, 1\], got 5.0"):
        parse(["--walk-start", "5"])


def test_reading_a_configuration_loads_no_torch():
    code = (
        "import sys, importlib.util as u\n"
        f"spec = u.spec_from_file_location('config', {told.__file__!r})\n"
        "sys.modules['config'] = module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.parse(['--method', 'dino'])\n"
        "print(sorted({'torch', 'numpy', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": 2.5}, "epochs must be of int, got 2.5: passes over"),
        ({"epochs": True}, "epochs must be of int, got True"),
        ({"k": "5"}, "k must be of int, got '5'"),
        ({"lr": "fast"}, "lr must be of float, got 'fast'"),
        ({"alpha": None}, "alpha must be of float, got None"),
        ({"keep": "no"}, "keep must be of bool, got 'no'"),
        ({"data": 5}, "data must be of str, got 5"),
        ({"keep_at": 3}, "keep_at must be of tuple, got 3"),
        ({"keep_at": ("1",)}, "keep_at must be of tuple"),
        ({"keep_at": (1, 99)}, "keep_at 99 is no epoch of 10"),
        ({"seed": 2**70}, r"seed must lie in \[0, 1e15\]"),
        ({"threads": 10**6}, r"threads must lie in \[0, 1024\]"),
        *(({"variant": v}, "names files") for v in ("", "a/b", "../../../x", "a b", "x:y", "a\nb", "x" * 300)),
    ],
)
def test_a_setting_of_another_kind_or_that_names_no_file_is_refused_in_one_line(fields, words):
    config = configure("sag-vicreg", "tour")
    vars(config).update(fields)  # past the type checker that tests run under
    with pytest.raises(ValueError, match=words) as error:
        check(config)
    assert "\n" not in str(error.value)


def test_settings_of_numpy_and_pathlib_are_the_plain_ones_that_a_record_holds(tmp_path):
    given = configure("sag-vicreg", "tour")
    vars(given).update(epochs=np.int64(3), lr=np.float32(0.5), keep=np.bool_(True), runs=tmp_path)
    given.__post_init__()
    check(given)
    assert given == configure("sag-vicreg", "tour", epochs=3, lr=0.5, keep=True, runs=str(tmp_path))
    assert json.loads(json.dumps(given.to_dict())) == given.to_dict()
