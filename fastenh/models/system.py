"""The contract between systems, which define what is computed, and pipelines, which define the input: a photo, many
photos, a picture larger than memory, frames.

A system splits its work into three parts, so that it can run on photos, on tiles of pictures larger than memory, and on
the frames of a video:

    predict(picture) -> params              tensors of fixed shapes about the image as a whole; streams may smooth them
    prepare(picture, params) -> Prepared    data specific to this image: maps at a reduced size, faces, a mask
    render(tile, params, local, place)      the pixels of one tile

`forward` runs all three on the whole image. Only `render` must be implemented.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastenh.ops.op import from_float, to_float
from fastenh.tiles import Place, Tile, tiles


class Sides(NamedTuple):
    """Requirements of `System.render` on the height and width of a tile. The engine pads tiles and crops results. It
    passes images to `predict` and `prepare` without padding."""

    multiple_of: int = 1
    minimum: int = 1
    square: bool = False


class Prepared(NamedTuple):
    """The result of `System.prepare`: `local`, which `render` gets, and notes for the user, such as "no face found"."""

    local: Any = None
    notes: tuple[str, ...] = ()


class Condition:
    """An argument that a user may give to a system, such as a style: `enhance(image, style=value)` in Python,
    `--set style=text` on the command line."""

    default: Any = None

    def parse(self, text: str) -> Any:
        """The value of a text from the command line. ValueError, in one line, for an invalid text."""
        raise NotImplementedError

    def check(self, value: Any) -> Any:
        """The value that `predict` and `prepare` get. ValueError or TypeError, in one line, for an invalid value."""
        return value


class Picture:
    """The whole image, (B, 3, H, W), as input of `predict` and `prepare`: floats in [0, 1] or integers at full scale.

    This class holds the image in memory, as `image`. `fastenh.pipelines.large.FilePicture` reads it from a file and has
    no `image`, so systems must use the other attributes and methods."""

    def __init__(self, image: Tensor) -> None:
        self.image, self.device = image, image.device
        self.overview = image  # itself; for a picture larger than memory every k-th pixel, at most 2048 a side

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[2], self.image.shape[3]

    def pick(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The pixels in these rows and columns, (B, 3, len(rows), len(columns))."""
        return self.image[..., rows, :][..., columns]

    def crop(self, tile: Tile) -> Tensor:
        """The pixels of a rectangle."""
        return self.image[..., tile.top : tile.bottom, tile.left : tile.right]

    def tiles(self, halo: int = 0, side: int = 512) -> Iterator[tuple[Tensor, Place, tuple[slice, slice]]]:
        """The image in tiles. For each: its pixels with a halo on each side, their place in the image, and the rows and
        columns in them of the tile itself. May be called again for another pass."""
        for tile in tiles(*self.size, side):
            read = tile.grown(halo, *self.size)
            yield self.crop(read), Place(read.top, read.left, *self.size), tile.within(read)

    def thumbnail(self, size: int | tuple[int, int]) -> Tensor:
        """(B, 3, *size) floats, square if `size` is one number: bilinear between the nearest pixels, the same as
        `F.interpolate(image, size, mode="bilinear", align_corners=False)`, but only the pixels needed are read."""
        ends, fractions = [], []
        sizes = (size, size) if isinstance(size, int) else size
        for length, count in zip(self.size, sizes, strict=True):
            place = (torch.arange(count, device=self.device) + 0.5) * (length / count) - 0.5
            low = place.clamp(min=0).long()
            ends.append(torch.cat([low, (low + 1).clamp(max=length - 1)]))
            fractions.append(place.clamp(min=0) - low)
        pixels = to_float(self.pick(*ends))
        above, below = pixels.chunk(2, dim=2)
        left, right = torch.lerp(above, below, fractions[0][:, None].to(pixels.dtype)).chunk(2, dim=3)
        return torch.lerp(left, right, fractions[1].to(pixels.dtype))


# Names that conditions cannot have, since functions that take conditions as keywords have arguments of these names.
RESERVED = {
    *("image", "strength", "denoise", "protect_highlights", "frames", "renew", "smoothing", "inputs", "output"),
    *("dither", "quality", "suffix", "recursive", "workers", "overwrite", "picture", "params", "model", "size"),
    *("example", "enhancer", "sizes", "pristine", "network", "space"),
}


