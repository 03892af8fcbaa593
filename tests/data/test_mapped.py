"""Images larger than memory: the same tensor from a file, and a folder's decoding that goes on after a kill."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sagkit.augment import channel_statistics
from sagkit.data import decode, mapped
from sagkit.data.load import ImageSet, load_folder
from sagkit.train.trainer import fingerprint


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAGKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        place = tmp_path / "photos" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i:02}.png")
    return tmp_path / "photos"


def small_memory(monkeypatch, limit: int = 300):
    monkeypatch.setattr(mapped, "IN_MEMORY", limit)
    monkeypatch.setattr(mapped, "CHUNK", 5)


def test_a_folder_in_a_file_is_the_folder_in_memory(folder, cache, monkeypatch):
    """Decoded, read again, and in parts; and nothing of it is copied into memory."""
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(folder / "b" / "deep.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = load_folder(folder, size=8)
        for file in cache.iterdir():
            file.unlink()
        small_memory(monkeypatch)
        for _ in range(2):
            large = load_folder(folder, size=8)
            assert (large.images == whole.images).all()
            assert large.paths == whole.paths
            assert large.unreadable == whole.unreadable
            assert large.notes == whole.notes
        parts = [load_folder(folder, split, size=8) for split in ("fit", "val")]
        rows = [whole.paths.index(path) for part in parts for path in part.paths]
        assert (torch.cat([part.images for part in parts]) == whole.images[rows]).all()
    assert sorted(file.suffix for file in cache.iterdir()) == [".pixels", ".safetensors"]
    assert channel_statistics(large.images) == channel_statistics(whole.images)
    assert fingerprint(large) == fingerprint(whole)


def test_writing_to_a_tensor_leaves_its_file_alone(folder, cache, monkeypatch):
    small_memory(monkeypatch)
    first = load_folder(folder, size=8)
    before = first.images.clone()
    first.images.zero_()
    assert (load_folder(folder, size=8).images == before).all()


def test_a_damaged_file_is_decoded_afresh(folder, cache, monkeypatch):
    small_memory(monkeypatch)
    before = load_folder(folder, size=8).images.clone()
    (file,) = cache.glob("*.pixels")
    file.write_bytes(file.read_bytes()[:-1])
    assert (load_folder(folder, size=8).images == before).all()


@pytest.mark.parametrize("failing", ["named", "move"])
def test_a_disk_without_room_costs_the_cache_alone(folder, cache, monkeypatch, failing):
    before = load_folder(folder, size=8).images
    for file in cache.iterdir():
        file.unlink()
    small_memory(monkeypatch)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped, failing, full)
    with pytest.warns(UserWarning, match="not cached"):
        assert (load_folder(folder, size=8).images == before).all()


KILLED = """
import os, signal, sys
from pathlib import Path
from sagkit.data import decode, mapped
from sagkit.data.load import load_folder
mapped.IN_MEMORY = 300
fit, seen = decode._fit, []
def counted(image, size):
    seen.append(1)
    if len(seen) > 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(image, size)
decode._fit = counted
decode.ThreadPoolExecutor = lambda n: __import__("concurrent.futures").futures.ThreadPoolExecutor(1)
load_folder(sys.argv[1], size=8)
"""


@pytest.mark.slow  # a process that is killed
def test_a_killed_decoding_is_gone_on_with(folder, cache, monkeypatch):
    """Seven of 24 files were decoded: 17 are left, and the whole is what an uninterrupted call gives."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env={**os.environ}, check=False)
    assert killed.returncode == -signal.SIGKILL
    small_memory(monkeypatch)
    fit, seen = decode._fit, []
    monkeypatch.setattr(decode, "_fit", lambda image, size: seen.append(1) or fit(image, size))
    resumed = load_folder(folder, size=8).images.clone()
    assert len(seen) == 17
    for file in cache.iterdir():
        file.unlink()
    assert (load_folder(folder, size=8).images == resumed).all()


def test_a_large_subset_is_a_file_without_a_name(tmp_path, cache, monkeypatch):
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    small_memory(monkeypatch)
    rows = torch.randperm(30)[:20]
    part = ImageSet(images).subset(rows)
    assert (part.images == images[rows]).all()
    assert list(cache.iterdir()) == []
    assert isinstance(mapped.scratch((301,), cache), np.memmap)
    assert not isinstance(mapped.scratch((300,), cache), np.memmap)
