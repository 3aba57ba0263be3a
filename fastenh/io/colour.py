"""Conversion between a file's colours and sRGB, in which models work: `ColourSpace`.

ICC profiles are read by lcms2 (through imagecodecs), which transforms some 2 megapixels per second. So a profile of
curves and a matrix, as nearly all photos have, is sampled through lcms2 once and then applied by the compiled core, or
by PyTorch where the core is missing. Other profiles are applied by lcms2 itself.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastenh import backends
from fastenh.memory import is_out_of_memory
from fastenh.ops import op

LEVELS = 65536  # a curve has an entry for each value of 16 bits
OCTAVES, CELLS = 40, 512  # a table indexed by light spans 2^-OCTAVES to 1, with CELLS equidistant entries per octave
DARKEST, STEP = 127 - OCTAVES << 23, 2**23 // CELLS  # in the bits of a float, which thus index the entries
BAND = 2**16  # pixels that PyTorch converts at once, so that they stay in the cache
SAME = 2e-3  # a profile closer than this to sRGB counts as sRGB: half a level of 8 bits; HP's of 1998 differs by 0.0018
EXACT = 1e-4  # how closely, in linear light, curves and a matrix must reproduce lcms2's result for a profile
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB
RELATIVE = 1  # lcms2's relative colorimetric intent: white stays white, nothing is compressed
PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # of sRGB, x and y of red, green, blue; white is WHITE
WHITE = (0.3127, 0.3290)


@dataclass(frozen=True)
class ColourSpace:
    """The meaning of a photo's numbers, and the conversion to sRGB and back.

    The numbers x are those of the file divided by full scale, `colours` per pixel: 3, or 1 for gray.

        light = curve(x)      linear sRGB = matrix · light      sRGB = encode(linear sRGB)

    in unbounded floats: colours outside sRGB are below 0 or above 1, and nothing is clipped. The conversion back
    inverts each step; gray takes the luminance. Without `curves` the curve is sRGB's, or the identity where numbers are
    `linear` light; without `matrix` the primaries are sRGB's. A `profile` replaces all of this by lcms2.
    """

    colours: int = 3
    linear: bool = False
    curves: Tensor | None = None  # (colours, LEVELS): light by number, from 0 to 1
    numbers: Tensor | None = None  # (colours, OCTAVES·CELLS + 1): number by light
    matrix: Tensor | None = None  # (3, colours)
    profile: bytes = b""

    @functools.cached_property
    def is_srgb(self) -> bool:
        return self.colours == 3 and not self.linear and self.curves is None and not self.profile

    @functools.cached_property
    def inverse(self) -> Tensor | None:
        """(colours, 3), of `matrix`."""
        if self.colours == 1:
            return torch.tensor([LUMINANCE])
        return None if self.matrix is None else torch.linalg.inv(self.matrix)

    def model_input(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """A model's input for (colours, H, W) of any dtype, integers at full scale: `to_srgb` clamped to [0, 1],
        float32; 0 for NaN."""
        out = torch.empty(3, *x.shape[1:], device=x.device) if out is None else out
        kernels = None if self.profile or self.is_srgb else backends.kernels("colour_seen", x.device)
        if kernels:
            kernels["colour_seen"](out[None], x[None], *_laid_out(self.curves, self.matrix), int(self.linear))
            return out
        for band in bands(x):
            out[:, band] = clamp(self.to_srgb(op.to_float(x[:, band])))
        return out

    def apply_change(self, x: Tensor, retouched: Tensor, out: Tensor | None = None) -> Tensor:
        """x with a model's change: `retouched`, (3, H, W), is its result for `model_input(x)`. Into `out`, of any
        dtype, or as float32.

        With s = to_srgb(x) and B for from_srgb, x + B(s + retouched − model_input(x)) − B(s): where the model changes
        nothing, x is returned exactly. Infinite values and NaN are kept.
        """
        out = torch.empty(x.shape, device=x.device) if out is None else out
        kernels = None if self.profile or self.is_srgb else backends.kernels("colour_back", x.device)
        if kernels:
            tables = _laid_out(self.curves, self.numbers, self.matrix, self.inverse)
            kernels["colour_back"](out[None], x[None], retouched[None], *tables, int(self.linear))
            return out
        for band in bands(x):
            numbers = op.to_float(x[:, band])
            encoded = self.to_srgb(numbers)
            wanted = encoded + (retouched[:, band] - clamp(encoded))
            change = self.from_srgb(wanted) - self.from_srgb(encoded)
            out[:, band] = op.from_float(torch.where(change.isfinite(), numbers + change, numbers), out.dtype)
        return out

    def to_srgb(self, x: Tensor) -> Tensor:
        """(colours, H, W) float32 → (3, H, W), encoded. Curves are defined from 0 to 1; x is clamped to that."""
        if self.profile:
            return _lcms(x, self.profile, profile_of(), self.colours, 3)
        if not self.linear and self.curves is None:
            return x.expand(3, -1, -1)
        light = x if self.curves is None else _look_up(self.curves, x)
        return encode(light.expand(3, -1, -1) if self.matrix is None else _mix(self.matrix, light))

    def from_srgb(self, y: Tensor) -> Tensor:
        """(3, H, W) float32, encoded → (colours, H, W)."""
        if self.profile:
            return _lcms(y, profile_of(), self.profile, 3, self.colours)
        if self.is_srgb:
            return y
        light = decode(y)
        if self.inverse is not None:
            light = _mix(self.inverse, light)
        if self.numbers is not None:
            return _look_up_light(self.numbers, light)
        return light if self.linear else encode(light)


def bands(x: Tensor) -> Iterator[slice]:
    """The rows of (C, H, W) in bands that fit into the cache."""
    rows = max(1, BAND // x.shape[2])
    for top in range(0, x.shape[1], rows):
        yield slice(top, min(top + rows, x.shape[1]))


def clamp(encoded: Tensor) -> Tensor:
    """Unbounded sRGB clamped to a model's range; 0 for NaN."""
    return encoded.nan_to_num(0.0).clamp(0, 1)


