"""Shared by all tests: where CIFAR-100 lies, one thread a process, shapes checked, and long tests handed out first."""

import os
from pathlib import Path

# Before torch is imported, here and in what tests start: processes side by side are quicker than threads in one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


def _is_notebook(item) -> bool:
    """Whether nbmake runs the item, or the test runs a notebook itself."""
    return item.path.suffix == ".ipynb" or "notebook" in item.keywords


def pytest_collection_modifyitems(items):
    """Notebooks first, then what is slow: no process is left with a long test when the others are done."""
    items.sort(key=lambda item: (not _is_notebook(item), "slow" not in item.keywords))
    gpu = [item for item in items if "gpu" in item.keywords]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
