"""The tiny run that tests of training start from."""

from sagkit.train.config import Config, configure


def tiny(tmp_path, **fields) -> Config:
    """Narrow network, 16-pixel views, 3 epochs of batches of 32 on one CPU; records and checkpoints under tmp_path."""
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
        "results": str(tmp_path / "results"),
        "runs": str(tmp_path / "runs"),
    }
    return configure(**{**preset, **fields})
