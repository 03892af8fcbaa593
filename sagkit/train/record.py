"""What a run leaves on disk: its record, its encoder and, while it is unfinished, its checkpoint.

    runs/results/<profile>/<train_set>/<method>[-<variant>]-seed<N>.json           a finished run's record
    runs/results/<profile>/<train_set>/<method>[-<variant>]-seed<N>.safetensors    its encoder, beside it
    runs/<profile>/<train_set>/<method>[-<variant>]-seed<N>.safetensors            an unfinished run's checkpoint

Every published number is read from a record; the records published here lie under figures/results, where a run puts
its own only if it is told to (`--results`). The encoder beside it is float16, and the record's metrics are those of
that very file, so that `sagkit report --reevaluate` finds the same numbers.

Encoders and checkpoints are written without pickle, so that reading one can never run code: a nested state of dicts,
lists, tensors and plain values is flattened to tensors, named by number and path, with everything else as JSON in the
file's header. A file is complete or absent, see sagkit.data.files. [K]
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sagkit.data.files import write_atomically, write_text
from sagkit.data.load import SUBSETS
from sagkit.model import Encoder, make_encoder
from sagkit.train.config import Config, check, differing
from sagkit.train.weights import is_ours, published, require_finite, what_is

NAMED = ("shapes", "emoji", "cifar10", "cifar100", *SUBSETS)  # data sets whose records nothing else may mix with
KINDS = {  # of what every record holds
    **dict.fromkeys(("method", "variant", "data", "train_set", "profile", "evaluated_on"), str),
    **dict.fromkeys(("command", "commit", "processor"), str),
    **dict.fromkeys(("seconds", "config", "metrics"), dict),
    **{"seed": int, "parameters": int, "core_seconds": int | float, "walk_share": int | float, "log": list},
}
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "lightning-fabric")


def record_path(results, profile: str, train_set: str, method: str, variant: str, seed: int) -> Path:
    """Where the record of a run lies; a folder or .npz file goes by its last name, marked if that is a data set's."""
    name = method if variant == "default" else f"{method}-{variant}"
    if train_set not in NAMED:
        given = Path(train_set).resolve().name.removesuffix(".npz")
        train_set = f"{given}-folder" if given in NAMED or not given else given
    return Path(results) / profile / train_set / f"{name}-seed{seed}.json"


def run_path(config, folder) -> Path:
    """Where a run of a `config.Config` lies: its record under `config.results`, its checkpoint under `config.runs`."""
    return record_path(folder, config.profile, config.data, config.method, config.variant, config.seed)


def snapshot_path(path: Path, epoch: int) -> Path:
    """Where the encoder of a run after some epoch lies: beside its record."""
    return path.with_name(f"{path.stem}.epoch{epoch}.safetensors")


def command_line(command: str) -> str:
    """The command line that runs now, of a command of `sagkit`, as it can be pasted into a shell."""
    name, words = command.split(), sys.argv[1:]
    given = words[len(name) :] if words[: len(name)] == name else words  # `python -m sagkit.assess` names none
    return shlex.join(["sagkit", *name, *given])


def write_record(path: Path, record: dict) -> None:
    """Write one record, atomically."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_record(path: str | Path, whole: bool = True) -> dict:
    """One record, whole or as far as it goes.

    Raises:
        ValueError: for a file that is none, by what is wrong with it.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        wrong = _what_is_wrong(record, KINDS if whole else ())
    except (ValueError, RecursionError) as error:
        wrong = " ".join(str(error).split())
    if wrong:
        raise ValueError(f"{path} is no run record ({wrong[:200]}): restore it, or move it away")
    return record


def read_records(results, needed: Iterable[str] = ()) -> list[dict]:
    """Every record under a folder, in order of path; each with its own `path`.

    Raises:
        ValueError: for one that is none, or has nothing under a name that is needed.
    """
    found = [{**read_record(p, whole=False), "path": str(p)} for p in sorted(Path(results).rglob("*-seed*.json"))]
    for record in found:
        if absent := [name for name in needed if name not in record]:
            raise ValueError(f"{record['path']} is no run record (no {absent[0]}): restore it, or move it away")
    return found


