"""What a photo says of itself beside its pixels, as the bytes it says it with, and how that goes from format to format.

EXIF is a TIFF: byte order, 42, the offset of a directory; a directory is a count, an entry for each tag (tag, type,
count, value or its offset), and the offset of the next directory, which in EXIF holds a thumbnail. A TIFF file keeps
the same tags in the directory of its picture. XMP is XML, IPTC a block of Photoshop's image resources ("8BIM").
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np

from fastenh.io.colour import profile_of, undated

ORIENTATION, XMP, IPTC, RESOURCES, ICC = 0x0112, 700, 33723, 34377, 34675
BLOCKS = (XMP, IPTC, RESOURCES, ICC)
SUBFILE_TYPE, SUB_DIRECTORIES = 254, 330
REDUCED = 1  # a bit of the subfile type: the picture shows another one in small
EXIF_DIRECTORY, INTEROPERABILITY = 0x8769, 0xA005
DIRECTORIES = (EXIF_DIRECTORY, 0x8825, INTEROPERABILITY)  # tags whose value is a directory: EXIF, GPS, interoperability
# What says how and where the pixels of a TIFF are stored, or is a picture itself: thumbnails, layers.
STRUCTURE = {
    *range(254, 260), 262, 263, 266, 273, ORIENTATION, *range(277, 282), 284, *range(288, 294), 301, 317, 320, 321,
    *range(322, 326), 330, 332, 334, *range(336, 343), 347, *range(512, 522), *range(529, 533),
    *BLOCKS, 37724, 50255,
}  # fmt: skip


@dataclass(frozen=True)
class Metadata:
    """`exif` as in JPEG, after "Exif\\0\\0"; `xmp`, the packet; `iptc`, image resources; b"" where there is none."""

    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None
    aspect: tuple[int, int] | None = None  # pixels across and down for one length, where it is not said which


@dataclass(frozen=True)
class Tag:
    type: int
    count: int
    value: bytes | Directory  # bytes, the last byte of a number first


class Directory(dict[int, Tag]):
    """Tags of a TIFF by their number."""

    def block(self, tag: int) -> bytes:
        """The bytes of a tag, b"" where it is missing."""
        value = self[tag].value if tag in self else b""
        return value if isinstance(value, bytes) else b""

    def below(self, tag: int) -> Directory:
        """The directory that a tag leads to, an empty one where it is missing."""
        value = self[tag].value if tag in self else b""
        return value if isinstance(value, Directory) else Directory()


@dataclass(frozen=True)
class Layout:
    """How struct names the count of entries and an offset, and how many bytes each takes."""

    count: str
    count_size: int
    offset: str
    offset_size: int
    entry_size: int


CLASSIC, BIG = Layout("H", 2, "I", 4, 12), Layout("Q", 8, "Q", 8, 20)


def upright_exif(exif: bytes, on_its_side: bool = False) -> bytes:
    """The same block with orientation 1 and no thumbnail, which shows the photo as it was, and width and height in each
    other's place if it was `on_its_side`; all else stays where it is, as maker notes need it, damaged or not. b"" where
    there is no first directory."""
    data = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")

    def entries(directory: int) -> dict[int, int]:
        """Where each tag of a directory lies, if it is there as a whole, and under -1 what follows them."""
        count = min(struct.unpack_from(order + "H", data, directory)[0], (len(data) - directory - 2) // 12)
        end = directory + 2 + 12 * count
        return {struct.unpack_from(order + "H", data, at)[0]: at for at in range(directory + 2, end, 12)} | {-1: end}

    below: dict[int, int] = {}
    try:
        first = entries(struct.unpack_from(order + "I", data, 4)[0])
    except struct.error:
        first = {}
    if not order or not first:
        return b""
    if ORIENTATION in first:
        struct.pack_into(order + "HIHH", data, first[ORIENTATION] + 2, 3, 1, 1, 0)
    with contextlib.suppress(struct.error):  # some programs leave out the offset of the thumbnail
        if struct.unpack_from(order + "I", data, first[-1])[0] < len(data):  # and have a value in its place
            struct.pack_into(order + "I", data, first[-1], 0)
    with contextlib.suppress(struct.error):
        if EXIF_DIRECTORY in first:
            below = entries(struct.unpack_from(order + "I", data, first[EXIF_DIRECTORY] + 8)[0])
    for found, (width, height) in ((first, (256, 257)), (below, (0xA002, 0xA003))):
        if on_its_side and width in found and height in found:
            a, b = (slice(found[tag] + 2, found[tag] + 12) for tag in (width, height))
            data[a], data[b] = data[b], data[a]
    return bytes(data)


def exif_within(exif: bytes, size: int) -> bytes:
    """The block in at most `size` bytes: where it has more, anew, without the largest of its tags and the thumbnail."""
    if len(exif) <= size:
        return exif
    try:
        tags = read_directory(exif)
    except ValueError:
        return b""
    block = _exif(tags)
    excess = len(block) - size
    held = [(len(place.block(tag)), tag, place) for place in _directories(tags) for tag in place]
    for length, tag, place in sorted(held, key=lambda one: one[0], reverse=True):
        if excess <= 0:
            block = _exif(tags)
            excess = len(block) - size
        if excess <= 0:
            return block
        del place[tag]
        excess -= CLASSIC.entry_size + (length if length > CLASSIC.offset_size else 0)
    return b""


def exif_orientation(exif: bytes) -> int:
    """1 to 8, as EXIF counts them; 1 where it does not say."""
    value = 1
    with contextlib.suppress(ValueError):
        tiff = Tiff(exif)
        for entry in tiff.entries(tiff.first)[0]:
            value = tiff.number(entry) if entry.tag == ORIENTATION else value
    return value if value in range(1, 9) else 1


def check_exif(exif: bytes) -> None:
    """Raises Overlap for a block that would exhaust the memory of who reads it; damage is no such thing."""
    try:
        read_directory(exif)
    except Overlap:
        raise
    except ValueError:
        pass


def exif_dpi(exif: bytes) -> tuple[float, float] | None:
    """Pixels an inch, across and down, where EXIF says how many there are."""
    try:
        tags = read_directory(exif)
    except ValueError:
        return None
    unit = {2: 1.0, 3: 2.54}.get(int.from_bytes(tags.block(296), "little"), 0.0)
    across, down = (np.frombuffer(tags.block(tag)[:8].rjust(8, b"\0"), "<u4").astype(float) for tag in (282, 283))
    if not unit or across.min() == 0 or down.min() == 0:
        return None
    return unit * float(across[0] / across[1]), unit * float(down[0] / down[1])


def exif_profile(exif: bytes) -> bytes:
    """The ICC profile of Adobe RGB (1998), where EXIF says by the two tags of DCF that a camera's JPEG is in it: its
    colours are not sRGB, and its rule is R03. b"" where it does not say so."""
    try:
        below = read_directory(exif).below(EXIF_DIRECTORY)
    except ValueError:
        return b""
    if below.block(0xA001) != b"\xff\xff" or below.below(INTEROPERABILITY).block(1)[:3] != b"R03":
        return b""
    import imagecodecs  # not on every machine that runs the ops

    return undated(imagecodecs.cms_profile("adobergb"))


def upright_xmp(xmp: bytes) -> bytes:
    return re.sub(rb'(tiff:Orientation(?:\s*=\s*["\']|>))[2-8]', rb"\g<1>1", xmp)


# ---- TIFF directories

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
UNITS = SIZES | {5: 4, 10: 4}  # of what turns around where the byte order differs: a fraction is two numbers
TAGS = 4096  # of a directory; libtiff reads no more
SHARED = 2**20  # bytes of values that belong to several tags: some programs share equal ones, damage makes others meet
CUT_SHORT = 4  # tags of a damaged file whose values may reach beyond its end
PIXELS = (273, 279, 324, 325, 37724)  # not read: strips and tiles are many, Photoshop's layers large


class Overlap(ValueError):
    """Tags whose values lie on top of each other, as in a file that is made to exhaust memory."""


class Entry(NamedTuple):
    tag: int
    type: int
    number: int  # of values
    place: int  # of the value in the file
    size: int


class Tiff:
    """The directories of a TIFF, a BigTIFF or an EXIF block, each read on its own. ValueError where there is none."""

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
        """A directory's entries, as many as are there, without those of unknown types; the offset of the next
        directory, or 0."""
        order, layout = self.order, self.layout
        count = struct.unpack(order + layout.count, self._at(offset, layout.count_size))[0]
        if count > TAGS:
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
        """The entries of the first directory, as they are, that say how and where its picture is stored."""
        head = self._at(self.first, self.layout.count_size)
        count, size = struct.unpack(self.order + self.layout.count, head)[0], self.layout.entry_size
        data = self._at(self.first + len(head), count * size)
        entries = [data[start : start + size] for start in range(0, len(data), size)]
        numbered = {struct.unpack_from(self.order + "H", entry)[0]: entry for entry in entries}
        return {tag: entry for tag, entry in numbered.items() if tag in STRUCTURE and tag not in BLOCKS}

    def value(self, entry: Entry) -> bytes:
        """The last byte of a number first."""
        value, unit = self._at(entry.place, entry.size), UNITS[entry.type]
        return value if self.order == "<" or unit == 1 else np.frombuffer(value, f"u{unit}").byteswap().tobytes()

    def number(self, entry: Entry, index: int = 0) -> int:
        """One of the whole numbers of a value."""
        unit = UNITS[entry.type]
        return int.from_bytes(self.value(entry._replace(place=entry.place + index * unit, size=unit)), "little")

    def overlap(self, entries: Iterable[Entry]) -> int:
        """How many bytes of values are those of a tag before as well. Values that do not end in the file are read by
        no one but OpenImageIO, which takes what there is of each: all but a few, as damage makes them, count whole."""
        total = end = 0
        cut_short = []
        for entry in sorted(entries, key=lambda one: one.place):
            stop = entry.place + entry.size
            if stop > self._size:
                cut_short.append(max(self._size - entry.place, 0))
            else:
                total += max(min(stop, end) - entry.place, 0)
                end = max(end, stop)
        return total + sum(sorted(cut_short)[:-CUT_SHORT])

    def _at(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise ValueError("expected a whole TIFF directory, got one cut short")
        self._file.seek(offset)
        return self._file.read(size)


def read_directory(source: BinaryIO | bytes) -> Directory:
    """The first directory of a TIFF or BigTIFF, or of an EXIF block, and those below it, without the tags that are
    damaged and those of `PIXELS`. ValueError where there is none, Overlap where tags share more than `SHARED` bytes.

    The work is bounded: no directory is read twice, and of values no more bytes than there are, and `SHARED`.
    """
    tiff = Tiff(source)
    found: list[tuple[Directory, Entry]] = []
    read: set[int] = set()

    def directory_at(offset: int, depth: int) -> Directory:
        if offset in read or depth > 2:  # EXIF's directory of interoperability is the lowest that there is
            raise ValueError("expected a directory below another, got one that leads back")
        read.add(offset)
        directory = Directory()
        for entry in tiff.entries(offset)[0]:
            if entry.tag not in DIRECTORIES:
                found.append((directory, entry))
            elif entry.tag not in directory:
                with contextlib.suppress(ValueError):
                    directory[entry.tag] = Tag(4, 1, directory_at(tiff.number(entry), depth + 1))
        return directory

    result = directory_at(tiff.first, 0)
    if (shared := tiff.overlap(entry for _, entry in found)) > SHARED:
        raise Overlap(f"expected tags with values of their own, got {len(found)} tags that share {shared} bytes")
    for directory, entry in found:
        if entry.size <= 1 << 28 and entry.tag not in PIXELS:
            with contextlib.suppress(ValueError):  # one damaged tag is no reason to lose the others
                directory[entry.tag] = Tag(entry.type, entry.number, tiff.value(entry))
    return result


def other_pictures(file: BinaryIO) -> Iterator[bool]:
    """Of each directory of a TIFF beside the first, on pages and below the first, whether it shows another picture in
    small, or none. ValueError where a page is damaged."""
    tiff = Tiff(file)

    def shows_other(entries: list[Entry]) -> bool:
        kinds = {entry.tag: tiff.number(entry) for entry in entries if entry.tag in (SUBFILE_TYPE, 256, 257)}
        return bool(kinds.get(SUBFILE_TYPE, 0) & REDUCED) or not {256, 257} <= kinds.keys()  # width and height

    entries, page = tiff.entries(tiff.first)
    read = {tiff.first}
    for below in (entry for entry in entries if entry.tag == SUB_DIRECTORIES):
        with contextlib.suppress(ValueError):  # damaged, which says nothing of the pages
            for index in range(below.number):
                place = tiff.number(below, index)
                try:
                    yield place in read or shows_other(tiff.entries(place)[0])
                except ValueError:
                    yield True
                read.add(place)
    while page not in read | {0}:
        read.add(page)
        entries, page = tiff.entries(page)
        yield shows_other(entries)


def written(directory: Mapping[int, Tag | bytes], offset: int, big: bool = False) -> bytes:
    """A directory and all it holds, the last byte of a number first, as it lies at `offset` of a file. Tags given as
    bytes are entries that are written as they are: their values lie elsewhere in the file already."""
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
        values.append(tag.value if isinstance(tag.value, bytes) else written(tag.value, place, big))
        place += len(values[-1])
    return b"".join(entries + values)


def exif_of_tiff(directory: Directory) -> bytes:
    """What a TIFF's directory says of the photo, and not of its storage, as an EXIF block; b"" if that is nothing."""
    return _exif(Directory({tag: value for tag, value in directory.items() if tag not in STRUCTURE}))


