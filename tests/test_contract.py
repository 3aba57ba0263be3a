"""The contract between systems and pipelines, proved with six small systems: each runs on whole images, in tiles,
through files, by strips and in a stream, and no pipeline knows any of them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import imagecodecs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastenh import Enhancer
from fastenh.io import Photo, read_photo, write_photo
from fastenh.io.formats.base import Header
from fastenh.io.metadata import Metadata
from fastenh.io.photos import open_photo
from fastenh.models import Condition, Picture, Prepared, Sides, System
from fastenh.models.system import write_tile
from fastenh.ops.op import to_float
from fastenh.pipelines import large
from fastenh.pipelines import photo as one_photo
from fastenh.tiles import Place, enlarge

RNG = np.random.default_rng(3)


class Doubler(System):
    """Enlarges by 2, each pixel from the 7×7 around it."""

    scale = 2
    reach = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 7, padding=3)

    def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
        x = to_float(image)
        change = F.pixel_shuffle(self.conv(x), 2)
        return write_tile(x.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.1 * change, image, out)


class Mix(Condition):
    """Weights of named styles, by name or as text: a:0.5,b:0.5."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.default = {names[0]: 1.0}

    def parse(self, text: str) -> dict[str, float]:
        return {name: float(weight or 1) for name, _, weight in (part.partition(":") for part in text.split(","))}

    def check(self, value: Mapping[str, float]) -> list[tuple[str, float]]:
        """As pairs, which are not a valid value themselves."""
        if unknown := sorted(set(value) - set(self.names)):
            raise ValueError(f"style: expected {', '.join(self.names)}, got {', '.join(unknown)}")
        return sorted(value.items())


class Styled(System):
    """Raises colours to a power that the style decides."""

    reach = 0
    colour_map = True
    conditions: ClassVar = {"style": Mix(("a", "b")), "gain": Condition()}
    conditions["gain"].parse = float  # type: ignore[method-assign]
    conditions["gain"].default = 1.0
    POWERS: ClassVar = {"a": 1.0, "b": 0.5}

    def predict(self, picture: Picture, style: list[tuple[str, float]], gain: float) -> tuple[Tensor, ...]:
        power = sum(weight * self.POWERS[name] for name, weight in style)
        return (torch.full((len(picture.overview), 2), 0.0) + torch.tensor([power, gain]),)

    def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
        power, gain = params[0].T[:, :, None, None, None]
        return write_tile((gain * to_float(image)) ** power, image, out)


class Normaliser(System):
    """Two statistics of the whole image, the second of the image normalised by the first, each in a pass over tiles."""

    reach = 0

    def predict(self, picture: Picture) -> tuple[Tensor, ...]:
        count = picture.size[0] * picture.size[1]
        mean = torch.zeros(())
        for tile, _, inner in picture.tiles(side=16):
            mean = mean + to_float(tile[..., *inner]).sum((2, 3), keepdim=True) / count
        spread = torch.zeros(())
        for tile, _, inner in picture.tiles(side=16, halo=2):
            spread = spread + (to_float(tile[..., *inner]) / mean - 1).square().sum((2, 3), keepdim=True) / count
        return mean, spread

    def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
        mean, spread = params
        x = to_float(image)
        return write_tile(0.5 + 0.2 * ((x / mean - 1) / spread.sqrt()).tanh(), image, out)


