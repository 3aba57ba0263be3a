"""AVIF. libavif (through imagecodecs) decodes and encodes pixels only; profile, EXIF, XMP and orientation are read from
and written to the boxes of the file here."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastenh.io.formats.base import QUALITY, Format, Header, Unsupported, check_memory, check_size, take
from fastenh.io.formats.boxes import box, boxes
from fastenh.io.metadata import EXIF_START, Metadata, coded_profile

SPEED = 9  # of libaom, up to 10; at 6, a file is 1 % smaller and takes ten times as long
MAX_SIDE = 65_536  # pixels, the largest width and height in AV1
MAX_META = 2**24  # bytes of the "meta" box, which contains neither pixels nor metadata
SRGB, UNSPECIFIED = (1, 13), (2, 2)  # codes of primaries and curve in ITU-T H.273
LOSSLESS = (0, 16, 17)  # codes of reversible matrices: identity (RGB), YCgCo-R
XMP_TYPE = b"application/rdf+xml\0"
# EXIF's orientation by the number of anticlockwise quarter turns (irot) and the mirror axis applied after them (imir)
ORIENTATIONS = {
    (0, None): 1, (0, 1): 2, (2, 0): 2, (2, None): 3, (0, 0): 4, (2, 1): 4, (1, 0): 5, (3, 1): 5, (3, None): 6,
    (3, 0): 7, (1, 1): 7, (1, None): 8,
}  # fmt: skip


class Avif(Format):
    name = "AVIF"
    suffixes = (".avif",)
    start = re.compile(rb"....ftyp(avi[fs]|mif1.*avi[fs])", re.S)
    depths = ("uint8", "uint16")
    any_name = True

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        import imagecodecs  # not on every machine that runs the ops

        data = path.read_bytes()
        container = read_container(io.BytesIO(data))
        if container.brand == b"avis":
            raise Unsupported("expected one picture, got an animation")
        width, height = container.size()
        check_size(width, height)
        properties = container.properties()
        icc, primaries, curve, matrix = b"", *UNSPECIFIED, None
        for kind, content in properties:
            if kind == b"colr" and content[:4] in (b"prof", b"rICC"):
                icc = icc or content[4:]
            elif kind == b"colr" and content[:4] == b"nclx":
                primaries, curve, matrix = struct.unpack_from(">HHH", content, 4)
        bits, gray, chroma = container.coding()
        if not icc:
            try:
                icc = coded_profile(primaries, curve, 1 if gray else 3)
            except ValueError as error:
                raise Unsupported(error) from None
        try:
            pixels = imagecodecs.avif_decode(_without_movies(data, container), index=0)
        except Exception:
            check_memory(width, height)
            raise
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.dtype == np.uint16:
            pixels = _rescaled(pixels, 2**bits - 1, 65535)
        about = Metadata(icc, container.exif(), container.xmp())
        for kind, content in properties:
            if kind == b"clap":
                top, left, height, width = _crop(content, *pixels.shape[:2])
                pixels = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        header = Header.of(
            self.name, pixels, about, _orientation(properties),
            bits=bits, chroma=chroma, codes=(primaries, curve), lossless=matrix in LOSSLESS,
        )  # fmt: skip
        return header, pixels

    def encode(self, header: Header, pixels: np.ndarray, quality: int | None) -> bytes:
        """Without `quality`, lossless if the photo was. 16 bits become 12, or 10 if the photo was read from 10. Alpha
        and gray are always lossless."""
        import imagecodecs

        if max(header.width, header.height) > MAX_SIDE:
            got = f"{header.width}×{header.height}"
            raise ValueError(f"expected at most {MAX_SIDE} pixels a side for AVIF, got {got}")
        storage, about = header.storage, header.metadata
        bits = 8
        if pixels.dtype == np.uint16:
            bits = max(storage.get("bits", 12), 10)
            pixels = _rescaled(pixels, 65535, 2**bits - 1)
        level = quality or (100 if storage.get("lossless") else QUALITY)  # libavif's 100 is lossless
        options = {"level": level, "pixelformat": storage.get("chroma", "444"), "bitspersample": bits, "speed": SPEED}
        try:
            data = imagecodecs.avif_encode(pixels[..., 0] if pixels.shape[2] == 1 else pixels, **options)
        except Exception:
            check_memory(header.width, header.height)
            raise
        codes = storage.get("codes") or (UNSPECIFIED if about.icc else SRGB)
        return _with_metadata(bytes(data), codes, about)

    def size(self, path: Path) -> tuple[int, int]:
        try:
            with open(path, "rb") as file:
                container = read_container(file)
            width, height = container.size()
        except (EOFError, IndexError) as error:
            raise ValueError(f"{path}: expected a whole AVIF, got a damaged one ({error})") from None
        properties = container.properties()
        for kind, content in properties:
            if kind == b"clap":
                _, _, height, width = _crop(content, height, width)
        return (width, height) if _orientation(properties) >= 5 else (height, width)

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """All boxes, and all bytes of every item."""
        container = read_container(file)
        return all(at + length <= size for item in container.items.values() for at, length in item.extents)


# ---- boxes


@dataclass
class Item:
    """An entry of the file's item table: a picture, a tile, an alpha plane, or a block of metadata."""

    kind: bytes = b""
    entry: bytes = b""  # contents of its "infe" box
    extents: list[tuple[int, int]] = field(default_factory=list)  # offset, length; 0 means to the end of the file
    properties: list[tuple[bool, int]] = field(default_factory=list)  # whether it is essential, and its index, from 1


