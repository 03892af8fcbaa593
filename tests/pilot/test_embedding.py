"""Embeddings kept in a file: read back as they were, or the old file left whole."""

import errno

import numpy as np
import pytest
import torch

from sagkit.data.load import make_shapes
from sagkit.model import make_encoder
from sagkit.pilot.embedding import embed, load_embedding, save_embedding


def test_embedding_is_stored_by_name_and_read_back(tmp_path):
    images, encoder = make_shapes(6, size=16).images, make_encoder("resnet10-w4")
    names = ("a b.png", "ünï/日本.jpg", "c", "d", "e", "bad\udcff.png")
    stored = embed(encoder, images, names)
    assert save_embedding(tmp_path / "deep" / "x.npz", stored)[0] == tmp_path / "deep" / "x.npz"
    again = load_embedding(tmp_path / "deep" / "x.npz")
    assert torch.equal(again.features, stored.features)
    assert again.names == (*names[:5], "bad\\xff.png")
    with torch.no_grad():
        expected = encoder.eval()(images.float() / 255)
    torch.testing.assert_close(stored.features, expected, rtol=1e-4, atol=1e-5)
    assert embed(encoder, images).names == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(ValueError, match="1 names for 6 images"):
        embed(encoder, images, ["one"])


def test_a_full_disk_leaves_the_old_embedding_and_no_half_of_the_new(tmp_path, monkeypatch):
    images, encoder = make_shapes(6, size=16).images, make_encoder("resnet10-w4")
    path = tmp_path / "x.npz"
    save_embedding(path, embed(encoder, images))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}  # with pyarrow, a .parquet too

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save_embedding(path, embed(encoder, images))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
