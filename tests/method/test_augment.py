"""Views: every operation equals torchvision's, boxes follow its law, chunks and order of drawing change nothing."""

import pytest
import torch
from scipy.stats import binomtest, ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from sagkit import augment
from sagkit.augment import Augmentation, channel_statistics, crop_resize, random_boxes, two_views

PLAIN = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "solarize": 0.0, "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}


@pytest.fixture
def floats():
    x = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[0] = 0.5  # grey everywhere: no hue
    x[1, :, :16] = 1.0
    x[2, 0] = x[2, 1]  # two channels tie for the largest
    return x


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (augment.adjust_brightness, tv.adjust_brightness, 0.2, 1.8),
        (augment.adjust_contrast, tv.adjust_contrast, 0.2, 1.8),
        (augment.adjust_saturation, tv.adjust_saturation, 0.0, 2.0),
        (augment.adjust_hue, tv.adjust_hue, -0.5, 0.5),
    ],
)
def test_a_colour_operation_equals_torchvision_with_a_factor_per_image(floats, ours, theirs, low, high):
    factor = torch.linspace(low, high, len(floats))
    expected = torch.stack([theirs(x, float(f)) for x, f in zip(floats, factor, strict=True)])
    torch.testing.assert_close(ours(floats, factor), expected, atol=1e-5, rtol=0)


def test_grey_and_solarize_equal_torchvision(floats):
    grey = torch.stack([tv.rgb_to_grayscale(x, num_output_channels=1) for x in floats])
    torch.testing.assert_close(augment.luma(floats), grey, atol=1e-6, rtol=0)
    torch.testing.assert_close(augment.solarize(floats), tv.solarize(floats, 0.5), atol=0, rtol=0)


def test_blur_equals_torchvision_with_a_sigma_per_image(floats):
    sigma = torch.linspace(0.1, 2.0, len(floats))
    big = torch.nn.functional.interpolate(floats, size=64)
    expected = torch.stack([tv.gaussian_blur(x, [7, 7], [float(s)]) for x, s in zip(big, sigma, strict=True)])
    torch.testing.assert_close(augment.gaussian_blur(big, sigma), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [8, 24, 32, 48])
def test_a_crop_equals_torchvision_resized_crop_up_and_down(floats, size):
    boxes = random_boxes(len(floats), 32, 32, (0.05, 1.0), (3 / 4, 4 / 3), torch.Generator().manual_seed(2))
    expected = [
        tv.resized_crop(x, *box, [size, size], antialias=True) for x, box in zip(floats, boxes.tolist(), strict=True)
    ]
    torch.testing.assert_close(crop_resize(floats, boxes, size), torch.stack(expected), atol=1e-5, rtol=0)
    mirrored = crop_resize(floats, boxes, size, torch.ones(len(floats), dtype=torch.bool))
    torch.testing.assert_close(mirrored, torch.stack(expected).flip(3), atol=1e-5, rtol=0)


