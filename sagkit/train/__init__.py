"""Train one method under one configuration, exactly resumable, and leave a record of it.

`config` is everything a run can be told, `methods` the objectives (`distill`: DINO and I-JEPA) and `controls` the
pairings without walks, `trainer` the loop, `record` what is kept of a run, `doctor` what is wrong with one.
"""

from sagkit import lazily

_HOME = {  # loaded when first asked for: a command that needs one room does not wait for the others
    "Config": "sagkit.train.config",
    "configure": "sagkit.train.config",
    "fit": "sagkit.train.trainer",
    "load_encoder": "sagkit.train.record",
    "read_records": "sagkit.train.record",
    "stored_run": "sagkit.train.trainer",
}
__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME)
