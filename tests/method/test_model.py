"""Encoders against torchvision's own networks and closed forms; the projector against the authors' lines."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock

from sagkit.data.load import load_images
from sagkit.metrics.local import knn_accuracy
from sagkit.model import Encoder, NarrowResNet, extract_features, make_encoder, make_projector
from sagkit.train.record import load_encoder


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(n: int = 6, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow  # large networks
@pytest.mark.parametrize(("name", "reference", "width"), [("resnet18", resnet18, 512), ("resnet50", resnet50, 2048)])
def test_full_resnets_are_torchvisions_but_for_stem_and_head(name, reference, width):
    encoder, original = make_encoder(name), reference(weights=None)
    assert encoder.feature_width == width
    stem = 3 * 64 * (7 * 7 - 3 * 3)  # a 3 x 3 kernel in place of a 7 x 7
    assert count(encoder) == count(original) - count(original.fc) - stem


def test_a_narrow_resnet18_of_width_64_is_the_full_one_function_for_function():
    narrow, full = make_encoder("resnet18-w64").eval(), make_encoder("resnet18").eval()
    ours, theirs = narrow.backbone.state_dict(), full.backbone.state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    narrow.backbone.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), full(x))


@pytest.mark.parametrize(("name", "width"), [("resnet10-w16", 128), ("resnet20-w16", 64), ("resnet18-w3", 24)])
def test_the_declared_feature_width_is_that_of_the_features(name, width):
    encoder = make_encoder(name).eval()
    assert encoder.feature_width == width
    with torch.no_grad():
        assert encoder(torch.rand(2, 3, 24, 24)).shape == (2, width)


@pytest.mark.parametrize(("name", "tokens"), [("vit-d16-l2-p4", 65), ("vit-d16-l2-p4-avg", 64)])
def test_a_vision_transformer_is_timms_with_fixed_positions_and_its_last_norm_before_the_pooling(name, tokens):
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    encoder = make_encoder(name).eval()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    average = name.endswith("-avg")
    original = vision_transformer.VisionTransformer(
        **{"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 1, "num_classes": 0},
        class_token=not average,
        global_pool="",
        fc_norm=False,
    ).eval()
    original.load_state_dict(encoder.backbone.vit.state_dict())
    with torch.no_grad():
        every = original((x - 0.5) / 0.25)
        assert every.shape == (3, tokens, 16)
        torch.testing.assert_close(encoder(x), every.mean(dim=1) if average else every[:, 0])
        torch.testing.assert_close(encoder.tokens(x), every)
    positions = encoder.backbone.vit.pos_embed
    assert not positions.requires_grad
    # Sine and cosine of one angle: every patch's embedding has squared length F / 2.
    torch.testing.assert_close(positions[0, tokens - 64 :].square().sum(dim=1), torch.full((64,), 8.0))


def test_a_vision_transformer_encodes_other_sizes_by_interpolated_positions():
    encoder = make_encoder("vit-d16-l1-p4-avg").eval()
    with torch.no_grad():
        for side in (16, 24, 64):
            assert encoder.tokens(torch.rand(2, 3, side, side)).shape == (2, (side // 4) ** 2, 16)
        # Blind to content, what is left of an image is where its patches lie.
        encoder.backbone.vit.patch_embed.proj.weight.zero_()
        small, large = (
            encoder.backbone.preprocess(torch.rand(1, 3, side, side))[0].view(side // 4, side // 4, 16)
            for side in (16, 32)
        )
    halved = nn.functional.avg_pool2d(large.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    assert (small - halved).abs().max() < 0.35  # bicubic with antialiasing against the mean of four
    assert torch.corrcoef(torch.stack([small.flatten(), halved.flatten()]))[0, 1] > 0.98


def test_patches_that_are_kept_are_all_a_vision_transformer_sees():
    encoder = make_encoder("vit-d16-l1-p4-avg").eval()
    x, keep = torch.rand(2, 3, 16, 16), torch.tensor([[0, 5, 6], [1, 2, 15]])
    changed = x.clone()
    changed[0, :, 12:, :] = 0  # patches 12 to 15
    changed[1, :, 4:12, :] = 0  # patches 4 to 11
    with torch.no_grad():
        torch.testing.assert_close(encoder.tokens(changed, keep), encoder.tokens(x, keep))
        assert encoder.tokens(x, keep).shape == (2, 3, 16)


@pytest.mark.parametrize("name", ["vit-d18-l2-p4", "vit-d200-l2-p4", "vit-d16-l2-p5"])
def test_transformers_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} cannot be built: the width must be"):
        make_encoder(name)


def test_resnet20_has_the_published_number_of_parameters():
    # He et al. 2015, CIFAR: 0.27 M with a head of 650 and shortcuts without weights; ours are 1 x 1 convolutions.
    shortcuts = sum(a * b + 2 * b for a, b in ((16, 32), (32, 64)))
    assert count(make_encoder("resnet20-w16")) == 269_722 - 650 + shortcuts


def test_convolutions_start_with_kaimings_variance_over_the_fan_out():
    torch.manual_seed(0)
    for encoder in (make_encoder("resnet10-w32"), make_encoder("resnet18")):
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


def test_the_encoder_normalises_each_channel_by_its_statistics():
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    encoder = Encoder(nn.Flatten(), 12, mean, std)
    x = torch.rand(4, 3, 2, 2)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1).flatten(1)
    torch.testing.assert_close(encoder(x), expected)
    moved = Encoder(nn.Flatten(), 12, 0.3 * mean + 0.1, 0.3 * std)  # statistics of 0.3 x + 0.1
    torch.testing.assert_close(moved(0.3 * x + 0.1), expected)


def test_the_statistics_travel_with_the_weights():
    source = make_encoder("resnet10-w4", mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1)).eval()
    target = make_encoder("resnet10-w4").eval()
    target.load_state_dict(source.state_dict())
    with torch.no_grad():
        x = torch.rand(2, 3, 16, 16)
        assert torch.equal(source(x), target(x))


def test_random_weights_come_from_the_global_generator():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.flatten() for p in make_encoder("resnet10-w4").parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt18", "'resnt18'.*resnet18"),
        ("resnet50-w16", r"resnet\d+-w16"),
        ("resnet18-w0", "resnet18-w16"),
        ("resnet18-w", "resnet18"),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, words):
    with pytest.raises(ValueError, match=words):
        make_encoder(name)


@pytest.mark.parametrize("name", ["resnet18", "resnet10-w16"])
def test_published_weights_exist_for_timm_only(name):
    with pytest.raises(ValueError, match=f"no published weights for '{name}'"):
        make_encoder(name, pretrained=True)


# mobilenetv3 and ghostnet have a further layer between pooling and head; the last name carries its weights' tag.
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet10t", 32),
        ("mobilenetv3_small_050", 32),
        ("ghostnet_050", 32),
        ("vit_tiny_patch16_224", 224),
        ("vit_tiny_patch16_224.augreg_in21k", 224),
    ],
)
def test_timm_backbones_give_features_of_the_declared_width(name, side):
    pytest.importorskip("timm")
    encoder = make_encoder(f"timm:{name}").eval()
    with torch.no_grad():
        features = encoder(torch.rand(2, 3, side, side))
    assert features.shape == (2, encoder.feature_width)
    assert features.std() > 0


def test_an_unknown_timm_backbone_is_answered_with_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"'resnet18x'.*resnet18"):
        make_encoder("timm:resnet18x")


def test_features_equal_a_loop_over_images_and_leave_the_encoder_as_it_was():
    torch.manual_seed(0)
    encoder = make_encoder("resnet10-w4").train()
    for module in encoder.modules():  # else evaluation and training mode would not differ enough to tell
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    x = images(7)
    features = extract_features(encoder, x, batch_size=3)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    encoder.eval()
    with torch.no_grad():
        expected = torch.cat([encoder(image[None].double().div(255).float()) for image in x])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extract_features(encoder, x, batch_size=500), expected, rtol=1e-4, atol=1e-5)
    assert not encoder.training
    assert not features.requires_grad


def test_a_part_that_is_kept_in_evaluation_mode_stays_so():
    encoder = make_encoder("resnet10-w4").train()
    frozen = next(module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = [module.training for module in encoder.modules()]
    extract_features(encoder, torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert [module.training for module in encoder.modules()] == before
    assert not frozen.training
    with pytest.raises(RuntimeError):
        extract_features(encoder, torch.zeros(2, 5, 16, 16, dtype=torch.uint8))
    assert [module.training for module in encoder.modules()] == before


def test_features_of_a_module_without_parameters():
    x = images(3, side=2)
    assert torch.equal(extract_features(nn.Flatten(), x), x.flatten(1).float() / 255)


@pytest.mark.gpu
def test_features_come_back_from_cuda():
    encoder = make_encoder("resnet10-w4").eval()
    here = extract_features(encoder, images())
    torch.testing.assert_close(extract_features(encoder.cuda(), images()), here, rtol=1e-2, atol=1e-3)


def authors_projector(widths: list[int]) -> nn.Sequential:
    """Projector of main_vicreg.py, transcribed."""
    layers = []
    for i in range(len(widths) - 2):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.BatchNorm1d(widths[i + 1]), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_projector_is_the_authors(layers):
    ours, theirs = make_projector(6, 10, 8, layers), authors_projector([6, *[10] * (layers - 1), 8])
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(12, 6)
    assert torch.equal(ours(x), theirs(x))


def test_a_narrow_resnet_halves_the_resolution_at_each_stage_after_the_first():
    net, sides = NarrowResNet(4, (1, 2, 1)), []
    for module in net:
        if isinstance(module, BasicBlock):
            module.register_forward_hook(
                lambda _, inputs, output: sides.append((inputs[0].shape[-1], output.shape[-1]))
            )
    net(torch.rand(2, 3, 32, 32))
    assert sides == [(32, 32), (32, 16), (16, 16), (16, 8)]


@pytest.mark.slow
def test_a_stored_encoder_still_gives_its_records_figures():
    """Names and shapes of stored weights are an interface: a change of either would break every committed encoder."""
    stored = Path(__file__).parents[2] / "figures/results/tour/shapes/sag-vicreg-seed0"
    encoder = load_encoder(stored.with_suffix(".safetensors"))
    record = json.loads(stored.with_suffix(".json").read_text())
    bank, queries = (load_images("shapes", split) for split in ("train", "test"))
    features = [extract_features(encoder, of.images) for of in (bank, queries)]
    assert knn_accuracy(features[0], bank.labels, features[1], queries.labels) == pytest.approx(
        record["metrics"]["knn"], abs=2 / len(queries)
    )
