"""Metadata as bytes: EXIF, XMP, IPTC, ICC profile and resolution, in the form in which they go from format to format.

EXIF is a TIFF: byte order, 42, the offset of a directory. A directory is a count, an entry for each tag (tag, type,
count, value or its offset), and the offset of the next directory, which in EXIF holds a thumbnail. A TIFF file has the
same tags in the directory of its picture. `fastenh.io.xmp` handles XMP. IPTC is a block of Photoshop's image resources
("8BIM").
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

import numpy as np

from fastenh.io.colour import profile_of
from fastenh.io.xmp import enlarged_xmp, upright_xmp, xmp_orientation

ORIENTATION, XMP, IPTC, RESOURCES, ICC = 0x0112, 700, 33723, 34377, 34675
BLOCKS = (XMP, IPTC, RESOURCES, ICC)
EXIF_DIRECTORY, INTEROPERABILITY = 0x8769, 0xA005
DIRECTORIES = (EXIF_DIRECTORY, 0x8825, INTEROPERABILITY)  # tags whose value is a directory: EXIF, GPS, interoperability
# Tags that say how and where the pixels of a TIFF are stored, or that are pictures themselves: thumbnails, layers.
STRUCTURE = {
    *range(254, 260), 262, 263, 266, 273, ORIENTATION, *range(277, 282), 284, *range(288, 294), 301, 317, 320, 321,
    *range(322, 326), 330, *range(332, 335), *range(336, 343), 347, *range(512, 522), *range(529, 533),
    *BLOCKS, 37724, 50255,
}  # fmt: skip
EXIF_START = b"Exif\0\0"  # in the files of some formats, before the block


@dataclass(frozen=True)
class Metadata:
    """The ICC profile; EXIF, without `EXIF_START`; the XMP packet; IPTC and others, as Photoshop's image resources;
    b"" or None where there is none."""

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None  # across and down
    aspect: tuple[int, int] | None = None  # pixels across and down on the same length, where the unit is not known

    def upright(self, orientation: int, width: int, height: int) -> Metadata:
        """The metadata after `orientation` has been applied to the photo, which is now `width` by `height`."""
        dpi, aspect, on_its_side = self.dpi, self.aspect, orientation >= 5
        return replace(
            self, exif=upright_exif(self.exif, (width, height) if on_its_side else None),
            xmp=self.xmp and upright_xmp(self.xmp, orientation, width, height),
            dpi=dpi[::-1] if dpi and on_its_side else dpi,
            aspect=aspect[::-1] if aspect and on_its_side else aspect,
        )  # fmt: skip

    def enlarged(self, scale: int, width: int, height: int) -> Metadata:
        """The metadata of the photo enlarged `scale` times, to `width` by `height`, without thumbnails."""
        exif = changed_exif(self.exif, None, (width, height) if scale > 1 else None)
        return replace(self, exif=exif, xmp=enlarged_xmp(self.xmp, scale, width, height))


@dataclass(frozen=True)
class Tag:
    type: int
    count: int
    value: bytes | Directory  # numbers are little-endian


class Directory(dict[int, Tag]):
    """Tags of a TIFF by their number."""

    def block(self, tag: int) -> bytes:
        """The bytes of a tag, b"" where it is missing."""
        value = self[tag].value if tag in self else b""
        return value if isinstance(value, bytes) else b""

    def below(self, tag: int) -> Directory:
        """The directory that a tag points to, an empty one where it is missing."""
        value = self[tag].value if tag in self else b""
        return value if isinstance(value, Directory) else Directory()


@dataclass(frozen=True)
class Layout:
    """The format characters that struct has for the count of entries and for an offset, and the bytes of each."""

    count: str
    count_size: int
    offset: str
    offset_size: int
    entry_size: int


CLASSIC, BIG = Layout("H", 2, "I", 4, 12), Layout("Q", 8, "Q", 8, 20)


def upright_exif(exif: bytes, size: tuple[int, int] | None = None) -> bytes:
    """The block with orientation 1, without the thumbnail, which shows the unprocessed photo, and with this (width,
    height) if `size` is given."""
    return changed_exif(exif, 1, size)


def changed_exif(exif: bytes, orientation: int | None, size: tuple[int, int] | None) -> bytes:
    """The block without the thumbnail. `orientation` and `size`, (width, height), if given, replace the values of the
    tags that exist. All other bytes, damaged or not, keep their offsets, on which maker notes depend. b"" if the block
    has no first directory."""
    data = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")

    def entries(directory: int) -> dict[int, int]:
        """The offset of each entry that is complete, by its tag, and under -1 the offset of what follows them."""
        count = min(struct.unpack_from(order + "H", data, directory)[0], (len(data) - directory - 2) // 12)
        end = directory + 2 + 12 * count
        return {struct.unpack_from(order + "H", data, at)[0]: at for at in range(directory + 2, end, 12)} | {-1: end}

    def below(directory: dict[int, int], tag: int) -> dict[int, int]:
        with contextlib.suppress(struct.error):
            return entries(struct.unpack_from(order + "I", data, directory[tag] + 8)[0]) if tag in directory else {}
        return {}

    try:
        first = entries(struct.unpack_from(order + "I", data, 4)[0])
    except struct.error:
        first = {}
    if not order or not first:
        return b""
    if orientation and ORIENTATION in first:
        struct.pack_into(order + "HIHH", data, first[ORIENTATION] + 2, 3, 1, orientation, 0)
    with contextlib.suppress(struct.error):  # some programs leave out the offset of the thumbnail,
        if struct.unpack_from(order + "I", data, first[-1])[0] < len(data):  # and others have a value in its place
            struct.pack_into(order + "I", data, first[-1], 0)
    exif_tags = below(first, EXIF_DIRECTORY)
    for found, tags in (
        (first, (256, 257)),
        (exif_tags, (0xA002, 0xA003)),
        (below(exif_tags, INTEROPERABILITY), (0x1001, 0x1002)),
    ):
        for tag, length in zip(tags, size or (), strict=False):
            if tag in found:
                short = struct.unpack_from(order + "H", data, found[tag] + 2) == (3,) and length < 2**16
                number = (3, 1, length, 0) if short else (4, 1, length)
                struct.pack_into(order + ("HIHH" if short else "HII"), data, found[tag] + 2, *number)
    return bytes(data)


def exif_within(exif: bytes, size: int) -> bytes:
    """The block in at most `size` bytes. A larger one is written anew, without its largest tags and the thumbnail."""
    if len(exif) <= size:
        return exif
    try:
        tags = read_directory(exif)
    except ValueError:
        return b""
    block = exif_block(tags)
    excess = len(block) - size
    held = [(len(place.block(tag)), tag, place) for place in _with_those_below(tags) for tag in place]
    for length, tag, place in sorted(held, key=lambda one: one[0], reverse=True):
        if excess <= 0:
            block = exif_block(tags)
            excess = len(block) - size
        if excess <= 0:
            return block
        del place[tag]
        excess -= CLASSIC.entry_size + (length if length > CLASSIC.offset_size else 0)
    return b""


def exif_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """The orientation by EXIF's tag, 1 to 8; if that is missing or invalid, by XMP; 1 if neither states it."""
    value = 0
    with contextlib.suppress(ValueError):
        reader = DirectoryReader(exif)
        for entry in reader.entries(reader.first)[0]:
            value = reader.number(entry) if entry.tag == ORIENTATION else value
    return value if value in range(1, 9) else (xmp_orientation(xmp) if xmp else 0) or 1


