"""Where training time goes: seconds per named part of a step, without slowing the step down.

On a CPU a part is timed by the wall clock. On CUDA the host runs ahead of the device, so a part is bracketed by two
events, which are read only when somebody asks. [K]
"""

from __future__ import annotations

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
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str):
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """Seconds per name since the last reading; waits for the device once."""
        if self._events:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._seconds[name] += begin.elapsed_time(end) / 1000
            self._events.clear()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
