"""Methods: SAG-VICReg that does not walk is VICReg bit for bit, its ramp, precision, and what gather sees."""

from functools import partial

import pytest
import torch

from sagkit.loss import sag_vicreg_loss, vicreg_loss
from sagkit.model import Encoder, NarrowResNet, make_projector
from sagkit.pairing import DatasetPairing, Queue, WalkPairing
from sagkit.train.methods import Ramp, TwoViews
from sagkit.walk import ends_of


def build(method: str = "sag-vicreg", seed: int = 0, **fields) -> TwoViews:
    torch.manual_seed(seed)
    encoder = Encoder(NarrowResNet(4, (1, 1)), 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    parts = encoder, make_projector(8, 16, 12)
    weights = {name: fields.pop(name) for name in ("sim", "var", "cov", "keep") if name in fields}
    if method == "vicreg":

        def plain(za, zb, pairs, alpha, bank):
            assert (pairs, alpha, bank) == (None, 0, None)
            return vicreg_loss(za, zb, **weights)

        return TwoViews(*parts, plain, **fields)
    ramp = Ramp(fields.pop("alpha", 0.5), fields.pop("start", 0.0), fields.pop("warmup", 0.0))
    pairing = DatasetPairing(every=fields.pop("every")) if method == "dataset" else WalkPairing(k=4, seed=1)
    return TwoViews(*parts, partial(sag_vicreg_loss, **weights), **{"pairing": pairing, "ramp": ramp, **fields})


def batch(step: int, n: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    clean = torch.rand(n, 3, 8, 8, generator=generator)
    return tuple((clean + 0.2 * torch.rand(n, 3, 8, 8, generator=generator)).clamp(0, 1) for _ in range(2))


def train(method: TwoViews, epochs) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Parameters and buffers after one step per entry of `epochs`, and the losses on the way."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step, epoch in enumerate(epochs):
        loss = method(*batch(step), epoch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {k: v for k, v in method.state_dict().items() if not k.startswith("pairing")}, losses


def assert_same(a, b) -> None:
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    for name in a[0]:
        assert torch.equal(a[0][name], b[0][name]), name


EPOCHS = [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.slow  # trains
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("ramp", [{"alpha": 0.0}, {"start": 2.5}, {"start": 2.0, "warmup": 1.0}])
def test_without_a_walk_sag_vicreg_trains_to_vicregs_very_weights(ramp, keep):
    # The last case ends at the first epoch of the ramp, where alpha is still 0.
    assert_same(train(build(keep=keep, **ramp), EPOCHS), train(build("vicreg"), EPOCHS))


@pytest.mark.parametrize("keep", [True, False])
def test_the_walk_term_acts_from_its_start_on_and_not_before(keep):
    plain, walked = train(build("vicreg"), EPOCHS), train(build(start=1.5, keep=keep), EPOCHS)
    assert walked[1][:3] == plain[1][:3]
    assert walked[1][3] != plain[1][3]
    assert not torch.equal(walked[0]["encoder.backbone.0.weight"], plain[0]["encoder.backbone.0.weight"])


@pytest.mark.slow
def test_training_repeats_exactly():
    assert_same(train(build(), EPOCHS), train(build(), EPOCHS))
    assert train(build(pairing=WalkPairing(k=4, seed=2)), EPOCHS)[1] != train(build(), EPOCHS)[1]


@pytest.mark.parametrize(
    ("start", "warmup", "expected"),
    [
        (2.0, 4.0, {0.0: 0, 1.99: 0, 2.0: 0, 3.0: 0.2, 4.0: 0.4, 5.5: 0.7, 6.0: 0.8, 100.0: 0.8}),
        (2.0, 0.0, {0.0: 0, 1.99: 0, 2.0: 0.8, 3.0: 0.8}),
        (0.0, 0.0, {0.0: 0.8}),
        (0.0, 1.0, {0.0: 0, 0.25: 0.2, 1.0: 0.8}),
    ],
)
def test_the_ramp_in_closed_form(start, warmup, expected):
    ramp = Ramp(0.8, start, warmup)
    assert {epoch: ramp.at(epoch) for epoch in expected} == pytest.approx(expected)


def test_the_loss_is_that_of_projections_features_and_pairs_worked_out_outside():
    a, b = batch(0)
    weights = {"sim": 3.0, "var": 5.0, "cov": 7.0}
    method, outside = build(**weights), build()
    ha, hb = outside.encoder(a), outside.encoder(b)
    za, zb = outside.projector(ha), outside.projector(hb)
    pairs = WalkPairing(k=4, seed=1)(ha, hb)
    loss = method(a, b)
    assert torch.equal(loss.total, sag_vicreg_loss(za, zb, pairs, 0.5, **weights).total)
    assert loss.terms["walk"] > 0
    assert torch.equal(build("vicreg", **weights)(a, b).total, vicreg_loss(za, zb, **weights).total)


def test_gather_collects_features_and_projections_of_the_global_batch():
    """Two processes by hand: what the other one holds is appended, and the loss is that of the whole."""
    local, remote = batch(0), batch(1)
    whole = build().eval()  # evaluation mode, since batch statistics stay local to a process
    expected = whole(*(torch.cat(views) for views in zip(local, remote, strict=True)))
    with torch.no_grad():
        h = [whole.encoder(view) for view in remote]
        z = [whole.projector(x) for x in h]
    queue = [*h, *z]  # in the order VICReg gathers: both features, both projections
    method = build(gather=lambda x: torch.cat([x, queue.pop(0)])).eval()
    loss = method(*local)
    assert not queue
    torch.testing.assert_close(loss.total, expected.total)
    torch.testing.assert_close(loss.terms["walk"], expected.terms["walk"])


@pytest.mark.parametrize("method", ["vicreg", "sag-vicreg"])
def test_under_autocast_the_loss_is_float32_and_of_the_projections_as_they_are(method):
    a, b = batch(0, n=32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = build(method)(a, b)
        outside = build(method)
        za, zb = (outside.projector(outside.encoder(view)) for view in (a, b))
    assert za.dtype == torch.bfloat16
    assert loss.total.dtype == torch.float32
    plain = vicreg_loss(za.float(), zb.float())
    for name, term in plain.terms.items():
        assert torch.equal(loss.terms[name], term), name
    loss.total.backward()


def test_features_reach_the_pairing_without_their_gradient():
    seen = []

    class Watching(WalkPairing):
        def forward(self, ha, hb, *rest):
            seen.extend([ha.requires_grad, hb.requires_grad])
            return super().forward(ha, hb, *rest)

    build(pairing=Watching(k=4))(*batch(0))
    assert seen == [False, False]


def test_parts_of_a_step_are_timed():
    method = build()
    method(*batch(0))
    assert method.watch.read().keys() == {"encoder", "projector", "graph", "walk", "loss"}
    assert method.watch.read() == {}


def test_under_queue_scope_walks_end_on_the_last_batches_and_pull_towards_their_stored_projections():
    method, outside = build(queue=Queue(2)), build()
    stored = []  # features and projections of the two batches before
    for step in range(4):
        a, b = batch(step)
        ha, hb = outside.encoder(a), outside.encoder(b)
        za, zb = outside.projector(ha), outside.projector(hb)
        pairing = WalkPairing(k=4, seed=1)
        pairing.step = step
        if stored:
            bank, qa, qb = (torch.cat(parts) for parts in zip(*stored[-2:], strict=True))
            pairs = pairing(ha, hb, bank=bank)
            assert int(pairs.positive.max()) >= 16
            expected = sag_vicreg_loss(za, zb, pairs, 0.5, bank=(qa, qb))
        else:
            expected = sag_vicreg_loss(za, zb, pairing(ha, hb), 0.5)
        loss = method(a, b)
        torch.testing.assert_close(loss.total, expected.total)
        torch.testing.assert_close(loss.terms["walk"], expected.terms["walk"])
        stored.append(((ha + hb).detach() / 2, za.detach(), zb.detach()))


def test_a_queue_that_is_resumed_goes_on_as_if_it_had_not_stopped():
    whole = build(queue=Queue(2))
    for step in range(3):
        whole(*batch(step))
    part = build(queue=Queue(2), seed=5)
    part.load_state_dict(whole.state_dict())
    assert torch.equal(part(*batch(3)).total, whole(*batch(3)).total)
    other = build()
    assert not torch.equal(other(*batch(3)).total, whole(*batch(3)).total)


def test_the_dataset_graph_is_built_from_the_ramps_first_epoch_on_at_every_mth_epoch():
    built = []
    method = build("dataset", start=2.5, every=3)

    def features():
        built.append(epoch)
        return torch.randn(40, 6, generator=torch.Generator().manual_seed(epoch))

    for epoch in range(10):
        method.begin_epoch(epoch, features)
    assert built == [2, 3, 6, 9]
    index = torch.arange(40)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(method.second_images(index, 2.4, generator), index)
    assert not torch.equal(method.second_images(index, 3.0, generator), index)
    assert torch.equal(build("vicreg").second_images(index, 3.0, generator), index)


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("queue", [False, True])
def test_the_share_of_the_pairs_weight_on_one_label_is_told_and_changes_nothing(queue, expected):
    known = {"class": torch.arange(40) % 4, "superclass": torch.arange(40) % 2}
    pairing = {"k": 4, "seed": 1, "expected": expected}
    methods = [build(pairing=WalkPairing(**pairing), known=k, queue=Queue(2) if queue else None) for k in (known, None)]
    before, index = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:32].split(16)
    for step, shown in enumerate((before, index)):
        loss, plain = (method(*batch(step), 0.0, shown) for method in methods)
    rows = torch.cat([index, before]) if queue else index
    assert torch.equal(loss.total, plain.total)
    outside = build(pairing=WalkPairing(**pairing))
    outside.pairing.step = 1
    h = [sum(outside.encoder(view) for view in batch(step)).detach() / 2 for step in (1, 0)]
    pairs = outside.pairing(h[0], h[0], bank=h[1] if queue else None)
    w = (pairs if expected else ends_of(pairs, 16)).to_dense(len(rows))
    torch.testing.assert_close(loss.terms["pair_weight"], 0.5 * w.sum() / 16)
    for kind, labels in known.items():
        same = labels[index][:, None] == labels[rows]
        torch.testing.assert_close(loss.terms[f"{kind}_weight"], 0.5 * (w * same).sum() / 16)


def test_replaced_views_tell_how_many_they_are_and_how_many_of_one_label():
    labels = torch.arange(40) // 10
    method = build("dataset", alpha=1.0, every=1, known={"class": labels}, pairing=None)
    method.pairing = DatasetPairing(k=6)
    method.begin_epoch(0, lambda: torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 1)
    index = torch.arange(16)
    partner = method.second_images(index, 1.0, torch.Generator().manual_seed(0))
    terms = method(*batch(0), 1.0, index).terms
    assert 0 < terms["class_weight"] < terms["pair_weight"] < 1
    assert terms["pair_weight"] == (partner != index).float().mean()
    assert terms["class_weight"] == ((partner != index) & (labels[partner] == labels[index])).float().mean()