class System(nn.Module):
    """A model that declares how to feed it. Subclasses implement `render`, and `predict` and `prepare` if they compute
    something from the image as a whole. The attributes below tell the engine what input the system takes.

    Set `arguments`, the constructor's arguments as JSON values, and `about`, what a user should know (colour space,
    licence, notes), in the constructor: checkpoints contain both. A model is loaded by calling its constructor on the
    device "meta", so arguments need defaults, and tensors must be parameters or persistent buffers.
    """

    scale: int = 1  # output pixels per input pixel along a side
    reach: int | None = None  # given params and local, the distance of input pixels that a pixel depends on; None: any
    colour_map: bool = False  # equal colours give equal results, wherever they are in the image (so `reach` is 0)
    overlap: int = 0  # for a `reach` too large for a halo: tiles overlap by this much and are blended
    tile: int | None = None  # the side of the largest tile to render at once, without its halo; None: any size
    sides: Sides = Sides()
    bounded: bool = True  # sRGB in [0, 1]; False: a file's own numbers, and results are not clamped
    keeps_gray: bool = True  # gray photos stay gray; False: the system gives gray a colour, so they become RGB
    half_precision: bool = True  # False: float32 only
    conditions: ClassVar[Mapping[str, Condition]] = {}
    arguments: Mapping[str, Any] = MappingProxyType({})
    about: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.about = {}

    def predict(self, picture: Picture, **conditions: Any) -> tuple[Tensor, ...]:
        """Tensors (B, ...) about the image as a whole, of shapes independent of its size. Streams smooth them."""
        return ()

    def prepare(self, picture: Picture, params: tuple[Tensor, ...], **conditions: Any) -> Prepared:
        """Data specific to this image, tied to places in it. Computed for each frame of a stream, never smoothed."""
        return Prepared()

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        """One tile at `place`: (B, 3, h, w) → (B, 3, scale·h, scale·w), into `out` if given. Tiles are floats, uint8 or
        uint16, and the result has the same dtype: `fastenh.ops.op.to_float` and `write_tile` convert."""
        raise NotImplementedError

    def blend(self, params: tuple[Tensor, ...], strength: float) -> tuple[Tensor, ...] | None:
        """Params for which `render` returns the result at this strength, 0 to 1. None: the engine blends images."""
        return None

    def forward(self, image: Tensor, **conditions: Any) -> Tensor:
        """(B, 3, H, W) → (B, 3, scale·H, scale·W): the whole image, differentiable."""
        picture, values = Picture(image), self.check_conditions(conditions)
        params = self.predict(picture, **values)
        return self.render(image, params, self.prepare(picture, params, **values).local, Place(0, 0, *picture.size))

    def check_conditions(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A value for each condition: the one given, or its default. TypeError for an unknown condition."""
        for name in given:
            if name not in self.conditions:
                known = ", ".join(self.conditions) or "none"
                raise TypeError(f"{name}: expected an option or a condition of the model ({known}), got {name!r}")
        return {
            name: condition.check(given.get(name, condition.default)) for name, condition in self.conditions.items()
        }


def write_tile(result: Tensor, image: Tensor, out: Tensor | None) -> Tensor:
    """What `render` returns: a result in floats converted to the dtype of `image`, rounded, into `out` if given."""
    result = from_float(result, image.dtype)
    if out is None or out.shape != result.shape:  # the engine reports a wrong shape
        return result
    return out.copy_(result)


class Plain(System):
    """Any other module, (B, 3, H, W) floats in [0, 1] → the same shape: runs its `forward` on the whole image."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def render(
        self, image: Tensor, params: tuple[Tensor, ...], local: Any, place: Place, out: Tensor | None = None
    ) -> Tensor:
        real = to_float(image)
        result = self.module(real.clone())  # it may work in place
        return write_tile(result.to(real.dtype), image, out)


def as_system(module: nn.Module) -> System:
    """The module itself if it is a `System`, else a system that runs its `forward`. Warns about a module that has
    `look` and `render`, as earlier versions asked for."""
    if isinstance(module, System):
        return module
    if callable(getattr(type(module), "look", None)) and callable(getattr(type(module), "render", None)):
        warnings.warn(
            f"{type(module).__name__} has `look` and `render` but is no fastenh.models.System, so its forward runs; "
            "to take part in streams and tiles, inherit from System and rename `look` to `predict`",
            stacklevel=4,
        )
    return Plain(module)
