"""Series of pictures that are alike without being copies, and copies of pictures, for tests and benches.

series("text", 40)  ->  uint8 (40, 3, side, side), no two of them copies
copies(images)      ->  by kind, what a folder collects of the same picture
"""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

SIDE = 256  # pixels drawn at; scaled down as `load_images` does


def text(draw: np.random.Generator) -> Image.Image:
    """A page of dark words on white, lines and margins the same on each."""
    page, y = Image.new("RGB", (SIDE, SIDE), "white"), 20
    pen = ImageDraw.Draw(page)
    while y < SIDE - 20:
        x, end = 20, SIDE - 20 if draw.random() < 0.8 else int(draw.integers(60, SIDE - 20))
        while x < end:
            width = int(draw.integers(6, 34))
            for _ in range(width // 4):
                at = x + int(draw.integers(0, width))
                pen.line((at, y, at, y + 5), fill="black")
            pen.line((x, y + 5, min(x + width, end), y + 5), fill=(60, 60, 60))
            x += width + 6
        y += 11
    return page


def parts(draw: np.random.Generator) -> Image.Image:
    """A machine part under a camera that does not move: noise, a scratch, a little light."""
    shot = Image.new("RGB", (SIDE, SIDE), (90, 92, 95))
    pen = ImageDraw.Draw(shot)
    pen.ellipse((40, 40, 216, 216), fill=(150, 152, 158), outline=(40, 40, 40), width=4)
    pen.ellipse((100, 100, 156, 156), fill=(60, 60, 62))
    for k in range(6):
        a = k * np.pi / 3
        x, y = 128 + 68 * np.cos(a), 128 + 68 * np.sin(a)
        pen.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(30, 30, 30))
    x, y, a = draw.uniform(60, 190), draw.uniform(60, 190), draw.uniform(0, np.pi)
    pen.line((x, y, x + 40 * np.cos(a), y + 40 * np.sin(a)), fill=(210, 210, 210), width=2)
    noisy = np.asarray(shot) * draw.uniform(0.96, 1.04) + draw.normal(0, 4, (SIDE, SIDE, 1))
    return Image.fromarray(noisy.clip(0, 255).astype("uint8"))


def skies(draw: np.random.Generator) -> Image.Image:
    """A blue that grows lighter downwards, with faint clouds."""
    top, low = draw.uniform((40, 90, 160), (90, 140, 220)), draw.uniform((150, 180, 220), (220, 230, 255))
    ramp = np.linspace(0, 1, SIDE)[:, None, None]
    clouds = Image.fromarray((draw.random((6, 6)) * 255).astype("uint8")).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture = top * (1 - ramp) + low * ramp + draw.uniform(0, 25) * np.asarray(clouds)[..., None] / 255
    return Image.fromarray((picture + draw.normal(0, 1.5, (SIDE, SIDE, 1))).clip(0, 255).astype("uint8"))


def charts(draw: np.random.Generator) -> Image.Image:
    """A line chart: axes, grid and frame the same, another line."""
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(sheet)
    for k in range(6):
        pen.line((30, 30 + 40 * k, 240, 30 + 40 * k), fill=(215, 215, 215))
    pen.line((30, 20, 30, 230, 240, 230), fill="black", width=2)
    walk = 128 + np.cumsum(draw.normal(0, 12, 22))
    points = [(30 + 10 * k, float(np.clip(v, 25, 228))) for k, v in enumerate(walk)]
    pen.line(points, fill=(31, 119, 180), width=3)
    return sheet


def blank(draw: np.random.Generator) -> Image.Image:
    """An empty page from a scanner: paper, noise, a shadow at one edge."""
    shade = 245 - 30 * np.exp(-np.arange(SIDE) / draw.uniform(3, 15))[None, :, None]
    page = shade + draw.normal(0, 2, (SIDE, SIDE, 1))
    return Image.fromarray(np.broadcast_to(page, (SIDE, SIDE, 3)).clip(0, 255).astype("uint8"))


