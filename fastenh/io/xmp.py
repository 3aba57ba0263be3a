"""XMP: the properties that say how a photo lies, how large it is, where faces are and what else its file holds.

A packet is XML (RDF). Each property is an attribute or an element below an `rdf:Description`, under any prefix for its
namespace. expat reads the packet; a change replaces the bytes of one value or removes those of one property, so all
else stays as it was: other properties, their order and prefixes, the packet's wrapper and padding. Only a packet in
UTF-16 or UTF-32, which JPEG does not allow, becomes UTF-8.

Document types, which may define entities that expand without end, are refused, and so is what would exhaust memory.
A packet that is not well-formed is kept as it is, since nothing in it can be relied on.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import NamedTuple
from xml.parsers import expat

META, RDF = "{adobe:ns:meta/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
TIFF, EXIF = "{http://ns.adobe.com/tiff/1.0/}", "{http://ns.adobe.com/exif/1.0/}"
THUMBNAILS = "{http://ns.adobe.com/xap/1.0/}Thumbnails"
REGIONS = "{http://www.metadataworkinggroup.com/schemas/regions/}"
MICROSOFT_REGIONS = "{http://ns.microsoft.com/photo/1.2/}"
MICROSOFT_RECTANGLE = "{http://ns.microsoft.com/photo/1.2/t/Region#}Rectangle"
GAIN_MAP, APPLE_GAIN_MAP = "{http://ns.adobe.com/hdr-gain-map/1.0/}", "{http://ns.apple.com/HDRGainMap/1.0/}"
CONTAINER, CAMERA = "{http://ns.google.com/photos/1.0/container/}", "{http://ns.google.com/photos/1.0/camera/}"
DYNAMIC_DEPTH = "{http://ns.google.com/photos/dd/1.0/device/}"
EXTENDED = "{http://ns.adobe.com/xmp/note/}HasExtendedXMP"
# Namespaces whose properties are read here, with the prefix that some programs use without declaring it.
READ = {
    TIFF: "tiff", EXIF: "exif", THUMBNAILS.partition("}")[0] + "}": "xmp", REGIONS: "mwg-rs", MICROSOFT_REGIONS: "MP",
    GAIN_MAP: "hdrgm", APPLE_GAIN_MAP: "HDRGainMap", CONTAINER: "Container", CAMERA: "GCamera",
    DYNAMIC_DEPTH: "Device", EXTENDED.partition("}")[0] + "}": "xmpNote",
}  # fmt: skip
UNDECLARED = {prefix: namespace for namespace, prefix in READ.items()} | {"rdf": RDF, "x": META}
ABOVE = {RDF + "RDF", RDF + "Description", META + "xmpmeta", META + "xapmeta"}  # of properties
SIZES = ((EXIF + "PixelXDimension", EXIF + "PixelYDimension"), (TIFF + "ImageWidth", TIFF + "ImageLength"))

MAX_BYTES = 2**24  # of a packet
MAX_DEPTH = 64  # of elements in one another
MAX_NODES = 2**14  # elements and attributes of the properties that are read here
MAX_NAMES = 2**17  # elements, and attributes, all of which may have a name of their own
MAX_TEXT = 64  # characters of a value that are read, above any number
WIDE = re.compile(rb"\0|.\0|\xff\xfe|\xfe\xff", re.S)  # how UTF-16 and UTF-32 begin, by which expat tells them too
ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*([\"'])(.*?)\2", re.S)  # in a tag that expat has accepted


class Refused(ValueError):
    """A packet that is made to exhaust memory."""


@dataclass(slots=True)
class Node:
    """An attribute or an element. `start` and `end` are its first byte and that after its last; `value` is the range of
    its value, and `text` the beginning of what that says."""

    name: str  # {namespace}name
    start: int
    end: int = 0
    value: tuple[int, int] = (0, 0)
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.walk()

    def fields(self) -> dict[str, Node]:
        """Those of a structure, by name without namespace."""
        found: dict[str, Node] = {}
        for child in self.children:
            found |= child.fields() if child.name == RDF + "Description" else {child.name.rpartition("}")[2]: child}
        return found


class Edit(NamedTuple):
    """Bytes of a packet, and what to put in their place."""

    start: int
    end: int
    text: bytes = b""


def check_xmp(packet: bytes) -> None:
    """Raise ValueError for a packet that would exhaust memory. Other damage is no error."""
    _properties(packet)


def xmp_orientation(packet: bytes) -> int:
    """`tiff:Orientation`, 1 to 8; 0 where there is none."""
    for node in _readable(packet):
        if node.name == TIFF + "Orientation" and (value := _number(node)) in range(1, 9):
            return int(value)
    return 0


def upright_xmp(packet: bytes, orientation: int, width: int, height: int) -> bytes:
    """The packet of the same photo with this orientation applied, which made it `width` by `height`: orientation 1,
    sizes and face regions turned. What shows it as it was is removed: thumbnails, a video, other pictures."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        yield from _of_before(properties)
        for node in properties:
            if node.name == TIFF + "Orientation" and _number(node) in range(2, 9):
                yield Edit(*node.value, b"1")
        if orientation > 1:
            yield from _regions(properties, orientation, 1)
        if orientation >= 5:
            yield from _sizes(properties, width, height)

    return _edited(packet, edits)


