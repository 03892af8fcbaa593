"""Trainer: what every step is given (rate, images, views, progress), what a method is built from, and the clock."""

import time
from dataclasses import replace
from functools import partial
from math import cos, pi

import pytest
import torch
from tiny import tiny
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sagkit.augment import Augmentation
from sagkit.data.load import ImageSet, make_shapes
from sagkit.loss import Loss, barlow_twins_loss, sag_vicreg_loss
from sagkit.model import Encoder, make_encoder, make_projector
from sagkit.pairing import DatasetPairing, Queue, WalkPairing
from sagkit.train.build import build_method
from sagkit.train.config import Config, configure
from sagkit.train.distill import DINO, IJEPA
from sagkit.train.methods import Ramp, TwoViews
from sagkit.train.trainer import Trainer, fit

BLACK, DIM = 0, 77  # jitter leaves black black, and this grey between 0.18 and 0.43: never black, never solarised


def small(tmp_path, **fields) -> Config:
    return tiny(tmp_path, **{"method": "vicreg", "readout_every": 0, "probe": False, **fields})


@pytest.fixture(scope="module")
def images():
    """160 images to train on, so 5 steps an epoch, and a few unlabelled queries, which are judged quickly."""
    return make_shapes(160, size=16, seed=0), ImageSet(make_shapes(8, size=16, seed=1).images)


def wrap(monkeypatch, owner, name: str, before=None, after=None) -> None:
    """Run a function on the arguments of a method before it, or after it."""
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if before:
            before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after:
            after(*args, **kwargs)
        return result

    monkeypatch.setattr(owner, name, wrapped)


def shown(monkeypatch, config: Config, train: ImageSet, queries: ImageSet) -> list[dict]:
    """The images, views and progress of every training step of a run."""
    steps = []
    with monkeypatch.context() as patched:
        wrap(patched, Trainer, "step", before=lambda _, step, index: steps.append({"step": step, "index": index}))
        wrap(
            patched,
            TwoViews,
            "forward",
            before=lambda _, a, b, e, i: steps[-1].update(a=a.clone(), b=b.clone(), epoch=e),
        )
        fit(config, train, queries, progress=False)
    return steps


def interrupt(monkeypatch, config: Config, images, after: int) -> None:
    """A run that is stopped once the checkpoint of an epoch is written."""

    def die(trainer):
        if trainer.epoch == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        wrap(patched, Trainer, "save", after=die)
        with pytest.raises(KeyboardInterrupt):
            fit(config, *images, progress=False)


def solid(values: torch.Tensor) -> ImageSet:
    """Images of 16 x 16 pixels of one grey value each."""
    return ImageSet(values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16).contiguous())


@pytest.mark.slow
@pytest.mark.parametrize(("warmup_epochs", "warmup"), [(1.0, 5), (0.6, 3), (0.0, 0)])
def test_every_step_has_its_own_rate_linear_up_then_cosine_down(tmp_path, images, warmup_epochs, warmup):
    used = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: used.append([g["lr"] for g in optimizer.param_groups])
    )
    try:
        fit(small(tmp_path, lr=0.016, warmup_epochs=warmup_epochs), *images, progress=False)
    finally:
        hook.remove()
    peak = 0.016 * 32 / 256
    rise = [peak * (i + 1) / warmup for i in range(warmup)]
    turn = [(1 + cos(pi * i / (15 - warmup))) / 2 for i in range(15 - warmup)]
    expected = [*rise, *(peak * (0.001 + 0.999 * t) for t in turn)]
    assert [len(rates) for rates in used] == [2] * 15  # decayed and undecayed parameters
    for rates, rate in zip(used, expected, strict=True):
        assert rates == pytest.approx([rate, rate], rel=1e-9)


