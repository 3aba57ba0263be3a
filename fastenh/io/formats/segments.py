"""The pixel layout of a TIFF (`Layout`), and a reader of strips and tiles that OpenImageIO reads wrongly or not at all:
3 to 15 bits, lossless JPEG, palettes with extra channels, CMYK, Zstandard, LZMA. imagecodecs decodes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastenh.io.colour import cmyk_profile, cmyk_to_srgb, is_cmyk
from fastenh.io.formats.base import Header, first_line
from fastenh.io.formats.rows import BlockReader
from fastenh.io.metadata import SIZES, DirectoryReader
from fastenh.memory import is_out_of_memory

WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6  # photometric interpretations
COLOURS = {WHITE_IS_0: 1, BLACK_IS_0: 1, RGB: 3, PALETTE: 3, CMYK: 3, YCBCR: 3}  # colour channels after decoding
OTHERS = {
    4: "a mask",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "a sensor's values",
    32844: "LOGL",
    32845: "LOGLUV",
}
FAX, OLD_JPEG, JPEG = (2, 3, 4, 32771), 6, 7
DECODERS = {  # of lossless compressions: functions of imagecodecs
    1: "none_decode", 5: "lzw_decode", 8: "zlib_decode", 32773: "packbits_decode", 32946: "zlib_decode",
    34925: "lzma_decode", 50000: "zstd_decode", 50013: "zlib_decode",
}  # fmt: skip
NO_PREDICTOR, DIFFERENCES, FLOAT_DIFFERENCES = 1, 2, 3
KINDS = {1: "uint", 2: "int", 3: "float", 4: "uint", 5: "complex int", 6: "complex"}  # by SampleFormat; 4 means unknown
MAX_TABLE = 2**20  # bytes of a palette or of JPEG tables


@dataclass(frozen=True)
class Layout:
    """The layout of the pixels, as the first directory of a TIFF states it."""

    order: str  # byte order, "<" or ">"
    width: int
    height: int
    bits: tuple[int, ...]  # per sample
    kind: str
    compression: int
    photometric: int  # photometric interpretation; -1 if it is neither stated nor implied
    extra: tuple[int, ...]  # ExtraSamples: 1 premultiplied alpha, 2 alpha, others unspecified
    planar: bool  # each sample has its own strips or tiles
    predictor: int
    reversed_bits: bool  # the lowest bit of each byte comes first
    tile: tuple[int, int]  # height and width of a tile, or of a strip
    tiled: bool
    palette: np.ndarray  # (entries, 3) uint8
    tables: bytes  # JPEG tables
    places: tuple[int, int]  # the tags with offsets and sizes of strips or tiles

    @property
    def samples(self) -> int:
        return len(self.bits)

    @property
    def channels(self) -> int:
        """Channels of a pixel after decoding."""
        return COLOURS.get(self.photometric, 0) + len(self.extra)

    @property
    def dtype(self) -> np.dtype:
        """The dtype after decoding: floats as stored, up to 8 bits as uint8, more as uint16, at full scale."""
        if self.kind == "float":
            return np.dtype(f"f{self.bits[0] // 8}")
        return np.dtype(np.uint8 if self.bits[0] <= 8 or self.photometric == PALETTE else np.uint16)

    @property
    def needs_imagecodecs(self) -> bool:
        """Whether OpenImageIO cannot read the pixels correctly."""
        return (
            self.photometric == CMYK
            or (self.photometric == PALETTE and self.samples > 1)
            or self.bits[0] not in (1, 2, 4, 8, 16, 32)
            or (self.bits[0] < 8 and self.predictor != NO_PREDICTOR)
            or (self.compression == JPEG and self.bits[0] != 8)
            or (self.compression in DECODERS and self.compression not in (1, 5, 8, 32773, 32946))
        )

    def refusal(self) -> str | None:
        """For pixels that are not accepted, the rest of the message after "expected"; None for others."""
        bits, kind = self.bits[0], self.kind
        if self.photometric == -1:
            return f"a PhotometricInterpretation tag, got {self.samples} channels without it"
        if self.photometric not in COLOURS or self.channels <= len(self.extra):
            return f"RGB or gray, got {OTHERS.get(self.photometric, f'photometric interpretation {self.photometric}')}"
        needed = {RGB: 3, YCBCR: 3, CMYK: 4}.get(self.photometric, 1)
        if self.colours_stored < needed:
            return f"{needed} colour channels, got {self.colours_stored}"
        if self.photometric == CMYK and self.colours_stored != 4:
            return f"RGB, gray or CMYK, got {self.colours_stored} inks"
        if len({*self.bits}) > 1:
            return f"channels of equally many bits, got {', '.join(map(str, self.bits))}"
        if not (kind == "uint" and bits <= 16) and not (kind == "float" and bits in (16, 32)):
            return f"8 or 16 bits, or floats of 16 or 32, got {kind}{bits}"
        if kind == "float" and self.photometric == WHITE_IS_0:
            return "floats with 0 for black, got 0 for white"
        if kind == "float" and self.photometric in (PALETTE, CMYK):
            return f"integers for {'a palette' if self.photometric == PALETTE else 'CMYK'}, got floats"
        if self.photometric == CMYK and 1 in self.extra:
            return "CMYK that is not premultiplied by alpha, got premultiplied CMYK"
        if self.needs_imagecodecs and self.compression not in (*DECODERS, JPEG):
            return f"a compression that can be read, got number {self.compression}"
        return None

    @property
    def colours_stored(self) -> int:
        """Colour samples of a stored pixel."""
        return self.samples - len(self.extra)


def read_layout(file: BinaryIO, icc: bytes) -> Layout | None:
    """The layout; None if the directory is damaged. Without a photometric interpretation, four colours are CMYK if
    the profile `icc` is."""
    try:
        reader = DirectoryReader(file)
        entries = {entry.tag: entry for entry in reader.entries(reader.first)[0] if entry.size <= MAX_TABLE}

        def numbers(tag: int, *default: int) -> tuple[int, ...]:
            if tag not in entries:
                return default
            kind = f"<u{min(SIZES[entries[tag].type], 8)}"
            return tuple(np.frombuffer(reader.value(entries[tag]), kind).tolist())

        (width,), (height,), (compression,) = numbers(256), numbers(257), numbers(259, 1)
        (samples,) = numbers(277, 3 if compression == OLD_JPEG and numbers(262) == (YCBCR,) else 1)
        bits, tiled = numbers(258, 1), 322 in entries
        if not (width and height and 0 < samples <= 1024 and bits):
            return None
        extra = numbers(338)[:samples]
        photometric = numbers(262, _default_photometric(compression, samples - len(extra), icc))[0]
        if photometric in (RGB, YCBCR, CMYK) and not extra:  # undeclared: unspecified
            extra = (0,) * (samples - (4 if photometric == CMYK else 3))
        if photometric in (WHITE_IS_0, BLACK_IS_0, PALETTE) and not extra:
            extra = (0,) * (samples - 1)
        strip = min(numbers(278, height)[0], height), width
        palette = np.array(numbers(320), np.uint16)
        palette = palette[: len(palette) // 3 * 3].reshape(3, -1).T
        return Layout(
            reader.order, width, height, (bits + bits[-1:] * samples)[:samples], KINDS.get(numbers(339, 1)[0], "?"),
            compression, photometric, extra, numbers(284, 1)[0] == 2, numbers(317, 1)[0], numbers(266, 1)[0] == 2,
            (numbers(323)[0], numbers(322)[0]) if tiled else strip, tiled,
            (palette >> 8 if palette.max(initial=0) > 255 else palette).astype(np.uint8),
            reader.value(entries[347]) if 347 in entries else b"", (324, 325) if tiled else (273, 279),
        )  # fmt: skip
    except (ValueError, IndexError):
        return None


def _default_photometric(compression: int, colours: int, icc: bytes) -> int:
    """The photometric interpretation of a TIFF that does not state it, or -1."""
    if compression in FAX:
        return WHITE_IS_0
    return {1: BLACK_IS_0, 3: RGB, 4: CMYK if is_cmyk(icc) else -1}.get(colours, -1)


class SegmentReader(BlockReader):
    """Reads the pixels of a file that `needs_imagecodecs`."""

    def __init__(self, path: Path, header: Header, layout: Layout, icc: bytes) -> None:
        super().__init__()
        self.path, self.header, self._layout, self._icc = path, header, layout, icc
        self._step = layout.tile[0]
        try:
            with open(path, "rb") as file:
                reader = DirectoryReader(file)
                entries = {entry.tag: entry for entry in reader.entries(reader.first)[0]}
                self._offsets, self._sizes = (
                    np.frombuffer(reader.value(entries[tag]), f"<u{SIZES[entries[tag].type]}").astype(int).tolist()
                    for tag in layout.places
                )
        except (KeyError, ValueError):
            raise self._damaged("no strips or tiles") from None

    def _decode(self, first: int, end: int) -> np.ndarray:
        layout = self._layout
        (tall, wide), samples = layout.tile, 1 if layout.planar else layout.samples
        down, across = -(-layout.height // tall), -(-layout.width // wide)
        parts = []
        with open(self.path, "rb") as file:
            for plane in range(layout.samples if layout.planar else 1):
                bands = []
                for row in range(first // tall, -(-end // tall)):
                    numbers = range((plane * down + row) * across, (plane * down + row + 1) * across)
                    rows = tall if layout.tiled else min(tall, layout.height - row * tall)
                    bands.append(np.concatenate([self._read_segment(file, n, rows, samples) for n in numbers], 1))
                parts.append(np.concatenate(bands)[: end - first, : layout.width])
        return self._to_pixels(np.concatenate(parts, 2))

    def _read_segment(self, file: BinaryIO, number: int, rows: int, samples: int) -> np.ndarray:
        """The stored samples of a strip or tile, (rows, width, samples)."""
        import imagecodecs  # not on every machine that runs the ops

        layout = self._layout
        tall, wide = layout.tile
        bits = layout.bits[0]
        try:
            file.seek(self._offsets[number])
            data = file.read(self._sizes[number])
            if layout.compression == JPEG:
                colours = {1: "GRAYSCALE", 3: "YCBCR" if layout.photometric == YCBCR else "RGB", 4: "CMYK"}.get(samples)
                part = imagecodecs.jpeg_decode(
                    data, tables=layout.tables or None, bitspersample=bits, colorspace=colours,
                    outcolorspace="RGB" if samples == 3 else colours,
                )  # fmt: skip
                part = part.reshape(*part.shape[:2], -1)
                if part.shape[0] < rows or part.shape[1:] != (wide, samples) or part.dtype != _stored(bits, "uint"):
                    raise ValueError(f"a JPEG of {part.shape}, {part.dtype}")
                return part[:rows]
            row = -(-wide * samples * bits // 8)
            packed = imagecodecs.bitorder_decode(data) if layout.reversed_bits else data
            unpacked = getattr(imagecodecs, DECODERS[layout.compression])(packed, out=tall * row)
            if len(unpacked) < rows * row:
                raise ValueError(f"strip or tile {number} has {len(unpacked)} of {rows * row} bytes")
            return _unpacked(bytes(unpacked[: rows * row]), (rows, wide, samples), layout)
        except MemoryError:
            raise MemoryError(f"{self.path}: out of memory") from None
        except Exception as error:  # codecs report damage by many kinds of exception
            if is_out_of_memory(error):
                raise MemoryError(f"{self.path}: out of memory") from None
            raise self._damaged(str(error)) from None

    def _to_pixels(self, stored: np.ndarray) -> np.ndarray:
        """Convert stored samples to pixels at full scale: palette and CMYK become RGB."""
        layout, bits = self._layout, self._layout.bits[0]
        if layout.kind == "float":
            return stored
        if layout.photometric == WHITE_IS_0:
            stored[..., 0] = 2**bits - 1 - stored[..., 0]
        if layout.photometric == PALETTE:
            if stored[..., 0].max(initial=0) >= len(layout.palette):
                raise self._damaged(f"an index beyond the palette of {len(layout.palette)} colours")
            return np.concatenate([layout.palette[stored[..., 0]], _scaled(stored[..., 1:], bits, layout.dtype)], 2)
        pixels = _scaled(stored, bits, layout.dtype)
        if layout.photometric == CMYK:
            return np.concatenate([cmyk_to_srgb(pixels[..., :4], cmyk_profile(self._icc)), pixels[..., 4:]], 2)
        return pixels

    def _damaged(self, problem: str) -> ValueError:
        return ValueError(f"{self.path}: expected a whole TIFF, got a damaged one ({first_line(problem)})")


def _stored(bits: int, kind: str) -> np.dtype:
    """The dtype that holds a stored sample."""
    return np.dtype(f"f{bits // 8}" if kind == "float" else np.uint8 if bits <= 8 else np.uint16)


def _unpacked(data: bytes, shape: tuple[int, int, int], layout: Layout) -> np.ndarray:
    """Unpack the samples of a strip or tile, of this shape, and undo the predictor."""
    import imagecodecs

    bits, dtype = layout.bits[0], _stored(layout.bits[0], layout.kind)
    if bits != 8 * dtype.itemsize:
        part = imagecodecs.packints_decode(data, dtype, bits, runlen=shape[1] * shape[2]).reshape(shape)
    else:
        part = np.frombuffer(data, np.dtype(layout.order + dtype.str[1:])).reshape(shape)
        if layout.predictor == FLOAT_DIFFERENCES:
            part = imagecodecs.floatpred_decode(part, axis=-2)
        part = part.astype(dtype)  # in native byte order, a copy
    if layout.predictor == DIFFERENCES:
        numbers = part.view(f"u{dtype.itemsize}")
        np.cumsum(numbers, axis=1, dtype=numbers.dtype, out=numbers)
        if bits != 8 * dtype.itemsize:
            numbers &= 2**bits - 1
    return part


def _scaled(values: np.ndarray, bits: int, dtype: np.dtype) -> np.ndarray:
    """Integers of `bits` bits, scaled to the full scale of `dtype` and rounded."""
    if bits == 8 * dtype.itemsize:
        return values
    return np.rint(np.linspace(0, np.iinfo(dtype).max, 2**bits)).astype(dtype)[values]
