"""Encoders that map images, vectors or series to features h, and the projector that maps h to z.

    x  ->  (x - mean) / std  ->  backbone  ->  h (B, F)  ->  projector  ->  z (B, D)

    images   x in [0, 1] (B, 3, H, W), mean and std of each colour channel
    vectors  x (B, F0), of each column;   series  x (B, C, T), of each channel

Sources: [R] CIFAR stem (3 x 3 convolution of stride 1, no max-pool) as in figures/METHOD.md section 6; the projector is
the VICReg authors' (linear, BatchNorm, ReLU, ..., linear without bias), and so are names and shapes of the weights that
`train.weights` reads (facebookresearch/vicreg's checkpoints, torchvision's ResNets). [K] the narrow
ResNet: torchvision's basic block at a chosen width and depth, for machines without a GPU; normalisation lives inside
the encoder, so that an exported encoder takes plain images and cannot be fed with another data set's statistics. The
vision transformers are timm's in lightly's masked frame, with fixed sine-cosine position embeddings [K: DINO's authors
learn them; a budget of a few epochs does not] that are made for 32 pixels and interpolated for any other size.

Differs from the source: the VICReg authors train with SyncBatchNorm and start each residual block at zero
(`zero_init_residual`); here BatchNorm is each process's own unless synchronised, and blocks start as torchvision's do.
"""

from __future__ import annotations

import difflib
import re
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, and the VICReg authors'
NARROW = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet20": (3, 3, 3)}
FULL = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d")
DENSE = re.compile(r"(mlp|conv1d)-w([1-9]\d*)-l([1-9]\d*)")
VIT = re.compile(r"vit-d([1-9]\d*)-l([1-9]\d*)-p([1-9]\d*)(-avg)?")
VIT_PIXELS = 32  # CIFAR's; position embeddings are made for images of this size
VIT_HEAD = 64  # width of an attention head, as in every size of Dosovitskiy et al. 2021
SAFE_CHANNELS = 8  # see SubsampledConv2d


class Encoder(nn.Module):
    """A backbone with its channel statistics: images in [0, 1] to pooled features.

    Args:
        backbone: module from (B, 3, H, W) to (B, F).
        feature_width: F.
        mean: per channel, of the training images in [0, 1].
        std: per channel, likewise.
        axes: of the input behind its channels: 2 for images, 1 for series, 0 for vectors.
        size: height and width that images are scaled to beforehand; None takes them as they are.
        architecture: name that `make_encoder` builds the same network from.
    """

    backbone: Any  # a module; of a vision transformer it has `encode`, too
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_width: int,
        mean,
        std,
        axes: int = 2,
        size: tuple[int, int] | None = None,
        architecture: str = "",
    ):
        super().__init__()
        self.backbone = backbone
        self.feature_width, self.size, self.architecture = feature_width, size, architecture
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(1, -1, *[1] * axes))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).view(1, -1, *[1] * axes))

    def forward(self, x: Float[Tensor, "B C ..."]) -> Float[Tensor, "B F"]:
        if self.size and x.shape[2:] != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True)
        return self.backbone((x - self.mean) / self.std)

    def tokens(self, x: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B n"] | None = None) -> Float[Tensor, "B T F"]:
        """Every token before pooling, of a vision transformer; with `keep`, those alone enter the network."""
        return self.backbone.encode((x - self.mean) / self.std, idx_keep=keep)


def make_encoder(name: str, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), pretrained: bool = False) -> Encoder:
    """Build an encoder by name, with random weights drawn from torch's global generator.

    Args:
        name: "resnet18", "resnet50" and others of FULL (torchvision's, CIFAR stem); any with "-imagenet" (its own stem,
            for images from 64 pixels and published weights); "<resnet10|resnet18|resnet20>-w<width>" (narrow, for
            CPUs); "vit-d<width>-l<blocks>-p<patch>" (class token) and the same with "-avg" (no class token, mean of
            the patches); "timm:<any timm backbone>". The last two need the optional extra `timm`.
            "mlp-w<width>-l<layers>" for vectors, "conv1d-w<width>-l<layers>" for series; see `dense_backbone`.
        mean: of the training images per channel, in [0, 1]; of vectors per column, of series per channel.
        std: likewise.
        pretrained: load published weights, with the statistics and the size of image that they were trained with; timm
            backbones only, and needs a network or a filled cache.

    Raises:
        ValueError: for an unknown name (the nearest ones are offered), or `pretrained` where there is none.
    """
    if pretrained and not name.startswith("timm:"):
        raise ValueError(f"no published weights for {name!r}: use a timm:... backbone or pretrained=False")
    if name.startswith(("mlp-", "conv1d-")):
        backbone, width, axes = dense_backbone(name, len(mean))
        return Encoder(backbone, width, mean, std, axes, architecture=name)
    size = None
    if name.startswith("timm:"):
        backbone, width = _timm_backbone(name.removeprefix("timm:"), pretrained)
        trained: Any = backbone.pretrained_cfg
        if pretrained:
            mean, std = trained["mean"], trained["std"]
        if pretrained or trained.get("fixed_input_size"):  # some transformers refuse any other
            size = tuple(trained["input_size"][1:])
    elif name.removesuffix("-imagenet") in FULL:
        backbone, width = _torchvision_backbone(name.removesuffix("-imagenet"), cifar_stem=name in FULL)
    elif found := VIT.fullmatch(name):
        width, blocks, patch = (int(number) for number in found.groups()[:3])
        backbone = _vision_transformer(name, width, blocks, patch, mean_pooled=bool(found[4]))
    else:
        kind, _, digits = name.partition("-w")
        if kind not in NARROW or not digits.isdigit() or int(digits) < 1:
            known = [*FULL, "resnet50-imagenet", *(f"{kind}-w16" for kind in NARROW), "vit-d192-l9-p4"]
            known += ["vit-d192-l6-p4-avg", "timm:resnet18", "timm:vit_tiny_patch16_224"]
            near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0) or known)
            raise ValueError(f"unknown encoder {name!r}: did you mean {near}?")
        backbone = NarrowResNet(int(digits), NARROW[kind])
        width = backbone.feature_width
    return Encoder(backbone, width, mean, std, size=size, architecture=name)


