"""Run records: where they lie, that they are plain JSON, and that a stored encoder is the encoder."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from sagkit.model import make_encoder
from sagkit.train.record import (
    load_encoder,
    load_state,
    provenance,
    read_records,
    record_path,
    save_encoder,
    write_record,
)


@pytest.mark.parametrize(
    ("train_set", "method", "variant", "seed", "expected"),
    [
        ("cifar100", "vicreg", "default", 0, "laptop/cifar100/vicreg-seed0.json"),
        ("cifar100-80a", "sag-vicreg", "queue", 12, "laptop/cifar100-80a/sag-vicreg-queue-seed12.json"),
        ("/data/birds/", "vicreg", "default", 1, "laptop/birds/vicreg-seed1.json"),
        ("/data/birds.npz", "vicreg", "default", 1, "laptop/birds/vicreg-seed1.json"),
        ("/data/birds.v2", "vicreg", "default", 1, "laptop/birds.v2/vicreg-seed1.json"),
    ],
)
def test_records_lie_where_design_lays_down(train_set, method, variant, seed, expected):
    assert record_path("results", "laptop", train_set, method, variant, seed) == Path("results") / expected


def test_records_are_read_in_order_of_path_and_nothing_else_is(tmp_path):
    written = {}
    for method, seed in (("vicreg", 1), ("sag-vicreg", 0), ("vicreg", 0)):
        path = record_path(tmp_path, "tour", "shapes", method, "default", seed)
        written[str(path)] = {"method": method, "seed": seed, "metrics": {"knn": 0.1 + 0.2}}
        write_record(path, written[str(path)])
    (tmp_path / "entry.json").write_text('{"method": "vicreg", "variant": "default"}')
    found = read_records(tmp_path)
    assert [r["path"] for r in found] == sorted(written)
    assert found == [{**written[path], "path": path} for path in sorted(written)]
    assert read_records(tmp_path / "empty") == []
    for path in written:
        json.loads(Path(path).read_text(), parse_constant=pytest.fail)  # strictly JSON, no NaN


def test_a_stored_encoder_is_the_encoder_rounded_to_float16(tmp_path):
    torch.manual_seed(0)
    encoder = make_encoder("resnet10-w4", mean=(0.51, 0.49, 0.44), std=(0.27, 0.26, 0.28)).train()
    encoder(torch.rand(32, 3, 16, 16))  # running statistics that are not the initial ones
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, "resnet10-w4")
    assert encoder.backbone[0].weight.dtype == torch.float32, "the encoder itself was changed"
    loaded = load_encoder(path)
    assert not loaded.training
    for name, value in encoder.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[name], expected), name
    encoder.eval()
    with torch.no_grad():
        x = torch.rand(8, 3, 16, 16)
        torch.testing.assert_close(loaded(x), encoder(x), rtol=2e-2, atol=2e-3)
    stored = load_state(path)["state"]
    assert {v.dtype for v in stored.values()} == {torch.float16, torch.int64}
    # METHOD: under 1.5 MB; two bytes a number and a small header.
    assert path.stat().st_size < 2 * sum(v.numel() for v in stored.values()) + 20_000


def test_storing_a_stored_encoder_again_changes_nothing(tmp_path):
    torch.manual_seed(0)
    save_encoder(tmp_path / "a", make_encoder("resnet10-w4"), "resnet10-w4")
    save_encoder(tmp_path / "b", load_encoder(tmp_path / "a"), "resnet10-w4")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_provenance_names_this_commit_and_these_versions():
    found = provenance()
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    if git.returncode:
        assert found["commit"] == "not in a git checkout"
    else:
        assert found["commit"].removesuffix("-modified") == git.stdout.strip()
    assert found["versions"]["torch"] == version("torch")
    assert found["processor"]
    json.dumps(found)


def test_a_copy_without_history_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("SAGKIT_COMMIT", "abc123")
    assert provenance()["commit"] == "abc123"