@dataclass
class Container:
    """The contents of the "meta" box: items, their properties, and references between them."""

    file: BinaryIO
    brand: bytes = b""
    movies: list[int] = field(default_factory=list)  # offsets of the "moov" boxes
    primary: int = 0
    items: dict[int, Item] = field(default_factory=dict)
    known_properties: list[tuple[bytes, bytes]] = field(default_factory=list)  # kind and contents
    references: list[tuple[bytes, int, list[int]]] = field(default_factory=list)

    def properties(self, number: int | None = None) -> list[tuple[bytes, bytes]]:
        """Kind and contents of each property of the primary picture, or of item `number`."""
        item = self.items.get(self.primary if number is None else number, Item())
        count = len(self.known_properties)
        return [self.known_properties[index - 1] for _, index in item.properties if 0 < index <= count]

    def property(self, kind: bytes, number: int | None = None) -> bytes:
        """The contents of the first property of this kind, b"" if there is none."""
        return next((content for name, content in self.properties(number) if name == kind), b"")

    def size(self) -> tuple[int, int]:
        """Width and height, before rotation and cropping. Raises EOFError if the file does not state them."""
        try:
            width, height = struct.unpack_from(">II", self.property(b"ispe"), 4)
        except struct.error:
            raise EOFError("it states no width and height") from None
        return width, height

    def coding(self) -> tuple[int, bool, str]:
        """Bit depth, whether the picture is gray, and chroma subsampling; of a grid, those of its first tile."""
        numbers = [self.primary]
        numbers += [to for kind, source, targets in self.references if kind == b"dimg" for to in targets[:1]]
        config = next(filter(None, (self.property(b"av1C", number) for number in numbers)), b"\x81\0\0\0")
        flags, depths = config[2], self.property(b"pixi")
        bits = depths[5] if len(depths) > 5 else 8 + 2 * (flags >> 6 & 1) + 2 * (flags >> 5 & 1)
        chroma = {0: "444", 2: "422", 3: "420"}.get(flags >> 2 & 3, "444")
        return bits, bool(flags & 0x10), chroma

    def exif(self) -> bytes:
        """The EXIF block, b"" if there is none. The item begins with four bytes that state the offset of the block."""
        data = self._first_of_kind(b"Exif")
        start = int.from_bytes(data[:4], "big") + 4
        return data[start:].removeprefix(EXIF_START)

    def xmp(self) -> bytes:
        return self._first_of_kind(b"mime")

    def _first_of_kind(self, kind: bytes) -> bytes:
        """The bytes of the first metadata item of this kind, b"" if there is none; "mime" means XMP."""
        for item in self.items.values():
            if item.kind == kind and (kind != b"mime" or XMP_TYPE in item.entry):
                return self.content(item)
        return b""

    def content(self, item: Item) -> bytes:
        """The bytes of an item. Raises EOFError if they exceed the file."""
        size = self.file.seek(0, 2)
        if sum(length for _, length in item.extents) > size:
            raise EOFError("an item is larger than the file")
        parts = []
        for place, length in item.extents:
            self.file.seek(place)
            parts.append(self.file.read(length or -1))
        return b"".join(parts)