def scans(draw: np.random.Generator) -> Image.Image:
    """A slice through a head-like body: outline, skull and midline alike, tissue of its own."""
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    r = np.hypot(x / draw.uniform(0.66, 0.74), y / draw.uniform(0.82, 0.9))
    grains = Image.fromarray((draw.random((20, 20)) * 255).astype("uint8"))
    tissue = grains.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    body = np.where(r < 0.9, 70 + 50 * np.asarray(tissue) / 255, np.where(r < 1, 220, 8))
    body = np.where((np.abs(x) < 0.015) & (r < 0.85), 150, body) + draw.normal(0, 5, (SIDE, SIDE))
    return Image.fromarray(body.clip(0, 255).astype("uint8")).convert("RGB")


def dark(draw: np.random.Generator) -> Image.Image:
    """A photograph at night: nearly black, noise, a few lights."""
    shot = Image.new("RGB", (SIDE, SIDE), (6, 6, 9))
    pen = ImageDraw.Draw(shot)
    for _ in range(int(draw.integers(2, 6))):
        x, y, r = draw.uniform(10, 246), draw.uniform(10, 246), draw.uniform(2, 7)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in draw.integers(120, 255, 3)))
    noisy = np.asarray(shot.filter(ImageFilter.GaussianBlur(2))) + draw.normal(0, 3, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype("uint8"))


def logos(draw: np.random.Generator) -> Image.Image:
    """A flat mark on white: three shapes, since two marks of one triangle each may well be copies."""
    mark = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(mark)
    for _ in range(3):
        x, y = draw.uniform(30, 120, 2)
        box = (x, y, x + draw.uniform(60, 110), y + draw.uniform(60, 110))
        colour = tuple(int(v) for v in draw.integers(0, 200, 3))
        left, top, right, bottom = box
        kind = int(draw.integers(3))
        if kind == 2:
            pen.polygon(((left, bottom), (right, bottom), (left, top)), fill=colour)
        else:
            (pen.ellipse, pen.rectangle)[kind](box, fill=colour)
    return mark


def screenshots(draw: np.random.Generator) -> Image.Image:
    """A window with its bar, menu and sidebar, and another text in it."""
    page = text(draw)
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, SIDE, 18), fill=(50, 60, 80))
    pen.rectangle((0, 18, 60, SIDE), fill=(228, 230, 235))
    for k in range(8):
        pen.line((8, 34 + 16 * k, 20 + (k * 37) % 32, 34 + 16 * k), fill=(110, 110, 120), width=3)
    return page


FAMILIES = (text, parts, skies, charts, blank, scans, dark, logos, screenshots)


def series(name: str, n: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    """Pictures of a family, scaled as a folder's are; uint8 (n, 3, side, side)."""
    draw, made = np.random.default_rng(seed), {family.__name__: family for family in FAMILIES}[name]
    return torch.stack([as_tensor(made(draw).resize((side, side), Image.Resampling.BICUBIC)) for _ in range(n)])


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def as_picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(picture: Image.Image, share: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """A share of each side, at a place from 0 (left, top) to 1, scaled back to the size before."""
    w, h = picture.size
    left, top = x * (1 - share) * w, y * (1 - share) * h
    box = (left, top, left + share * w, top + share * h)
    return picture.resize((w, h), Image.Resampling.BICUBIC, box)


COPIES = {
    "JPEG q30": lambda p: compressed(p, 30),
    "JPEG q10": lambda p: compressed(p, 10),
    "brightness 1.4": lambda p: ImageEnhance.Brightness(p).enhance(1.4),
    "grey": lambda p: p.convert("L").convert("RGB"),
    "crop to 90 %": lambda p: cropped(p, 0.9),
    "crop to 90 %, corner": lambda p: cropped(p, 0.9, 0.0, 0.0),
    "half the size and back": lambda p: p.resize((p.width // 2, p.height // 2)).resize(p.size),
}


def copies(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Copies of pictures by kind, each uint8 of the same shape."""
    return {name: torch.stack([as_tensor(change(as_picture(i))) for i in images]) for name, change in COPIES.items()}
