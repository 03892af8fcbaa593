"""Stopwatch: parts exclude the parts inside them; memory: the peak is the kernel's, and follows an allocation."""

import sys
import time
from pathlib import Path

import pytest
import torch

from sagkit.train.timing import Stopwatch, peak_memory


def test_parts_exclude_what_is_timed_inside_them_and_sum_to_the_whole(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    with watch("walk"):
        now[0] += 1.0
        with watch("graph"):
            now[0] += 2.0
            with pytest.raises(ValueError, match="inside"), watch("tables"):
                raise ValueError("inside")
        now[0] += 4.0
    with watch("walk"):
        now[0] += 8.0
    assert watch.read() == {"walk": 13.0, "graph": 2.0}
    with watch("graph"):  # what failed left nothing open
        now[0] += 1.0
    assert watch.read() == {"graph": 1.0}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is compared with Linux's own figure")
def test_the_peak_is_the_kernels_and_keeps_what_was_freed():
    before = peak_memory()["host"]
    big = torch.ones(int(before) + 64, 2**18)  # so many MB
    del big
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_memory()["host"] == pytest.approx(int(status["VmHWM"].split()[0]) / 2**10, rel=0.01)
    assert peak_memory()["host"] >= before + 64


def test_where_the_host_does_not_say_there_is_no_peak_of_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: it cannot be imported
    assert "host" not in peak_memory()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_nested_parts_are_exclusive_too():
    watch = Stopwatch(cuda=True)
    x = torch.randn(2000, 2000, device="cuda")
    with watch("outer"), watch("inner"):
        for _ in range(50):
            x = (x @ x).clamp(-1, 1)
    found = watch.read()
    assert abs(found["outer"]) < 0.2 * found["inner"]
    assert peak_memory()["device"] >= 2000 * 2000 * 4 / 2**20
