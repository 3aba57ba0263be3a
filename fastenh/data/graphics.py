"""Pictures that are no photographs, made by code: text, screens, logos, charts, thermal images, drawings, ramps.

A retoucher should leave them as they are; these examples teach it to recognise them. Fonts and colour maps come with
matplotlib, so the pictures are the same on every machine.
"""

from __future__ import annotations

import colorsys
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

Colour = tuple[int, ...]
WHITE: Colour = (255, 255, 255)

THERMAL = ["inferno", "magma", "plasma", "jet", "hot", "viridis", "turbo", "gnuplot2", "gray", "nipy_spectral",
           "rainbow", "afmhot", "CMRmap", "cividis", "coolwarm"]  # fmt: skip


def graphic(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """A picture of a random kind, RGB, of some 100 to 510 pixels a side. Some screens and thermal images show
    `photo`."""
    kind = rng.choice(7, p=[0.2, 0.22, 0.14, 0.18, 0.16, 0.05, 0.05])
    if kind == 1:
        return screen(rng, photo)
    if kind == 3:
        return thermal_image(rng, photo)
    return [page, screen, logo, thermal_image, drawing, ramps, chart][kind](rng)  # type: ignore[operator]


def page(rng: np.random.Generator) -> Image.Image:
    """Lines of text on paper, some as a scanner sees them: soft, noisy, unevenly lit."""
    width, height = (int(n) for n in rng.integers(200, 512, 2))
    paper: Colour = WHITE
    ink: Colour = (int(rng.integers(0, 60)),) * 3
    if rng.random() < 0.5:
        grey = float(np.clip(rng.normal(245, 12), 190, 255))
        paper = (int(grey), int(grey - rng.integers(0, 8)), int(grey - rng.integers(0, 30)))
    if rng.random() < 0.3:
        ink = any_colour(rng, saturation=0.3)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    size, y = int(rng.integers(8, 26)), int(rng.integers(4, 40))
    typeface = any_font(rng, size)
    while y < height - size:
        if rng.random() < 0.9:
            draw.text((int(rng.integers(5, 25)), y), words(rng, int(rng.integers(3, 14))), ink, typeface)
        y += int(size * rng.uniform(1.1, 1.8))
    if rng.random() < 0.5:
        return image
    scanned = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2))), np.float32)
    uneven = np.linspace(-1, 1, height)[:, None, None] * rng.normal(0, 8)
    return to_image(scanned + rng.normal(0, rng.uniform(0, 6), (height, width, 1)) + uneven)