def read_container(file: BinaryIO) -> Container:
    """Parse the boxes of a file. Raises EOFError or IndexError if they are damaged."""
    size = file.seek(0, 2)
    found, start = Container(file), 0
    meta = None
    for kind, content, end in boxes(file, 0, size):
        if kind == b"ftyp":
            found.brand = _read_at(file, content, 4)
        elif kind == b"meta" and meta is None:
            meta = content + 4, end  # after version and flags
        elif kind == b"moov":
            found.movies.append(start)
        start = end
    if meta is None or meta[1] - meta[0] > MAX_META:
        raise EOFError(f"it has no meta box of at most {MAX_META >> 20} MiB")
    inner = list(boxes(file, *meta))
    inside = next((content for kind, content, _ in inner if kind == b"idat"), 0)
    for kind, content, end in inner:
        if kind in READERS:
            READERS[kind](found, _read_at(file, content, end - content), inside)
    return found


def _read_at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return take(file, count)


# ---- readers of the boxes inside "meta"; `data` begins with version and flags


def _read_pitm(found: Container, data: bytes, _: int) -> None:
    found.primary = int.from_bytes(data[4 : 8 if data[0] else 6], "big")


def _read_iinf(found: Container, data: bytes, _: int) -> None:
    for kind, content, end in boxes(io.BytesIO(data), 8 if data[0] else 6, len(data)):
        if kind == b"infe" and data[content] in (2, 3):
            wide = 2 * (data[content] - 2)
            number = int.from_bytes(data[content + 4 : content + 6 + wide], "big")
            item = found.items.setdefault(number, Item())
            item.kind, item.entry = data[content + 8 + wide : content + 12 + wide], data[content:end]


