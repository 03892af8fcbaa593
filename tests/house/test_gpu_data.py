"""What travels to an accelerator is, unpacked, the very data set: pixels, labels, order."""

import gpu_data
import torch

from sagkit.data.load import ImageSet, load_folder


def test_parts_that_travelled_are_the_data_set_again(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def load(name, split, root=None):
        labels = torch.arange(40) // 20
        pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator.manual_seed(len(split)))
        return ImageSet(pixels, labels, ("ant", "bee"))

    monkeypatch.setattr(gpu_data, "load_images", load)
    gpu_data.pack(tmp_path / "parts", limit=6000)
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) > 1
    for part in parts:  # each in a call of its own
        (tmp_path / "one").mkdir()
        part.rename(tmp_path / "one" / part.name)
        gpu_data.unpack(tmp_path / "one", tmp_path / "data")
        (tmp_path / "one" / part.name).unlink()
        (tmp_path / "one").rmdir()
    for split in gpu_data.SPLITS:
        found = load_folder(tmp_path / "data" / "cifar100" / split, size=8)
        assert torch.equal(found.images, load("cifar100", split).images)
        assert torch.equal(found.labels, load("cifar100", split).labels)
        assert (tmp_path / "data" / f"{split}.fingerprint").read_text() == gpu_data.fingerprint(found)