def _exif(directory: Directory) -> bytes:
    return b"II*\0\x08\0\0\0" + written(directory, 8) if directory else b""


def _directories(directory: Directory) -> Iterator[Directory]:
    """This one and those below it."""
    yield directory
    for tag in directory.values():
        if isinstance(tag.value, Directory):
            yield from _directories(tag.value)


def tiff_tags(metadata: Metadata) -> Directory:
    """What a TIFF's directory says of the photo."""
    tags = Directory()
    with contextlib.suppress(ValueError):  # damaged EXIF is no reason to lose the photo
        exif = read_directory(metadata.exif) if metadata.exif else {}
        tags |= {tag: value for tag, value in exif.items() if tag not in STRUCTURE}
    if across_and_down := metadata.dpi or metadata.aspect:
        for tag, value in zip((282, 283), across_and_down, strict=True):
            tags[tag] = Tag(5, 1, struct.pack("<II", *_fraction(value)))
        tags[296] = Tag(3, 1, struct.pack("<H", 2 if metadata.dpi else 1))  # inches, or no length
    for tag, kind, block in ((XMP, 1, metadata.xmp), (RESOURCES, 7, metadata.iptc), (ICC, 7, metadata.icc)):
        if block:
            tags[tag] = Tag(kind, len(block), block)
    if records := iptc_records(metadata.iptc):
        tags[IPTC] = Tag(7, len(records), records)
    return tags