def _read_iloc(found: Container, data: bytes, inside: int) -> None:
    version, stream = data[0], io.BytesIO(data)
    stream.seek(4)

    def number(count: int) -> int:
        return int.from_bytes(take(stream, count), "big")

    sizes = number(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(number(4 if version > 1 else 2)):
        item = found.items.setdefault(number(4 if version > 1 else 2), Item())
        method = number(2) & 15 if version else 0
        number(2)  # the index of an external file; 0 is this file
        base = number(base_size) + (inside if method == 1 else 0)
        count = number(2)
        if count > 1 and not length_size:
            raise EOFError("an item has several extents of unknown length")
        for _ in range(count):
            number(index_size if version else 0)
            item.extents.append((base + number(offset_size), number(length_size)))


def _read_iref(found: Container, data: bytes, _: int) -> None:
    width = 4 if data[0] else 2
    for kind, content, end in boxes(io.BytesIO(data), 4, len(data)):
        places = [content, *range(content + width + 2, end - width + 1, width)]  # source; after a count, targets
        source, *targets = (int.from_bytes(data[place : place + width], "big") for place in places)
        found.references.append((kind, source, targets))


def _read_iprp(found: Container, data: bytes, _: int) -> None:
    """Property values (ipco) and their associations with items (ipma). This box has no version and flags."""
    for kind, content, end in boxes(io.BytesIO(data), 0, len(data)):
        if kind == b"ipco":
            found.known_properties += [
                (name, data[start:stop]) for name, start, stop in boxes(io.BytesIO(data), content, end)
            ]
        elif kind == b"ipma":
            stream = io.BytesIO(data[content + 4 : end])
            width, wide = (4 if data[content] else 2), 2 if data[content + 3] & 1 else 1
            for _ in range(int.from_bytes(take(stream, 4), "big")):
                item = found.items.setdefault(int.from_bytes(take(stream, width), "big"), Item())
                for _ in range(take(stream, 1)[0]):
                    value = int.from_bytes(take(stream, wide), "big")
                    top = 1 << 8 * wide - 1
                    item.properties.append((value >= top, value % top))


READERS = {b"pitm": _read_pitm, b"iinf": _read_iinf, b"iloc": _read_iloc, b"iref": _read_iref, b"iprp": _read_iprp}


def _without_movies(data: bytes, found: Container) -> bytes:
    """The file with its movies marked as free space. libavif might decode their frames instead of the picture, and
    imagecodecs would then write beyond its buffer."""
    if not found.movies:
        return data
    brands = int.from_bytes(data[:4], "big")  # bytes of the "ftyp" box, whose brand "avis" announces a movie
    changed = bytearray(data[:brands].replace(b"avis", b"avif") + data[brands:])
    for start in found.movies:
        changed[start + 4 : start + 8] = b"free"
    return bytes(changed)


def _with_metadata(data: bytes, codes: tuple[int, int], about: Metadata) -> bytes:
    """The encoder's file `data` with the codes of primaries and curve set, and with ICC profile, EXIF and XMP added."""
    found = read_container(io.BytesIO(data))
    contents = {number: found.content(item) for number, item in found.items.items()}
    properties = [
        box(kind, content[:4] + struct.pack(">HH", *codes) + content[8:] if content[:4] == b"nclx" else content)
        for kind, content in found.known_properties
    ]
    picture = found.items[found.primary]
    if about.icc:
        properties.append(box(b"colr", b"prof", about.icc))
        picture.properties.append((False, len(properties)))
    new = (b"Exif", b"\0", bytes(4) + about.exif if about.exif else b""), (b"mime", b"\0" + XMP_TYPE, about.xmp)
    for kind, names, content in new:
        if content:
            number = max(found.items) + 1
            found.items[number] = Item(kind, struct.pack(">IHH", 2 << 24, number, 0) + kind + names)
            found.references.append((b"cdsc", number, [found.primary]))
            contents[number] = content

    def meta(start: int) -> bytes:
        """The "meta" box of a file whose item contents begin at offset `start`, in item order."""
        places, associations = b"", b""
        for number, item in found.items.items():
            places += struct.pack(">HHHII", number, 0, 1, start, len(contents[number]))
            start += len(contents[number])
            indices = bytes(essential << 7 | index for essential, index in item.properties)
            associations += struct.pack(">HB", number, len(indices)) + indices if indices else b""
        associated = sum(bool(item.properties) for item in found.items.values())
        entries = [box(b"infe", item.entry) for item in found.items.values()]
        references = [
            box(kind, struct.pack(f">HH{len(targets)}H", source, len(targets), *targets))
            for kind, source, targets in found.references
        ]
        return box(
            b"meta", bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", struct.pack(">IH", 0, found.primary)),
            box(b"iloc", struct.pack(">IBBH", 0, 0x44, 0, len(found.items)), places),
            box(b"iinf", struct.pack(">IH", 0, len(entries)), *entries),
            *[box(b"iref", bytes(4), *references)] if references else [],
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", struct.pack(">II", 0, associated), associations)),
        )  # fmt: skip

    head = data[: int.from_bytes(data[:4], "big")]  # the "ftyp" box
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *contents.values())


# ---- pixels


def _rescaled(pixels: np.ndarray, old: int, new: int) -> np.ndarray:
    """uint16 values scaled from full scale `old` to `new` and rounded."""
    table = np.rint(np.arange(old + 1) * (new / old)).astype(np.uint16)
    return table.take(pixels, mode="clip")


def _orientation(properties: list[tuple[bytes, bytes]]) -> int:
    """EXIF's code for the rotation (irot) and mirroring (imir) of the file. The standard ignores the tag in EXIF."""
    about = dict(properties)
    turn, mirror = about.get(b"irot", b"\0")[0] & 3, about.get(b"imir")
    return ORIENTATIONS[turn, mirror[0] & 1 if mirror else None]


def _crop(clap: bytes, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the clean aperture; the entire picture if it is invalid or not on whole pixels."""
    numbers = struct.unpack(">IIIIiIiI", clap[:32])
    if not all(numbers[1::2]):
        return 0, 0, height, width
    across, down, x, y = (Fraction(*numbers[n : n + 2]) for n in range(0, 8, 2))
    left, top = (width - across) / 2 + x, (height - down) / 2 + y
    fits = min(left, top) >= 0 and min(across, down) > 0 and left + across <= width and top + down <= height
    if not fits or any(number.denominator > 1 for number in (across, down, left, top)):
        return 0, 0, height, width
    return int(top), int(left), int(down), int(across)