def _what_is_wrong(record, needed: Iterable[str]) -> str:
    """Why something is no record: what is absent or of another kind, or settings that cannot be; empty for a record."""
    if not isinstance(record, dict):
        return f"it holds {type(record).__name__}"
    for name, kind in KINDS.items():
        if name in {*record, *needed} and (not isinstance(record.get(name), kind) or isinstance(record[name], bool)):
            return f"{name} is {record.get(name)!r}"
    figures = [record.get("metrics", {}), record.get("seconds", {}), *record.get("log", [])]
    if not all(isinstance(part, dict) and all(_is_number(v) for v in part.values()) for part in figures):
        return "metrics, seconds or log hold other things than numbers"
    config, defaults = record.get("config", {}), Config().to_dict()
    for name, value in config.items():
        like = defaults.get(name)
        alike = _is_number(value) if isinstance(like, float) else type(value) is type(like)
        if not alike or (isinstance(value, list) and not all(type(part) is int for part in value)):
            return f"its setting {name} is {value!r}"
    check(Config.from_dict(config))
    for name, least in (("images", 1), ("images_per_second", 0), ("training_seconds", 0)):
        if record.get(name) is not None and not (_is_number(record[name]) and record[name] >= least):
            return f"{name} is {record[name]!r}"
    return ""


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def groups(records: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Records by (profile, training set)."""
    found = defaultdict(list)
    for record in records:
        found[record["profile"], record["train_set"]].append(record)
    return dict(found)


def rows_of(records: list[dict]) -> dict[str, list[dict]]:
    """Records of one row each, untrained networks first.

    Raises:
        ValueError: where records of one row were made with different settings.
    """
    rows = defaultdict(list)
    for record in records:
        rows[row_name(record)].append(record)
    for name, (first, *others) in rows.items():
        for other in others:
            if found := differing(first["config"], other["config"], "row"):
                told = ", ".join(f"{field} {a} and {b}" for field, (a, b) in found.items())
                raise ValueError(f"records of {name!r} differ in {told}: give one of the settings a --variant")
    return dict(sorted(rows.items(), key=lambda item: (item[1][0]["config"]["epochs"] > 0, item[0])))


def pairs_by_seed(records: list[dict], baseline: str = "vicreg") -> dict[str, list[tuple[dict, dict]]]:
    """By trained row, in order of name and seed: a run's figures and those of the baseline's run of the same seed.

    A seed fixes weights, image order and views alike. The baseline is a method, see `matching_row`, or any one row.
    """
    rows, found = rows_of(trained(records)), {}
    for name, runs in rows.items():
        other = matching_row(name, baseline, rows)
        theirs = {run["seed"]: run["metrics"] for run in rows.get(other, ()) if other != name}
        ours = sorted((run for run in runs if run["seed"] in theirs), key=itemgetter("seed"))
        if ours:
            found[name] = [(run["metrics"], theirs[run["seed"]]) for run in ours]
    return found


def core_seconds(record: dict) -> float:
    """Processor time of a run's training, that of the trunk it branched off from included."""
    return record["core_seconds"] + record.get("trunk", {}).get("core_seconds", 0.0)


def trained(records: list[dict]) -> list[dict]:
    """Without those of untrained networks."""
    return [record for record in records if record["config"]["epochs"] > 0]


def is_control(record: dict) -> bool:
    """Whether a run is a control: pairs that no walk found, or an invariance term stronger than VICReg's authors'."""
    return record["config"].get("pairs", "walk") != "walk" or record["config"]["sim"] > Config.sim


def matching_row(row: str, baseline: str, rows: Iterable[str]) -> str:
    """The baseline's row to set a row against: of the same variant where there is one, or else the one without.

    A run that is longer than usual, or has another learning rate, is compared with a baseline that is and has, too.

    Args:
        row: see `row_name`.
        baseline: a method; or a row with a variant, which then stands against all.
        rows: the trained rows there are.
    """
    same = f"{baseline}{row.removeprefix(row.split()[0])}"
    return same if same in rows and same != row else baseline


def row_name(record: dict) -> str:
    """The row of a table that a record, or entry.json, names: method and variant, if any, or that it is untrained."""
    variant = "untrained" if record.get("config", {}).get("epochs") == 0 else record["variant"]
    return record["method"] if variant == "default" else f"{record['method']} ({variant})"


def stored_encoder(record: dict) -> Path | None:
    """Where the encoder of a record that was read lies, beside it; None where none is stored."""
    path = Path(record["path"]).with_suffix(".safetensors")
    return path if path.is_file() else None


def command_beside(record: dict) -> str:
    """The command of a record that was read, told to put its encoder beside it."""
    folder = shlex.quote(str(Path(record["path"]).parents[2]))
    return record["command"] if "--results" in record["command"] else f"{record['command']} --results {folder}"


def stored_encoders(runs: list[dict]) -> dict[int, Path]:
    """Stored encoders of the runs of one row by seed; empty where none is stored.

    Raises:
        ValueError: where some are stored and some are not: a study of fewer seeds would pass for the whole row's.
            The message names the command that makes the first; nothing is trained here.
    """
    found = {run["seed"]: stored_encoder(run) for run in sorted(runs, key=itemgetter("seed"))}
    missing = [run for run in runs if found[run["seed"]] is None]
    if not missing or len(missing) == len(runs):
        return {seed: path for seed, path in found.items() if path}
    seeds = ", ".join(str(seed) for seed, path in found.items() if path is None)
    raise ValueError(
        f"no stored encoder of {missing[0]['profile']} / {missing[0]['train_set']} / {row_name(missing[0])}, "
        f"seed {seeds}: `{command_beside(missing[0])}` makes the first of them"
    )


def save_encoder(path, encoder: Encoder, name: str) -> None:
    """Store an encoder as float16, with its name and channel statistics.

    Statistics of vectors and series stay float32, because a column of years would lose its differences, and so does
    what has numbers too large for float16, as the running variances of a run whose learning rate was too high.
    """
    whole = set() if encoder.mean.ndim == 4 else {"mean", "std"}

    def halved(name: str, x: Tensor) -> Tensor:
        fits = x.is_floating_point() and bool((x.abs() <= torch.finfo(torch.float16).max).all())
        return x.half() if fits and name not in whole else x

    save_state(path, {"name": name, "state": {k: halved(k, v) for k, v in encoder.state_dict().items()}})


def load_encoder(path) -> Encoder:
    """Rebuild a stored encoder in float32 and evaluation mode; of an unfinished run, the encoder it has so far.

    Another's weights are taken as `weights.published` takes them.

    Raises:
        ValueError: in one line that says what the file is, where it holds no encoder.
        OSError: where it cannot be opened.
    """
    if not is_ours(path):
        return published(path)
    stored = load_state(path)
    try:
        if "method" in stored:  # a checkpoint
            within = {k.removeprefix("encoder."): v for k, v in stored["method"].items() if k.startswith("encoder.")}
            stored = {"name": stored["config"]["encoder"], "state": within}
        encoder = make_encoder(stored["name"], *(stored["state"][name].flatten() for name in ("mean", "std")))
        encoder.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored["state"].items()})
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        told = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} holds no whole encoder ({told}): give one that lies beside a run's record") from None
    require_finite(encoder, path)
    return encoder.eval().to(memory_format=torch.channels_last)


