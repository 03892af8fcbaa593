"""Graph and walk as drop-in modules: features in, further positive pairs out.

    pairing = WalkPairing(k=10, length=2)                                       nodes: the images of the batch
    loss = 25 * (s + alpha * walk_term(za, zb, pairing(ha, hb))) + variance + covariance

    pairing = WalkPairing(k=10, length=2, expected=True, null=1)                all ends of all walks, less their mean
    pairing(ha, hb, bank=queue features)                                        and those of the last batches: `Queue`
    pairing = WalkPairing(k=10, length=2, gather=gather)                        and those of all processes' batches
    partner = DatasetPairing(...).partners(index, alpha)                        nodes: all training images

Source: [S] an overlay on an existing VICReg loop, with the graph inside each batch; [K] the two views' features are
averaged and detached; randomness is a pure function of (seed, step), so that a resumed run draws the same walks with no
generator to store; the expectation over walks, its null model and the two wider scopes, `Queue` and `DatasetPairing`,
are this kit's extensions. `Pairing` says what a training loop may ask of any of them.

The gradient of a row that `gather` gives is the sum over processes of what their losses say of it. So under
DistributedDataParallel, which takes the mean over processes, a loss of gathered rows, the same on each, gives every
parameter the gradient of one process with the whole batch. (Kept to the own process, it is smaller by their number.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from io import BytesIO

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from sagkit import require
from sagkit.graph import CHUNK, Graph, check_kernel, nearest_neighbors, require_tensors, similarity_graph
from sagkit.walk import (
    Ends,
    Pairs,
    Tables,
    ends_of,
    expected_ends,
    most_confident,
    no_pairs,
    sample_pairs,
    threshold,
    walk_tables,
    weighted_walk,
)


def check_settings(
    k: int, length: int, walks: int, temperature: float, kernel: str, restart: float, confident: float
) -> None:
    """Refuse settings that no features could meet, when a module is made and not steps later.

    Raises:
        ValueError: naming the value and its range.
    """
    for name, value in (("k", k), ("length", length), ("walks", walks)):
        require(name, value, "[1, inf)", f"{name} counts neighbours, steps or walks", whole=True)
    check_kernel(kernel, temperature)
    require("restart", restart, "[0, 1)", "it is a probability per step, and 0 walks on")
    require("confident", confident, "(0, 1]", "1 keeps every pair")


def packed(parts: list) -> UInt8[Tensor, " bytes"]:
    """Tensors, and lists of them, as one tensor of bytes: safetensors stores nothing but tensors of a state dict."""
    buffer = BytesIO()
    torch.save(_copied(parts), buffer)  # of a view, all that it is a view of would be stored
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def unpacked(state: Tensor | list) -> list:
    """What `packed` packed, on the CPU; lists as they are, of state dicts from before there was a `packed`.

    Raises:
        ValueError: for bytes that are damaged.
    """
    if isinstance(state, list):
        return state
    try:
        return torch.load(BytesIO(state.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever they drive torch's reader to
        told = " ".join(str(error).split())[:100]
        raise ValueError(f"the state of a pairing is damaged ({told}): take another checkpoint") from None


def _copied(part):
    return [_copied(one) for one in part] if isinstance(part, list) else part if part is None else part.clone()


def untimed(part: str) -> nullcontext:
    """The stopwatch of a pairing that nobody times."""
    return nullcontext()


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


def shared_neighbors(
    unit: Float[Tensor, "N F"], k: int, chunk: int = CHUNK, gather: Callable[[Tensor], Tensor] = gather
) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """`nearest_neighbors` of rows that all processes have, to the last bit, each searching for a share of them.

    Shares are whole chunks, because sums round by chunks.
    """
    n = len(unit)
    share = -(-n // (chunk * processes())) * chunk
    first = min(rank() * share, n)
    own = nearest_neighbors(unit, k, chunk, range(first, min(first + share, n)))
    similarity, neighbors = (gather(F.pad(part, (0, 0, 0, share - len(part))))[:n] for part in own)
    return similarity, neighbors


class Pairing(nn.Module):
    """What a training loop asks of a pairing; each kind overrides what it does, and this one does nothing.

    A pairing may replace images before their second views are drawn (`partners`), or give pairs once both views are
    encoded (`forward`).
    """

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        """Called before every epoch in which the pairing has a say; `features()` encodes all images, clean: (N, F)."""

    def partners(
        self, index: Int[Tensor, " B"], alpha: float, generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        """For each image, by its row of the training set, the image its second view is drawn from: here itself."""
        return index

    def forward(
        self,
        ha: Float[Tensor, "B F"],
        hb: Float[Tensor, "B F"],
        index: Int[Tensor, " B"] | None = None,
        bank: Float[Tensor, "Q F"] | None = None,
        watch: Callable = untimed,
    ) -> Pairs | Ends | None:
        """Further positive pairs of the B images; None: the loss is that of their two views alone.

        Args:
            ha: features of view a.
            hb: features of view b.
            index: rows of the images in the training set, for a pairing that knows something about them.
            bank: features of further nodes; a positive of B + m is row m of the bank.
            watch: context manager by part that times "graph" apart from the rest.
        """
        return None


class WalkPairing(Pairing):
    """Chooses further positive pairs inside a batch by weighted random walks on its similarity graph.

    Args:
        k: neighbours kept per image, 1 to nodes - 1.
        length: steps per walk, at least 1.
        walks: walks per image, at least 1.
        temperature: of the cosine kernel's softmax, greater than 0.
        kernel: "cosine", "gaussian" or "shared"; see `graph.similarity_graph`.
        mutual: keep only edges that both ends agree on.
        sinkhorn: iterations towards doubly stochastic weights, at least 0; see `graph.similarity_graph`.
        every: build graph and pairs at every m-th call only; the calls between return no pairs.
        seed: of the walks; every process of a distributed run needs the same.
        restart: probability per step of jumping back to the anchor, in [0, 1).
        unique: a pair that an earlier walk of the same anchor has found has weight 0.
        confident: fraction of a batch's pairs, those of largest weight, that keep it; the rest weighs 0.
        expected: give all ends of all walks with their exact weights, in place of a sample: `Ends`, not `Pairs`.
        null: share of each anchor's weight that is spread evenly over all nodes and taken off, in [0, 1]; with 1, an
            anchor is pulled towards where its walks end no more than it is pushed from everybody. Gives `Ends`.
        weight: scale the weights of each anchor to this total, greater than 0 (anchors without pairs leave theirs to
            the others); None: as found. Gives `Ends`.
        gather: under several processes, what gives the rows of all of them, as `sagkit.gather`; nodes are then the
            images of the global batch, and pairs the same on every process, of rows of gathered projections. None:
            what is given is the whole batch.

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
        restart: float = 0.0,
        unique: bool = False,
        confident: float = 1.0,
        expected: bool = False,
        null: float = 0.0,
        weight: float | None = None,
        sinkhorn: int = 0,
        gather: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        check_settings(k, length, walks, temperature, kernel, restart, confident)
        require("every", every, "[1, inf)", "1 walks at each step", whole=True)
        require("seed", seed, "[0, inf)", "0 is the default", whole=True)
        require("null", null, "[0, 1]", "1 takes off all that an even share would weigh")
        if weight is not None:
            require("weight", weight, "(0, inf)", "None leaves what is found")
        if expected and (walks > 1 or unique):
            raise ValueError(
                f"expected has all walks at once, got walks = {walks}, unique = {unique}: leave 1 and False"
            )
        self.k, self.length, self.walks = k, length, walks
        self.temperature, self.kernel, self.mutual, self.sinkhorn = temperature, kernel, mutual, sinkhorn
        self.every, self.seed, self.restart = every, int(seed), restart  # numpy's integers make no seed
        self.unique, self.confident = unique, confident
        self.expected, self.null, self.weight = expected, null, weight
        self.gather = gather
        self.step = 0  # calls so far

    @torch.no_grad()
    def forward(
        self,
        ha: Float[Tensor, "B F"],
        hb: Float[Tensor, "B F"],
        index: Int[Tensor, " B"] | None = None,
        bank: Float[Tensor, "Q F"] | None = None,
        watch: Callable = untimed,
    ) -> Pairs | Ends:
        """Pairs of the B images from the two views' features; no gradient flows into the choice.

        Args:
            ha: features of view a.
            hb: features of view b.
            index: not needed, see `Pairing`.
            bank: features of further nodes that walks may pass through and end on but do not start from; a positive
                of B + m is row m of the bank. With `gather`, the same on every process, and B is of all of them.
            watch: context manager by part, to time "graph".
        """
        require_tensors(ha=ha, hb=hb, **({} if bank is None else {"bank": bank}))
        if bank is not None and bank.shape[1:] != ha.shape[1:]:
            raise ValueError(
                f"bank {tuple(bank.shape)} must be as wide as the features {tuple(ha.shape)}: of one encoder"
            )
        if ha.shape != hb.shape:
            raise ValueError(f"the two views differ in shape, {tuple(ha.shape)} and {tuple(hb.shape)}: pass both alike")
        step, self.step = self.step, self.step + 1
        if step % self.every:
            return no_pairs(ha.device)
        if self.gather is not None:
            ha, hb = self.gather(ha), self.gather(hb)
            index = None if index is None else self.gather(index)
        found = self.choose(ha, hb, index, bank, watch)
        if self.weight is None and not self.null:
            return found
        ends = found if isinstance(found, Ends) else ends_of(found, len(ha))
        if self.weight is not None:
            ends = ends.scaled(self.weight)
        return ends.against_null(self.null, len(ha) if bank is None else len(ha) + len(bank))

    def choose(
        self, ha: Tensor, hb: Tensor, index: Tensor | None, bank: Tensor | None, watch: Callable
    ) -> Pairs | Ends:
        """The pairs before they are scaled; the arguments are those of `forward`."""
        nodes = (ha.float() + hb.float()) / 2  # a sum in half precision may overflow
        if bank is not None:
            nodes = torch.cat([nodes, bank.float()])
        with watch("graph"):
            graph = self.graph_of(nodes)
        return self.walked(graph, len(ha))

    def walked(self, graph: Graph, anchors: int) -> Pairs | Ends:
        """Where walks end that start on so many first nodes of the graph."""
        if self.expected:
            return expected_ends(graph, self.length, anchors=anchors, restart=self.restart, confident=self.confident)
        device = graph.neighbors.device
        generator = torch.Generator(device).manual_seed((self.seed * 1_000_003 + self.step - 1) % 2**63)
        starts = torch.arange(anchors, device=device)
        pairs = sample_pairs(
            graph, self.length, self.walks, generator, anchors=starts, restart=self.restart, unique=self.unique
        )
        return pairs._replace(weight=most_confident(pairs.weight, self.confident))

    def graph_of(self, nodes: Float[Tensor, "N F"]) -> Graph:
        """The graph that is walked on."""
        return similarity_graph(nodes, self.k, self.kernel, self.temperature, self.mutual, sinkhorn=self.sinkhorn)

    # The counter travels in the state dict as extra state: a buffer would follow the module to the GPU, and reading it
    # there would make every step wait for the device. It is a tensor there, because safetensors stores nothing else.
    def get_extra_state(self) -> Int[Tensor, ""]:
        return torch.tensor(self.step)

    def set_extra_state(self, state: Int[Tensor, ""] | int) -> None:
        self.step = int(state)

    def extra_repr(self) -> str:
        told = f"k={self.k}, length={self.length}, walks={self.walks}, kernel={self.kernel!r}, mutual={self.mutual}"
        return told + f", expected={self.expected}, null={self.null}, weight={self.weight}"


