"""TIFF. OpenImageIO decodes pixels, or `SegmentReader` where OpenImageIO fails; metadata is read and files are written
here. ISA-L deflates ten times as fast as zlib; files are as small, and every program reads them."""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastenh.io import metadata
from fastenh.io.colour import cmyk_profile, profile_of
from fastenh.io.formats.base import DEFLATE_LEVEL, Format, Header, Rows, RowWriter, cmyk_note
from fastenh.io.formats.rows import DTYPES, OpenImageIOReader
from fastenh.io.formats.segments import (
    BLACK_IS_0,
    CMYK,
    COLOURS,
    DIFFERENCES,
    FLOAT_DIFFERENCES,
    NO_PREDICTOR,
    OLD_JPEG,
    RGB,
    WHITE_IS_0,
    Layout,
    SegmentReader,
    read_layout,
)
from fastenh.io.metadata import Directory, DirectoryReader, Entry, Metadata, Overlap, Tag, read_directory
from fastenh.io.xmp import Refused, check_xmp, xmp_orientation

NONE, LZW, PACKBITS, ZSTD = 1, 5, 32773, 50000
COMPRESSIONS = {"none": NONE, "lzw": LZW, "zip": 8, "packbits": PACKBITS, "zstd": ZSTD}  # for writing
SUBFILE_TYPE, WIDTH, HEIGHT, SUB_DIRECTORIES, LAYERS = 254, 256, 257, 330, 37724
REDUCED = 1  # a bit of the subfile type: the picture is a smaller version of another
MAX_SMALL_PICTURES = 64  # beside the photo: thumbnails, a pyramid
MAX_CLASSIC = 2**32 - 2**27  # bytes of pixels in a TIFF with offsets of 32 bits; above that a BigTIFF is written
AT_ONCE = 2**18  # bytes of a strip: they stay in the cache


class Tiff(Format):
    name = "TIFF"
    resolution = True
    suffixes = (".tif", ".tiff")
    start = re.compile(rb"II\*\0|MM\0\*|II\x2b\0|MM\0\x2b")
    depths = ("uint8", "uint16", "float16", "float32")
    by_rows = True
    extra_channels = True
    holds = ("exif", "xmp", "iptc")

    def open(self, path: Path) -> Rows:
        directory, left_out = Directory(), list[str]()
        with open(path, "rb") as file:
            try:
                directory = read_directory(file)
                check_xmp(directory.block(metadata.XMP))
            except Refused as error:
                del directory[metadata.XMP]
                left_out.append(f"XMP: {error}")
            except Overlap as error:
                left_out.append(f"all metadata, including any ICC profile: {error}")
            except ValueError:  # the directory is damaged, but the pixels may be readable
                pass
            layout = read_layout(file, directory.block(metadata.ICC))
            refusal = (layout and layout.refusal()) or _pictures_refusal(file)
        if refusal:
            raise ValueError(f"{path}: expected {refusal}")
        if layout and layout.needs_imagecodecs:
            for part in left_out:
                warnings.warn(f"{path}: left out {part}", stacklevel=2)
            return SegmentReader(path, _header(layout, directory), layout, directory.block(metadata.ICC))
        return TiffReader(path, self, directory, layout, left_out)

    def writer(self, path: Path, header: Header) -> RowWriter:
        return TiffWriter(path, header)

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """The first directory with its values, and all strips or tiles."""
        try:
            reader = DirectoryReader(file)
            stored = reader.stored()  # ValueError for a directory that is cut short; `entries` returns what is there
            entries = {entry.tag: entry for entry in reader.entries(reader.first)[0]}
        except ValueError:
            return False
        if not stored or any(entry.place + entry.size > size for entry in entries.values()):
            return False

        def numbers(tag: int) -> np.ndarray:
            entry = entries[tag]
            return np.frombuffer(reader.value(entry), f"<u{metadata.SIZES[entry.type]}").astype(np.uint64)

        # Offsets and sizes of strips or tiles.
        pairs = [(numbers(a), numbers(b)) for a, b in ((273, 279), (324, 325)) if a in entries and b in entries]
        return all(len(a) == len(b) and (a + b).max(initial=0) <= size for a, b in pairs)


