"""Train one method under one configuration, exactly resumable, and leave a record of it.

config     everything a run can be told        methods    TwoViews(encoder, projector, loss, pairing), the objectives
build      what a configuration asks for       controls   pairings that walks have to be compared with
trainer    fit, one step, resume and branch    distill    DINO and I-JEPA
record     what a run leaves on disk           doctor     what is wrong with a run or an embedding
timing     seconds and memory by part of a step    fabric     Lightning Fabric, imported without torchmetrics
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