class Queue(nn.Module):
    """The last M batches, first in first out: features h as nodes of the graph, projections of both views as targets.

    Args:
        batches: M, at least 1.

    The state dict holds the stored batches and belongs in the checkpoint. What is stored is detached and ages: its
    features are those of the encoder up to M steps ago.
    """

    def __init__(self, batches: int):
        super().__init__()
        require("batches", batches, "[1, inf)", "a queue holds a batch at least", whole=True)
        self.stored: deque[tuple[Tensor, ...]] = deque(maxlen=batches)

    def push(
        self,
        h: Float[Tensor, "B F"],
        za: Float[Tensor, "B D"],
        zb: Float[Tensor, "B D"],
        index: Int[Tensor, " B"] | None = None,
    ) -> None:
        """Store one batch, dropping the oldest of more than M; without their rows, images count as row -1."""
        if index is None:
            index = torch.full((len(h),), -1, device=h.device)
        batch = (h.detach(), za.detach(), zb.detach(), index)
        if len({len(part) for part in batch}) > 1:
            told = ", ".join(str(tuple(part.shape)) for part in batch)
            raise ValueError(f"a batch has one row an image in each of its parts: got {told}")
        self.stored = deque([*self.stored, batch], maxlen=self.stored.maxlen)  # whoever kept the last one still has it

    def read(self, device) -> tuple[Float[Tensor, "Q F"], Float[Tensor, "Q D"], Float[Tensor, "Q D"]] | None:
        """Features and the two views' projections of all stored images, oldest first; None while empty."""
        if not self.stored:
            return None
        h, za, zb = (torch.cat([batch[part].to(device) for batch in self.stored]) for part in range(3))
        return h, za, zb

    def rows(self, device) -> Int[Tensor, " Q"]:
        """Of the training set, of all stored images; none while empty."""
        return torch.cat([torch.empty(0, dtype=torch.int64, device=device), *(b[3].to(device) for b in self.stored)])

    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        return packed([list(batch) for batch in self.stored])

    def set_extra_state(self, state: Tensor | list) -> None:
        self.stored = deque(map(tuple, unpacked(state)), maxlen=self.stored.maxlen)


