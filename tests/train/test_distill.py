"""DINO and I-JEPA: losses and averages against explicit loops, masks against their law, and that both learn."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from tiny import tiny

from sagkit.data.load import ImageSet, make_shapes
from sagkit.metrics.local import knn_accuracy
from sagkit.model import Encoder, NarrowResNet, extract_features, make_encoder
from sagkit.train.distill import DINO, IJEPA, block_masks, through
from sagkit.train.trainer import fit


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def views(step: int, n: int = 6, size: int = 16, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.rand(n, 3, size, size, generator=generator) for _ in range(count)]


def dino(seed: int = 0, **fields) -> DINO:
    torch.manual_seed(seed)
    encoder = Encoder(NarrowResNet(4, (1, 1)), 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    method = DINO(encoder, **{"hidden": 12, "bottleneck": 6, "prototypes": 10, "ema": 0.9, "epochs": 20, **fields})
    with torch.no_grad():  # lightly starts the head at a standard deviation of 0.02: all outputs would be alike
        for parameter in [*method.head.parameters(), *method.teacher_head.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
    return method


def ijepa(seed: int = 0, **fields) -> IJEPA:
    torch.manual_seed(seed)
    encoder = make_encoder("vit-d16-l2-p4-avg")
    return IJEPA(encoder, **{"size": 32, "width": 8, "depth": 1, "ema": 0.9, "epochs": 20, **fields})


@pytest.mark.slow
@pytest.mark.parametrize("local", [0, 2])
def test_dinos_loss_and_centre_are_those_of_explicit_loops(local):
    method = dino().eval()  # batch statistics would tie the views of a batch together
    centre = np.zeros(10)
    for step in range(4):
        epoch, shown, small = 2.0 * step, views(step), views(100 + step, size=8, count=local)
        with torch.no_grad():
            teacher = [method.teacher_head(method.encoder(v)).double().numpy() for v in shown]
            student = [method.head(method.student(v)).double().numpy() for v in (*shown, *small)]
            loss = method(*shown, epoch, local=small).total
        cold = 0.04 + 0.03 * min(1.0, epoch / 6)  # 30 % of 20 epochs
        total, terms = 0.0, 0
        for i, t in enumerate(teacher):
            for j, s in enumerate(student):
                if i != j:
                    for image in range(6):
                        target = softmax((t[image] - centre) / cold)
                        total -= (target * np.log(softmax(s[image] / 0.1))).sum()
                        terms += 1
        assert loss.item() == pytest.approx(total / terms, rel=1e-4)
        centre = 0.9 * centre + 0.1 * np.concatenate(teacher).mean(axis=0)
        np.testing.assert_allclose(method.cross_entropy.center.flatten().numpy(), centre, rtol=1e-4, atol=1e-6)


def test_dinos_gradient_reaches_the_student_alone_and_is_softmax_minus_target():
    method = dino().eval()
    a, b = views(0)
    method(a, b).total.backward()
    assert all(p.grad is None for module in (method.encoder, method.teacher_head) for p in module.parameters())
    assert all(p.grad is not None for p in method.student.parameters())
    # The last layer is linear: its gradient by hand from d loss / d logits = (softmax(s) - t) / (T_s n terms).
    method, inner = dino().eval(), []
    hook = method.head.last_layer.register_forward_pre_hook(lambda _, x: inner.append(x[0].detach()))
    with torch.no_grad():
        targets = [torch.softmax(method.teacher_head(method.encoder(v)) / 0.04, dim=1) for v in (b, a)]
    method(a, b).total.backward()
    hook.remove()
    layer = method.head.last_layer
    direction = layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True)  # weight_g is 1.3 at most; read below
    weight = layer.weight_g * direction
    by_weight = torch.zeros_like(weight)
    for x, t in zip(inner, targets, strict=True):
        by_weight += ((torch.softmax(x @ weight.T / 0.1, dim=1) - t) / (0.1 * 6 * 2)).T @ x
    # Through v: the part of the gradient that is orthogonal to each row, scaled by g / |v|.
    radial = (by_weight * direction).sum(dim=1, keepdim=True) * direction
    expected = layer.weight_g / layer.weight_v.norm(dim=1, keepdim=True) * (by_weight - radial)
    torch.testing.assert_close(layer.weight_v.grad, expected.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("build", [dino, ijepa])
def test_the_teacher_is_the_students_average_by_a_loop_over_steps(build):
    method = build()
    followed = {name: p.detach().clone() for name, p in method.encoder.named_parameters()}
    assert all(torch.equal(p, followed[name]) for name, p in method.student.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        with torch.no_grad():
            for p in method.student.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        epoch = 4.0 * step  # of 20
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * epoch / 20)) / 2 if build is dino else 0.9 + 0.1 * epoch / 20
        for name, p in method.student.named_parameters():
            followed[name] = momentum * followed[name] + (1 - momentum) * p.detach()
        method.after_step(epoch)
    for name, p in method.encoder.named_parameters():
        torch.testing.assert_close(p, followed[name])
        assert not p.requires_grad
    assert method.momentum(0) == pytest.approx(0.9)
    assert method.momentum(20) == pytest.approx(1)


def test_dinos_prototypes_are_held_for_one_epoch_or_a_tenth_of_a_short_run():
    for epochs, held, free in ((100, 0.99, 1.0), (5, 0.49, 0.5)):
        for epoch, kept in ((held, False), (free, True)):
            method = dino(epochs=epochs)
            method(*views(0)).total.backward()
            method.after_backward(epoch)
            assert (method.head.last_layer.weight_v.grad is not None) is kept
            assert method.head.layers[0].weight.grad is not None


@pytest.mark.parametrize("grid", [4, 6, 8, 14])
def test_no_context_has_a_target_patch_and_targets_are_rectangles(grid):
    for seed in range(10):
        context, targets = block_masks(32, grid, torch.Generator().manual_seed(seed))
        assert len(targets) == 4
        for image in range(32):
            seen = set(context[image].tolist())
            assert len(seen) == context.shape[1] >= min(10, grid**2 // 6)
            for patches in targets[:, image]:
                assert not seen & set(patches.tolist())
                rows, columns = np.divmod(patches.numpy(), grid)
                box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                assert len(set(patches.tolist())) == box == len(patches)
                # 15 to 25 % of the grid, rows to columns as 0.75 to 1.5 to 1; both sides rounded.
                assert math.sqrt(0.15 * 0.75) * grid - 0.5 <= np.ptp(rows) + 1 <= math.sqrt(0.25 * 1.5) * grid + 0.5
                assert math.sqrt(0.15 / 1.5) * grid - 0.5 <= np.ptp(columns) + 1 <= math.sqrt(0.25 / 0.75) * grid + 0.5


@pytest.mark.slow
def test_places_of_targets_are_uniform_and_sizes_follow_their_scale():
    generator = torch.Generator().manual_seed(0)
    shares, corners = [], {}
    for _ in range(400):
        _, targets = block_masks(16, 14, generator)
        shares.append(targets.shape[2] / 14**2)
        first = targets[..., 0].flatten().tolist()
        rows, columns = np.divmod(targets[0, 0].numpy(), 14)
        corners.setdefault((np.ptp(rows) + 1, np.ptp(columns) + 1), []).extend(first)
    (height, width), seen = max(corners.items(), key=lambda item: len(item[1]))
    # Uniform but for the images drawn anew, which are few on a grid of this size.
    places = [row * 14 + column for row in range(15 - height) for column in range(15 - width)]
    assert set(seen) <= set(places)
    assert chisquare([seen.count(place) for place in places]).pvalue > 0.01
    uniform = np.random.default_rng(0).uniform
    area, aspect = 14**2 * uniform(0.15, 0.25, 4000), uniform(0.75, 1.5, 4000)
    law = np.round(np.sqrt(area * aspect)) * np.round(np.sqrt(area / aspect)) / 14**2
    assert ks_2samp(shares, law).pvalue > 0.01


def test_contexts_are_cut_at_random_and_not_from_the_top():
    generator = torch.Generator().manual_seed(1)
    counts = sum(
        torch.bincount(block_masks(64, 8, generator)[0].flatten(), minlength=64).double() for _ in range(100)
    ).view(8, 8)
    assert counts[:4].sum() / counts.sum() == pytest.approx(0.5, abs=0.02)


def test_masks_are_a_function_of_the_generator():
    first, again, other = (block_masks(8, 8, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_ijepas_context_is_blind_to_target_patches_and_its_loss_is_worked_out_outside():
    method, (view,) = ijepa(), views(0, size=32, count=1)
    torch.manual_seed(7)
    loss = method(view).total
    torch.manual_seed(7)
    context, targets = block_masks(6, 8)
    hidden = view.clone()
    for image in range(6):
        for block in targets[:, image]:
            for patch in block.tolist():
                row, column = divmod(patch, 8)
                hidden[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.123
    torch.testing.assert_close(method.student.tokens(hidden, context), method.student.tokens(view, context))
    assert not torch.allclose(method.student.tokens(hidden), method.student.tokens(view))
    whole = method.encoder.tokens(view).detach()
    mean, std = whole.mean(dim=2, keepdim=True), whole.std(dim=2, correction=0, keepdim=True)
    whole = (whole - mean) / (std.square() + 1e-5).sqrt()
    predicted = method.predictor(method.student.tokens(view, context), context, list(targets)).detach()
    gaps = []
    for block in range(4):
        for image in range(6):
            for place, patch in enumerate(targets[block, image].tolist()):
                gaps.append(predicted[6 * block + image, place] - whole[image, patch])
    gap = torch.cat(gaps).abs()
    expected = torch.where(gap < 1, gap.square() / 2, gap - 0.5).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_ijepas_gradient_reaches_student_and_predictor_alone():
    method = ijepa()
    method(views(0, size=32, count=1)[0]).total.backward()
    assert all(p.grad is None for p in method.encoder.parameters())
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)
    assert all(p.grad is not None for p in method.predictor.parameters() if p.requires_grad)


def test_ijepa_refuses_encoders_without_a_grid_of_patches():
    for name in ("resnet10-w4", "vit-d16-l1-p4"):
        with pytest.raises(ValueError, match="--encoder vit-d192-l6-p4-avg"):
            IJEPA(make_encoder(name), 32, 8, 1, 0.9, 10)


LEARN = {
    "dino": {"encoder": "resnet10-w8", "projector_hidden": 64, "projector_out": 32, "prototypes": 64},
    "ijepa": {"encoder": "vit-d48-l2-p4-avg", "predictor_width": 16, "predictor_depth": 1},
    "barlow-twins": {"encoder": "resnet10-w8"},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", LEARN)
def test_a_few_seconds_of_training_raise_the_neighbours_accuracy(tmp_path, method):
    train, queries = make_shapes(1024, size=16, seed=0), make_shapes(512, size=16, seed=1)

    def knn(name: str, epochs: int) -> float:
        """Accuracy on the three families of shapes, of which chance names a third."""
        fields = {"epochs": epochs, "batch_size": 64, "lr": 8e-3, "ema": 0.95, "readout_every": 0, "probe": False}
        config = tiny(tmp_path / name, **{**fields, "method": method, **LEARN[method]})
        run = fit(config, train, ImageSet(queries.images[:8]), progress=False)
        bank, asked = (extract_features(run.encoder, images.images) for images in (train, queries))
        return knn_accuracy(bank, train.labels // 9, asked, queries.labels // 9)

    trained = knn("trained", 6)
    assert trained > 1 / 3 + 3 * math.sqrt(2 / 9 / 512)  # three standard errors above chance
    assert trained > knn("untrained", 0)


@pytest.mark.parametrize(("name", "passes"), [("vit-d32-l2-p4", 1), ("resnet10-w4", 2)])
def test_views_go_through_a_transformer_at_once_and_through_batchnorm_one_by_one(name, passes):
    encoder = make_encoder(name, [0.5] * 3, [0.25] * 3).train()
    pair = views(0)
    expected = [encoder(view) for view in pair]
    seen = []
    encoder.register_forward_hook(lambda *_: seen.append(1))
    for found, wanted in zip(through(encoder, pair), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert len(seen) == passes
