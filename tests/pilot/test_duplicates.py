"""Near duplicates: copies made by hand, and strangers."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from sagkit.pilot.duplicates import near_duplicates


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_near_duplicates_are_copies_recompressed_rescaled_or_brightened(tmp_path, generator):
    coarse = torch.rand(40, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    originals = (smooth * 255).byte()
    picture = [Image.fromarray(o.permute(1, 2, 0).numpy()) for o in originals[:4]]
    picture[0].save(tmp_path / "x.jpg", quality=40)
    copies = [
        Image.open(tmp_path / "x.jpg"),
        picture[1].resize((40, 40)).resize((64, 64)),
        ImageEnhance.Brightness(picture[2]).enhance(0.7),
        picture[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT),  # another picture
    ]
    copies = torch.stack([torch.from_numpy(np.array(c.convert("RGB"))).permute(2, 0, 1) for c in copies])
    flat = torch.tensor([10, 11, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    images = torch.cat([originals, copies, originals[:1], flat])
    assert near_duplicates(images) == [[0, 40, 44], [1, 41], [2, 42], [45, 46]]
    assert near_duplicates(originals) == []