def enlarged_xmp(packet: bytes, scale: int, width: int, height: int) -> bytes:
    """The packet of the same photo `scale` times as large, `width` by `height`, without what shows it as it was."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        yield from _of_before(properties)
        if scale > 1:
            yield from _regions(properties, 1, scale)
            yield from _sizes(properties, width, height)

    return _edited(packet, edits)


def _of_before(properties: list[Node]) -> Iterator[Edit]:
    for node in properties:
        if node.name == THUMBNAILS or node.name.startswith(DYNAMIC_DEPTH) or _is_video(node):
            yield Edit(node.start, node.end)
    yield from _container(properties, {"Primary", "GainMap"})


# ---- what else the file holds


class Item(NamedTuple):
    """A picture or a video that follows the photo in its file; the photo itself is "Primary"."""

    meaning: str
    length: int
    padding: int  # bytes after the photo


class Announced(NamedTuple):
    """What a packet says that the file holds beside the photo."""

    gain_map: bool
    video: bool
    others: bool
    items: list[Item]  # in the order of the file


def announced(packet: bytes) -> Announced:
    properties = _readable(packet)
    items = []
    for node in _items(properties):
        at = _item(node)
        items.append(Item(at["Semantic"].text, _count(at.get("Length")), _count(at.get("Padding"))))
    meanings = {item.meaning for item in items}
    return Announced(
        "GainMap" in meanings or any(node.name.startswith((GAIN_MAP, APPLE_GAIN_MAP)) for node in properties),
        "MotionPhoto" in meanings or any(_is_video(node) for node in properties),
        bool(meanings - {"Primary", "GainMap", "MotionPhoto"})
        or any(node.name.startswith(DYNAMIC_DEPTH) for node in properties),
        items,
    )


def without_gain_map(packet: bytes) -> bytes:
    """The packet without what announces a gain map."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        for node in properties:
            if node.name.startswith((GAIN_MAP, APPLE_GAIN_MAP)):
                yield Edit(node.start, node.end)
        yield from _container(properties, {"Primary"})

    return _edited(packet, edits)


def with_gain_map(packet: bytes, length: int) -> bytes:
    """The packet of a file where a gain map of so many bytes follows the photo at once."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        for item in map(_item, _items(properties)):
            name, number = ("Length", length) if item["Semantic"].text == "GainMap" else ("Padding", 0)
            if name in item and item[name].text.strip():
                yield Edit(*item[name].value, b"%d" % number)

    return _edited(packet, edits)


def naming(packet: bytes, extended: str) -> bytes:
    """The packet with the name of that which continues it in a JPEG; without such a name for ""."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        for node in properties:
            if node.name == EXTENDED:
                yield Edit(*node.value, extended.encode()) if extended else Edit(node.start, node.end)

    return _edited(packet, edits)


def _is_video(node: Node) -> bool:
    return node.name.startswith((CAMERA + "MotionPhoto", CAMERA + "MicroVideo"))


def _items(properties: Iterable[Node]) -> list[Node]:
    """The items of the container's directory."""
    below = (node for one in properties if one.name == CONTAINER + "Directory" for node in one.walk())
    return [node for node in below if node.name == RDF + "li" and "Semantic" in _item(node)]


def _item(node: Node) -> dict[str, Node]:
    return {below.name.rpartition("}")[2]: below for below in node.walk()}


def _container(properties: list[Node], kept: set[str]) -> Iterator[Edit]:
    """Remove all but these items; with nothing beside the photo, the directory."""
    items = _items(properties)
    gone = [node for node in items if _item(node)["Semantic"].text not in kept]
    if gone and len(gone) >= len(items) - 1:
        gone = [node for node in properties if node.name == CONTAINER + "Directory"]
    yield from (Edit(node.start, node.end) for node in gone)