def check_exif(exif: bytes) -> None:
    """Raise Overlap for a block that would exhaust the memory of a program that reads it. Other damage is no error."""
    try:
        read_directory(exif)
    except Overlap:
        raise
    except ValueError:
        pass


class ExifFields(NamedTuple):
    """What EXIF says that a JPEG may say nowhere else."""

    orientation: int = 1
    dpi: tuple[float, float] | None = None  # across and down
    adobe_rgb: bool = False  # by the two tags that DCF has for it: the colour space is not sRGB, the rule is R03


def read_exif(exif: bytes, xmp: bytes = b"") -> ExifFields:
    """The fields, defaults for those that EXIF lacks; the orientation is XMP's if EXIF has none."""
    orientation = exif_orientation(exif, xmp)
    try:
        tags = read_directory(exif)
    except ValueError:
        return ExifFields(orientation)
    below = tags.below(EXIF_DIRECTORY)
    adobe_rgb = below.block(0xA001) == b"\xff\xff" and below.below(INTEROPERABILITY).block(1)[:3] == b"R03"
    return ExifFields(orientation, resolution(tags), adobe_rgb)


def resolution(tags: Directory) -> tuple[float, float] | None:
    """Pixels per inch, across and down; None if the directory does not state them."""
    unit = {2: 1.0, 3: 2.54}.get(int.from_bytes(tags.block(296), "little"), 0.0)
    across, down = (np.frombuffer(tags.block(tag)[:8].rjust(8, b"\0"), "<u4").astype(float) for tag in (282, 283))
    known = unit and across.min() > 0 and down.min() > 0
    return (unit * float(across[0] / across[1]), unit * float(down[0] / down[1])) if known else None


