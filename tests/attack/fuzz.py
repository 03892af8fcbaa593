"""Hostile files and command lines: each is taken or refused in one line, quickly, in little memory, and runs nothing.

    python tests/attack/fuzz.py                          1,000 mutated files and 300 random command lines
    python tests/attack/fuzz.py --files 40 --lines 12    a sample

Files are sound ones of this kit's making with bits flipped, parts cut out, doubled or moved, and values in their
headers replaced; readers are those that commands use. What may come of a file is an answer, a ValueError or an OSError
of one line; of a command line, an exit without a traceback. An audit hook watches what is opened for writing, started
or unpickled; a training is stopped before its first step. Memory above LEAST_MEMORY fails where it is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image
from tiny import tiny

import sagkit.__main__ as command
from sagkit.data.load import ImageSet, load_images, make_shapes
from sagkit.pilot.assess import main as assess
from sagkit.studies import tables
from sagkit.train import doctor
from sagkit.train.record import load_encoder
from sagkit.train.trainer import Trainer, fit

SECONDS = 10
MEMORY = 2 << 30  # bytes beyond what the process has when it begins
SEED = 0
HOSTILE = [
    None,
    True,
    -1,
    0,
    10**30,
    -1e308,
    float("nan"),
    "",
    "x" * 3000,
    "../../x",
    "<script>",
    [],
    {},
    [[]],
    {"a": 1},
]
QUICK = {"epochs": 2, "readout_every": 0, "probe": False, "resamplings": 0}


# --- Files


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Some bits are others."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 2, 8, 64])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    """A part is gone, doubled, moved or replaced."""
    first, last = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    part = content[first:last]
    middle = draw.choice([b"", part * 2, part[::-1], draw.randbytes(min(len(part), 200)), b"\0" * len(part)])
    return draw.choice([content[:first], content[:first] + middle + content[last:]])


def replaced(value, draw: random.Random):
    """A value of nested JSON, or one somewhere in it, is another or is gone."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(HOSTILE)
    value = value.copy()
    at = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.2:
        del value[at]
    else:
        value[at] = replaced(value[at], draw)
    return value


def other_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file with a value replaced."""
    return json.dumps(replaced(json.loads(content), draw)).encode()


def other_header(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header, or the state's outline in it, has a value replaced."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if draw.random() < 0.6:
        outline = json.loads(header["__metadata__"]["skeleton"])
        header["__metadata__"]["skeleton"] = json.dumps(replaced(outline, draw))
    else:
        header = replaced(header, draw)
    made = json.dumps(header).encode()
    return struct.pack("<Q", draw.choice([len(made), len(made), len(made), 0, 2**40])) + made + data


def other_arrays(content: bytes, draw: random.Random) -> bytes:
    """An .npz file one of whose arrays is gone, an object, of another kind, or claims another shape."""
    with np.load(io.BytesIO(content)) as stored:
        arrays = dict(stored)
    name = draw.choice(list(arrays))
    kind = draw.randrange(5)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = np.array([open, {"a": 1}], dtype=object)
    elif kind == 2:
        kinds = (
            ["S4", "U8"] if arrays[name].dtype.kind == "U" else ["S4", "complex64", "float16", "bool", "U8", "int64"]
        )
        arrays[name] = arrays[name].astype(draw.choice(kinds))
    elif kind == 3:
        arrays[name] = np.asarray(arrays[name])[..., None][: draw.randrange(4)]
    made = io.BytesIO()
    np.savez(made, **arrays)
    if kind < 4:
        return made.getvalue()
    claimed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(made.getvalue())) as old, zipfile.ZipFile(claimed, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            if member == f"{name}.npy":
                shape = str(arrays[name].shape).encode()
                wanted = draw.choice([b"(99999999999,)", b"(-1,)", b"(0,)", b"(3000000, 3, 64, 64)", b"()"])
                data = data.replace(shape, wanted.ljust(len(shape))[: max(len(shape), len(wanted))], 1)
            new.writestr(member, data)
    return claimed.getvalue()


def other_values(content: bytes, draw: random.Random) -> bytes:
    """An .npz file one of whose arrays holds other numbers of the same kind, which may well be sound."""
    with np.load(io.BytesIO(content)) as stored:
        arrays = dict(stored)
    name = draw.choice([name for name in arrays if arrays[name].dtype.kind in "uif"])
    x = arrays[name].copy()
    row = draw.randrange(len(x))
    if x.dtype.kind == "f" and draw.random() < 0.3:
        x[row] = draw.choice([float("nan"), float("inf"), -1e38, 1e-38])
    else:
        x = draw.choice([x[::-1], x[:, ::-1] if x.ndim > 1 else x[::-1], np.roll(x, 1, axis=0), x * 0, x * 3, x + row])
        x = draw.choice([x, x, np.asfortranarray(x), x.astype(">f4") if x.dtype.kind == "f" else x.astype(">i2")])
    arrays[name] = x
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def other_picture(content: bytes, draw: random.Random) -> bytes:
    """A PNG that claims another size in its header."""
    side = draw.choice([0, 1, 65535, 2**31 - 1])
    return content[:16] + struct.pack(">II", side, draw.choice([side, 32])) + content[24:]


def prepare(place: Path) -> dict[str, bytes]:
    """Sound files by kind: a run's record, encoder and checkpoint, a set of images, an embedding, a picture."""
    sets = make_shapes(96, size=16), ImageSet(make_shapes(8, size=16, seed=1).images)
    run = fit(tiny(place / "run", **QUICK), *sets, progress=False)
    trainer_save = Trainer.save

    def save_then_stop(trainer):
        trainer_save(trainer)
        raise KeyboardInterrupt

    Trainer.save = save_then_stop
    with contextlib.suppress(KeyboardInterrupt):
        fit(tiny(place / "cut", **QUICK), *sets, progress=False)
    Trainer.save = trainer_save
    (checkpoint,) = (place / "cut/runs").rglob("*.safetensors")
    arrays, vectors, picture = io.BytesIO(), io.BytesIO(), io.BytesIO()
    labels = {"labels": sets[0].labels.numpy(), "class_names": np.array(sets[0].class_names)}
    np.savez(arrays, images=sets[0].images.numpy(), **labels)
    numbers = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
    apart = np.abs(np.subtract.outer(np.arange(4.0), np.arange(4.0)))  # without distances, CIFAR-100 is asked for
    np.savez(vectors, features=numbers, changed=numbers[::-1], labels=np.arange(40) % 4, distances=apart)
    Image.fromarray(sets[0].images[0].permute(1, 2, 0).numpy()).resize((40, 40)).save(picture, "PNG")
    files = {"record": run.path.read_bytes(), "encoder": run.path.with_suffix(".safetensors").read_bytes()}
    files |= {"checkpoint": checkpoint.read_bytes(), "images": arrays.getvalue()}
    return files | {"embedding": vectors.getvalue(), "picture": picture.getvalue()}