# ---- geometry


def _sizes(properties: list[Node], width: int, height: int) -> Iterator[Edit]:
    for node in properties:
        for across, down in SIZES:
            if node.name in (across, down) and node.text.strip():
                yield Edit(*node.value, b"%d" % (width if node.name == across else height))


def _regions(properties: list[Node], orientation: int, scale: int) -> Iterator[Edit]:
    """Regions of the Metadata Working Group, by centre and size, and Microsoft's, by a corner and size: in shares of
    the photo, or in pixels of it where the unit says so; and the size of the photo to which they apply."""
    for one in properties:
        sizes = [node.fields() for node in one.walk() if node.name == REGIONS + "AppliedToDimensions"]
        across, down = (_number(sizes[0].get(name)) if sizes else Decimal("NaN") for name in "wh")
        for size in sizes:
            yield from _values(size, {"w": across, "h": down}, "wh" if orientation < 5 else "hw", scale)
        for node in one.walk():
            at = node.fields()
            if node.name == REGIONS + "Area" and {"x", "y"} <= at.keys():
                pixels = "unit" in at and at["unit"].text.strip() == "pixel"
                x, y, w, h = (_number(at.get(name)) for name in "xywh")
                x, y, w, h = _turned(x, y, w, h, orientation, *((across, down) if pixels else (Decimal(1),) * 2))
                yield from _values(at, {"x": x, "y": y, "w": w, "h": h}, "xywh", scale if pixels else 1)
            elif node.name == MICROSOFT_RECTANGLE and node.text.count(",") == 3:
                left, top, w, h = (_decimal(part) for part in node.text.split(","))
                x, y, w, h = _turned(left + w / 2, top + h / 2, w, h, orientation, Decimal(1), Decimal(1))
                corner = (x - w / 2, y - h / 2, w, h)
                if all(value.is_finite() for value in corner):
                    yield Edit(*node.value, ", ".join(map(_plain, corner)).encode())


def _turned(
    x: Decimal, y: Decimal, w: Decimal, h: Decimal, orientation: int, across: Decimal, down: Decimal
) -> tuple[Decimal, ...]:
    """Centre and size once the orientation is applied to a picture of this size."""
    if orientation >= 5:
        x, y, w, h, across, down = y, x, h, w, down, across
    if orientation in (2, 3, 6, 7):
        x = across - x
    if orientation in (3, 4, 7, 8):
        y = down - y
    return x, y, w, h


def _values(at: dict[str, Node], values: dict[str, Decimal], order: str, scale: int) -> Iterator[Edit]:
    """Put values, in this order of their names, into those fields that are there."""
    for name, value in zip(values, (values[name] for name in order), strict=True):
        if name in at and value.is_finite() and scale * value != _number(at[name]):
            yield Edit(*at[name].value, _plain(scale * value).encode())


def _number(node: Node | None) -> Decimal:
    return _decimal(node.text if node else "")


def _count(node: Node | None) -> int:
    value = _number(node)
    return int(value) if value.is_finite() and value > 0 else 0


