"""How a run goes on: from its own checkpoint after an interruption, or from another run's that was the same so far.

    VICReg  o---o---o---o---o---o---o      --keep-at 3
    SAG             '---o---o---o---o      --trunk runs/laptop/cifar100/vicreg-seed0.epoch3.safetensors

Before its ramp begins, a walking run takes the very steps of VICReg. Runs that differ in their pairing alone may
therefore share those epochs: a branch ends with the same weights as the run trained whole, and the trunk's cost counts
as its own. Under scope queue it may not, because the queue fills from the first step. [K]
"""

from __future__ import annotations

from sagkit.checkpoint import load_state
from sagkit.config import Config
from sagkit.trainer import Clock, Trainer

# Fields that may differ between a checkpoint and the run that continues it: they do not change what is computed.
FREE_FIELDS = {"threads", "results", "runs", "data_root", "readout_every", "snapshots", "probe"}
FREE_FIELDS |= {"accelerator", "resamplings", "keep_at", "trunk"}
# Fields that change nothing before the ramp begins, and so may differ between a trunk and its branches.
LATER_FIELDS = {"method", "variant", "alpha", "keep", "walk_start", "walk_warmup", "pairs", "matched"}
LATER_FIELDS |= {"k", "length", "walks", "temperature", "kernel", "mutual", "restart", "unique", "confident"}
LATER_FIELDS |= {"every", "scope", "queue_batches", "graph_epochs"}
SHARED = ("vicreg", "sag-vicreg")  # methods that are one before the ramp


def resume(trainer: Trainer) -> bool:
    """Continue from the run's own checkpoint, if there is one; says whether.

    Raises:
        ValueError: for a checkpoint of another configuration or of other images.
    """
    if not trainer.checkpoint.exists():
        return False
    state = load_state(trainer.checkpoint)
    if differing := _differing(trainer, state, FREE_FIELDS):
        raise ValueError(f"{trainer.checkpoint} is of another configuration ({differing}): delete it or set variant")
    _same_images(trainer, state, trainer.checkpoint)
    trainer.method.load_state_dict(state["method"])
    _take(trainer, state)
    trainer.origin, trainer.trunk = state["origin"], state.get("trunk")
    return True


def branch(trainer: Trainer, path: str) -> None:
    """Start from the kept checkpoint of a run that was the same up to there.

    Args:
        trainer: at its first epoch.
        path: what `--keep-at` kept.

    Raises:
        ValueError: for a checkpoint later than the beginning of either run's ramp, or of a run that differs in more
            than its pairing.
        OSError: where there is none.
    """
    state = load_state(path)
    if differing := _differing(trainer, state, FREE_FIELDS | LATER_FIELDS):
        raise ValueError(f"{path} is no trunk of this run ({differing}): only the pairing may differ")
    for config in (Config().to_dict() | state["config"], trainer.config.to_dict()):
        method, scope = config["method"], config["scope"]
        if method not in SHARED or (method != "vicreg" and scope == "queue"):
            raise ValueError(
                f"a run of {method} under scope {scope} is VICReg at no time: "
                f"only {' and '.join(SHARED)} share a trunk, under the scopes batch and dataset"
            )
        start = config["epochs"] * (1 if method == "vicreg" else config["walk_start"])
        if state["epoch"] > start:
            raise ValueError(
                f"{path} is of epoch {state['epoch']}, and the pairing begins at epoch {start:g}: "
                "raise walk_start, or take an earlier trunk"
            )
    _same_images(trainer, state, path)
    own = trainer.method.state_dict()
    trainer.method.load_state_dict(own | {name: value for name, value in state["method"].items() if name in own})
    _take(trainer, state)
    trainer.trunk = {"path": str(path), "epoch": state["epoch"], "commit": state["origin"]["commit"]}


def _differing(trainer: Trainer, state: dict, free: set[str]) -> str:
    """The fields outside `free` in which a stored state and the run differ, in words."""
    now = trainer.config.to_dict()
    then = Config().to_dict() | state["config"]  # a field that is newer than the checkpoint had its default
    return ", ".join(f"{k} {then[k]} -> {now[k]}" for k in now if k not in free and then[k] != now[k])


def _same_images(trainer: Trainer, state: dict, path) -> None:
    if state["images"] != trainer.fingerprint:
        raise ValueError(
            f"{path} was trained on other images ({state['images']}, now {trainer.fingerprint}): "
            "delete it or set variant"
        )


def _take(trainer: Trainer, state: dict) -> None:
    """Optimiser, precision, position, log and clock of a stored state."""
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.fabric.strategy.precision.load_state_dict(state["precision"])
    trainer.epoch, trainer.log, trainer.clock = state["epoch"], state["log"], Clock(**state["clock"])