class Mapped(System):
    """Lightens by a map at a twelfth of the size, which is enlarged as tiles are rendered."""

    reach = 0

    def prepare(self, picture: Picture, params: Any) -> Prepared:
        height, width = picture.size
        small = picture.thumbnail((-(-height // 12), -(-width // 12)))
        return Prepared((1 - F.avg_pool2d(small, 3, 1, 1)) * 0.5)

    def render(self, image: Tensor, params: Any, local: Tensor, place: Place, out: Tensor | None = None) -> Tensor:
        x = to_float(image)
        maps = enlarge(local, place, (x.shape[2], x.shape[3]), align_corners=True)
        return write_tile(x + maps * x * (1 - x), image, out)


class Vignette(System):
    """Darkens the corners: each pixel depends on itself alone and on where it is."""

    reach = 0

    def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
        y = (torch.arange(image.shape[2])[:, None] + place.top) / place.height
        x = (torch.arange(image.shape[3]) + place.left) / place.width
        return write_tile(to_float(image) * (1 - 0.6 * y.square() - 0.3 * x), image, out)


class Boxes(System):
    """Finds the pixels that are pure red, and inverts the box around each."""

    reach = 0
    SIZE = 5

    def prepare(self, picture: Picture, params: Any) -> Prepared:
        boxes = []
        for tile, place, (rows, columns) in picture.tiles(halo=1, side=32):
            red, green, blue = to_float(tile[0, :, rows, columns])
            for y, x in ((red > 0.9) & (green < 0.1) & (blue < 0.1)).nonzero().tolist():
                boxes.append((place.top + rows.start + y, place.left + columns.start + x))
        return Prepared(boxes, () if boxes else ("no red pixel found",))

    def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
        x = to_float(image).clone()
        for top, left in local:
            y, z = top - place.top, left - place.left
            part = x[..., max(y - self.SIZE, 0) : max(y + self.SIZE, 0), max(z - self.SIZE, 0) : max(z + self.SIZE, 0)]
            part.copy_(1 - part)
        return write_tile(x, image, out)


SYSTEMS = {system.__name__: system for system in (Doubler, Styled, Normaliser, Mapped, Vignette, Boxes)}


def picture(height: int, width: int, channels: int = 3, dtype: str = "uint8", reds: int = 3) -> np.ndarray:
    """Smooth colours with noise, and a few red pixels."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([y / height, x / width, (y + x) / (height + width), 0 * y + 0.7], -1)[..., :channels]
    pixels = np.clip(0.2 + 0.5 * smooth + RNG.uniform(-0.05, 0.05, (height, width, channels)), 0, 1)
    for _ in range(reds):
        pixels[RNG.integers(height), RNG.integers(width), :3] = (1, 0, 0)
    return (pixels * {"uint8": 255, "uint16": 65535}.get(dtype, 1)).astype(dtype)


def to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


# ---- whole images and tiles


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-6), ("uint16", 1.01 / 65535), ("uint8", 1.01 / 255)])
def test_tiles_are_the_whole(name: str, dtype: str, near: float) -> None:
    model = SYSTEMS[name]()
    image = to_tensor(picture(61, 83, dtype=dtype))
    whole = Enhancer(model, "cpu")(image)
    assert whole.shape == (3, 61 * model.scale, 83 * model.scale) and whole.dtype == image.dtype
    model.tile = 17
    tiles = Enhancer(model, "cpu")(image)
    full = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    assert (whole.double() - tiles.double()).abs().max() / full <= (1e-5 if name == "Normaliser" else near)
    if name not in ("Doubler", "Styled"):  # which leaves colours as they are by default
        assert (whole.double() - image.double()).abs().mean() / full > 1e-3
    forward = model(image[None].float() / full).clamp(0, 1)
    assert (forward[0] - whole.float() / full).abs().max() <= max(near, 1e-5)


@pytest.mark.parametrize("strength", [0, 0.25])
def test_strength_blends_with_the_enlarged_image(strength: float) -> None:
    model, image = Doubler(), to_tensor(picture(20, 31, dtype="float32"))
    base = F.interpolate(image[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    expected = base.lerp(model(image[None])[0], strength).clamp(0, 1)
    torch.testing.assert_close(Enhancer(model, "cpu")(image, strength), expected, rtol=0, atol=1e-6)


def test_every_kind_of_image_is_enlarged() -> None:
    enhancer = Enhancer(Doubler(), "cpu")
    pixels = picture(19, 23)
    expected = enhancer(pixels)
    assert expected.shape == (38, 46, 3)
    batch = enhancer(to_tensor(pixels)[None].repeat(2, 1, 1, 1))
    assert np.array_equal(batch[1].permute(1, 2, 0), expected)
    for mode in ("L", "LA", "RGB"):
        assert enhancer(Image.fromarray(pixels).convert(mode)).mode == mode
    result = enhancer(Image.fromarray(np.dstack([pixels, pixels[..., :1]])))
    assert result.mode == "RGBA" and np.array_equal(np.asarray(result)[..., :3], expected)
    alpha = F.interpolate(torch.from_numpy(pixels[None, None, :, :, 0]) / 255.0, scale_factor=2, mode="bilinear")
    assert np.abs(np.asarray(result)[..., 3] - 255 * alpha[0, 0].numpy()).max() <= 0.501
    both = enhancer(pixels, denoise=True, protect_highlights=True)
    assert both.shape == expected.shape and 0 < np.abs(both.astype(int) - expected).mean() < 10


class Padded(System):
    """Needs sides of multiples of 8, square, and at least 16."""

    sides = Sides(multiple_of=8, minimum=16, square=True)
    reach = 4

    def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
        height, width = image.shape[2:]
        assert height == width >= 16 and height % 8 == 0
        x = to_float(image)
        small = F.avg_pool2d(x, 4)  # reaches 3 pixels, from where multiples of 4 begin
        return write_tile(x * 0.5 + 0.5 * F.interpolate(small, scale_factor=4.0), image, out)


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (33, 71)])
@pytest.mark.parametrize("tile", [None, 24])
def test_sides_are_padded_and_cropped(size: tuple[int, int], tile: int | None) -> None:
    model, image = Padded(), to_tensor(picture(*size, dtype="float32"))
    model.tile = tile
    height, width = (-(-length // 4) * 4 for length in size)
    padded = F.pad(image[None], (0, width - size[1], 0, height - size[0]), mode="replicate")
    expected = (padded + F.interpolate(F.avg_pool2d(padded, 4), scale_factor=4.0)) / 2
    result = Enhancer(model, "cpu")(image)
    torch.testing.assert_close(result, expected[0, :, : size[0], : size[1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("align_corners", [True, False])
def test_maps_are_enlarged_in_padding_too(align_corners: bool) -> None:
    maps = torch.rand(1, 2, 5, 7)
    whole = enlarge(maps, Place(0, 0, 40, 60), (40, 60), align_corners=align_corners)
    padded = enlarge(maps, Place(0, 0, 40, 60), (64, 64), align_corners=align_corners)
    torch.testing.assert_close(padded[..., :40, :60], whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded[..., 40:, :60], whole[..., -1:, :].expand(-1, -1, 24, -1), rtol=0, atol=0.2)


@pytest.mark.parametrize("orientation", [1, 3, 4, 6, 7, 8])
def test_strips_of_a_system_with_sides_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    class Even(Padded):
        sides = Sides(multiple_of=8)

        def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
            x = to_float(image)
            return write_tile(F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0), image, out)

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(75, 53)).save(tmp_path / "a.png", exif=exif)
    enhancer = Enhancer(Even(), "cpu")
    enhancer.enhance_files(tmp_path / "a.png", tmp_path / "whole.tif")
    monkeypatch.setattr(one_photo, "LARGE", 100)
    monkeypatch.setattr(large, "STRIP", 53 * 17)
    enhancer.enhance_files(tmp_path / "a.png", tmp_path / "strips.png")
    whole, strips = (read_photo(tmp_path / name).pixels.astype(int) for name in ("whole.tif", "strips.png"))
    assert np.abs(whole - strips).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pass_over_tiles_decodes_a_file_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(75, 53)).save(tmp_path / "a.png", exif=exif)
    rows = open_photo(tmp_path / "a.png")
    decoded, decode = [], rows._decode
    rows._decode = lambda first, end: decoded.extend(range(first, end)) or decode(first, end)
    on_disk = large.FilePicture(rows, Enhancer(Styled(), "cpu").engine)
    on_disk.tall = 16
    upright = read_photo(tmp_path / "a.png").pixels
    found = np.zeros((3, *on_disk.size))
    for pixels, place, (inner_rows, columns) in on_disk.tiles(halo=3, side=20):
        top, left = place.top + inner_rows.start, place.left + columns.start
        part = pixels[0, :, inner_rows, columns]
        found[:, top : top + part.shape[1], left : left + part.shape[2]] += part.numpy()
        whole = upright[place.top : place.top + pixels.shape[2], place.left : place.left + pixels.shape[3]]
        assert np.abs(pixels[0].permute(1, 2, 0).numpy() * 255 - whole).max() < 0.01
    assert np.abs(found.transpose(1, 2, 0) * 255 - upright).max() < 0.01
    assert len(decoded) <= 75 + 4 * 6  # and the rows that bands share


def test_tiles_that_overlap_are_feathered() -> None:
    """Each tile has its own light, as of a network that sees all of a tile; between tiles it changes gradually."""

    class Levels(System):
        overlap = 8
        tile = 16

        def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
            return image * 0 + (place.top + place.left) / 200

    result = Enhancer(Levels(), "cpu")(torch.zeros(3, 50, 61))
    steps = max(result.diff(dim=dim).abs().max() for dim in (1, 2))
    assert 0 < steps <= 2 * 16 / 200 / 8 + 1e-6 and result[0, 0, 0] == 0  # twice where the last tile is narrow
    constant = Enhancer(type("Same", (Levels,), {"render": lambda self, image, *_: image.clone()})(), "cpu")
    image = torch.rand(3, 50, 61)
    torch.testing.assert_close(constant(image), image)
    image = (image * 255).to(torch.uint8)
    assert torch.equal(constant(image), image)


def test_a_model_that_returns_another_size_is_one_line() -> None:
    class Half(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[..., ::2, ::2]

    for strength in (0.5, 1.0):
        with pytest.raises(
            ValueError, match=r"^model: expected a result of shape \(1, 3, 8, 10\), got \(1, 3, 4, 5\)$"
        ):
            Enhancer(Half(), "cpu")(torch.rand(3, 8, 10), strength)


def test_tensors_of_the_user_and_of_the_system_are_not_clamped() -> None:
    class Itself(System):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.full((1, 3, 4, 5), 2.0))

        def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
            return image if image[0, 0, 0, 0] > 1 else self.table

    model, image = Itself(), torch.full((3, 4, 5), 1.5)
    result = Enhancer(model, "cpu")(image)
    assert torch.equal(result, torch.ones(3, 4, 5)) and torch.equal(image, torch.full((3, 4, 5), 1.5))
    assert torch.equal(Enhancer(model, "cpu")(image - 1), torch.ones(3, 4, 5)) and (model.table == 2).all()
    pixels = to_tensor(picture(4, 5)) + 2
    result = Enhancer(model, "cpu")(pixels)
    assert torch.equal(result, pixels) and result.data_ptr() != pixels.data_ptr()


def test_notes_of_a_model_are_its_own() -> None:
    class Bare(System):
        pass

    model = Bare()
    model.about |= {"licence": "mine"}
    assert model.about == {"licence": "mine"} and Bare().about == {}


def test_a_result_of_another_dtype_is_one_line() -> None:
    class Floats(System):
        def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
            return image.float()

    with pytest.raises(ValueError, match=r"^model: expected a result of torch.uint8, as the image; got torch.float32$"):
        Enhancer(Floats(), "cpu")(picture(4, 5))


def test_conditions_do_not_shadow_arguments() -> None:
    strong = type("Strong", (Styled,), {"conditions": {"strength": Condition()}})()
    with pytest.raises(ValueError, match=r"^model: expected other names of conditions than strength, which are taken$"):
        Enhancer(strong, "cpu")


def test_a_model_without_bounds_gets_the_numbers_of_the_file(tmp_path: Path) -> None:
    class Shift(System):
        bounded = False
        reach = 0

        def render(self, image: Tensor, params: Any, local: Any, place: Place, out: Tensor | None = None) -> Tensor:
            assert image.is_floating_point()
            return image * 2 - 0.5

    image = torch.tensor([-0.5, 0.25, 3.0]).expand(3, 1, 3)
    assert torch.equal(Enhancer(Shift(), "cpu")(image.clone().clamp(max=2)), image.clamp(max=2) * 2 - 0.5)
    pixels = RNG.uniform(-1, 4, (9, 13, 3)).astype(np.float32)
    write_photo(photo_of(pixels, linear=True), tmp_path / "a.exr")
    assert np.allclose(Enhancer(Shift(), "cpu")(tmp_path / "a.exr").pixels, pixels * 2 - 0.5, atol=1e-5)


# ---- files and strips


def photo_of(pixels: np.ndarray, icc: bytes = b"", orientation: int = 1, **header: Any) -> Photo:
    height, width, channels = pixels.shape
    alpha = 3 if channels == 4 else None
    about = Metadata(icc=icc)
    return Photo(Header("", height, width, channels, pixels.dtype, 3, alpha, metadata=about, **header), pixels)


PROFILE = imagecodecs.cms_profile("adobergb")
FORMATS = [
    ("a.jpg", "uint8", 3), ("a.png", "uint16", 4), ("a.tif", "uint16", 4), ("a.tif", "float32", 3),
    ("a.webp", "uint8", 4), ("a.exr", "float16", 4), ("a.heic", "uint8", 3),
    ("a.avif", "uint16", 4), ("a.jxl", "uint16", 4), ("a.jxl", "float32", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype", "channels"), FORMATS)
def test_files_of_every_format_are_enlarged(tmp_path: Path, name: str, dtype: str, channels: int) -> None:
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif")
    linear = {"linear": True, "premultiplied": channels == 4} if name == "a.exr" else {"icc": PROFILE}
    write_photo(photo_of(picture(24, 32, channels, dtype), **linear), tmp_path / name, quality=100)
    before = read_photo(tmp_path / name)
    enhancer = Enhancer(Doubler(), "cpu")
    (outcome,) = enhancer.enhance_files(tmp_path / name, tmp_path / f"out_{name}", quality=100)
    assert outcome.error is None
    after = read_photo(tmp_path / f"out_{name}")
    old, new = before.header, after.header
    assert after.pixels.shape == (48, 64, channels) and (new.height, new.width) == (48, 64)
    assert (new.dtype, new.alpha, new.linear) == (old.dtype, old.alpha, old.linear)
    assert new.metadata.icc == old.metadata.icc
    full = np.iinfo(dtype).max if dtype.startswith("u") else 1
    if channels == 4:
        alpha = F.interpolate(torch.tensor(before.pixels[None, None, :, :, 3] / full), scale_factor=2, mode="bilinear")
        assert np.abs(after.pixels[..., 3] / full - alpha[0, 0].numpy()).max() < 2e-3 + 0.01 * name.endswith("webp")
    small = after.pixels.reshape(24, 2, 32, 2, channels).mean((1, 3)) / full
    assert np.abs(small - before.pixels / full)[..., :3].mean() < 0.06  # it is the same picture
    assert not enhancer.enhance_files(tmp_path / name, tmp_path / f"again_{name}", strength=0)[0].error


def test_a_photo_on_its_side_is_enlarged_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(24, 32)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    Enhancer(Doubler(), "cpu").enhance_files(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as result:
        assert result.size == (48, 64) and result.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("denoise", [False, True])
def test_strips_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, orientation: int, denoise: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(75, 53)).save(tmp_path / "a.png", exif=exif)
    enhancer = Enhancer(SYSTEMS[name](), "cpu")
    (outcome,) = enhancer.enhance_files(tmp_path / "a.png", tmp_path / "whole.tif", denoise=denoise)
    assert outcome.error is None
    monkeypatch.setattr(one_photo, "LARGE", 100)
    monkeypatch.setattr(large, "STRIP", 53 * 13)
    (outcome,) = enhancer.enhance_files(tmp_path / "a.png", tmp_path / "strips.png", denoise=denoise)
    assert outcome.error is None and outcome.notes == ()
    assert (
        np.abs(read_photo(tmp_path / "whole.tif").pixels.astype(int) - read_photo(tmp_path / "strips.png").pixels).max()
        <= 1
    )
    with Image.open(tmp_path / "strips.png") as strips:
        assert strips.getexif()[0x0112] == orientation


@pytest.mark.parametrize("name", SYSTEMS)
def test_strips_of_floats_are_the_whole_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_photo(photo_of(picture(75, 53, 4, "float32"), PROFILE), tmp_path / "a.tif")
    enhancer = Enhancer(SYSTEMS[name](), "cpu")
    enhancer.enhance_files(tmp_path / "a.tif", tmp_path / "whole.tif")
    monkeypatch.setattr(one_photo, "LARGE", 100)
    monkeypatch.setattr(large, "STRIP", 53 * 13)
    enhancer.enhance_files(tmp_path / "a.tif", tmp_path / "strips.tif")
    whole, strips = (read_photo(tmp_path / f"{how}.tif").pixels for how in ("whole", "strips"))
    assert np.abs(whole - strips).max() <= (1e-5 if name == "Normaliser" else 2e-6)


# ---- measures


def test_evaluate_measures_a_model_that_enlarges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fastenh.cli import app

    pytest.importorskip("torchmetrics", reason="pip install fastenh[evaluate]")
    model = Doubler().eval()
    monkeypatch.setattr("fastenh.models.load", lambda name: model)
    for folder in ("input", "target"):
        (tmp_path / folder).mkdir()
    small = picture(24, 30)
    write_photo(photo_of(small), tmp_path / "input" / "0_1.png")
    write_photo(photo_of(Enhancer(model, "cpu")(small)), tmp_path / "target" / "0_1.png")

    def evaluate() -> tuple[int, str]:
        result = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path), "--size", "full"])
        return result.exit_code, result.output

    code, output = evaluate()
    rows = [line.split("|") for line in output.splitlines() if line.startswith("| full") or line.startswith("| ")]
    assert code == 0 and "inf" in rows[-1][3] and "inf" not in rows[-2][3], output
    write_photo(photo_of(small), tmp_path / "target" / "0_1.png", overwrite=True)
    code, output = evaluate()
    assert code == 1 and "expected 2 times the source's size, 60×48, got 30×24" in output


# ---- streams


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("tile", [None, 20])
def test_a_stream_frame_by_frame_is_the_enhancer(name: str, tile: int | None) -> None:
    model = SYSTEMS[name]()
    model.tile = tile
    enhancer = Enhancer(model, "cpu")
    frames = [picture(37, 45, reds=count) for count in (2, 0, 3, 1)]
    results = [frame.copy() for frame in enhancer.stream(frames, renew=1, smoothing=0, denoise=True)]
    for frame, result in zip(frames, results, strict=True):
        assert np.array_equal(result, enhancer(frame, denoise=True))


def test_boxes_follow_each_frame_of_a_smoothed_stream() -> None:
    enhancer = Enhancer(Boxes(), "cpu")
    frames = [to_tensor(picture(37, 45, reds=count)) for count in (2, 0, 3, 1)]
    results = [frame.clone() for frame in enhancer.stream(frames)]
    for frame, result in zip(frames, results, strict=True):
        assert torch.equal(result, enhancer(frame))


def test_a_frame_of_an_enlarging_stream_is_overwritten_two_later() -> None:
    frames = [picture(10, 12) for _ in range(4)]
    enhancer = Enhancer(Doubler(), "cpu")
    for (first, second), frame in zip(itertools.pairwise(enhancer.stream(frames)), frames, strict=False):
        assert first.shape == second.shape == (20, 24, 3) and np.array_equal(first, enhancer(frame))


# ---- conditions


def test_conditions_reach_every_door(tmp_path: Path) -> None:
    enhancer, pixels = Enhancer(Styled(), "cpu"), picture(20, 30)
    half = enhancer(pixels, style={"a": 0.5, "b": 0.5})
    expected = ((pixels / 255.0) ** 0.75 * 255).round()
    assert np.abs(half - expected).max() <= 1 and np.array_equal(enhancer(pixels), pixels)
    (frame,) = enhancer.stream([pixels], style={"a": 0.5, "b": 0.5})
    assert np.array_equal(frame, half)
    write_photo(photo_of(pixels), tmp_path / "a.png")
    enhancer.enhance_files(tmp_path / "a.png", tmp_path / "b.png", style={"a": 0.5, "b": 0.5})
    assert np.array_equal(read_photo(tmp_path / "b.png").pixels, half)
    with pytest.raises(ValueError, match=r"^style: expected a, b, got c$"):
        enhancer(pixels, style={"c": 1})
    with pytest.raises(ValueError, match=r"^model: expected a reach or an overlap with tile, got neither$"):
        Enhancer(type("Tiled", (Styled,), {"reach": None, "tile": 8})(), "cpu")
    with pytest.raises(
        TypeError, match=r"^mood: expected an option or a condition of the model \(style, gain\), got 'mood'$"
    ):
        enhancer.stream([pixels], mood=1)


def test_conditions_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fastenh.cli import app

    monkeypatch.setattr("fastenh.models.load", lambda name: Styled().eval())
    monkeypatch.chdir(tmp_path)
    write_photo(photo_of(picture(20, 30)), "a.png")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.output

    code, output = run("enhance", "a.png", "-o", "b.png", "--set", "style=a:0.5,b:0.5", "--set", "gain=0.9")
    assert (code, output) == (0, "Wrote b.png\n")
    expected = Enhancer(Styled(), "cpu")(read_photo("a.png").pixels, style={"a": 0.5, "b": 0.5}, gain=0.9)
    assert np.array_equal(read_photo("b.png").pixels, expected)
    code, output = run("lut", "bake", "--photo", "a.png", "-o", "a.cube", "--set", "style=b", "--size", "5")
    assert code == 0
    assert output.startswith("Wrote a.cube: at most ")
    for option in ("--set", "gain=1"), ("--set", "gain=2"):
        assert run("enhance", "a.png", "-o", "e.png", "--set", "gain=3", *option) == (
            2, "fastenh: --set gain: expected one value, got another\n",
        )  # fmt: skip
    assert run("lut", "apply", "a.cube", "a.png", "-o", "c.png") == (0, "Wrote c.png\n")
    assert run("enhance", "a.png", "-o", "d.png", "--set", "mood=1") == (
        2, "fastenh: --set: expected NAME=VALUE for a condition of auto (style, gain), got 'mood=1'\n",
    )  # fmt: skip
    assert "style: expected a, b, got c" in run("enhance", "a.png", "-o", "d.png", "--set", "style=c")[1]


def test_notes_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fastenh.cli import app

    monkeypatch.setattr("fastenh.models.load", lambda name: Boxes().eval())
    write_photo(photo_of(picture(20, 30, reds=0)), tmp_path / "a.png")
    result = CliRunner().invoke(app, ["enhance", str(tmp_path / "a.png")])
    assert f"{tmp_path / 'a.png'}: no red pixel found" in result.output.splitlines()


# ---- modules that are no systems


class Old(nn.Module):
    """Named as an earlier contract had it."""

    def look(self, image: Tensor) -> tuple[Tensor, ...]:
        raise AssertionError

    def render(self, image: Tensor, look: tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
        raise AssertionError

    def forward(self, image: Tensor) -> Tensor:
        return image * 0.5


def test_a_module_that_is_no_system_runs_its_forward() -> None:
    class Predicts(nn.Module):
        def predict(self, image: Tensor) -> Tensor:
            raise AssertionError

        def look(self, image: Tensor) -> Tensor:
            raise AssertionError

        def forward(self, image: Tensor) -> Tensor:
            return image * 0.5

    image = torch.rand(3, 5, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Enhancer(Predicts(), "cpu")(image), image * 0.5)
    with pytest.warns(UserWarning, match=r"fastenh\.models\.System") as told:
        assert torch.equal(Enhancer(Old(), "cpu")(image), image * 0.5)
    assert len(told) == 1
