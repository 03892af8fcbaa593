"""Shared fixtures: where CIFAR-100 lies, one thread, and shapes checked while tests run."""

import os
from pathlib import Path

import pytest

# Before sagkit is imported: every jaxtyping signature in the package is enforced, in tests only.
from jaxtyping import install_import_hook

install_import_hook("sagkit", "typecheck.check")


def _cifar_root() -> Path | None:
    root = Path(os.environ.get("SAGKIT_DATA", ""))
    found = os.environ.get("SAGKIT_DATA") and any((root / p).is_dir() for p in ("cifar100/train", "train"))
    return root if found else None


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """Root that holds the CIFAR-100 image tree; the test is skipped where there is none."""
    root = _cifar_root()
    if root is None:
        pytest.skip("CIFAR-100 not found: set SAGKIT_DATA to the folder that holds cifar100/train or train")
    return root


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