def encode(light: Tensor) -> Tensor:
    """sRGB's curve (IEC 61966-2-1), extended to negative numbers as an odd function, and beyond 1."""
    size = light.abs()
    return torch.where(size <= 0.0031308, 12.92 * light, (1.055 * size.pow(1 / 2.4) - 0.055).copysign(light))


def decode(encoded: Tensor) -> Tensor:
    size = encoded.abs()
    light = ((size + 0.055) / 1.055).pow(2.4).copysign(encoded)
    return torch.where(size <= 0.04045, encoded / 12.92, light)


@functools.lru_cache(8)
def from_profile(icc: bytes, colours: int) -> ColourSpace:
    """The colour space of a photo with this ICC profile, b"" for none. It is sRGB without a profile, and also where
    lcms2 cannot read the profile or it is for another number of channels."""
    if not icc:
        return ColourSpace(colours)
    try:
        steps = torch.linspace(0, 1, LEVELS)
        each = torch.zeros(colours, colours, LEVELS)  # (channel, number, step): one channel rises, the others are 0
        for channel in range(colours):
            each[channel, channel] = steps
        light = _lcms(each.permute(1, 0, 2), icc, profile_of(1.0), colours, 3)  # (3, channel, step)
        grid = torch.cartesian_prod(*[torch.linspace(0, 1, 17)] * colours).reshape(-1, colours).T[:, None].contiguous()
        truth = _lcms(grid, icc, profile_of(1.0), colours, 3)
        if (encode(truth) - grid.expand(3, -1, -1)).abs().max() < SAME:
            return ColourSpace(colours)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # imagecodecs raises errors of many kinds for bad profiles
        if is_out_of_memory(error):
            raise
        return ColourSpace(colours)

    matrix = light[:, :, -1]
    curves = torch.einsum("oc,ocs->cs", matrix, light) / matrix.square().sum(0)[:, None]
    if (_mix(matrix, _look_up(curves, grid)) - truth).abs().max() > EXACT:
        return ColourSpace(colours, profile=icc)
    light = (torch.arange(OCTAVES * CELLS + 1, dtype=torch.int32) * STEP + DARKEST).view(torch.float32)
    light[0] = 0  # the entry for all darker light
    numbers = [np.interp(light, curve, steps) for curve in curves.cummax(1).values.numpy()]
    return ColourSpace(colours, curves=curves, numbers=torch.from_numpy(np.stack(numbers)).float(), matrix=matrix)


def linear_light(colours: int, primaries: tuple[float, ...] = (), white: tuple[float, ...] = WHITE) -> ColourSpace:
    """Numbers proportional to light, as in OpenEXR; sRGB's primaries unless others are given."""
    if colours == 1 or not primaries or np.allclose([*primaries, *white], [*PRIMARIES, *WHITE], atol=1e-3):
        return ColourSpace(colours, linear=True)
    light = _lcms(torch.eye(3)[:, None], profile_of(1.0, primaries, white), profile_of(1.0), 3, 3)
    return ColourSpace(colours, linear=True, matrix=light[:, 0])


@functools.cache
def declared(colours: int, gamma: float | None, primaries: tuple[float, ...], white: tuple[float, ...]) -> ColourSpace:
    """The colour space of a file that declares gamma and primaries instead of a profile: light = number ** gamma, or
    sRGB's curve if `gamma` is None; sRGB's primaries if `primaries` is (). Gray uses only the curve."""
    if colours == 3:
        return from_profile(profile_of(gamma, primaries or PRIMARIES, white or WHITE), 3)
    import imagecodecs

    return from_profile(imagecodecs.cms_profile("gray", gamma=gamma) if gamma else b"", 1)


def are_chromaticities(numbers: tuple[float, ...]) -> bool:
    """Whether the numbers are valid x, y of three primaries and of a white inside their triangle. Some programs write
    zeros."""
    if len(numbers) != 8:
        return False
    x, y = np.reshape(numbers, (4, 2)).T.astype(float)
    xyz = np.stack([x, y, 1 - x - y])
    if not np.isfinite(xyz).all() or abs(np.linalg.det(xyz[:, :3])) < 1e-6:
        return False
    return bool(y[3] > 0 and (np.linalg.solve(xyz[:, :3], xyz[:, 3]) > 0).all())


