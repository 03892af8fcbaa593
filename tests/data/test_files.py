"""Every file is written in one place, whole or not at all; a fault there is told in one line, and nothing is lost."""

import ast
import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from sagkit.data import decode, emoji, files
from sagkit.data.files import is_running, write_atomically, write_text
from sagkit.model import make_encoder
from sagkit.pilot.embedding import Embedding, save_embedding, write_neighbors, write_scores
from sagkit.pilot.photos import make_photo_folder
from sagkit.show.plots import style
from sagkit.train.record import save_encoder, save_state, write_record

PACKAGE = Path(files.__file__).parents[1]
FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES)
IMAGES = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
DECODED = decode.Decoded(IMAGES, torch.ones(3, dtype=torch.uint8), {}, "")
FEATURES = torch.arange(6.0).view(3, 2)


def figure():
    shown, axes = plt.subplots()
    axes.plot([0, 1])
    plt.close(shown)
    return shown


# Every writer of the kit, on a file of its own kind; reports, tables and pages are texts.
WRITERS = {
    "text": ("t.html", lambda path: write_text(path, "text")),
    "record": ("r.json", lambda path: write_record(path, {"a": 1})),
    "checkpoint": ("c.safetensors", lambda path: save_state(path, {"x": FEATURES})),
    "encoder": ("e.safetensors", lambda path: save_encoder(path, make_encoder("resnet10-w4"), "resnet10-w4")),
    "embedding": ("e.npz", lambda path: save_embedding(path, Embedding(FEATURES, ("a", "b", "c")))),
    "neighbours": ("n.csv", lambda path: write_neighbors(path, ("a", "b"), FEATURES[:2, :1], torch.ones(2, 1).long())),
    "scores": ("s.csv", lambda path: write_scores(path, ("a", "b"), {"score": FEATURES[:2, 0]})),
    "picture": ("p.png", lambda path: style.save(figure(), path, (".png",))),
    "drawing": ("p.svg", lambda path: style.save(figure(), path, (".svg",))),
    "photographs": ("f/china-a1/000.jpg", lambda path: make_photo_folder(path.parents[1], per_class=2, odd=1)),
}
CACHES = {  # a cache that cannot be written costs time and nothing else
    "decoded images": ("decoded-0123456789abcdef-0.safetensors", lambda path: decode._write_cache(path, DECODED)),
    "drawn emoji": ("emoji.safetensors", lambda path: emoji._keep(path, IMAGES)),
}


def broken(monkeypatch, step: str, code: int) -> None:
    """Let one step of writing fail, once half of the file is written where that is the step."""
    error = OSError(code, os.strerror(code))

    def fail(*_):
        raise error

    def half(draft, write):
        write(draft)
        os.truncate(draft, draft.stat().st_size // 2)
        raise error

    where = {"open": (Path, "touch", fail), "write": (files, "_fill", half), "fsync": (os, "fsync", fail)}
    monkeypatch.setattr(*where.get(step, (os, "replace", fail)))


def listed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("writer", [*WRITERS, *CACHES])
def test_a_write_that_fails_is_told_in_one_line_and_leaves_what_was_there(tmp_path, monkeypatch, writer, step):
    name, write = {**WRITERS, **CACHES}[writer]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"what was there")
    code = FAULTS[(list(WRITERS).index(writer) if writer in WRITERS else 0) % len(FAULTS)]
    with monkeypatch.context() as patched:
        broken(patched, step, code)
        if writer in CACHES:
            with pytest.warns(UserWarning, match=f"not cached .*{os.strerror(code)}.*SAGKIT_CACHE"):
                write(path)
        else:
            with pytest.raises(OSError, match=rf"cannot be written \({os.strerror(code)}\): make room") as told:
                write(path)
            assert "\n" not in str(told.value)
    assert listed(tmp_path) == {name: b"what was there"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(path)
    assert path.read_bytes() != b"what was there"
    assert not [name for name in listed(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize("code", FAULTS)
def test_a_folder_that_cannot_be_made_is_told_likewise(tmp_path, monkeypatch, code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(OSError, match=rf"a.txt cannot be written \({os.strerror(code)}\)"):
        write_text(tmp_path / "new" / "a.txt", "")


def test_a_draft_of_a_process_that_was_killed_goes_with_the_next_write(tmp_path):
    path = tmp_path / "a[1].txt"  # a name with signs of a pattern
    code = (
        "import os, sys\nfrom sagkit.data.files import write_atomically\n"
        "write_atomically(sys.argv[1], lambda draft: (draft.write_text('half'), os.kill(os.getpid(), 9)))"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert [name.endswith(".part") for name in listed(tmp_path)] == [True]
    (tmp_path / "other.txt.part").write_text("of somebody else")
    seen = []
    write_atomically(path, lambda draft: (seen.extend(listed(tmp_path)), draft.write_text("whole")))
    assert listed(tmp_path) == {"a[1].txt": b"whole", "other.txt.part": b"of somebody else"}
    assert len(seen) == 2  # the own draft and the stranger's file


def test_a_process_is_known_to_run_until_it_ends():
    assert is_running(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not is_running(child.pid)


# Calls that write a file, by the name of what is called; `open` and `save` are looked at more closely below.
WRITES = {"write_text", "write_bytes", "savez", "savez_compressed", "savefig", "save_file", "write_table", "mkstemp"}
WRITES |= {"to_parquet", "to_html", "to_excel", "copyfile", "copy2", "copytree", "NamedTemporaryFile", "tofile"}


def writes(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    words = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
    if name == "open":
        return any(isinstance(word, str) and set(word) & set("wax+") and len(word) <= 3 for word in words)
    if name == "to_csv":  # without a file, it gives text
        return bool(node.args)
    if name == "write_text":  # our own
        return isinstance(node.func, ast.Attribute)
    owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    return name in WRITES or (name in ("save", "dump", "replace") and owner in ("torch", "json", "os", "pickle"))


def inside(tree: ast.AST) -> set[ast.AST]:
    """What stands in what is handed to `write_atomically`, a lambda or a function called `write`, or in a folder that
    goes with its block."""
    found = set()
    for node in ast.walk(tree):
        handed = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "write_atomically"
        passing = isinstance(node, ast.With) and "TemporaryDirectory" in ast.unparse(node.items[0])
        if handed or passing or (isinstance(node, ast.FunctionDef) and node.name == "write"):
            found |= set(ast.walk(node))
    return found


def test_no_room_writes_by_itself():
    loose, met = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and writes(node)]
        buffers = [node for node in calls if "buffer" in ast.unparse(node)]  # in memory
        met += len(calls) - len(buffers)
        if path != Path(files.__file__):
            loose += [f"{path}:{node.lineno}" for node in calls if node not in inside(tree) and node not in buffers]
    assert not loose
    assert met > 5