# ---- TIFF directories

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
UNITS = SIZES | {5: 4, 10: 4}  # bytes to swap where the byte order differs: a fraction is two numbers
MAX_TAGS = 4096  # of a directory; libtiff reads no more
MAX_SHARED = 2**20  # bytes of values that belong to several tags: some programs share equal values, and damage overlaps
MAX_CUT_SHORT = 4  # tags of a damaged file with values that reach beyond its end
PIXELS = (273, 279, 324, 325, 37724)  # not read: there are many strips and tiles, and Photoshop's layers are large


class Overlap(ValueError):
    """Tags whose values overlap, as in a file that is made to exhaust memory."""


class Entry(NamedTuple):
    tag: int
    type: int
    number: int  # of values
    place: int  # offset of the value in the file
    size: int  # bytes


class DirectoryReader:
    """Reads the directories of a TIFF, a BigTIFF or an EXIF block, each on its own. ValueError where there is none."""

    def __init__(self, source: BinaryIO | bytes) -> None:
        self._file = io.BytesIO(source) if isinstance(source, bytes) else source
        self._size = self._file.seek(0, 2)
        head = self._at(0, 8)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        if not self.order:
            raise ValueError("expected a TIFF, got other bytes")
        self.layout = BIG if struct.unpack_from(self.order + "H", head, 2)[0] == 43 else CLASSIC
        place = 8 if self.layout is BIG else 4
        self.first: int = struct.unpack(self.order + self.layout.offset, self._at(place, self.layout.offset_size))[0]

    def entries(self, offset: int) -> tuple[list[Entry], int]:
        """The entries of a directory, as many as the file has, without those of unknown types; and the offset of the
        next directory, or 0."""
        order, layout = self.order, self.layout
        count = struct.unpack(order + layout.count, self._at(offset, layout.count_size))[0]
        if count > MAX_TAGS:
            raise ValueError("expected a TIFF directory, got other bytes")
        place = offset + layout.count_size
        self._file.seek(place)
        data = self._file.read(count * layout.entry_size + layout.offset_size)
        found = []
        for start in range(0, min(count, len(data) // layout.entry_size) * layout.entry_size, layout.entry_size):
            tag, kind, number = struct.unpack_from(order + "HH" + layout.offset, data, start)
            size, inline = SIZES.get(kind, 0) * number, start + layout.entry_size - layout.offset_size
            if size > layout.offset_size:
                found.append(Entry(tag, kind, number, struct.unpack_from(order + layout.offset, data, inline)[0], size))
            elif size:
                found.append(Entry(tag, kind, number, place + inline, size))
        end = data[count * layout.entry_size :]
        return found, struct.unpack(order + layout.offset, end)[0] if len(end) == layout.offset_size else 0

    def stored(self) -> dict[int, bytes]:
        """The bytes of those entries of the first directory that say how and where its picture is stored, by tag."""
        head = self._at(self.first, self.layout.count_size)
        count, size = struct.unpack(self.order + self.layout.count, head)[0], self.layout.entry_size
        data = self._at(self.first + len(head), count * size)
        entries = [data[start : start + size] for start in range(0, len(data), size)]
        numbered = {struct.unpack_from(self.order + "H", entry)[0]: entry for entry in entries}
        return {tag: entry for tag, entry in numbered.items() if tag in STRUCTURE and tag not in BLOCKS}

    def value(self, entry: Entry) -> bytes:
        """The value, its numbers little-endian."""
        value, unit = self._at(entry.place, entry.size), UNITS[entry.type]
        return value if self.order == "<" or unit == 1 else np.frombuffer(value, f"u{unit}").byteswap().tobytes()

    def number(self, entry: Entry, index: int = 0) -> int:
        """One of the whole numbers of a value."""
        unit = UNITS[entry.type]
        return int.from_bytes(self.value(entry._replace(place=entry.place + index * unit, size=unit)), "little")

    def overlap(self, entries: Iterable[Entry]) -> int:
        """How many bytes of values belong to an earlier tag as well. Of values that reach beyond the end of the file,
        OpenImageIO alone takes what there is: all but a few, as damage makes them, count in full."""
        total = end = 0
        cut_short = []
        for entry in sorted(entries, key=lambda one: one.place):
            stop = entry.place + entry.size
            if stop > self._size:
                cut_short.append(max(self._size - entry.place, 0))
            else:
                total += max(min(stop, end) - entry.place, 0)
                end = max(end, stop)
        return total + sum(sorted(cut_short)[:-MAX_CUT_SHORT])

    def _at(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise ValueError("expected a whole TIFF directory, got one cut short")
        self._file.seek(offset)
        return self._file.read(size)


def read_directory(source: BinaryIO | bytes) -> Directory:
    """The first directory of a TIFF, a BigTIFF or an EXIF block, and those below it, without damaged tags and those in
    `PIXELS`. ValueError where there is none, Overlap where tags share more than `MAX_SHARED` bytes.

    The work is bounded: no directory is read twice, and no more bytes of values than there are plus `MAX_SHARED`.
    """
    reader = DirectoryReader(source)
    found: list[tuple[Directory, Entry]] = []
    read: set[int] = set()

    def directory_at(offset: int, depth: int) -> Directory:
        if offset in read or depth > 2:  # EXIF's interoperability directory is the lowest there is
            raise ValueError("expected a directory below another, got one that leads back")
        read.add(offset)
        directory = Directory()
        for entry in reader.entries(offset)[0]:
            if entry.tag not in DIRECTORIES:
                found.append((directory, entry))
            elif entry.tag not in directory:
                with contextlib.suppress(ValueError):
                    directory[entry.tag] = Tag(4, 1, directory_at(reader.number(entry), depth + 1))
        return directory

    result = directory_at(reader.first, 0)
    if (shared := reader.overlap(entry for _, entry in found)) > MAX_SHARED:
        raise Overlap(f"expected tags with values of their own, got {len(found)} tags that share {shared} bytes")
    for directory, entry in found:
        if entry.size <= 1 << 28 and entry.tag not in PIXELS:
            with contextlib.suppress(ValueError):  # one damaged tag is no reason to lose the others
                directory[entry.tag] = Tag(entry.type, entry.number, reader.value(entry))
    return result


def pack_directory(directory: Mapping[int, Tag | bytes], offset: int, big: bool = False) -> bytes:
    """The bytes, little-endian, of a directory and all it holds, for this `offset` of a file. A tag given as bytes is
    an entry to copy as it is: its value is elsewhere in the file already."""
    layout = BIG if big else CLASSIC
    place = offset + layout.count_size + layout.entry_size * len(directory) + layout.offset_size
    entries, values = [struct.pack("<" + layout.count, len(directory))], [bytes(layout.offset_size)]
    for number, tag in sorted(directory.items()):
        if isinstance(tag, bytes):
            entries.append(tag)
            continue
        entry = struct.pack("<HH" + layout.offset, number, tag.type, tag.count)
        if isinstance(tag.value, bytes) and len(tag.value) <= layout.offset_size:
            entries.append(entry + tag.value.ljust(layout.offset_size, b"\0"))
            continue
        if place % 2:
            values.append(b"\0")
            place += 1
        entries.append(entry + struct.pack("<" + layout.offset, place))
        values.append(tag.value if isinstance(tag.value, bytes) else pack_directory(tag.value, place, big))
        place += len(values[-1])
    return b"".join(entries + values)


def exif_block(directory: Directory) -> bytes:
    """An EXIF block of these tags; b"" for none."""
    return b"II*\0\x08\0\0\0" + pack_directory(directory, 8) if directory else b""


def exif_of_resolution(dpi: tuple[float, float]) -> bytes:
    """An EXIF block that states only the resolution in pixels per inch, across and down."""
    fractions = [Tag(5, 1, struct.pack("<II", min(round(1000 * value), 2**32 - 1), 1000)) for value in dpi]
    return exif_block(Directory({282: fractions[0], 283: fractions[1], 296: Tag(3, 1, struct.pack("<H", 2))}))


def _with_those_below(directory: Directory) -> Iterator[Directory]:
    yield directory
    for tag in directory.values():
        if isinstance(tag.value, Directory):
            yield from _with_those_below(tag.value)


# ---- IPTC

SIGNATURES = (b"8BIM", b"MeSa", b"PHUT", b"AgHg", b"DCSR")  # of Photoshop, and of programs that add to its resources


def iptc_records(resources: bytes) -> bytes:
    """The IPTC records, resource 1028 of a block of Photoshop's image resources."""
    records = b""
    for number, value, _ in _resources(resources):
        records = value if number == 1028 else records
    return records


def iptc_resources(records: bytes) -> bytes:
    """A block with these records alone."""
    return b"8BIM" + struct.pack(">HHI", 1028, 0, len(records)) + records + bytes(len(records) % 2) if records else b""


def without_thumbnails(resources: bytes) -> bytes:
    """The block without its thumbnails, 1033 and 1036, which show the photo as it was."""
    kept = bytearray()
    for number, _, full in _resources(resources):
        kept += full if number not in (1033, 1036) else b""
    return bytes(kept)


def _resources(block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, value and all bytes of each resource, up to the first that is cut short. The number is -1 where it is
    another program's."""
    place = 0
    while (signature := block[place : place + 4]) in SIGNATURES and place + 12 <= len(block):
        number, name = struct.unpack_from(">HB", block, place + 4)
        start = place + 6 + (name + 2) // 2 * 2  # the name is padded to an even length, its own count included
        value = start + 4
        if value > len(block):
            break
        end = value + struct.unpack_from(">I", block, start)[0]
        if end > len(block):
            break
        full = block[place:end] + bytes((end - place) % 2)
        yield number if signature == b"8BIM" else -1, block[value:end], full
        place += len(full)


# ---- colours by their code in ITU-T H.273, as HEIC's nclx and PNG's cICP have it

DISPLAY_P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
CODES = {9: "BT.2020", 11: "DCI P3", 16: "PQ", 18: "HLG"}  # of primaries, of curves


def coded_profile(primaries: int, curve: int, colours: int) -> bytes:
    """The ICC profile of Display P3, where the code means that for 3 colours, or b"" for sRGB and its gray; ValueError
    for any other. Unspecified means sRGB, and so does BT.709's curve, as in other programs."""
    if primaries not in (1, 2, 12) or curve not in (1, 2, 6, 13):
        got = CODES.get(primaries, f"primaries {primaries}"), CODES.get(curve, f"curve {curve}")
        raise ValueError(f"expected the colours of sRGB or Display P3, or an ICC profile, got {' with '.join(got)}")
    return profile_of(None, DISPLAY_P3) if primaries == 12 and colours == 3 else b""