def screen(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """Windows with bars, buttons and text, light or dark, a few with a photograph."""
    width, height = int(rng.integers(300, 512)), int(rng.integers(220, 512))
    base = int(rng.integers(15, 60)) if rng.random() < 0.35 else int(rng.integers(225, 256))
    back = tuple(int(v) for v in (base + rng.integers(-4, 5, 3)).clip(0, 255))
    fore, accent = tuple(255 - v for v in back), any_colour(rng)
    image = Image.new("RGB", (width, height), back)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.4:  # a window before a desktop
        image.paste(any_colour(rng), (0, 0, width, height))
        draw.rectangle((width // 12, height // 12, width * 11 // 12, height * 11 // 12), back)
    bar = accent if rng.random() < 0.5 else tuple(max(0, v - 20) for v in back)
    draw.rectangle((0, 0, width, int(rng.integers(12, 36))), bar)
    if rng.random() < 0.6:
        shade = rng.uniform(0.8, 1)
        draw.rectangle((0, 20, int(width * rng.uniform(0.1, 0.3)), height), tuple(int(v * shade) for v in back))
    for _ in range(int(rng.integers(3, 30))):
        x, y, wide, tall = (int(rng.integers(*ends)) for ends in ((0, width), (0, height), (8, 120), (6, 50)))
        kind = rng.random()
        if kind < 0.3:
            fill = any_colour(rng) if rng.random() < 0.4 else tuple(max(0, v - 15) for v in back)
            draw.rounded_rectangle((x, y, x + wide, y + tall), 4, fill, fore if rng.random() < 0.3 else None)
        elif kind < 0.85:
            ink = fore if rng.random() < 0.8 else accent
            draw.text((x, y), words(rng, int(rng.integers(1, 8))), ink, any_font(rng, int(rng.integers(8, 18))))
        else:
            draw.ellipse((x, y, x + tall, y + tall), any_colour(rng))
    if rng.random() < 0.3:
        small = ImageOps.contain(photo, (int(width * rng.uniform(0.15, 0.4)),) * 2)
        image.paste(small, (int(rng.integers(width // 2)), int(rng.integers(height // 2))))
    return image


def logo(rng: np.random.Generator) -> Image.Image:
    """A few flat shapes and large letters."""
    side = int(rng.integers(96, 400))
    image = Image.new("RGB", (side, side), WHITE if rng.random() < 0.5 else any_colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 7))):
        (x, y), (wide, tall) = rng.integers(-side // 4, side, 2).tolist(), rng.integers(side // 8, side, 2).tolist()
        kind, colour = rng.integers(4), any_colour(rng)
        if kind == 0:
            draw.ellipse((x, y, x + wide, y + tall), colour)
        elif kind == 1:
            draw.rectangle((x, y, x + wide, y + tall), colour)
        elif kind == 2:
            draw.polygon([tuple(rng.integers(0, side, 2).tolist()) for _ in range(int(rng.integers(3, 7)))], colour)
        else:
            draw.text((x // 2, y // 2), words(rng, 1), colour, any_font(rng, int(rng.integers(side // 8, side // 2))))
    return image


def thermal_image(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """Temperatures in false colours: a blurred scene or blobs, some with a scale and a reading."""
    height, width = (int(n) for n in rng.integers(160, 400, 2))
    if rng.random() < 0.7:
        scene = ImageOps.fit(photo.convert("L"), (width, height)).filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4)))
        heat = np.asarray(scene, np.float32)
        heat = (heat - heat.min()) / max(np.ptp(heat), 1)
    else:
        heat = noise(rng, height, width, rng.uniform(1.2, 2.2))
    heat = heat ** np.exp(rng.normal(0, 0.4))
    low, high = sorted(rng.random(2))
    if high - low >= 0.3 and rng.random() < 0.4:
        heat = low + (high - low) * heat
    colours = matplotlib.colormaps[THERMAL[rng.integers(len(THERMAL))]]
    image = to_image(colours(heat)[..., :3] * 255)
    if rng.random() < 0.5:
        draw, scale = ImageDraw.Draw(image), matplotlib.colormaps["inferno"]
        for y in range(height // 5, height * 4 // 5):
            draw.line((width - 14, y, width - 6, y), tuple(int(v * 255) for v in scale(1 - y / height)[:3]))
        draw.text((4, 4), f"{rng.uniform(0, 60):.1f}C", WHITE, any_font(rng, 14))
    return image


def drawing(rng: np.random.Generator) -> Image.Image:
    """Areas of a few colours, some with outlines, shading, grain or canvas, and strokes of a pen."""
    height, width = (int(n) for n in rng.integers(180, 420, 2))
    count = int(rng.integers(2, 9))
    palette = np.array([any_colour(rng) for _ in range(count)], np.float32)
    field = noise(rng, height, width, rng.uniform(1.6, 2.4))
    if rng.random() < 0.5:
        field = field + np.linspace(0, rng.normal(0, 1), height)[:, None]
        field = (field - field.min()) / np.ptp(field)
    area = np.digitize(field, np.sort(rng.random(count - 1)))
    paint = palette[area]
    if rng.random() < 0.6:
        paint = paint * (1 + rng.normal(0, 0.25) * np.linspace(-1, 1, height)[:, None, None])
        paint = paint + rng.normal(0, 25, 3) * np.linspace(-1, 1, width)[None, :, None]
    if rng.random() < 0.6:
        edge = np.abs(np.diff(area, axis=0, prepend=area[:1])) + np.abs(np.diff(area, axis=1, prepend=area[:, :1])) > 0
        paint[edge] = 20 if rng.random() < 0.7 else 240
    if rng.random() < 0.4:
        paint = paint + rng.normal(0, rng.uniform(0, 14), (height, width, 1))
    if rng.random() < 0.3:
        paint = paint * (0.7 + 0.6 * noise(rng, height, width, 1.0)[..., None])
    image = to_image(paint)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 25))):
        steps = rng.normal(0, 25, (int(rng.integers(2, 12)), 2)).cumsum(0) + rng.random(2) * (width, height)
        ink = (20, 20, 20) if rng.random() < 0.6 else any_colour(rng)
        draw.line([(x, y) for x, y in steps.tolist()], ink, int(rng.integers(1, 5)))
    return image


def ramps(rng: np.random.Generator) -> Image.Image:
    """Smooth colour gradients: between four corners, from black to one saturated hue, or to twelve hues and white."""
    height, width = (int(n) for n in rng.integers(100, 400, 2))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    kind = rng.integers(3)
    if kind == 0:
        a, b, c, d = (np.array(any_colour(rng), np.float32) for _ in range(4))
        return to_image((a * (1 - x) + b * x) * (1 - y) + (c * (1 - x) + d * x) * y)
    ends = 255 * np.array([*(colorsys.hsv_to_rgb(hue / 12, 1, 1) for hue in range(12)), (1, 1, 1)])
    if kind == 1:
        return to_image(ends[rng.integers(12)] * x * np.ones((height, 1, 1)))
    return to_image(np.repeat(ends, height // 13 + 1, 0)[:, None] * x)


def chart(rng: np.random.Generator) -> Image.Image:
    """A chart by matplotlib."""
    figure = Figure(figsize=(4, 3), dpi=100)
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    kind, count = rng.integers(4), int(rng.integers(2, 6))
    if kind == 0:
        axes.plot(rng.normal(size=(50, count)).cumsum(0))
    elif kind == 1:
        axes.bar(range(count), rng.random(count), color=[np.array(any_colour(rng)) / 255 for _ in range(count)])
    elif kind == 2:
        axes.imshow(noise(rng, 40, 60, 1.5), cmap=THERMAL[rng.integers(len(THERMAL))])
    else:
        x, y = rng.normal(size=(2, 100))
        axes.scatter(x, y, c=rng.random(100), s=rng.random(100) * 60)
    axes.set_title(words(rng, 4))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


# ---- their parts


def any_colour(rng: np.random.Generator, saturation: float | None = None) -> Colour:
    hue, value = rng.random(), rng.random() ** 0.5
    rgb = colorsys.hsv_to_rgb(hue, rng.random() if saturation is None else saturation, value)
    return tuple(int(255 * v) for v in rgb)


def any_font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    files = font_files()
    return ImageFont.truetype(files[rng.integers(len(files))], size)


@cache
def font_files() -> list[str]:
    return sorted(str(file) for file in Path(matplotlib.get_data_path(), "fonts/ttf").glob("DejaVu*.ttf"))


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(
        "".join(chr(97 + letter) for letter in rng.integers(26, size=rng.integers(1, 10))) for _ in range(count)
    )


def noise(rng: np.random.Generator, height: int, width: int, slope: float) -> np.ndarray:
    """(height, width) in [0, 1]: 1/f^slope noise."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(frequency**-slope * np.exp(2j * np.pi * rng.random(frequency.shape)), (height, width))
    return (field - field.min()) / np.ptp(field)


def to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