@pytest.mark.slow
def test_no_two_views_are_alike_and_a_seed_repeats_them_all(tmp_path, images, monkeypatch):
    # All images are one, so that only the augmentation can make a difference between steps.
    one = ImageSet(images[0].images[:1].expand(160, -1, -1, -1).contiguous())
    first, again, other = (
        shown(monkeypatch, small(tmp_path / name, epochs=2, seed=seed), one, images[1])
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    views = [step[view] for step in (*first, *other) for view in "ab"]
    assert len(views) == 2 * 2 * 10
    for i, view in enumerate(views):
        assert not any(torch.equal(view, earlier) for earlier in views[:i])
    for one_step, same_step in zip(first, again, strict=True):
        assert torch.equal(one_step["a"], same_step["a"])
        assert torch.equal(one_step["b"], same_step["b"])


@pytest.mark.slow
def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(tmp_path, images, monkeypatch):
    def orders(**fields) -> list[list[int]]:
        steps = shown(monkeypatch, small(tmp_path / str(fields), **fields), *images)
        assert [step["step"] for step in steps] == list(range(15))
        assert [step["epoch"] for step in steps] == pytest.approx([i / 5 for i in range(15)])
        indices = [step["index"] for step in steps]
        return [torch.cat(indices[5 * e : 5 * e + 5]).tolist() for e in range(3)]

    first, other = orders(seed=0), orders(seed=1)
    for order in (*first, *other):
        assert sorted(order) == list(range(160))
    distinct = {tuple(order) for order in (*first, *other, list(range(160)))}
    assert len(distinct) == 7
    assert orders(seed=0, variant="again") == first


@pytest.mark.slow
def test_the_views_are_of_the_images_and_the_second_images_of_a_step(tmp_path, images, monkeypatch):
    black = torch.rand(160, generator=torch.Generator().manual_seed(0)) < 0.5
    train = solid(torch.where(black, BLACK, DIM))
    monkeypatch.setattr(TwoViews, "second_images", lambda _, index, *rest: (index + 1) % 160)
    for step in shown(monkeypatch, small(tmp_path, epochs=2), train, images[1]):
        assert torch.equal(step["a"].amax(dim=(1, 2, 3)) == 0, black[step["index"]])
        assert torch.equal(step["b"].amax(dim=(1, 2, 3)) == 0, black[(step["index"] + 1) % 160])


@pytest.mark.slow
def test_views_have_the_size_the_crop_and_the_blur_of_the_configuration(tmp_path, images, monkeypatch):
    halves = torch.full((64, 3, 16, 16), 60, dtype=torch.uint8)  # jitter shifts both halves, and never past each other
    halves[..., :8] = BLACK

    def views(**fields) -> torch.Tensor:
        """Red of each view, stretched to [0, 1]."""
        config = small(tmp_path / str(fields), epochs=1, **fields)
        red = torch.cat([step["a"] for step in shown(monkeypatch, config, ImageSet(halves), images[1])])[:, 0]
        assert red.shape == (64, config.view_size, config.view_size)
        low, high = red.amin(dim=(1, 2), keepdim=True), red.amax(dim=(1, 2), keepdim=True)
        return (red - low) / (high - low).clamp(min=1e-6)

    def dark(x: torch.Tensor) -> torch.Tensor:
        return (x < 0.5).float().mean(dim=(1, 2))

    def edge(x: torch.Tensor) -> torch.Tensor:
        return x.diff(dim=2).abs().amax(dim=(1, 2))

    whole = views(crop_min=1.0, view_size=8)
    torch.testing.assert_close(dark(whole), torch.full((64,), 0.5))
    assert dark(views(crop_min=0.1)).std() > 0.1
    torch.testing.assert_close(edge(views(crop_min=1.0)), torch.ones(64))
    assert edge(views(crop_min=1.0, blur=1.0)).mean() < 0.7


# Constructor arguments of a method by hand, beside the fields of a configuration that stand for them; the first
# entries hold in every case below unless the case says otherwise.
FIELDS = {"alpha": 0.4, "walk_start": 0.25, "walk_warmup": 0.25, "epochs": 8, "k": 4, "seed": 5, "method": "sag-vicreg"}
RAMP, PAIRING, QUEUE, TERMS = {"alpha": 0.4, "start": 2.0, "warmup": 2.0}, {"k": 4, "seed": 5}, {"batches": 0}, {}
PROGRESS = (0.0, 1.9, 2.5, 3.0, 4.0, 5.0, 7.9)  # epochs; alpha rises from 2 to 4


class Given(nn.Module):
    """Stands for encoder or projector: gives what it holds, one after the other."""

    def __init__(self, *given: torch.Tensor):
        super().__init__()
        self.given = list(given)

    def forward(self, _):
        return self.given.pop(0)


def objective(method: TwoViews, ha, hb, za, zb, epoch: float) -> Loss:
    """The loss of features and projections."""
    method.encoder, method.projector = Given(ha, hb), Given(za, zb)
    return method(za, zb, epoch)


def losses(method: TwoViews) -> torch.Tensor:
    """Loss over a few steps of features and projections that are given, so that nothing is trained."""
    generator, found = torch.Generator().manual_seed(0), []
    for epoch in PROGRESS:
        h = torch.randn(24, 6, generator=generator) + 1
        ha, hb = (h + 0.3 * torch.randn(24, 6, generator=generator) for _ in range(2))
        za, zb = torch.randn(2, 24, 10, generator=generator)
        found.append(objective(method, ha, hb, za, zb, epoch).total)
    return torch.stack(found)


def sag_by_hand(ramp=RAMP, pairing=PAIRING, queue=QUEUE, terms=TERMS) -> TwoViews:
    encoder = make_encoder("resnet10-w4")
    kept = Queue(**queue) if queue["batches"] else None
    loss = partial(sag_vicreg_loss, **terms)
    return TwoViews(encoder, make_projector(32, 16, 24), loss, WalkPairing(**pairing), Ramp(**ramp), kept)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    """Losses with none of the fields changed, from a configuration as by hand."""
    found = losses(build_method(configure(**FIELDS), make_encoder("resnet10-w4")))
    torch.testing.assert_close(found, losses(sag_by_hand()), rtol=0, atol=0)
    return found


@pytest.mark.parametrize(
    ("fields", "by_hand"),
    [
        ({"length": 1}, {"pairing": {**PAIRING, "length": 1}}),
        ({"length": 5}, {"pairing": {**PAIRING, "length": 5}}),
        ({"temperature": 2.0}, {"pairing": {**PAIRING, "temperature": 2.0}}),
        ({"kernel": "gaussian"}, {"pairing": {**PAIRING, "kernel": "gaussian"}}),
        ({"kernel": "shared"}, {"pairing": {**PAIRING, "kernel": "shared"}}),
        ({"k": 9}, {"pairing": {**PAIRING, "k": 9}}),
        ({"mutual": True}, {"pairing": {**PAIRING, "mutual": True}}),
        ({"restart": 0.5}, {"pairing": {**PAIRING, "restart": 0.5}}),
        ({"walks": 3}, {"pairing": {**PAIRING, "walks": 3}}),
        ({"walks": 6, "unique": True}, {"pairing": {**PAIRING, "walks": 6, "unique": True}}),
        ({"every": 2}, {"pairing": {**PAIRING, "every": 2}}),
        ({"sinkhorn": 3}, {"pairing": {**PAIRING, "sinkhorn": 3}}),
        ({"expected": True}, {"pairing": {**PAIRING, "expected": True}}),
        ({"null": 0.5}, {"pairing": {**PAIRING, "null": 0.5}}),
        ({"weight": 0.7}, {"pairing": {**PAIRING, "weight": 1.0}, "ramp": {**RAMP, "alpha": 0.7}}),
        ({"seed": 6}, {"pairing": {**PAIRING, "seed": 6}}),
        ({"alpha": 0.7}, {"ramp": {**RAMP, "alpha": 0.7}}),
        ({"walk_start": 0.0}, {"ramp": {**RAMP, "start": 0.0}}),
        ({"walk_start": 0.5}, {"ramp": {**RAMP, "start": 4.0}}),
        ({"walk_warmup": 0.0}, {"ramp": {**RAMP, "warmup": 0.0}}),
        ({"epochs": 4}, {"ramp": {**RAMP, "start": 1.0, "warmup": 1.0}}),
        ({"scope": "queue", "queue_batches": 1}, {"queue": {"batches": 1}}),
        ({"scope": "queue", "queue_batches": 3}, {"queue": {"batches": 3}}),
        ({"keep": False}, {"terms": {"keep": False}}),
        ({"sim": 5.0}, {"terms": {"sim": 5.0}}),
        ({"var": 5.0}, {"terms": {"var": 5.0}}),
        ({"cov": 5.0}, {"terms": {"cov": 5.0}}),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_sag_vicreg_is_built_from_every_field_that_speaks_of_it(plain, fields, by_hand):
    built = losses(build_method(configure(**{**FIELDS, **fields}), make_encoder("resnet10-w4")))
    torch.testing.assert_close(built, losses(sag_by_hand(**by_hand)), rtol=0, atol=0)
    assert not torch.equal(built, plain)


def partners(method: TwoViews) -> torch.Tensor:
    """Second images over a few epochs, on features that change from one to the next."""
    index, found = torch.arange(40), []
    for epoch in range(8):
        features = torch.randn(40, 6, generator=torch.Generator().manual_seed(epoch)) + 1
        method.begin_epoch(epoch, lambda features=features: features)
        found.append(method.second_images(index, epoch + 0.5, torch.Generator().manual_seed(100 + epoch)))
    return torch.stack(found)


DATASET = {"scope": "dataset", "alpha": 0.8}


def dataset_by_hand(pairing, ramp, rebuild) -> TwoViews:
    walk, rise = DatasetPairing(**{"k": 4, "every": rebuild, **pairing}), Ramp(**{**RAMP, "alpha": 0.8, **ramp})
    return TwoViews(make_encoder("resnet10-w4"), make_projector(32, 16, 24), sag_vicreg_loss, walk, rise)


@pytest.fixture(scope="module")
def plain_partners() -> torch.Tensor:
    """Partners with none of the fields changed, from a configuration as by hand."""
    found = partners(build_method(configure(**{**FIELDS, **DATASET}), make_encoder("resnet10-w4")))
    assert torch.equal(found, partners(dataset_by_hand({}, {}, 1)))
    return found


@pytest.mark.parametrize(
    ("fields", "pairing", "ramp", "rebuild"),
    [
        ({"length": 1}, {"length": 1}, {}, 1),
        ({"temperature": 2.0}, {"temperature": 2.0}, {}, 1),
        ({"kernel": "gaussian"}, {"kernel": "gaussian"}, {}, 1),
        ({"k": 9}, {"k": 9}, {}, 1),
        ({"mutual": True}, {"mutual": True}, {}, 1),
        ({"restart": 0.5}, {"restart": 0.5}, {}, 1),
        ({"sinkhorn": 2}, {"sinkhorn": 2}, {}, 1),
        ({"alpha": 1.0}, {}, {"alpha": 1.0}, 1),
        ({"walk_start": 0.5}, {}, {"start": 4.0}, 1),
        ({"walk_warmup": 0.0}, {}, {"warmup": 0.0}, 1),
        ({"graph_epochs": 3}, {}, {}, 3),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_dataset_scope_is_built_from_every_field_that_speaks_of_it(plain_partners, fields, pairing, ramp, rebuild):
    built = partners(build_method(configure(**{**FIELDS, **DATASET, **fields}), make_encoder("resnet10-w4")))
    assert torch.equal(built, partners(dataset_by_hand(pairing, ramp, rebuild)))
    assert not torch.equal(built, plain_partners)


TICK = 0.125  # seconds; exact in binary


@pytest.fixture
def clocks(monkeypatch):
    """Clocks that move only when something here moves them: processor time twice as fast as the wall, or not at all.

    Ticks on the wall: 1 to 15 for steps 0 to 14 (and two of the processor each), 1 per choice of second images, 2 per
    call of the pairing, 3 per encoder pass; looking at images in evaluation mode takes ages on both.
    """
    now = {"wall": 100.0, "processor": 50.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["processor"])

    def move(wall: float, processor: float = 0.0):
        now["wall"] += TICK * wall
        now["processor"] += TICK * processor

    wrap(monkeypatch, Trainer, "step", after=lambda _, step, index: move(step + 1, 2 * (step + 1)))
    wrap(monkeypatch, TwoViews, "second_images", before=lambda *_: move(1))
    wrap(monkeypatch, WalkPairing, "forward", before=lambda *_: move(2))
    wrap(monkeypatch, Encoder, "forward", before=lambda self, _: move(3) if self.training else move(1e4, 1e4))
    return now


def cost(record: dict) -> dict:
    return {name: record[name] for name in ("core_seconds", "images_per_second", "walk_share", "seconds")}


@pytest.mark.slow
def test_the_record_counts_processor_time_of_training_alone_and_the_walks_share_of_its_wall_time(
    tmp_path, images, clocks
):
    record = fit(small(tmp_path, method="sag-vicreg", walk_warmup=0.0), *images, progress=False).record
    wall, processor = TICK * (120 + 15 * (1 + 2 + 2 * 3)), TICK * 240  # 1 + ... + 15 = 120
    assert record["core_seconds"] == pytest.approx(processor, abs=0.05)
    assert record["images_per_second"] == pytest.approx(480 / wall, abs=0.05)
    assert record["walk_share"] == pytest.approx(TICK * 15 * (1 + 2) / wall, abs=1e-5)
    assert record["seconds"]["walk"] == pytest.approx(TICK * 15 * 3, abs=0.01)
    assert record["seconds"]["encoder"] == pytest.approx(TICK * 15 * 6, abs=0.01)


@pytest.mark.slow
def test_the_clock_goes_on_where_an_interrupted_run_stopped(tmp_path, images, clocks, monkeypatch):
    config = small(tmp_path / "whole", method="sag-vicreg")
    whole = cost(fit(config, *images, progress=False).record)
    cut = replace(config, results=str(tmp_path / "cut/results"), runs=str(tmp_path / "cut/runs"))
    interrupt(monkeypatch, cut, images, after=2)
    clocks.update(wall=7.0, processor=3.0)  # another process, another day
    assert cost(fit(cut, *images, progress=False).record) == whole


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vicreg", "sag-vicreg"])
def test_bf16_training_keeps_float32_weights_and_is_resumed_exactly(tmp_path, images, monkeypatch, method):
    handed, weights = [], set()  # features and projections of both views, as the loss is given them

    def note(x):
        handed.extend([x.dtype] if x.is_floating_point() else [])
        return x

    def look(method, *_):
        method.gather = note
        weights.update(p.dtype for p in method.parameters())

    wrap(monkeypatch, TwoViews, "forward", before=look)
    half = small(tmp_path / "half", method=method, precision="bf16-mixed")
    whole = fit(half, *images, progress=False)
    assert handed == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32] * 15
    assert weights == {torch.float32}
    cut = replace(half, results=str(tmp_path / "cut/results"), runs=str(tmp_path / "cut/runs"))
    interrupt(monkeypatch, cut, images, after=1)
    resumed = fit(cut, *images, progress=False)
    assert resumed.record["log"] == whole.record["log"]
    assert resumed.record["metrics"] == whole.record["metrics"]
    full = fit(small(tmp_path / "full", method=method), *images, progress=False)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(resumed.encoder.state_dict()[name], value), name
    first, of_full = (run.record["log"][0]["loss"] for run in (whole, full))
    assert first != of_full
    assert first == pytest.approx(of_full, rel=0.02)  # 8 bits of mantissa, averaged over an epoch


VIT = {"encoder": "vit-d16-l1-p4-avg", "method": "ijepa", "predictor_width": 8, "predictor_depth": 1, "epochs": 1}


@pytest.mark.slow
def test_a_method_is_shown_as_many_views_as_it_takes_and_no_more_are_made(tmp_path, images, monkeypatch):
    made, taken = [], []
    wrap(monkeypatch, Augmentation, "__call__", before=lambda recipe, *_: made.append((recipe.size, recipe.crop_scale)))
    wrap(monkeypatch, IJEPA, "forward", before=lambda _, view, epoch, index: taken.append(view.shape[-1]))
    fit(small(tmp_path / "ijepa", **VIT), *images, progress=False)
    assert taken == [16] * 5
    training = made[:5]
    assert training == [(16, (0.3, 1.0))] * 5  # I-JEPA's crops; what follows are the label-free figure's views
    made.clear()
    wrap(monkeypatch, DINO, "forward", before=lambda *given: taken.append([v.shape[-1] for v in given[-1]]))
    fields = {"method": "dino", "local_views": 2, "local_size": 8, "prototypes": 16, "epochs": 1}
    fit(small(tmp_path / "dino", **fields), *images, progress=False)
    assert taken[5:] == [[8, 8]] * 5
    assert made[:4] == [(16, (0.2, 1.0))] * 2 + [(8, (0.05, 0.2))] * 2


def test_without_colour_the_views_are_crops_and_mirror_images_alone(tmp_path, images, monkeypatch):
    train = solid(torch.arange(160))
    for step in shown(monkeypatch, small(tmp_path, colour=False, epochs=1), train, images[1]):
        grey = step["index"].float()[:, None, None, None] / 255
        for view in "ab":
            torch.testing.assert_close(step[view], grey.expand_as(step[view]))


@pytest.mark.slow  # trains
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradients_are_clipped_by_their_common_norm(tmp_path, images, clip):
    norms = []

    def note(optimizer, *_):
        squares = [p.grad.square().sum() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))

    hook = register_optimizer_step_pre_hook(note)
    try:
        fit(small(tmp_path, clip=clip, epochs=1), *images, progress=False)
    finally:
        hook.remove()
    assert len(norms) == 5
    assert all(norm == pytest.approx(1e-3, rel=1e-2) if clip else norm > 1e-2 for norm in norms)


def test_dino_and_ijepa_are_built_from_the_fields_that_speak_of_them():
    fields = {"projector_hidden": 20, "projector_out": 12, "prototypes": 30, "ema": 0.9, "epochs": 7}
    dino = build_method(configure("dino", encoder="resnet10-w4", **fields), make_encoder("resnet10-w4"))
    assert isinstance(dino, DINO)
    assert dino.head.last_layer.weight_v.shape == (30, 12)
    assert dino.head.layers[0].weight.shape == (20, 32)
    assert (dino.ema, dino.epochs) == (0.9, 7)
    config = configure(**{**VIT, "view_size": 24, "predictor_width": 12, "predictor_depth": 3, "ema": 0.8})
    ijepa = build_method(config, make_encoder("vit-d16-l1-p4-avg"))
    assert ijepa.grid == 6
    assert ijepa.predictor.predictor_embed.weight.shape == (12, 16)
    assert len(ijepa.predictor.decoder.blocks) == 3
    assert (ijepa.ema, ijepa.epochs) == (0.8, 1)


def test_barlow_twins_walks_only_where_alpha_says_so():
    encoder = make_encoder("resnet10-w4")
    assert configure("barlow-twins").alpha == 0
    fields = {**FIELDS, "method": "barlow-twins"}
    plain, walked = (build_method(configure(**{**fields, "alpha": alpha}), encoder) for alpha in (0.0, 0.4))
    assert plain.loss.func is walked.loss.func is barlow_twins_loss
    za, zb = torch.randn(2, 24, 10, generator=torch.Generator().manual_seed(0))
    expected = barlow_twins_loss(za, zb)
    h = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    for epoch in PROGRESS:
        assert torch.equal(objective(plain, h, h, za, zb, epoch).total, expected.total)
    assert torch.equal(walked.loss(za, zb, None, 0.0).total, expected.total)
    found = objective(walked, h, h, za, zb, 5.0)
    pairs = WalkPairing(k=4, seed=5)(h, h)
    assert torch.equal(found.total, barlow_twins_loss(za, zb, pairs, 0.4).total)
    dataset = build_method(configure(**fields, scope="dataset"), encoder)
    assert isinstance(dataset.pairing, DatasetPairing)
    assert dataset.loss.func is barlow_twins_loss


@pytest.mark.slow
def test_a_checkpoint_that_is_older_than_a_field_goes_on_as_if_it_had_the_default(tmp_path, images, monkeypatch):
    config = small(tmp_path)
    whole = fit(replace(config, results=str(tmp_path / "w"), runs=str(tmp_path / "wr")), *images, progress=False)
    to_dict = Config.to_dict
    with monkeypatch.context() as patched:  # a kit that did not know `clip` yet
        patched.setattr(Config, "to_dict", lambda c: {k: v for k, v in to_dict(c).items() if k != "clip"})
        interrupt(patched, config, images, after=1)
    with pytest.raises(ValueError, match=r"clip 0.0 -> 3.0"):
        fit(replace(config, clip=3.0), *images, progress=False)
    assert fit(config, *images, progress=False).record["log"] == whole.record["log"]