def provenance() -> dict:
    """Commit, versions and hardware of this process."""
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "processor": processor(),
    }


def _commit() -> str:
    """The commit of the kit's own repository; a copy that lies in another repository's tree has none."""
    if given := os.environ.get("SAGKIT_COMMIT"):  # of a copy of the tree, sent to a machine without its history
        return given
    here = Path(__file__).resolve()
    house = here.parents[2]
    elsewhere = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # a hook's GIT_DIR names another

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=house, env=elsewhere, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # A tree of its own, in which this very file is tracked: neither site-packages nor a copy inside other work.
        own = Path(git("rev-parse", "--show-toplevel")).samefile(house) and git("ls-files", str(here))
        if not own or 'name = "sagkit"' not in (house / "pyproject.toml").read_text():
            return "not in a git checkout"
        return git("rev-parse", "HEAD") + ("-modified" if git("status", "--porcelain", "sagkit") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Name of the GPU that torch finds, else of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def save_state(path: str | Path, state: Any) -> None:
    """Write a nested state of dicts, lists, tensors and JSON values to one file, atomically.

    Raises:
        TypeError: for a value that is neither a tensor nor JSON.
        OSError: where it cannot be written, on a full disk for one; the old file is kept.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _strip(state, "", tensors)

    write_atomically(path, lambda draft: save_file(tensors, draft, metadata={"skeleton": json.dumps(skeleton)}))


def load_state(path: str | Path) -> Any:
    """Read what `save_state` wrote; tensors come back on the CPU.

    Raises:
        ValueError: for a file that is not a complete checkpoint, saying what it is.
        OSError: where it cannot be opened.
    """
    if not is_ours(path):
        raise ValueError(f"{path} is not a complete sagkit checkpoint but {what_is(path)}: check the path")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return _fill(json.loads(file.metadata()["skeleton"]), tensors)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a complete sagkit checkpoint ({error}): take another") from None


def _strip(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{name}"  # numbered, so that {"a/b": x, "a": {"b": y}} are two tensors
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # items as pairs: JSON would turn integer keys into strings
        for key in value:
            if not isinstance(key, bool | int | str):
                raise TypeError(f"cannot store the key {key!r} at {name!r} in a checkpoint")
        return {"dict": [[key, _strip(v, f"{name}/{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_strip(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"cannot store {type(value).__name__} at {name!r} in a checkpoint")


def _fill(node: dict, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _fill(value, tensors) for key, value in content}
    if kind == "list":
        return [_fill(value, tensors) for value in content]
    return content