def add_to_tiff(path: Path, metadata: Metadata, tags: Mapping[int, Tag] | None = None) -> None:
    """Puts metadata in a TIFF that has its pixels already: a new directory at the end of the file takes the old one's
    place, with the entries of the old one that say where the pixels are, but for those that `tags` replaces."""
    with open(path, "r+b") as file:
        tiff = Tiff(file)
        stored = tiff.stored()
        end = file.seek(0, 2)
        end += end % 2
        file.seek(end)
        file.write(written({**stored, **tiff_tags(metadata), **(tags or {})}, end, tiff.layout is BIG))
        _set_first(file, tiff, end)


def remove_from_tiff(path: Path) -> None:
    """Removes metadata from a TIFF of any byte order, and what else lies beside its first picture. Overlap where what
    is left would exhaust memory too."""
    with open(path, "r+b") as file:
        tiff = Tiff(file)
        stored = {tag: entry for tag, entry in tiff.stored().items() if tag not in (SUB_DIRECTORIES, 37724)}
        if (shared := tiff.overlap(entry for entry in tiff.entries(tiff.first)[0] if entry.tag in stored)) > SHARED:
            raise Overlap(f"expected strips or tiles with values of their own, got {shared} bytes that are shared")
        entries = [entry for _, entry in sorted(stored.items())]
        end = file.seek(0, 2)
        end += end % 2
        file.seek(end)
        file.write(struct.pack(tiff.order + tiff.layout.count, len(entries)) + b"".join(entries))
        file.write(bytes(tiff.layout.offset_size))
        _set_first(file, tiff, end)


