"""Train one method under one configuration, exactly resumable, and leave a record of it.

`config` is everything a run can be told, `methods` the objectives (`distill`: DINO and I-JEPA) and `controls` the
pairings without walks, `trainer` the loop, `record` what is kept of a run, `doctor` what is wrong with one.
"""

from importlib import import_module

_HOME = {  # loaded when first asked for: a command that needs one room does not wait for the others
    "Config": "sagkit.train.config",
    "configure": "sagkit.train.config",
    "fit": "sagkit.train.trainer",
    "load_encoder": "sagkit.train.record",
    "read_records": "sagkit.train.record",
    "stored_run": "sagkit.train.trainer",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
