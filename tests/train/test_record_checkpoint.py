"""Checkpoints: whatever goes in comes out, a broken file is named, a failed write leaves the old one, no pickle."""

import ast
import json
import math
import resource
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagkit.data.files import write_atomically, write_text
from sagkit.train import record
from sagkit.train.record import load_state, save_state


def assert_same(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (math.isnan(a) and math.isnan(b))


def round_trip(state, folder: Path):
    save_state(folder / "s.safetensors", state)
    return load_state(folder / "s.safetensors")


base = torch.arange(12.0).view(3, 4)
TENSORS = {
    "float": base,
    "scalar": torch.tensor(3.5),
    "bool": torch.tensor([True, False]),
    "int": torch.tensor(7),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.tensor([1.5]).half(),
    "bfloat": torch.tensor([1.5]).bfloat16(),
    "double": torch.tensor([math.pi]).double(),
    "empty": torch.empty(0, 3),
    "shared": base,
    "view": base[1:],
    "transposed": base.T,
    "channels last": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        None,
        3.5,
        TENSORS["float"],
        TENSORS,
        {"a": {}, "b": [], "c": [[], {}]},
        {5: {"x": TENSORS["int"]}, 1: 2, -3: None, False: "no", "1": "text"},
        [float("nan"), float("inf"), -0.0, 10**30, 0.1, "ünï", "", False],
        {"": TENSORS["bool"], "a b": 1, "__metadata__": TENSORS["half"]},
        {"a/b": TENSORS["float"], "a": {"b": TENSORS["bool"]}},  # two different paths, one joined name
        {1: TENSORS["float"], "1": TENSORS["bool"]},
    ],
    ids=lambda state: str(state)[:40],
)
def test_a_state_comes_back_as_it_went_in(tmp_path, state):
    assert_same(round_trip(state, tmp_path), state)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.lists(st.integers(-5, 5), max_size=3).map(torch.tensor),
)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text("ab/01", max_size=3), st.integers(0, 3)), inner, max_size=4),
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(states)
def test_any_nested_state_comes_back_as_it_went_in(tmp_path_factory, state):
    assert_same(round_trip(state, tmp_path_factory.getbasetemp()), state)


def test_tuples_come_back_as_lists_and_ordered_dicts_as_dicts(tmp_path):
    assert round_trip({"betas": (0.9, 0.99)}, tmp_path) == {"betas": [0.9, 0.99]}
    assert_same(round_trip(OrderedDict(b=1, a=2), tmp_path), {"b": 1, "a": 2})


def test_what_was_stored_is_a_copy_without_gradient(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    save_state(tmp_path / "s", {"p": parameter})
    with torch.no_grad():
        parameter.zero_()
    loaded = load_state(tmp_path / "s")
    assert loaded["p"].tolist() == [1, 1, 1]
    loaded["p"] += 1  # may be changed without touching the file
    assert load_state(tmp_path / "s")["p"].tolist() == [1, 1, 1]


@pytest.mark.gpu
def test_tensors_come_back_on_the_cpu(tmp_path):
    assert not round_trip({"x": torch.ones(3, device="cuda")}, tmp_path)["x"].is_cuda


@pytest.mark.parametrize("state", [{"f": len}, {"a": [1, {2, 3}]}, {"x": b"bytes"}, {(1, 2): 3}, {"c": {1j: 0}}])
def test_what_cannot_be_read_back_is_not_written(tmp_path, state):
    save_state(tmp_path / "s", {"old": 1})
    with pytest.raises(TypeError, match="cannot store"):
        save_state(tmp_path / "s", state)
    assert load_state(tmp_path / "s") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, error):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")

    def write(draft):
        Path(draft).write_text("half of the ne")
        assert path.read_text() == "old"
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_disk_that_takes_no_more_is_told_as_such_and_the_old_state_stays(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"x": torch.ones(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the system itself refuses to write more
    try:
        with pytest.raises(OSError, match=r"state.safetensors cannot be written \(.*File too large") as refusal:
            save_state(path, {"x": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(refusal.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert torch.equal(load_state(path)["x"], torch.ones(3))


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path):
    write_text(tmp_path / "t.md", "old")
    with open(tmp_path / "t.md") as reader:
        write_text(tmp_path / "t.md", "new")
        assert reader.read() == "old"  # renamed over, never written into


def test_text_is_written_whole_and_replaces_the_old(tmp_path):
    for text in ("old", "new, with signs: ± × é"):
        write_text(tmp_path / "t.md", text)
        assert (tmp_path / "t.md").read_bytes().decode("utf-8") == text


def test_a_truncated_file_is_named_and_refused_wherever_it_is_cut(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_state(path, {"weights": torch.arange(50.0), "epoch": 3})
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.safetensors is not a complete sagkit checkpoint"):
            load_state(path)


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path):
    from safetensors.torch import save_file

    path, trace = tmp_path / "f.safetensors", tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return Path.touch, (trace,)

    torch.save({"x": Payload()}, path)
    with pytest.raises(ValueError, match="not a complete"):
        load_state(path)
    assert not trace.exists()
    save_file({"x": torch.ones(2)}, path)  # safetensors, but without the skeleton
    with pytest.raises(ValueError, match="not a complete"):
        load_state(path)
    for garbage in (b"\x00" * 64, b"not a checkpoint", bytes(range(256)) * 4):
        path.write_bytes(garbage)
        with pytest.raises(ValueError, match="not a complete"):
            load_state(path)


def test_a_missing_file_is_missing_and_not_broken(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "nowhere")


def test_the_file_is_plain_safetensors_and_the_module_knows_no_pickle(tmp_path):
    save_state(tmp_path / "s", {"w": torch.tensor([1.0, 2.0]), "epoch": 3})
    data = (tmp_path / "s").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])  # readable without any library
    assert header.keys() == {"__metadata__", *(name for name in header if name != "__metadata__")}
    ((begin, end),) = (entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
    assert struct.unpack("<2f", data[8 + length + begin : 8 + length + end]) == (1.0, 2.0)
    tree = ast.parse(Path(record.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if "pickle" in name}
    assert not [
        n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n) in ("torch.load", "torch.save")
    ]