def _decimal(text: str) -> Decimal:
    """NaN for what is no number."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        return Decimal("NaN")
    return value if value.is_finite() and -20 < value.adjusted() < 20 else Decimal("NaN")


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


# ---- XML


def _edited(packet: bytes, edits: Callable[[list[Node]], Iterable[Edit]]) -> bytes:
    packet, place, parts = _in_utf8(packet), 0, []
    for edit in sorted(edits(_readable(packet))):
        start = edit.start
        while start > place and not edit.text and packet[start - 1 : start].isspace():
            start -= 1
        if start >= place and packet[start : edit.end] != edit.text:
            parts += [packet[place:start], edit.text]
            place = edit.end
    return b"".join([*parts, packet[place:]])


def _readable(packet: bytes) -> list[Node]:
    try:
        return _properties(packet)
    except Refused:
        return []


def _properties(packet: bytes) -> list[Node]:
    """The properties in the namespaces of `READ`; [] where the packet is not well-formed. Refused for one that would
    exhaust memory."""
    if len(packet) > MAX_BYTES:
        raise Refused(f"expected at most {MAX_BYTES >> 20} MiB, got {len(packet)} bytes")
    if max(packet.count(b"<"), packet.count(b"=")) > MAX_NAMES:
        raise Refused(f"expected at most {MAX_NAMES} elements and attributes, got more")
    packet = _in_utf8(packet)
    return _Reader(packet).properties if packet and not WIDE.match(packet) else []


def _in_utf8(packet: bytes) -> bytes:
    """A packet in UTF-16 or UTF-32, by its byte order mark or the zeros of its first character, in UTF-8; as it is
    where it is damaged."""
    if not WIDE.match(packet):
        return packet
    head = packet[:4]
    bits = 32 if head in (BOM_UTF32_LE, BOM_UTF32_BE) or head.count(0) == 3 else 16
    order = "be" if head[0] == 0 or head[:2] == BOM_UTF16_BE else "le"
    try:
        return packet.decode(f"utf-{bits}-{order}").removeprefix("\ufeff").encode()
    except UnicodeError:
        return packet


class _Reader:
    def __init__(self, packet: bytes) -> None:
        self.properties: list[Node] = []
        self._packet, self._count = packet, 0
        self._namespaces = [UNDECLARED]  # by prefix, of the elements that are open
        self._open: list[Node] = []  # from the property on
        self._ignored, self._above, self._ended = 0, 0, False  # elements that are open
        self._parser = parser = expat.ParserCreate("utf-8")
        parser.ordered_attributes = parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._document_type
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(packet, True)
        except expat.ExpatError:
            if not self._ended:  # what follows the outermost element is padding
                self.properties = []
        finally:
            del self._parser  # which holds this object

    def _document_type(self, *_: object) -> None:
        raise Refused("expected XML without a document type, got one that may define entities")

    def _start(self, tag: str, pairs: list[str]) -> None:
        if len(self._namespaces) + self._ignored > MAX_DEPTH:
            raise Refused(f"expected at most {MAX_DEPTH} elements in one another, got more")
        if self._ignored:
            self._ignored += 1
            return
        names, texts = pairs[::2], pairs[1::2]
        declared = {
            name[6:]: f"{{{text}}}"
            for name, text in zip(names, texts, strict=True)
            if name == "xmlns" or name.startswith("xmlns:")
        }
        self._namespaces.append(declared)
        node = Node(self._full(tag), self._parser.CurrentByteIndex)
        inside = bool(self._open) or _is_read(node.name)
        full = [self._full(name) if ":" in name else name for name in names]
        if inside or any(map(_is_read, full)):
            self._find_attributes(node, len(tag.encode()), full, texts)
            if not inside:
                self.properties += [child for child in node.children if _is_read(child.name)]
        if inside:
            (self._open[-1].children if self._open else self.properties).append(node)
            self._open.append(node)
        elif node.name not in ABOVE:
            self._namespaces.pop()
            self._ignored = 1

    def _find_attributes(self, node: Node, tag: int, names: list[str], texts: list[str]) -> None:
        """Where they are, and where the tag ends, which expat does not tell."""
        place = node.start + 1 + tag
        for name, text in zip(names, texts, strict=True):
            match = ATTRIBUTE.match(self._packet, place)
            assert match  # or expat would have refused it
            place = match.end()
            node.children.append(Node(name, match.start(), place, match.span(3), text[:MAX_TEXT]))
        self._count += 1 + len(names)
        if self._count > MAX_NODES:
            raise Refused(f"expected at most {MAX_NODES} elements and attributes of regions and sizes, got more")
        node.end = self._packet.index(b">", place) + 1
        node.value = (node.end, node.end)

    def _text(self, text: str) -> None:
        if self._open and not self._ignored and len(self._open[-1].text) < MAX_TEXT:
            self._open[-1].text += text[:MAX_TEXT]

    def _end(self, _: str) -> None:
        if self._ignored:
            self._ignored -= 1
            return
        self._namespaces.pop()
        self._ended = len(self._namespaces) == 1
        if self._open:
            node, at = self._open.pop(), self._parser.CurrentByteIndex
            if self._packet[node.end - 2 : node.end] != b"/>":
                node.value, node.end = (node.end, at), self._packet.index(b">", at) + 1

    def _full(self, name: str) -> str:
        """{namespace}name; the name alone where its prefix means nothing."""
        prefix, _, local = name.rpartition(":")
        found = (declared[prefix] for declared in reversed(self._namespaces) if prefix in declared)
        return next(found, "") + local


def _is_read(name: str) -> bool:
    return name[: name.find("}") + 1] in READ
