"""The tiny run that tests of training start from, and a small image set as a file, which other processes can read."""

from pathlib import Path

import numpy as np

from sagkit.data.load import make_shapes
from sagkit.train.config import Config, configure


def tiny(tmp_path, **fields) -> Config:
    """Narrow network, 16-pixel views, 3 epochs of batches of 32 on one CPU, judged without probes and intervals.

    Records and checkpoints lie under tmp_path.
    """
    preset = {
        "method": "sag-vicreg",
        "encoder": "resnet10-w4",
        "projector_hidden": 16,
        "projector_out": 24,
        "epochs": 3,
        "batch_size": 32,
        "view_size": 16,
        "k": 4,
        "walk_start": 0.0,
        "readout_every": 1,
        "precision": "32-true",
        "accelerator": "cpu",
        "probe": False,
        "resamplings": 0,
        "results": str(tmp_path / "results"),
        "runs": str(tmp_path / "runs"),
    }
    return configure(**{**preset, **fields})


def shapes_file(folder: Path) -> str:
    """A file of 320 shapes with the tree of their classes; it has the splits fit and val."""
    path, drawn = folder / "parts.npz", make_shapes(320, size=16, seed=0)
    np.savez(path, images=drawn.images.numpy(), labels=drawn.labels.numpy(), class_names=drawn.class_names)
    return str(path)