MUTATIONS = {
    "record": (other_json, other_json, flipped, cut),
    "encoder": (other_header, flipped, cut),
    "checkpoint": (other_header, flipped, cut),
    "images": (other_arrays, other_values, flipped, cut),
    "embedding": (other_arrays, other_values, flipped, cut),
    "picture": (other_picture, flipped, cut),
}


def read(kind: str, content: bytes, place: Path, sets) -> None:
    """Put a file where the kit looks for it, and let it be read as commands do."""
    if kind in ("record", "encoder"):
        path = place / "results/tour/shapes/sag-vicreg-seed0.json"
        path.parent.mkdir(parents=True)
        target = path if kind == "record" else path.with_suffix(".safetensors")
        target.write_bytes(content)
        if kind == "encoder":
            load_encoder(target)
        else:
            both(lambda: doctor.main(path), lambda: tables.main(results=str(place / "results"), cost=True))
    elif kind == "checkpoint":
        path = place / "runs/tour/shapes/sag-vicreg-seed0.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        both(lambda: load_encoder(path), lambda: fit(tiny(place, **QUICK), *sets, progress=False))
    elif kind == "picture":
        folder = place / "photos"
        folder.mkdir()
        for i in range(3):
            Image.new("RGB", (40, 40), (i, 80, 90)).save(folder / f"{i}.png")
        (folder / "hostile.png").write_bytes(content)
        load_images(folder)
    else:
        path = place / "given.npz"
        path.write_bytes(content)
        if kind == "images":
            load_images(path)
        else:
            both(lambda: doctor.main(path), lambda: assess((str(path),), resamplings=0, probe=False))


def both(*readers: Callable[[], object]) -> None:
    """Call several readers, each whatever came of the others; the last complaint is raised."""
    complaint = None
    for reader in readers:
        try:
            reader()
        except (ValueError, OSError) as error:
            complaint = error
    if complaint:
        raise complaint


# --- Command lines

WORDS = [
    "",
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "1e309",
    "shapes",
    "cifar100",
    "vicreg",
    "tour",
    "auto",
    "x" * 500,
    "../..",
    "ü\0ñ",
]
WORDS += [
    "<script>",
    "$(touch hacked)",
    "; touch hacked",
    "%s%n",
    "absent.json",
    "absent.npz",
    "--",
    "-",
    "batch",
    "walk",
]


def line(draw: random.Random) -> list[str]:
    """A random command line: a command that there is, and flags that there are, mostly, with any values."""
    table = {**command.COMMANDS, **{f"study {name}": found for name, found in command.studies().items()}}
    name = draw.choice([*table, "train", "train", "train", "doctor", "nonsense"])
    if name == "train":
        from sagkit.train.config import Config

        flags = list(Config.__dataclass_fields__)
    else:
        flags = (
            list(command.inspect.signature(command.Source(table[name]).signature()).parameters) if name in table else []
        )
    words = name.split()
    for _ in range(draw.randrange(5)):
        flag = draw.choice([*flags, "nonsense", "help"]) if flags else "nonsense"
        words.append(f"--{draw.choice(['', '', '', 'no-'])}{flag}".replace("_", "-"))
        words += [draw.choice(WORDS) for _ in range(draw.choice([0, 1, 1, 1, 2]))]
    if draw.random() < 0.3:
        words.append(draw.choice(WORDS))
    return words