class TiffReader(OpenImageIOReader):
    def __init__(
        self, path: Path, format: Format, directory: Directory, layout: Layout | None, left_out: list[str]
    ) -> None:
        self._directory, self._layout, self._left_out = directory, layout, left_out
        super().__init__(path, format)

    def _read_metadata(self) -> list[str]:
        if self._left_out:
            self._bare = tempfile.NamedTemporaryFile(suffix=self.path.suffix)  # noqa: SIM115
            shutil.copyfile(self.path, self._bare.name)
            try:
                _remove_metadata(Path(self._bare.name))
            except ValueError as problem:
                raise ValueError(f"{self.path}: {problem}") from None
        return self._left_out

    def _colours(self) -> int:
        """OpenImageIO names the channels of a TIFF by their number alone."""
        return COLOURS[self._layout.photometric] if self._layout else 0

    def _refusal(self) -> str | None:
        spec, layout = self._spec, self._layout
        if layout is None:
            return "a whole TIFF, got a damaged one (its directory)"
        if refusal := super()._refusal():
            return refusal
        if (DTYPES[str(spec.format)], spec.nchannels) != (layout.dtype.name, layout.channels):
            got = f"{spec.nchannels} of {spec.format} from OpenImageIO"
            return f"{layout.channels} channels of {layout.dtype}, as the file states, got {got}"
        return None

    def _header(self) -> Header:
        assert self._layout
        header = super()._header()
        return replace(
            header, orientation=_orientation(self._directory) or header.orientation,
            metadata=_metadata(self._directory, header.metadata.dpi), storage=_storage(self._layout),
        )  # fmt: skip

    def _decode(self, first: int, end: int) -> np.ndarray:
        assert self._layout
        rows, inverted = super()._decode(first, end), self._spec.get_int_attribute("tiff:PhotometricInterpretation", -1)
        if self._layout.photometric == WHITE_IS_0:
            # OpenImageIO inverts all 8-bit channels, even alpha, but no 16-bit channels, and none without the tag.
            right = rows.dtype == np.uint8 and inverted == WHITE_IS_0
            wrong = rows[..., 1:] if right else rows[..., :1]
            np.invert(wrong, out=wrong)
        return rows

    def _damaged(self, problem: str) -> Exception:
        if self._layout and self._layout.compression == OLD_JPEG and "JPEG tables" in problem:
            return ValueError(f"{self.path}: expected a compression that can be read, got JPEG without its tables")
        return super()._damaged(problem)


