"""Checkpoints without pickle: tensors in safetensors, everything else as JSON in its header, written atomically.

A nested state (dicts and lists of tensors and plain values) is flattened to tensors named by number and path and
rebuilt on load, so loading can never run code. A file is complete or absent: it is written beside its place and then
renamed. [K]
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def save_state(path: str | Path, state: Any) -> None:
    """Write a nested state of dicts, lists, tensors and JSON values to one file, atomically.

    Raises:
        TypeError: for a value that is neither a tensor nor JSON.
        OSError: where it cannot be written, on a full disk for one; the old file is kept.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _strip(state, "", tensors)

    def write(draft: Path) -> None:
        try:
            save_file(tensors, draft, metadata={"skeleton": json.dumps(skeleton)})
        except SafetensorError as error:  # is no OSError, whatever its cause
            raise OSError(f"{path} cannot be written ({error})") from None

    write_atomically(path, write)


def load_state(path: str | Path) -> Any:
    """Read what `save_state` wrote; tensors come back on the CPU.

    Raises:
        ValueError: for a file that is not a complete checkpoint.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return _fill(json.loads(file.metadata()["skeleton"]), tensors)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a complete sagkit checkpoint ({error}): delete it to start afresh") from None


def write_atomically(path: str | Path, write) -> None:
    """Call `write(draft path)` and rename the draft to `path`; a failure leaves the old file and no draft."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda draft: Path(draft).write_text(text, encoding="utf-8"))


def _strip(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{name}"  # numbered, so that {"a/b": x, "a": {"b": y}} are two tensors
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # items as pairs: JSON would turn integer keys into strings
        for key in value:
            if not isinstance(key, bool | int | str):
                raise TypeError(f"cannot store the key {key!r} at {name!r} in a checkpoint")
        return {"dict": [[key, _strip(v, f"{name}/{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_strip(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"cannot store {type(value).__name__} at {name!r} in a checkpoint")


def _fill(node: dict, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _fill(value, tensors) for key, value in content}
    if kind == "list":
        return [_fill(value, tensors) for value in content]
    return content
