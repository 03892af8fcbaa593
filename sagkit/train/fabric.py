"""Lightning Fabric, imported without torchmetrics.

Fabric reads torchmetrics' version by importing it, which brings matplotlib, scipy.signal and all of torchvision and
takes as long as torch itself; only its detector of loss spikes, unused here, needs what it then knows. [K]
"""

import sys

_absent = sys.modules.setdefault("torchmetrics", None) is None  # type: ignore[arg-type]
try:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import TorchElasticEnvironment
finally:
    if _absent:
        del sys.modules["torchmetrics"]  # so that others may import it

__all__ = ["Fabric", "TorchElasticEnvironment"]
