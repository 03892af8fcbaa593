"""Where time and memory go: seconds per named part of a step, without slowing the step down, and the peak of memory.

On a CPU a part is timed by the wall clock. On CUDA the host runs ahead of the device, so a part is bracketed by two
events, which are read only when somebody asks. A part inside another is taken off the outer one, so that the parts
sum to the time they were timed in. [K]
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from contextlib import contextmanager

import torch


class Stopwatch:
    """Accumulates seconds under names: `with watch("walk"): ...`, then `watch.read()`.

    cuda: whether the timed work runs on a CUDA device; may be set later.
    """

    def __init__(self, cuda: bool = False):
        self.cuda = cuda
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, str | None, torch.cuda.Event, torch.cuda.Event]] = []
        self._open: list[str] = []

    @contextmanager
    def __call__(self, name: str):
        outer = self._open[-1] if self._open else None
        self._open.append(name)
        try:
            if self.cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                yield
                end.record()
                self._events.append((name, outer, begin, end))
            else:
                begin = time.perf_counter()
                yield
                self._add(name, outer, time.perf_counter() - begin)
        finally:
            self._open.pop()

    def _add(self, name: str, outer: str | None, seconds: float) -> None:
        self._seconds[name] += seconds
        if outer is not None:
            self._seconds[outer] -= seconds

    def read(self) -> dict[str, float]:
        """Seconds per name since the last reading; waits for the device once."""
        if self._events:
            torch.cuda.synchronize()
            for name, outer, begin, end in self._events:
                self._add(name, outer, begin.elapsed_time(end) / 1000)
            self._events.clear()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def peak_memory() -> dict[str, float]:
    """Largest memory so far in MB (2^20 bytes): "host", resident, of this process; "device", of tensors on CUDA.

    It is the process's peak, data set included: two runs in one process share it. Without "host" on Windows, which does
    not keep it where Python's standard library looks.
    """
    peak = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
        peak["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak["device"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
