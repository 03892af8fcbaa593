"""One batch over several processes of torch.distributed: rows of all of them, and normalisation by all of their rows.

    za, zb = gather(za), gather(zb)          (B, D) of each process  ->  (processes B, D) on every one
    model = synchronised(model)              BatchNorm by the statistics of the global batch

The gradient of a gathered row is the sum over processes of what their losses say of it. So under
DistributedDataParallel, which takes the mean over processes, a loss of gathered rows, the same on each, gives every
parameter the gradient of one process with the whole batch. (Kept to the own process, it is smaller by their number.)

Sources: [R] gather with gradient and SyncBatchNorm as VICReg's authors use them. With one process, or where
torch.distributed was not started, nothing is done. [K]
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gather(x: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "world_B ..."]:
    """Rows of all processes in order of rank, with gradient; every process has to call it, with as many rows.

    Raises:
        ValueError: for shapes that differ between processes. On a CPU only: to read them on another device would make
            every step wait for it.
    """
    if processes() == 1:
        return x
    if x.device.type == "cpu":
        _refuse_unequal(x)
    return _Gather.apply(x)


def _refuse_unequal(x: Tensor) -> None:
    shapes = torch.empty(processes(), 4, dtype=torch.int64)
    own = torch.tensor([x.ndim, len(x), x.numel(), x.element_size()])
    dist.all_gather(list(shapes.unbind()), own)
    if (shapes != own).any():
        rows = ", ".join(map(str, shapes[:, 1].tolist()))
        raise ValueError(
            f"processes gather as many rows of one shape and type each, got {rows} rows, here {tuple(x.shape)} of "
            f"{x.dtype}: drop the last odd batch (drop_last=True)"
        )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # sums what every process's loss says of every row
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]


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
