"""Two hosts, each a network namespace with one process of torchrun: one is killed, both resume."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny

from sagkit.data.load import load_images
from sagkit.train import trainer
from sagkit.train.build import make_fabric, together
from sagkit.train.record import load_state

# Two namespaces joined by a cable; the command runs in both, told its rank.
HOSTS = """
mkdir -p /run/netns && mount -t tmpfs none /run/netns
ip netns add host0 && ip netns add host1
ip -n host0 link add veth0 type veth peer name veth0 netns host1
for i in 0 1; do
  ip -n host$i addr add 10.77.0.1$i/24 dev veth0
  ip -n host$i link set veth0 up && ip -n host$i link set lo up || exit 9
done
for i in 0 1; do
  ip netns exec host$i "$@" --node-rank $i -m sagkit.train $RUN > $OUT/host$i.log 2>&1 &
  eval "of$i=$!"
done
wait $of0; a=$?; wait $of1; echo "$a $?"
"""


def namespaces() -> bool:
    tools = all(map(shutil.which, ("unshare", "ip", "mount")))
    return tools and subprocess.run(["unshare", "-Urnm", "true"], capture_output=True, check=False).returncode == 0


def hosts(folder: Path, epochs: int) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--master-addr", "10.77.0.10", "--master-port", "29517"]
    run = "--method sag-vicreg --scope dataset --walk-start 0 --sync-batchnorm --accelerator cpu --nodes 2 --threads 1"
    run += f" --epochs {epochs} --batch-size 1024 --encoder resnet10-w4 --view-size 16 --no-probe --resamplings 0"
    run += f" --readout-every 0 --precision 32-true --results {folder}/results --runs {folder}/runs"
    env = {**os.environ, "RUN": run, "OUT": str(folder), "GLOO_SOCKET_IFNAME": "veth0", "TORCHELASTIC_ERROR_FILE": ""}
    return subprocess.Popen(
        ["unshare", "-Urnm", "bash", "-c", HOSTS, "hosts", *torchrun], env=env, stdout=subprocess.PIPE, text=True
    )


def rank_of(process: Path) -> str | None:
    try:
        told = (process / "environ").read_bytes()
    except OSError:
        return None
    return dict(word.split("=", 1) for word in told.decode(errors="replace").split("\0") if "=" in word).get("RANK")


def worker(folder: Path, rank: str) -> int:
    """The training process of a rank, by what torchrun tells it and the folder it writes to."""
    for process in Path("/proc").glob("[0-9]*"):
        if rank_of(process) == rank and str(folder) in (process / "cmdline").read_bytes().decode(errors="replace"):
            return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow  # two hosts start twice, and each imports torch two times
@pytest.mark.skipif(not namespaces(), reason="this machine allows no network namespaces")
def test_two_hosts_train_one_is_killed_the_other_says_so_and_the_same_command_resumes_both(tmp_path):
    first = hosts(tmp_path, epochs=3)
    kept = tmp_path / "runs/tour/shapes/sag-vicreg-seed0.safetensors"
    until = time.monotonic() + 500
    while not kept.exists():
        assert first.poll() is None, (tmp_path / "host0.log").read_text()[-2000:]
        assert time.monotonic() < until
        time.sleep(0.2)
    os.kill(worker(tmp_path, "1"), signal.SIGKILL)
    codes = first.communicate(timeout=300)[0].split()
    assert "0" not in codes
    told = (tmp_path / "host0.log").read_text()
    line = re.search(r"^.*sagkit.train: another process of this run has ended.*$", told, re.MULTILINE)
    assert line, told[-3000:]
    assert line[0].endswith("the same command, on every machine, goes on from the last epoch")
    before = load_state(kept)["log"]
    assert 1 <= len(before) < 3

    again = hosts(tmp_path, epochs=3)
    assert again.communicate(timeout=500)[0].split() == ["0", "0"], (tmp_path / "host0.log").read_text()[-3000:]
    record = json.loads((tmp_path / "results/tour/shapes/sag-vicreg-seed0.json").read_text())
    assert [entry["epoch"] for entry in record["log"]] == [1, 2, 3]
    for then, now in zip(before, record["log"], strict=False):  # they went on from it, and did not begin anew
        assert now == {name: round(value, 5) for name, value in then.items()}
    assert record["config"]["nodes"] == 2
    assert not kept.exists()


def test_another_number_of_processes_than_torchrun_started_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    with pytest.raises(ValueError, match=r"started 4 processes, and devices 1 times nodes 2 is 2: say --devices"):
        make_fabric(tiny(tmp_path, nodes=2))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[pair.cc:545] Read error [10.0.0.1]:39628: Connection reset by peer."),
        RuntimeError("[unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete"),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited"),
        torch.distributed.DistNetworkError("The client socket has failed to connect"),
    ],
)
def test_what_a_lost_process_raises_becomes_one_line_with_a_remedy(tmp_path, error):
    with (
        pytest.raises(ConnectionError, match=r"^another process .* goes on from the last epoch$"),
        together(tiny(tmp_path, nodes=2)),
    ):
        raise error


def test_other_errors_and_those_of_one_process_are_raised_as_they_are(tmp_path):
    for nodes, error in ((1, RuntimeError("Connection reset by peer")), (2, RuntimeError("mat1 and mat2 shapes"))):
        with pytest.raises(RuntimeError) as raised, together(tiny(tmp_path, nodes=nodes)):
            raise error
        assert raised.value is error


@pytest.mark.slow  # loads a whole image set
def test_processes_that_stand_at_different_steps_are_refused(tmp_path, monkeypatch):
    config = tiny(tmp_path)
    made = trainer.Trainer(config, make_fabric(config), load_images("shapes"))
    trainer.refuse_apart(made)
    monkeypatch.setattr(trainer, "gather", lambda x: torch.cat([x, x + torch.tensor([3, 0])]))
    told = "stand apart, 0 steps after epoch 0, 0 steps after epoch 3: --runs .*/runs has to be one folder that all"
    with pytest.raises(ValueError, match=told):
        trainer.refuse_apart(made)
