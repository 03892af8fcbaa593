"""Batch normalisation by the batch of all processes, as VICReg's authors train.

    method = synchronised(method)          mean and variance over the rows of every process, with their gradient

Source: [R] SyncBatchNorm; torch's own takes CUDA alone, and elsewhere DistributedDataParallel refuses it, too. With one
process it is BatchNorm as ever. [K]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sagkit.pairing import gather, processes

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation by the mean and variance of all processes' rows, on any device."""

    def _check_input_dim(self, input):
        if input.ndim < 2:
            raise ValueError(f"normalised are features (B, C, ...), got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float()  # (B, C, ...), as torch's own, which sums in float32
        axes, broad = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        count = processes() * x.numel() // x.shape[1]
        mean = gather(x.sum(axes)[None]).sum(dim=0) / count
        x = x - mean.view(broad)
        variance = gather(x.square().sum(axes)[None]).sum(dim=0) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        x = x * torch.rsqrt(variance + self.eps).view(broad)
        if self.affine:
            x = x * self.weight.view(broad) + self.bias.view(broad)
        return x.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics, as torch's own keeps them."""
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)


def synchronised(module: nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """The module, each BatchNorm in it replaced by one of the global batch; parameters and statistics stay.

    Args:
        module: changed in place, but for a BatchNorm that stands alone on CUDA.
        device: where it will train. On CUDA torch's own SyncBatchNorm takes the place, whose kernels are fused and
            which refuses other devices; there ours does.

    Raises:
        ValueError: for a kind of BatchNorm that does more than normalise, as timm's with its activation.
    """
    if odd := {type(m).__name__ for m in module.modules() if isinstance(m, _BatchNorm) and type(m) not in PLAIN}:
        raise ValueError(f"{', '.join(sorted(odd))} cannot be synchronised: leave that off, or change encoder")
    if torch.device(device).type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = SyncBatchNorm  # which has no state of its own
    return module