class TiffWriter:
    """Writes a TIFF by rows, from the first to the last."""

    def __init__(self, path: Path, header: Header) -> None:
        dtype = np.dtype(np.float32) if header.dtype == np.float16 else header.dtype  # few programs read 16-bit floats
        header = replace(header, dtype=dtype)
        row = header.width * header.channels * dtype.itemsize
        self._path, self._header = path, header
        self._compression = COMPRESSIONS[header.storage.get("compression", "zip")]
        predicts = self._compression not in (NONE, PACKBITS)
        self._predictor = NO_PREDICTOR if not predicts else DIFFERENCES if dtype.kind == "u" else FLOAT_DIFFERENCES
        self._strip = max(1, AT_ONCE // row)  # rows
        self._big = row * header.height > (MAX_CLASSIC / 1.5 if self._compression == LZW else MAX_CLASSIC)
        self._pending = np.empty((0, header.width, header.channels), dtype)
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        path.write_bytes(b"II\x2b\0\x08\0\0\0" + bytes(8) if self._big else b"II*\0" + bytes(4))

    def write(self, rows: np.ndarray) -> None:
        rows = rows.astype(self._header.dtype, copy=False)
        rows = np.concatenate([self._pending, rows]) if len(self._pending) else rows
        full = len(rows) // self._strip * self._strip
        self._pending = rows[full:].copy()
        self._append(rows[:full])

    def close(self) -> None:
        self._append(self._pending)
        header, (kind, letter) = self._header, (16, "Q") if self._big else (4, "I")

        def numbers(kind: int, letter: str, *values: int) -> Tag:
            return Tag(kind, len(values), struct.pack(f"<{len(values)}{letter}", *values))

        shorts = {
            258: [8 * header.dtype.itemsize] * header.channels,
            259: [self._compression],
            274: [header.orientation],
            277: [header.channels],
            284: [1],  # the channels of a pixel are side by side
        }
        if self._predictor != NO_PREDICTOR:
            shorts[317] = [self._predictor]
        if header.dtype.kind == "f":
            shorts[339] = [3] * header.channels
        tags = Directory({tag: numbers(3, "H", *values) for tag, values in shorts.items()} | _channel_tags(header))
        for tag, value in ((WIDTH, header.width), (HEIGHT, header.height), (278, self._strip)):
            tags[tag] = numbers(4, "I", value)
        tags[273], tags[279] = numbers(kind, letter, *self._offsets), numbers(4, "I", *self._sizes)
        with open(self._path, "r+b") as file:
            end = file.seek(0, 2)
            file.write(metadata.pack_directory({**tags, **metadata_tags(header.metadata)}, end, self._big))
            file.seek(8 if self._big else 4)
            file.write(struct.pack("<" + letter, end))

    def _append(self, rows: np.ndarray) -> None:
        with open(self._path, "ab") as file:
            for top in range(0, len(rows), self._strip):
                data = self._packed(rows[top : top + self._strip])
                self._offsets.append(file.tell())
                self._sizes.append(file.write(data))
                file.write(bytes(len(data) % 2))  # offsets are even

    def _packed(self, rows: np.ndarray) -> bytes | bytearray:
        """The compressed bytes of a strip."""
        import imagecodecs  # not on every machine that runs the ops
        from isal import isal_zlib

        strip = np.array(rows, order="C")
        if self._predictor == DIFFERENCES:
            strip[:, 1:] -= rows[:, :-1]  # each value minus the one to its left
        elif self._predictor == FLOAT_DIFFERENCES:
            strip = imagecodecs.floatpred_encode(strip, axis=-2)
        if self._compression == PACKBITS:
            return imagecodecs.packbits_encode(strip.reshape(len(rows), -1).view(np.uint8), axis=-1)
        if self._compression == LZW:
            return imagecodecs.lzw_encode(strip.tobytes())
        if self._compression == ZSTD:
            return imagecodecs.zstd_encode(strip.tobytes())
        if self._compression == NONE:
            return strip.tobytes()
        data = isal_zlib.compress(strip, DEFLATE_LEVEL)
        # ISA-L expands noise beyond zlib's `compressBound`, and readers such as OpenImageIO allocate no more than that.
        return data if len(data) < strip.nbytes else zlib.compress(strip.tobytes(), 0)


# ---- directories


def _header(layout: Layout, directory: Directory) -> Header:
    """The header of a file that `SegmentReader` reads."""
    colours, kinds = COLOURS[layout.photometric], layout.extra
    alpha = next((colours + place for place, kind in enumerate(kinds) if kind in (1, 2)), None)
    about = _metadata(directory, metadata.resolution(directory))
    notes: tuple[str, ...] = ()
    if layout.photometric == CMYK:
        notes = (cmyk_note(cmyk_profile(about.icc)),)
        about = replace(about, icc=profile_of())
    return Header(
        Tiff.name, layout.height, layout.width, layout.channels, layout.dtype, colours, alpha,
        alpha is not None and kinds[alpha - colours] == 1, _orientation(directory) or 1,
        metadata=about, storage=_storage(layout), notes=notes,
    )  # fmt: skip


def _metadata(directory: Directory, dpi: tuple[float, float] | None) -> Metadata:
    resources = metadata.without_thumbnails(directory.block(metadata.RESOURCES))
    iptc = resources or metadata.iptc_resources(directory.block(metadata.IPTC))
    exif = metadata.exif_block(_without_structure(directory))
    return Metadata(directory.block(metadata.ICC), exif, directory.block(metadata.XMP), iptc, dpi)


def _orientation(directory: Directory) -> int:
    """The orientation by its tag or, if that is missing or invalid, by XMP; 0 if neither states it."""
    orientation = int.from_bytes(directory.block(metadata.ORIENTATION), "little")
    return orientation if orientation in range(1, 9) else xmp_orientation(directory.block(metadata.XMP))


def _storage(layout: Layout) -> dict[str, str]:
    """The compression to write: the file's own if it can be written, otherwise zip, which is lossless."""
    return {"compression": next((name for name, code in COMPRESSIONS.items() if code == layout.compression), "zip")}


def _channel_tags(header: Header) -> dict[int, Tag]:
    """What colours mean, and of which kind each further channel is."""
    extra = [0] * (header.channels - header.colours)  # of no kind
    if header.alpha is not None:
        extra[header.alpha - header.colours] = 1 if header.premultiplied else 2
    tags = {262: Tag(3, 1, struct.pack("<H", RGB if header.colours == 3 else BLACK_IS_0))}
    if extra:
        tags[338] = Tag(3, len(extra), struct.pack(f"<{len(extra)}H", *extra))
    return tags


def metadata_tags(about: Metadata) -> Directory:
    """Metadata as the directory of a TIFF holds it."""
    tags = Directory()
    with contextlib.suppress(ValueError):  # damaged EXIF is no reason to lose the photo
        tags |= _without_structure(read_directory(about.exif)) if about.exif else {}
    if across_and_down := about.dpi or about.aspect:
        for tag, value in zip((282, 283), across_and_down, strict=True):
            tags[tag] = Tag(5, 1, struct.pack("<II", *_fraction(value)))
        tags[296] = Tag(3, 1, struct.pack("<H", 2 if about.dpi else 1))  # inches, or no unit
    blocks = (metadata.XMP, 1, about.xmp), (metadata.RESOURCES, 7, about.iptc), (metadata.ICC, 7, about.icc)
    for tag, kind, block in blocks:
        if block:
            tags[tag] = Tag(kind, len(block), block)
    if records := metadata.iptc_records(about.iptc):
        tags[metadata.IPTC] = Tag(7, len(records), records)
    return tags


def _without_structure(directory: Directory) -> Directory:
    """What a directory says of the photo, and not of how it is stored."""
    return Directory({tag: value for tag, value in directory.items() if tag not in metadata.STRUCTURE})


def _fraction(value: float) -> tuple[int, int]:
    """As two numbers of 32 bits."""
    scale = 1 if value == round(value) or value > 2**32 / 10000 else 10000
    return min(round(value * scale), 2**32 - 1), scale


def _pictures_refusal(file: BinaryIO) -> str | None:
    """For a file with other pictures than a photo and smaller versions of it, the rest of the message after "expected";
    None for others."""
    with contextlib.suppress(ValueError):
        reader = DirectoryReader(file)
        first = {entry.tag: entry for entry in reader.entries(reader.first)[0]}
        if SUBFILE_TYPE in first and reader.number(first[SUBFILE_TYPE]) & REDUCED:
            return "a photo at its full size first, got a small picture of it"
        for number, is_small in enumerate(_other_pictures(file)):
            if not is_small:
                return "one picture, got several pages"
            if number == MAX_SMALL_PICTURES:
                return f"one picture, got more than {MAX_SMALL_PICTURES} small ones beside it"
    return None


def _other_pictures(file: BinaryIO) -> Iterator[bool]:
    """For each directory but the first, on pages and below the first, whether it holds a smaller version of another
    picture, or no picture. ValueError where a page is damaged."""
    reader = DirectoryReader(file)

    def is_small(entries: list[Entry]) -> bool:
        values = {entry.tag: reader.number(entry) for entry in entries if entry.tag in (SUBFILE_TYPE, WIDTH, HEIGHT)}
        return bool(values.get(SUBFILE_TYPE, 0) & REDUCED) or not {WIDTH, HEIGHT} <= values.keys()

    entries, page = reader.entries(reader.first)
    read = {reader.first}
    for below in (entry for entry in entries if entry.tag == SUB_DIRECTORIES):
        with contextlib.suppress(ValueError):  # a damaged tag says nothing of the pages
            for index in range(below.number):
                place = reader.number(below, index)
                try:
                    yield place in read or is_small(reader.entries(place)[0])
                except ValueError:
                    yield True
                read.add(place)
    while page not in read | {0}:
        read.add(page)
        entries, page = reader.entries(page)
        yield is_small(entries)


def _remove_metadata(path: Path) -> None:
    """Remove metadata, and all pictures but the first, from a TIFF of any byte order. Overlap where the rest would
    exhaust memory too."""
    with open(path, "r+b") as file:
        reader = DirectoryReader(file)
        stored = {tag: entry for tag, entry in reader.stored().items() if tag not in (SUB_DIRECTORIES, LAYERS)}
        kept = (entry for entry in reader.entries(reader.first)[0] if entry.tag in stored)
        if (shared := reader.overlap(kept)) > metadata.MAX_SHARED:
            raise Overlap(f"expected strips or tiles with values of their own, got {shared} bytes that are shared")
        place = _even_end(file)
        file.write(struct.pack(reader.order + reader.layout.count, len(stored)))
        file.write(b"".join(entry for _, entry in sorted(stored.items())) + bytes(reader.layout.offset_size))
        _set_first(file, reader, place)


def _even_end(file: BinaryIO) -> int:
    """Go to the first even offset from the end of the file on, and return it."""
    end = file.seek(0, 2)
    return file.seek(end + end % 2)


def _set_first(file: BinaryIO, reader: DirectoryReader, offset: int) -> None:
    """Make the directory at `offset` the first one."""
    file.seek(8 if reader.layout is metadata.BIG else 4)
    file.write(struct.pack(reader.order + reader.layout.offset, offset))
