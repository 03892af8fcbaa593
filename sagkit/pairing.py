"""Graph and walk as one drop-in module: features of a batch in, further positive pairs out.

    pairing = WalkPairing(k=10, length=2)
    loss = 25 * (s + alpha * walk_term(za, zb, pairing(ha, hb))) + variance + covariance

Source: [S] an overlay on an existing VICReg loop; [K] the two views' features are averaged and detached, and
randomness is a pure function of (seed, step), so that a resumed run draws the same walks with no generator to store.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sagkit.graph import similarity_graph
from sagkit.walk import Pairs, no_pairs, sample_pairs


class WalkPairing(nn.Module):
    """Chooses further positive pairs inside a batch by weighted random walks on its similarity graph.

    Args:
        k: neighbours kept per image, 1 to B - 1.
        length: steps per walk, at least 1.
        walks: walks per image, at least 1.
        temperature: of the cosine kernel's softmax, greater than 0.
        kernel: "cosine", "gaussian" or "shared"; see `graph.similarity_graph`.
        mutual: keep only edges that both ends agree on.
        every: build graph and pairs at every m-th call only; the calls between return no pairs.
        seed: of the walks; every process of a distributed run needs the same.

    The module has no parameters. Its state dict holds the number of calls so far and belongs in the checkpoint.
    """

    def __init__(
        self,
        k: int = 10,
        length: int = 2,
        walks: int = 1,
        temperature: float = 0.1,
        kernel: str = "cosine",
        mutual: bool = False,
        every: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1 (each step), got {every}")
        self.k, self.length, self.walks = k, length, walks
        self.temperature, self.kernel, self.mutual = temperature, kernel, mutual
        self.every, self.seed = every, seed
        self.step = 0  # calls so far

    @torch.no_grad()
    def forward(self, ha: Float[Tensor, "B F"], hb: Float[Tensor, "B F"]) -> Pairs:
        """Pairs among the B images from the two views' features; no gradient flows into the choice."""
        step, self.step = self.step, self.step + 1
        if step % self.every:
            return no_pairs(ha.device)
        mean = (ha.float() + hb.float()) / 2  # a sum in half precision may overflow
        graph = similarity_graph(mean, self.k, self.kernel, self.temperature, self.mutual)
        generator = torch.Generator(ha.device).manual_seed(self.seed * 1_000_003 + step)
        return sample_pairs(graph, self.length, self.walks, generator)

    # The counter travels in the state dict as a plain number: a buffer would follow the module to the GPU, and
    # reading it there would make every step wait for the device.
    def get_extra_state(self) -> int:
        return self.step

    def set_extra_state(self, state: int) -> None:
        self.step = state

    def extra_repr(self) -> str:
        return f"k={self.k}, length={self.length}, walks={self.walks}, kernel={self.kernel!r}, mutual={self.mutual}"
