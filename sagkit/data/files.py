"""The one place where the kit writes: a file is whole or not there, and a run has one process.

    draft beside it -> fsync -> rename          a fault at any of these leaves the old file, and is told in one line

Every room that writes hands `write_atomically` what to write, so that a full disk, a quota or a folder that may only be
read are met in one place. A draft that a killed process left is removed by the next who writes the same file. [K]
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

import numpy as np
from safetensors import SafetensorError


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(draft)` and rename the draft to `path`; its folder is made if need be.

    Raises:
        OSError: where it cannot be written, in one line; the old file is kept, and no draft.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_drafts(path)
        _fill(draft, write)
        _sync(draft)
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:  # safetensors' is no OSError, whatever its cause
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{path} cannot be written ({reason}): make room, or choose another folder") from None
    finally:
        with suppress(OSError):
            draft.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_atomically` does."""
    write_atomically(path, lambda draft: draft.write_bytes(text.encode()))


def read_arrays(path: str | Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, those of `names` alone where they are there; nothing in it is run.

    Raises:
        ValueError: for a file that is not there or cannot be read, in one line.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if names is None or name in names}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: check the path") from None
    except Exception as error:  # zipfile and numpy raise a dozen kinds over a damaged file, lack of memory for one
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as .npz ({told}): write it with numpy.savez, without objects"
        ) from None


def _fill(draft: Path, write: Callable[[Path], object]) -> None:
    draft.touch()  # first of all, so that a folder that may only be read is told before the work of writing
    write(draft)


def _sync(draft: Path) -> None:
    with open(draft, "rb+") as file:
        os.fsync(file.fileno())


def _remove_drafts(path: Path) -> None:
    """Remove drafts of this file whose process is gone; of another machine's processes nothing is known."""
    for draft in path.parent.glob(f".{escape(path.name)}.{_machine()}-*.part"):
        pid = draft.name.removesuffix(".part").rpartition("-")[2]
        if pid.isdecimal() and not is_running(int(pid)):
            draft.unlink(missing_ok=True)


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives."""
    if os.name == "nt":  # there, signal 0 ends a process instead of asking after it
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def alone(path: str | Path, what: str) -> Iterator[None]:
    """Hold a lock file while a block runs. The system lets go of it when its process ends, however it ends.

    Args:
        path: of the lock file; it is removed at the end.
        what: is being done, for the message to whoever comes second.

    Raises:
        ValueError: where another process holds it, named by number and machine.
        OSError: where the file cannot be made.
    """
    path, me = Path(path), {"pid": os.getpid(), "host": socket.gethostname()}
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held open as long as the lock)
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror}): choose another folder") from None
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{what} by {_holder(file)}: wait for it, or end it") from None
        except OSError:
            pass  # a file system without locks
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # it was removed between opening and locking: the lock of a file that nobody else will see
    try:
        file.truncate(0)
        file.write(json.dumps(me))
        file.flush()
        yield
    finally:
        if os.name == "nt":  # no open file can be removed there
            file.close()
        with suppress(OSError):
            path.unlink()
        file.close()


def _lock(handle: int) -> None:
    """Lock an open file, without waiting; OSError where another has it."""
    if os.name == "nt":
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # a byte beyond the text, which others may then still read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file) -> str:
    """Who holds a lock, as its file says."""
    with file:
        file.seek(0)
        try:
            found = json.loads(file.read())
            return f"process {found['pid']} on {found['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it is just being written
            return "another process"