@functools.cache
def profile_of(
    gamma: float | None = None, primaries: tuple[float, ...] = PRIMARIES, white: tuple[float, ...] = WHITE
) -> bytes:
    """The ICC profile of a gamma, or of sRGB's curve, with these primaries."""
    import imagecodecs  # not on every machine that runs the ops

    if gamma:
        return undated(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, gamma=gamma))
    if primaries == PRIMARIES:
        return undated(imagecodecs.cms_profile("srgb"))
    curve = (decode(torch.linspace(0, 1, 4096)) * 65535).round().int().numpy().astype(np.uint16)
    return undated(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, transferfunction=curve))


def is_cmyk(icc: bytes) -> bool:
    """Whether the header of an ICC profile states CMYK."""
    return icc[16:20] == b"CMYK" and icc[36:40] == b"acsp"


@functools.lru_cache(8)
def cmyk_profile(icc: bytes) -> bytes:
    """The profile if it is for CMYK and lcms2 can apply it, else b""."""
    try:
        cmyk_to_srgb(np.zeros((1, 1, 4), np.uint8), icc)
        return icc if is_cmyk(icc) else b""
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return b""


def cmyk_to_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Convert CMYK, (rows, width, 4) of uint8 or uint16, 0 for no ink, to sRGB, (rows, width, 3) of the same dtype.

    `icc` is a profile from `cmyk_profile`. If it is b"", R = (1 − C)(1 − K), G = (1 − M)(1 − K), B = (1 − Y)(1 − K)."""
    if icc:
        import imagecodecs

        return imagecodecs.cms_transform(
            np.ascontiguousarray(pixels), icc, profile_of(), colorspace="cmyk", outcolorspace="rgb", intent=RELATIVE
        )
    full = np.iinfo(pixels.dtype).max
    left = (full - pixels).astype(np.uint32)
    return ((left[..., :3] * left[..., 3:] + full // 2) // full).astype(pixels.dtype)


def rgb_profile(gray: bytes) -> bytes:
    """The ICC profile of RGB with sRGB's primaries and the curve of the gray profile; b"" if that is sRGB's curve."""
    space = from_profile(gray, 1)
    if space.curves is None and not space.profile:
        return b""
    import imagecodecs

    light = decode(space.to_srgb(torch.linspace(0, 1, 4096)[None, None])[0, 0])
    curve = (light.clamp(0, 1) * 65535).round().int().numpy().astype(np.uint16)
    return undated(imagecodecs.cms_profile("rgb", whitepoint=WHITE, primaries=PRIMARIES, transferfunction=curve))


def adobe_rgb() -> bytes:
    """The ICC profile of Adobe RGB (1998)."""
    import imagecodecs

    return undated(imagecodecs.cms_profile("adobergb"))


def undated(icc: bytes) -> bytes:
    """A profile made by lcms2 with a fixed date, so that it always has the same bytes."""
    return icc[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + icc[36:]


def _lcms(x: Tensor, profile: bytes, other: bytes, channels: int, other_channels: int) -> Tensor:
    import imagecodecs

    rows = np.ascontiguousarray(x.movedim(0, -1).cpu().numpy())
    kinds = {1: "gray", 3: "rgb"}
    rows = imagecodecs.cms_transform(
        rows[..., 0] if channels == 1 else rows, profile, other,
        colorspace=kinds[channels], outcolorspace=kinds[other_channels], outdtype="float32", intent=RELATIVE,
    )  # fmt: skip
    return torch.from_numpy(rows[..., None] if other_channels == 1 else rows).movedim(-1, 0).to(x.device)


def _mix(matrix: Tensor, light: Tensor) -> Tensor:
    return (matrix.to(light) @ light.flatten(1)).unflatten(1, light.shape[1:])


def _look_up(curves: Tensor, x: Tensor) -> Tensor:
    """(C, LEVELS) curves at x, (C, H, W), clamped to [0, 1]; NaN counts as 0."""
    places = clamp(x) * (LEVELS - 1)
    cells = places.int().clamp_(max=LEVELS - 2)
    return _between(curves, cells, places - cells)


def _look_up_light(curves: Tensor, light: Tensor) -> Tensor:
    """The same for curves indexed by light."""
    places = light.nan_to_num(0.0).clamp(2.0**-OCTAVES, 1).view(torch.int32) - DARKEST
    cells = (places // STEP).clamp_(max=OCTAVES * CELLS - 1)
    return _between(curves, cells, (places - cells * STEP) / STEP)


def _laid_out(*tables: Tensor | None) -> list[Tensor | None]:
    """As kernels read them."""
    return [None if table is None else table.contiguous() for table in tables]


def _between(curves: Tensor, cells: Tensor, fractions: Tensor) -> Tensor:
    curves = curves.to(cells.device)

    def entries(places: Tensor) -> Tensor:
        pairs = zip(curves, places, strict=True)
        return torch.stack([curve.index_select(0, place.flatten()).view_as(place) for curve, place in pairs])

    return torch.lerp(entries(cells), entries(cells + 1), fractions)