def _set_first(file: BinaryIO, tiff: Tiff, offset: int) -> None:
    file.seek(8 if tiff.layout is BIG else 4)
    file.write(struct.pack(tiff.order + tiff.layout.offset, offset))


def _fraction(value: float) -> tuple[int, int]:
    """As two numbers of 32 bits."""
    scale = 1 if value == round(value) or value > 2**32 / 10000 else 10000
    return min(round(value * scale), 2**32 - 1), scale


# ---- IPTC

SIGNATURES = (b"8BIM", b"MeSa", b"PHUT", b"AgHg", b"DCSR")  # of Photoshop, and of others that add to its resources


def iptc_records(resources: bytes) -> bytes:
    """The IPTC records, resource 1028 of a block of Photoshop's image resources."""
    records = b""
    for number, value, _ in _resources(resources):
        records = value if number == 1028 else records
    return records


def iptc_resources(records: bytes) -> bytes:
    """The block that holds these records alone."""
    return b"8BIM" + struct.pack(">HHI", 1028, 0, len(records)) + records + bytes(len(records) % 2) if records else b""


def without_thumbnails(resources: bytes) -> bytes:
    """The block without its small pictures of the photo as it was, 1033 and 1036."""
    kept = bytearray()
    for number, _, whole in _resources(resources):
        kept += whole if number not in (1033, 1036) else b""
    return bytes(kept)