def test_boxes_follow_the_law_of_torchvision():
    n = 4000
    ours = random_boxes(n, 40, 56, (0.2, 1.0), (3 / 4, 4 / 3), torch.Generator().manual_seed(3)).double()
    torch.manual_seed(4)
    blank = torch.empty(3, 40, 56)
    theirs = [RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = torch.tensor(theirs, dtype=torch.float64)
    for column in range(4):  # four tests at 1e-4 each: one false alarm in 2,500 seeds, and the seed is fixed
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    assert ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 1e-4
    top, left, height, width = ours.unbind(1)
    assert ((top >= 0) & (left >= 0) & (top + height <= 40) & (left + width <= 56)).all()


def test_a_box_that_never_fits_falls_back_to_the_largest_central_one():
    boxes = random_boxes(5, 10, 100, (1.0, 1.0), (3 / 4, 4 / 3), torch.Generator().manual_seed(0))
    assert boxes.unique(dim=0).tolist() == [[0, 43, 10, 13]]  # 10 high, 13 wide: ratio 4/3, as torchvision


@pytest.mark.slow
def test_the_chunk_size_changes_no_value(pictures, monkeypatch):
    recipe = Augmentation(blur=0.5, size=24)
    whole = recipe(pictures, torch.Generator().manual_seed(5))
    for chunk in (1, 7, 1000):
        monkeypatch.setattr(augment, "CHUNK", chunk)
        torch.testing.assert_close(recipe(pictures, torch.Generator().manual_seed(5)), whole, atol=1e-6, rtol=0)


def test_views_depend_on_the_generator_alone(pictures):
    torch.manual_seed(0)
    a, b = two_views(pictures, Augmentation(), torch.Generator().manual_seed(6))
    torch.manual_seed(1)
    again_a, again_b = two_views(pictures, Augmentation(), torch.Generator().manual_seed(6))
    assert torch.equal(a, again_a)
    assert torch.equal(b, again_b)
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("flip", lambda x: x.flip(3)),
        ("grey", lambda x: augment.luma(x).expand_as(x)),
        ("solarize", augment.solarize),
    ],
)
def test_an_operation_happens_with_its_probability(pictures, field, changed):
    view = Augmentation(**{**PLAIN, field: 0.3})(pictures, torch.Generator().manual_seed(7))
    plain = pictures.float() / 255
    unchanged = (view - plain).abs().amax(dim=(1, 2, 3)) < 1e-5
    done = (view - changed(plain)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (unchanged ^ done).all()
    assert binomtest(int(done.sum()), len(pictures), 0.3).pvalue > 1e-3


def test_jitter_factors_are_uniform_in_their_range_and_spare_a_fifth_of_the_images():
    grey = torch.full((3000, 3, 4, 4), 100, dtype=torch.uint8)
    recipe = Augmentation(**{**PLAIN, "jitter": 0.8}, contrast=0.0, saturation=0.0, hue=0.0)
    factor = recipe(grey, torch.Generator().manual_seed(8))[:, 0, 0, 0] / (100 / 255)
    moved = (factor - 1).abs() > 1e-4
    assert binomtest(int(moved.sum()), 3000, 0.8).pvalue > 1e-3
    assert kstest(factor[moved], "uniform", args=(0.6, 0.8)).pvalue > 1e-3


def test_channel_statistics_equal_the_two_pass_figures(pictures):
    mean, std = channel_statistics(pictures)
    x = pictures.double() / 255
    torch.testing.assert_close(torch.tensor(mean), x.mean(dim=(0, 2, 3)).double(), check_dtype=False)
    torch.testing.assert_close(torch.tensor(std), x.std(dim=(0, 2, 3), correction=0), check_dtype=False)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 3, 8, 8), "must be uint8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(2, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"B >= 1"),
    ],
)
def test_bad_images_are_refused_in_one_line(images, words):
    check = augment._check  # the signature's shape check would speak first, and only in tests
    with pytest.raises(ValueError, match=words) as error:
        check(images)
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_views_are_made_on_the_device_of_the_images(pictures):
    generator = torch.Generator("cuda").manual_seed(0)
    view = Augmentation(blur=0.5)(pictures.cuda(), generator)
    assert view.device.type == "cuda"
    assert 0 <= float(view.min()) <= float(view.max()) <= 1


def test_no_view_waits_for_its_device():
    """On the device `meta` nothing has a value, so that to read one back is an error."""
    images = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="meta")
    assert Augmentation(size=8, blur=0.5)(images).shape == (4, 3, 8, 8)


def test_views_under_autocast_are_those_without_it(pictures):
    views = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            views.append(Augmentation(blur=0.5)(pictures, torch.Generator().manual_seed(3)))
    assert torch.equal(*views)


@pytest.mark.gpu
def test_the_order_on_a_gpu_follows_from_the_generator_and_changes_from_view_to_view():
    generator = torch.Generator("cuda").manual_seed(0)
    orders = []
    for _ in range(20):
        orders.append(augment._order(generator, generator.device))
        assert augment._order(generator, generator.device) == orders[-1]  # takes no number from it
        torch.rand(1, generator=generator, device="cuda")
    assert len(set(map(tuple, orders))) > 5