def make_projector(feature_width: int, hidden: int, out: int, layers: int = 3) -> nn.Sequential:
    """The authors' projector: `layers` linear maps, BatchNorm and ReLU between them, no bias in the last.

    Args:
        feature_width: F.
        hidden: width of the inner layers.
        out: D.
        layers: number of linear maps, at least 1.

    Raises:
        ValueError: for fewer than one layer.
    """
    if layers < 1:
        raise ValueError(f"a projector needs at least 1 layer, got {layers}")
    widths = [feature_width, *([hidden] * (layers - 1))]
    inner = [
        module
        for before, after in pairwise(widths)
        for module in (nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(*inner, nn.Linear(widths[-1], out, bias=False))


@torch.no_grad()
def extract_features(encoder: nn.Module, images: Tensor, batch_size: int = 500) -> Float[Tensor, "N F"]:
    """Features of clean images in evaluation mode, float32, on the CPU; each module's own mode is restored.

    Args:
        encoder: module from (B, 3, H, W) floats in [0, 1] to (B, F), or from vectors or series.
        images: uint8 (N, 3, H, W), on any device; or float vectors (N, F) or series (N, C, T), taken as they are.
        batch_size: images at a time; changes memory, not results beyond float rounding.

    Raises:
        ValueError: for images of another dtype.
    """
    if images.dtype != torch.uint8 and images.ndim not in (2, 3):
        raise ValueError(f"images must be uint8 (0 to 255), got {images.dtype}: convert with (x * 255).byte()")
    device = next(encoder.parameters(), images).device  # a module without parameters runs where the images are
    training = [module for module in encoder.modules() if module.training]  # not all, where a part is frozen
    encoder.eval()
    scale = 255 if images.dtype == torch.uint8 else 1
    views = (chunk.to(device).float() / scale for chunk in images.split(batch_size))
    try:
        return torch.cat([encoder(channels_last(x)).float().cpu() for x in views])
    finally:
        for module in training:
            module.training = True


def channels_last(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in the memory layout that convolutions are fastest in; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def untrained_like(encoder: Encoder) -> Encoder:
    """A network of the same architecture, statistics and size with weights drawn from torch's global generator."""
    drawn = make_encoder(encoder.architecture, encoder.mean.flatten(), encoder.std.flatten())
    drawn.size = encoder.size
    return drawn


class NarrowResNet(nn.Sequential):
    """A CIFAR-stem ResNet of basic blocks: `width` channels in its first stage, doubled at each further one.

    Args:
        width: channels of the stem and first stage; F is width * 2 ** (stages - 1).
        blocks: basic blocks per stage; each stage after the first halves the resolution.
    """

    def __init__(self, width: int, blocks: tuple[int, ...]):
        stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        stages, channels = [], width
        for i, depth in enumerate(blocks):
            for j in range(depth):
                out, stride = width * 2**i, 2 if i and j == 0 else 1
                stages.append(_basic_block(channels, out, stride))
                channels = out
        super().__init__(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_width = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torchvision's initialisation of its ResNets
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SubsampledConv2d(nn.Conv2d):
    """A strided 1 x 1 convolution, computed as what it is: every stride-th pixel, then a plain 1 x 1 convolution.

    oneDNN 3.12 (torch 2.14) writes past its buffer in the backward pass of the strided kernel when there are fewer than
    SAFE_CHANNELS input channels in channels_last order on a processor without AVX-512, and takes the process with it.
    """

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        rows, columns = self.stride
        return nn.functional.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)


def _basic_block(channels: int, out: int, stride: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or channels != out:
        conv = nn.Conv2d if channels >= SAFE_CHANNELS else SubsampledConv2d
        shortcut = nn.Sequential(conv(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return BasicBlock(channels, out, stride, shortcut)


def dense_backbone(name: str, inputs: int) -> tuple[nn.Module, int, int]:
    """A backbone of vectors or series by name, its feature width, and the axes its input has behind columns or
    channels (0 or 1).

        mlp-w<width>-l<layers>      (B, F0)   -> [linear, BatchNorm, ReLU] x layers -> (B, width)
        conv1d-w<width>-l<layers>   (B, C, T) -> [convolution of 5, stride 2, BatchNorm, ReLU] x layers, mean over time

    Each further convolution has twice the channels, so that F = width * 2 ** (layers - 1) [K].

    Args:
        name: as above.
        inputs: columns of a vector, or channels of a series.

    Raises:
        ValueError: for another name.
    """
    found = DENSE.fullmatch(name)
    if found is None:
        raise ValueError(f"no encoder of vectors {name!r}: use mlp-w128-l2 for (N, F), conv1d-w32-l3 for (N, C, T)")
    width, layers = int(found[2]), int(found[3])
    steps: list[tuple[nn.Module, ...]]
    if found[1] == "mlp":
        steps = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise([inputs, *[width] * layers])]
        return nn.Sequential(*(module for step in steps for module in step)), width, 0
    widths = [inputs, *(width * 2**i for i in range(layers))]
    steps = [
        (nn.Conv1d(a, b, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths)
    ]
    pooled = nn.AdaptiveAvgPool1d(1), nn.Flatten()
    return nn.Sequential(*(module for step in steps for module in step), *pooled), widths[-1], 1


def _torchvision_backbone(name: str, cifar_stem: bool) -> tuple[nn.Module, int]:
    from torchvision.models import resnet  # here and below, because importing torchvision takes seconds

    backbone = getattr(resnet, name)(weights=None)
    width, backbone.fc = backbone.fc.in_features, nn.Identity()
    if cifar_stem:
        backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
    return backbone, width


def _vision_transformer(name: str, width: int, blocks: int, patch: int, mean_pooled: bool) -> nn.Module:
    heads = max(1, width // VIT_HEAD)
    if width % 4 or width % heads or VIT_PIXELS % patch:
        raise ValueError(
            f"{name} cannot be built: the width must be a multiple of 4 and of its number of heads (here {heads}), "
            f"and the patch must divide {VIT_PIXELS}"
        )
    try:  # here, because importing the two takes seconds
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        raise ValueError(f"encoder {name!r} needs timm and lightly: pip install timm lightly") from None
    vit = VisionTransformer(
        img_size=VIT_PIXELS,
        patch_size=patch,
        embed_dim=width,
        depth=blocks,
        num_heads=heads,
        num_classes=0,
        class_token=not mean_pooled,
        global_pool="avg" if mean_pooled else "token",
        fc_norm=False,  # timm would move the last norm behind the pooling, where `tokens` does not pass
        dynamic_img_size=True,
    )
    backbone = MaskedVisionTransformerTIMM(vit)
    backbone.mask_token = None  # nothing is masked by a token here, and a parameter without gradient stops DDP
    return backbone


def _timm_backbone(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError:
        raise ValueError(f"encoder 'timm:{name}' needs the package timm: pip install 'sagkit[train]'") from None
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)) or "timm.list_models()"
        raise ValueError(f"timm has no backbone {name!r}: did you mean {near}?")
    try:
        backbone: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # hub clients raise whatever a missing network drives them to
        if not pretrained:
            raise
        raise ValueError(f"no weights for 'timm:{name}' ({error}): they need a network, or pretrained=False") from None
    # Some backbones have a further layer between pooling and head; its width is that of the features.
    return backbone, getattr(backbone, "head_hidden_size", None) or backbone.num_features