def _resources(block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, value and all bytes of each resource; the number is -1 where another program numbers them. What is cut
    short ends them."""
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
        whole = block[place:end] + bytes((end - place) % 2)
        yield number if signature == b"8BIM" else -1, block[value:end], whole
        place += len(whole)


# ---- colours by their code in ITU-T H.273, as HEIC's nclx and PNG's cICP have it

DISPLAY_P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
CODES = {9: "BT.2020", 11: "DCI P3", 16: "PQ", 18: "HLG"}  # of primaries, of curves


def coded_profile(primaries: int, curve: int, colours: int) -> bytes:
    """The ICC profile of Display P3, where that is what the code says of 3 colours, or b"" for sRGB and its gray;
    ValueError for any other. What is not said is sRGB's, and BT.709's curve is taken for it, as programs do."""
    if primaries not in (1, 2, 12) or curve not in (1, 2, 6, 13):
        got = CODES.get(primaries, f"primaries {primaries}"), CODES.get(curve, f"curve {curve}")
        raise ValueError(f"expected the colours of sRGB or Display P3, or an ICC profile, got {' with '.join(got)}")
    return profile_of(None, DISPLAY_P3) if primaries == 12 and colours == 3 else b""


# ---- PNG

# Chunks that say how pixels are stored, or belong to an animation; those that are written anew; those that are right
# for new pixels too, though their names say, by a capital at the end, that they belong to those they came with.
PIXEL_CHUNKS = set(b"IHDR PLTE IDAT IEND tRNS bKGD hIST sBIT sPLT acTL fcTL fdAT".split())
ANEW_CHUNKS = {b"iCCP", b"eXIf", b"pHYs"}
COLOUR_CHUNKS = set(b"cHRM gAMA sRGB cICP mDCV mDCv cLLI cLLi sCAL".split())
XMP_CHUNK = b"XML:com.adobe.xmp\0"
CHUNKS = 4096  # that are kept
UNPACKED = 2**24  # bytes of an ICC profile or XMP packet


def read_chunks(path: Path) -> tuple[list[tuple[bytes, bytes]], list[str]]:
    """The chunks of a PNG but for its pixels, in their order, and what is left out of them, and why. What is damaged
    ends the list."""
    chunks: list[tuple[bytes, bytes]] = []
    left_out: list[str] = []
    once, more = set(), 0
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in (b"IDAT", b"fdAT", b"IEND") or len(chunks) == CHUNKS:
                more += kind not in (b"IDAT", b"fdAT", b"IEND")
                file.seek(size + 4, 1)
                continue
            data = file.read(min(size, 1 << 28))
            if len(data) < size or len(file.read(4)) < 4:
                break
            name = {b"iCCP": "the ICC profile", b"eXIf": "EXIF"}.get(kind, "XMP" if _is_xmp(kind, data) else "")
            try:
                if name not in once:  # the first of them is the one that is taken
                    _check_chunk(kind, data)
                    chunks.append((kind, data))
            except ValueError as error:
                left_out.append(f"{name}: {error}")
            once |= {name} - {""}
    return chunks, left_out + ([f"{more} chunks: expected at most {CHUNKS}"] if more else [])


def _check_chunk(kind: bytes, data: bytes) -> None:
    """Raises ValueError for what would exhaust memory."""
    if kind == b"eXIf":
        check_exif(data.removeprefix(b"Exif\0\0"))
    elif kind == b"iCCP":
        png_profile([(kind, data)], 3)
    elif _is_xmp(kind, data):
        png_xmp([(kind, data)])


def _is_xmp(kind: bytes, data: bytes) -> bool:
    return kind == b"iTXt" and data.startswith(XMP_CHUNK)


def is_compressed_text(kind: bytes, data: bytes) -> bool:
    return kind == b"zTXt" or (kind == b"iTXt" and data.split(b"\0", 1)[-1][:1] == b"\1")


def _unpacked(data: bytes) -> bytes:
    """b"" where it is damaged; ValueError where it is too large."""
    with contextlib.suppress(zlib.error):
        unpacker = zlib.decompressobj()
        result = unpacker.decompress(data, UNPACKED)
        if unpacker.unconsumed_tail:
            raise ValueError(f"expected at most {UNPACKED >> 20} MiB once unpacked, got more")
        return result
    return b""


def copy_png(source: Path, target: IO[bytes]) -> None:
    """Copies a PNG without its metadata."""
    with open(source, "rb") as file:
        target.write(file.read(8))
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind not in (b"IHDR", b"PLTE", b"tRNS", b"pHYs", b"IDAT", b"IEND"):
                file.seek(size + 4, 1)
                continue
            target.write(head)
            for start in range(0, size + 4, 1 << 20):
                target.write(file.read(min(1 << 20, size + 4 - start)))


def png_profile(chunks: list[tuple[bytes, bytes]], colours: int) -> bytes:
    """The ICC profile that the chunks of a PNG hold or, which goes before it, name by a code; b"" where there is none
    that can be unpacked. ValueError where the code is that of other colours."""
    coded = next((data for kind, data in chunks if kind == b"cICP" and len(data) == 4), b"\2\2\0\1")
    if coded[:2] != b"\2\2":  # which says nothing
        if coded[2:] != b"\0\1":
            raise ValueError("expected RGB of the full range, got other numbers by the cICP chunk")
        return coded_profile(coded[0], coded[1], colours)
    data = next((data for kind, data in chunks if kind == b"iCCP"), b"")
    return _unpacked(data.split(b"\0", 1)[-1][1:])


def png_aspect(chunks: list[tuple[bytes, bytes]]) -> tuple[int, int] | None:
    """How many pixels across are as long as how many down, where a PNG says it without a unit of length."""
    data = next((data for kind, data in chunks if kind == b"pHYs"), b"")
    across, down = struct.unpack(">II", data[:8]) if data[8:] == b"\0" else (0, 0)
    return (across, down) if across and down else None


def png_xmp(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The XMP packet in the chunks of a PNG, compressed or not."""
    data = next((data for kind, data in chunks if _is_xmp(kind, data)), XMP_CHUNK)
    flags, rest = data[len(XMP_CHUNK) :][:2], data[len(XMP_CHUNK) + 2 :]
    packet = rest.split(b"\0", 2)[-1]  # after the language and the keyword in that language
    return _unpacked(packet) if flags[:1] == b"\1" else packet


def png_chunks(chunks: list[tuple[bytes, bytes]], metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Those for a PNG with this metadata that has chunks of another; all may stand after its first."""
    added = []
    if metadata.icc:
        added.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.exif:
        added.append((b"eXIf", metadata.exif))
    if metadata.dpi:
        per_metre = (min(round(value / 0.0254), 2**31 - 1) for value in metadata.dpi)
        added.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    elif metadata.aspect:
        added.append((b"pHYs", struct.pack(">IIB", *metadata.aspect, 0)))
    if metadata.xmp:
        added.append((b"iTXt", XMP_CHUNK + bytes(4) + metadata.xmp))
    return added + [
        (kind, data)
        for kind, data in chunks
        if (kind[3:].islower() and kind not in PIXEL_CHUNKS | ANEW_CHUNKS) or kind in COLOUR_CHUNKS
        if not _is_xmp(kind, data)
    ]