class DatasetPairing(Pairing):
    """Chooses the image that a second view is drawn from, by walks on one graph over a whole image set.

        partner of i = end of a walk from i  with probability alpha w(path),  else i

    No image is encoded twice and the loss stays as it is; the cost is one pass of clean images per `rebuild`. [K]

    Args:
        k: neighbours kept per image.
        length: steps per walk, at least 1.
        temperature: of the cosine kernel's softmax, greater than 0.
        kernel: "cosine", "gaussian" or "shared"; see `graph.similarity_graph`.
        mutual: keep only edges that both ends agree on.
        sinkhorn: iterations towards doubly stochastic weights, at least 0; see `graph.similarity_graph`.
        restart: probability per step of jumping back to the start, in [0, 1).
        confident: walks count only with at least the weight that this fraction of all images' walks reaches; the
            threshold is set anew with each graph, from one walk per image.
        every: the graph is built anew at every m-th epoch, and before the first in which it is needed.
        gather: under several processes, what gives the rows of all of them, as `sagkit.gather`: each then searches the
            neighbours of its share of the images. Every process has to rebuild, from the same features.

    The state dict holds the graph and belongs in the checkpoint.
    """

    def __init__(
        self,
        k: int = 10,
        length: int = 2,
        temperature: float = 0.1,
        kernel: str = "cosine",
        mutual: bool = False,
        restart: float = 0.0,
        confident: float = 1.0,
        every: int = 1,
        sinkhorn: int = 0,
        gather: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        check_settings(k, length, 1, temperature, kernel, restart, confident)
        require("every", every, "[1, inf)", "1 builds the graph anew at each epoch", whole=True)
        self.every, self.gather = every, gather
        self.k, self.length, self.restart, self.confident = k, length, restart, confident
        self.temperature, self.kernel, self.mutual, self.sinkhorn = temperature, kernel, mutual, sinkhorn
        self.graph: Graph | None = None
        self._tables: Tables | None = None
        self._least: float | Tensor = 0.0

    def begin_epoch(self, epoch: int, features: Callable[[], Tensor]) -> None:
        if self.graph is None or epoch % self.every == 0:
            self.rebuild(features())

    def rebuild(self, features: Float[Tensor, "N F"]) -> None:
        """Build the graph anew from features of clean images, one row an image."""
        self._set(self.graph_of(features))

    def graph_of(self, nodes: Float[Tensor, "N F"]) -> Graph:
        """The graph that is walked on."""
        search = None if self.gather is None else partial(shared_neighbors, gather=self.gather)
        settings = {"mutual": self.mutual, "sinkhorn": self.sinkhorn, "search": search}
        return similarity_graph(nodes, self.k, self.kernel, self.temperature, **settings)

    def _set(self, graph: Graph) -> None:
        self.graph, self._tables, self._least = graph, walk_tables(graph), 0.0
        if self.confident < 1:
            generator = torch.Generator(graph.weights.device).manual_seed(0)
            everybody = torch.arange(len(graph.weights), device=graph.weights.device)
            walk = weighted_walk(graph, everybody, self.length, self.restart, generator, tables=self._tables)
            self._least = threshold(walk.weight, self.confident)

    @torch.no_grad()
    def partners(
        self, index: Int[Tensor, " B"], alpha: float, generator: torch.Generator | None = None
    ) -> Int[Tensor, " B"]:
        """For each image, the image its second view is drawn from; the image itself before the first `rebuild`.

        Args:
            index: rows of the features that the graph was built from, on the graph's device.
            alpha: how readily a partner replaces the image, in [0, 1].
            generator: source of randomness, on the graph's device.

        Raises:
            ValueError: for alpha outside [0, 1].
        """
        require("alpha", alpha, "[0, 1]", "it is a probability under dataset scope")
        if self.graph is None:
            return index
        if self.graph.weights.device != index.device:  # of a checkpoint, which is read on the CPU
            self._set(self.graph.to(index.device))
        walk = weighted_walk(self.graph, index, self.length, self.restart, generator, tables=self._tables)
        u = torch.rand(len(index), generator=generator, device=index.device)
        chosen = (u < alpha * walk.weight) & (walk.weight >= self._least)
        return torch.where(chosen, walk.paths[:, -1], index)

    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        graph = self.graph
        return packed([] if graph is None else [graph.neighbors, graph.weights, graph.similarity])

    def set_extra_state(self, state: Tensor | list) -> None:
        if parts := unpacked(state):
            self._set(Graph(*parts))
