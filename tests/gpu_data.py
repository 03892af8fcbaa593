"""CIFAR-100 in parts that are small enough to travel to a machine with an accelerator, and there a tree again.

    python tests/gpu_data.py pack .gpu              here: .gpu/part0.safetensors, part1, ... of at most LIMIT bytes
    python tests/gpu_data.py unpack .gpu DATA       there, for each part as it comes: DATA/cifar100/...
    python tests/gpu_data.py check DATA             there: all images, and the pixels that were packed

Every image is a lossless WebP file, four fifths of its PNG, and is named by its number, so that pixels, labels and
order, and with them the fingerprint in a run's record, are the same.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from sagkit.data.load import load_images
from sagkit.train.trainer import fingerprint

LIMIT = 38_000_000  # bytes of a part: 64 MiB travel, of which the tree has 22 MB
SPLITS = ("train", "test")


def pack(out: tyro.conf.Positional[Path], root: Path | None = None, limit: int = LIMIT) -> None:
    """Write the parts, each with the fingerprints of both splits."""
    files: list[tuple[str, bytes]] = []
    sums = {}
    for split in SPLITS:
        images = load_images("cifar100", split, root=root)
        sums[split] = fingerprint(images)
        places = [f"cifar100/{split}/{images.class_names[c]}" for c in images.labels.tolist()]
        with ThreadPoolExecutor() as pool:
            packed = pool.map(_webp, images.images.permute(0, 2, 3, 1).numpy())
            files += [
                (f"{place}/{row:05}.webp", data) for row, (place, data) in enumerate(zip(places, packed, strict=True))
            ]
    ends = np.cumsum([len(data) + len(name) + 8 for name, data in files])
    part = (ends - 1) // limit
    out.mkdir(parents=True, exist_ok=True)
    for number in range(int(part[-1]) + 1):
        here = [files[row] for row in np.flatnonzero(part == number)]
        arrays = {
            "bytes": np.frombuffer(b"".join(data for _, data in here), np.uint8),
            "sizes": np.array([len(data) for _, data in here], np.int32),
            "names": np.frombuffer("\n".join(name for name, _ in here).encode(), np.uint8),
        }
        save_file(arrays, out / f"part{number}.safetensors", metadata=sums)
    print(f"{int(part[-1]) + 1} parts in {out}, {ends[-1] / 1e6:.0f} MB in all")


def _webp(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "WEBP", lossless=True, quality=80)
    return data.getvalue()


def unpack(parts: tyro.conf.Positional[Path], data: tyro.conf.Positional[Path]) -> None:
    """Unpack every part that lies in a folder."""
    for path in sorted(parts.glob("part*.safetensors")):
        with safe_open(path, "np") as part:
            names = part.get_tensor("names").tobytes().decode().splitlines()
            sums, pixels, ends = part.metadata(), part.get_tensor("bytes"), np.cumsum(part.get_tensor("sizes"))
        for name, content in zip(names, np.split(pixels, ends[:-1]), strict=True):
            target = data / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.tobytes())
        for split, told in sums.items():
            (data / f"{split}.fingerprint").write_text(told)
        print(f"{path.name}: {len(names):,} images into {data}")


def check(data: tyro.conf.Positional[Path]) -> None:
    """Stop unless both splits are whole and their pixels those that were packed."""
    for split in SPLITS:
        expected, found = (data / f"{split}.fingerprint").read_text(), fingerprint(load_images("cifar100", split, data))
        if found != expected:
            raise SystemExit(f"{split} is {found}, and was packed as {expected}: send all parts again")
    print(f"CIFAR-100 under {data} is what was packed")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"pack": pack, "unpack": unpack, "check": check})
