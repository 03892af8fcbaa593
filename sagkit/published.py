"""Published weights in an encoder of ours: the VICReg authors' checkpoints, or any of torchvision's names.

    load_vicreg_weights(make_encoder("resnet50-imagenet"), torch.load("resnet50.pth"))

Source: [R] names and shapes as in facebookresearch/vicreg's torch.hub checkpoints and torchvision's ResNets.
"""

from __future__ import annotations

import torch

from sagkit.model import IMAGENET_MEAN, IMAGENET_STD, Encoder


def load_vicreg_weights(encoder: Encoder, state: dict) -> None:
    """Load the VICReg authors' published weights, or any of torchvision's names, into an encoder of ours.

    Args:
        encoder: "resnet50-imagenet" for the authors' resnet50; its channel statistics become ImageNet's, which the
            weights expect, where the layers fit.
        state: what torch.load gives: names as torchvision's (conv1.weight, layer1.0.conv1.weight, ...), or a whole
            checkpoint, {"model": {"module.backbone.conv1.weight": ..., "module.projector.0.weight": ...}, ...}.
            Projector and classifier (fc) are left out.

    Raises:
        ValueError: for names or shapes that do not fit; the encoder is then unchanged.
    """
    found = {name.removeprefix("module."): value for name, value in state.get("model", state).items()}
    found = {name.removeprefix("backbone."): value for name, value in found.items()}
    found = {name: value for name, value in found.items() if not name.startswith(("projector.", "fc."))}
    wanted = encoder.backbone.state_dict()
    absent, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if absent or extra:
        raise ValueError(
            f"the weights lack {len(absent)} of the encoder's {len(wanted)} entries ({', '.join(absent[:2])}) and have "
            f"{len(extra)} others ({', '.join(extra[:2])}): use make_encoder of their architecture"
        )
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            shapes = f"{name} is {tuple(found[name].shape)} in the weights and {tuple(value.shape)} in the encoder"
            stem = (
                "its stem is CIFAR's: use make_encoder('resnet50-imagenet')"
                if name == "conv1.weight"
                else "use its architecture"
            )
            raise ValueError(f"{shapes}: {stem}")
    encoder.backbone.load_state_dict(found)
    encoder.mean.copy_(torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
    encoder.std.copy_(torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
