"""Two processes of torch.distributed (gloo) are one: gather and its gradient, pairs, BatchNorm, neighbour search."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import ProcessExitedException, spawn
from torch.nn.parallel import DistributedDataParallel

from sagkit import WalkPairing, gather, vicreg_loss, walk_term
from sagkit.graph import similarity_graph
from sagkit.pairing import DatasetPairing, processes, rank, shared_neighbors
from sagkit.train.batchnorm import SyncBatchNorm, synchronised

BATCH, PROCESSES = 16, 2


def images(step: int) -> torch.Tensor:
    return torch.randn(2, BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(step))


def network(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=momentum), nn.ReLU(), nn.Flatten())
    return nn.Sequential(encoder, nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)))


def of_the_loop(model: nn.Module, parts: nn.Sequential, together=None, norm: bool = True) -> dict:
    """Two steps of a user's own loop on this process's share; gradients, losses and running statistics."""
    parts.train(norm)  # in evaluation mode BatchNorm is an affine map, of no batch
    pairing, told = WalkPairing(k=4, walks=2, gather=together), {"loss": [], "walk": [], "gradient": []}
    share = BATCH // processes()
    for step in range(2):
        a, b = images(step)[:, rank() * share : (rank() + 1) * share]
        both = model(torch.cat([a, b]))
        with torch.no_grad():
            h = parts[0].eval()(torch.cat([a, b]))
            parts.train(norm)
        za, zb = both.chunk(2)
        if together is not None:
            za, zb = together(za), together(zb)
        walk = walk_term(za, zb, pairing(*h.chunk(2)))
        loss = vicreg_loss(za, zb).total + 25 * 0.3 * walk
        model.zero_grad()
        loss.backward()
        told["loss"].append(loss.detach())
        told["walk"].append(walk.detach())
        told["gradient"].append([p.grad.clone() for p in model.parameters()])
    return told | {"buffers": [b.clone() for b in parts.buffers()]}


def keeps_to_itself(x: torch.Tensor) -> torch.Tensor:
    """The gather whose gradient is wrong by the number of processes: other processes' losses do not come back."""
    parts = list(gather(x.detach()).chunk(PROCESSES))
    parts[rank()] = x
    return torch.cat(parts)


def graph_of(n: int, chunk: int, search=None):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
    graph = similarity_graph(x, 3, chunk=chunk, search=search)
    return graph.neighbors, graph.weights


def graph_of_images(together=None):
    pairing = DatasetPairing(k=3, mutual=True, sinkhorn=2, gather=together)
    pairing.rebuild(torch.randn(60, 8, generator=torch.Generator().manual_seed(1)))
    return pairing.graph.neighbors, pairing.graph.weights


GRAPHS = [(100, 16), (96, 16), (40, 512), (33, 32), (16, 1)]


def work(own: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=own, world_size=PROCESSES)
    told = {}
    for name, together, norm in (("gather", gather, False), ("alone", keeps_to_itself, False)):
        parts = network()
        told[name] = of_the_loop(DistributedDataParallel(parts), parts, together, norm)
    for momentum in (0.1, None):
        parts = synchronised(network(momentum))
        told[f"sync {momentum}"] = of_the_loop(DistributedDataParallel(parts), parts, gather)
    told["graphs"] = [graph_of(*size, shared_neighbors) for size in GRAPHS] + [graph_of_images(gather)]
    told["whole numbers"] = gather(torch.arange(3) + 3 * own)
    try:
        gather(torch.zeros(2 + own, 3))
    except ValueError as error:
        told["unequal"] = str(error)
    torch.save(told, f"{folder}/{own}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each process found; once more where a signal killed one, as gloo does once in many runs."""
    for again in (True, False):
        folder = tmp_path_factory.mktemp("processes")
        try:
            spawn(work, (str(folder),), PROCESSES)
        except ProcessExitedException as died:
            if not again or died.exit_code >= 0:
                raise
        else:
            return [torch.load(folder / f"{own}.pt") for own in range(PROCESSES)]


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]  # two processes import torch, once for all tests
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def test_a_gathered_loop_has_the_pairs_losses_and_gradients_of_one_process(found):
    parts = network()
    whole = of_the_loop(parts, parts, norm=False)
    assert min(whole["walk"]) > 0
    for told in found:
        torch.testing.assert_close(told["gather"], whole, **CLOSE)


def test_a_gather_without_the_others_gradient_is_wrong_by_the_number_of_processes(found):
    """What the test above would see: the very fault that is reported of other libraries."""
    parts = network()
    whole = of_the_loop(parts, parts, norm=False)
    for told in found:
        torch.testing.assert_close(told["alone"]["loss"], whole["loss"], **CLOSE)
        for alone, right in zip(told["alone"]["gradient"][0], whole["gradient"][0], strict=True):
            torch.testing.assert_close(alone * PROCESSES, right, **CLOSE)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_batchnorm_is_that_of_one_process_with_the_whole_batch(found, momentum):
    parts = network(momentum)
    whole = of_the_loop(parts, parts)
    for told in found:
        torch.testing.assert_close(told[f"sync {momentum}"], whole, rtol=1e-3, atol=1e-5)


def test_a_shared_search_finds_the_graph_of_one_process_to_the_last_bit(found):
    for told in found:
        expected = [graph_of(*size) for size in GRAPHS] + [graph_of_images()]
        for here, whole in zip(told["graphs"], expected, strict=True):
            assert all(map(torch.equal, here, whole))


def test_rows_come_in_order_of_rank_and_unequal_shares_are_refused_on_every_process(found):
    for told in found:
        assert told["whole numbers"].tolist() == list(range(6))
        assert told["unequal"].startswith("processes gather as many rows of one shape and type each, got 2, 3 rows")
        assert told["unequal"].endswith("drop the last odd batch (drop_last=True)")


def test_one_process_gathers_and_normalises_as_if_nothing_had_been_asked():
    x = torch.randn(6, 5, 2, 2, requires_grad=True)
    assert gather(x) is x
    plain, synced = network(), synchronised(network())
    assert {type(m) for m in synced.modules() if "BatchNorm" in type(m).__name__} == {SyncBatchNorm}
    a = images(0)[0]
    assert torch.equal(plain(a), synced(a))
    assert torch.equal(plain.eval()(a), synced.eval()(a))
    assert list(plain.state_dict()) == list(synced.state_dict())


def test_a_batchnorm_that_does_more_is_refused():
    class WithActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="WithActivation cannot be synchronised"):
        synchronised(nn.Sequential(WithActivation(3)))