def run(words: list[str]) -> None:
    """One command line; of commands that would work for long, the arguments alone."""
    function = command.function_of
    long = words[0] == "study" or words[0] in ("pilot", "assess", "explore")
    if long:
        command.function_of = lambda found: wraps(function(found))(lambda *_, **__: None)
    try:
        command.main(words)
    finally:
        command.function_of = function


# --- What is watched

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")


class Watch:
    """What a case does to the machine, told by Python's audit hook; files may be written under `place` alone."""

    def __init__(self):
        self.place, self.seen = None, []
        sys.addaudithook(self.note)

    def note(self, event: str, given: tuple) -> None:
        if self.place is None:
            return
        if event in STARTS:
            self.seen.append(f"{event} {given[0]!r}"[:200])
        elif (
            event == "open" and isinstance(given[0], str | bytes) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            path = os.path.realpath(os.fsdecode(given[0]))
            if not path.startswith((self.place, "/dev/", "/proc/")) and "__pycache__" not in path:
                self.seen.append(f"wrote {path}")


class Slow(Exception):
    """A case that took too long."""


def judged(case: Callable[[], object], watch: Watch, place: Path) -> tuple[str, float]:
    """What came of a case: "taken", "refused", or what is wrong; and its seconds."""

    def ring(*_):
        raise Slow

    said, begin = io.StringIO(), time.monotonic()
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    watch.place, watch.seen = str(place), []
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            case()
        outcome = "taken"
    except (ValueError, OSError) as error:
        outcome = "refused" if "\n" not in str(error).strip() else f"several lines: {str(error)[:300]!r}"
    except SystemExit as stop:
        outcome = "refused" if stop.code else "taken"
        if isinstance(stop.code, str) and "\n" in stop.code.strip():
            outcome = f"several lines: {stop.code[:300]!r}"
    except KeyboardInterrupt:  # a training that was stopped before its first step
        outcome = "taken"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "sagkit" in f.filename][-3:]
        outcome = f"{type(error).__name__}: {str(error)[:150]} at {' '.join(ours)}"
    finally:
        signal.alarm(0)
        watch.place = None
    if "Traceback" in said.getvalue():
        outcome = "a traceback was printed"
    return (f"{watch.seen[0]}" if watch.seen else outcome), time.monotonic() - begin


def main() -> None:
    """Attack, and print what was found as JSON; exit code 1 where anything is wrong."""
    options = argparse.ArgumentParser()
    options.add_argument("--files", type=int, default=1000)
    options.add_argument("--lines", type=int, default=300)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--show", action="store_true", help="tell of each fault where it is met")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    draw, found, watch = random.Random(given.seed), {}, Watch()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch).resolve()
        for name in ("HOME", "SAGKIT_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME", "SAGKIT_DATA"):
            os.environ[name] = str(home / "home")
        os.environ["SAGKIT_COMMIT"] = "none"  # or git would be started, to ask for it
        sound = prepare(home)
        sets = make_shapes(96, size=16), ImageSet(make_shapes(8, size=16, seed=1).images)
        for kind, content in sound.items():  # what cannot be read unharmed cannot be judged harmed
            (home / kind).mkdir()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(KeyboardInterrupt, ValueError):
                read(kind, content, home / kind, sets)
        Trainer.step = stopped
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))

        def attack(what: str, case: Callable[[], object], told: str) -> None:
            place = home / "case"
            place.mkdir()
            os.chdir(place)
            outcome, seconds = judged(lambda: case(), watch, home)
            os.chdir(home)
            shutil.rmtree(place)
            row = found.setdefault(what, {"cases": 0, "taken": 0, "refused": 0, "slowest": 0.0, "wrong": []})
            row["cases"] += 1
            row["slowest"] = round(max(row["slowest"], seconds), 2)
            if outcome in ("taken", "refused"):
                row[outcome] += 1
            else:
                row["wrong"].append(f"{told}: {outcome}")
                if given.show:
                    print(f"{what}, {told}: {outcome}", file=sys.stderr, flush=True)

        for i in range(given.files):
            kind = list(MUTATIONS)[i % len(MUTATIONS)]
            mutation = draw.choice(MUTATIONS[kind])
            content = mutation(sound[kind], draw)
            attack(kind, lambda kind=kind, content=content: read(kind, content, home / "case", sets), mutation.__name__)
        for _ in range(given.lines):
            words = line(draw)
            attack("command line", lambda words=words: run(words), " ".join(words)[:200])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"kinds": found, "peak_mb": round(peak)}))
    if any(row["wrong"] for row in found.values()):
        raise SystemExit(1)


def stopped(*_) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
