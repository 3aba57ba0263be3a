"""XMP: read and update orientation, sizes, face regions, and the properties that announce gain maps and videos.

A packet is XML (RDF). Each property is an attribute or an element below an `rdf:Description`; any prefix may be bound
to its namespace. The packet is parsed with expat, and edited in place: an edit replaces the bytes of one value or
removes those of one property. Everything else is unchanged: other properties, their order and prefixes, the packet's
wrapper and padding. Only packets in UTF-16 or UTF-32, which JPEG does not allow, are re-encoded, as UTF-8.

Packets with a document type are refused, because it may define entities that expand exponentially, and so are packets
that would exhaust memory. A packet that is not well-formed is kept unchanged.
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
# The namespaces whose properties are parsed, and the prefix that some programs use for each without declaring it.
PARSED = {
    TIFF: "tiff", EXIF: "exif", THUMBNAILS.partition("}")[0] + "}": "xmp", REGIONS: "mwg-rs", MICROSOFT_REGIONS: "MP",
    GAIN_MAP: "hdrgm", APPLE_GAIN_MAP: "HDRGainMap", CONTAINER: "Container", CAMERA: "GCamera",
    DYNAMIC_DEPTH: "Device", EXTENDED.partition("}")[0] + "}": "xmpNote",
}  # fmt: skip
UNDECLARED = {prefix: namespace for namespace, prefix in PARSED.items()} | {"rdf": RDF, "x": META}
WRAPPERS = {RDF + "RDF", RDF + "Description", META + "xmpmeta", META + "xapmeta"}  # elements around properties
SIZES = ((EXIF + "PixelXDimension", EXIF + "PixelYDimension"), (TIFF + "ImageWidth", TIFF + "ImageLength"))

MAX_BYTES = 2**24  # of a packet
MAX_DEPTH = 64  # of nested elements
MAX_NODES = 2**14  # elements and attributes in parsed properties
MAX_NAMES = 2**17  # elements, and attributes; each may have a distinct name, which expat stores
MAX_TEXT = 64  # characters of a value that are kept; no number is longer
WIDE = re.compile(rb"\0|.\0|\xff\xfe|\xfe\xff", re.S)  # how UTF-16 and UTF-32 begin, as expat detects them
ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*([\"'])(.*?)\2", re.S)  # in a tag that expat has accepted


class Refused(ValueError):
    """Raised for a packet that is crafted to exhaust memory."""


@dataclass(slots=True)
class Node:
    """An attribute or an element: the byte range [`start`, `end`) of the packet, the byte range of its `value`, and the
    first `MAX_TEXT` characters of the value, with references resolved, as `text`."""

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
        """The fields of a structure, by their names without namespace."""
        found: dict[str, Node] = {}
        for child in self.children:
            found |= child.fields() if child.name == RDF + "Description" else {child.name.rpartition("}")[2]: child}
        return found


class Edit(NamedTuple):
    """Replace the bytes [`start`, `end`) of a packet by `text`."""

    start: int
    end: int
    text: bytes = b""


def check_xmp(packet: bytes) -> None:
    """Raise ValueError for a packet that would exhaust memory. Other damaged packets are accepted."""
    _properties(packet)


def xmp_orientation(packet: bytes) -> int:
    """The value of `tiff:Orientation`, 1 to 8; 0 if it is missing or invalid."""
    for node in _readable(packet):
        if node.name == TIFF + "Orientation" and (value := _number(node)) in range(1, 9):
            return int(value)
    return 0


def upright_xmp(packet: bytes, orientation: int, width: int, height: int) -> bytes:
    """The packet after the orientation has been applied to the photo, which is now `width` by `height`: orientation 1,
    with sizes and face regions transformed. Thumbnails, videos and further pictures, which show the unprocessed photo,
    are removed."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        yield from _remove_outdated(properties)
        for node in properties:
            if node.name == TIFF + "Orientation" and _number(node) in range(2, 9):
                yield Edit(*node.value, b"1")
        if orientation > 1:
            yield from _update_regions(properties, orientation, 1)
        if orientation >= 5:
            yield from _update_sizes(properties, width, height)

    return _edited(packet, edits)


def enlarged_xmp(packet: bytes, scale: int, width: int, height: int) -> bytes:
    """The packet of the photo enlarged `scale` times, to `width` by `height`, without thumbnails, videos and further
    pictures."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        yield from _remove_outdated(properties)
        if scale > 1:
            yield from _update_regions(properties, 1, scale)
            yield from _update_sizes(properties, width, height)

    return _edited(packet, edits)


def _remove_outdated(properties: list[Node]) -> Iterator[Edit]:
    """Remove thumbnails, and what announces videos and further pictures: they show the unprocessed photo."""
    for node in properties:
        if node.name == THUMBNAILS or node.name.startswith(DYNAMIC_DEPTH) or _is_video(node):
            yield Edit(node.start, node.end)
    yield from _remove_items(properties, {"Primary", "GainMap"})


# ---- gain maps, videos and further pictures in the same file


class Item(NamedTuple):
    """An item of the container directory: the photo ("Primary"), or a picture or video that follows it in the file."""

    semantic: str
    length: int
    padding: int  # bytes between the photo and the next item


class Announced(NamedTuple):
    """What a packet announces in the file besides the photo."""

    gain_map: bool
    video: bool
    others: bool  # further pictures
    items: list[Item]  # in file order


def announced(packet: bytes) -> Announced:
    """The gain map, video and further pictures that the packet announces."""
    properties = _readable(packet)
    items = []
    for node in _items(properties):
        fields = _item(node)
        items.append(Item(fields["Semantic"].text, _count(fields.get("Length")), _count(fields.get("Padding"))))
    semantics = {item.semantic for item in items}
    return Announced(
        "GainMap" in semantics or any(node.name.startswith((GAIN_MAP, APPLE_GAIN_MAP)) for node in properties),
        "MotionPhoto" in semantics or any(_is_video(node) for node in properties),
        bool(semantics - {"Primary", "GainMap", "MotionPhoto"})
        or any(node.name.startswith(DYNAMIC_DEPTH) for node in properties),
        items,
    )


def without_gain_map(packet: bytes) -> bytes:
    """The packet without the properties that announce a gain map."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        for node in properties:
            if node.name.startswith((GAIN_MAP, APPLE_GAIN_MAP)):
                yield Edit(node.start, node.end)
        yield from _remove_items(properties, {"Primary"})

    return _edited(packet, edits)


def with_gain_map(packet: bytes, length: int) -> bytes:
    """The packet of a file in which a gain map of `length` bytes follows the photo without padding."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        for item in map(_item, _items(properties)):
            name, number = ("Length", length) if item["Semantic"].text == "GainMap" else ("Padding", 0)
            if name in item and item[name].text.strip():
                yield Edit(*item[name].value, b"%d" % number)

    return _edited(packet, edits)


def with_extension_name(packet: bytes, name: str) -> bytes:
    """The packet with `xmpNote:HasExtendedXMP`, if it has that, set to the name of an extended packet, or removed if
    `name` is ""."""

    def edits(properties: list[Node]) -> Iterator[Edit]:
        for node in properties:
            if node.name == EXTENDED:
                yield Edit(*node.value, name.encode()) if name else Edit(node.start, node.end)

    return _edited(packet, edits)


def _is_video(node: Node) -> bool:
    return node.name.startswith((CAMERA + "MotionPhoto", CAMERA + "MicroVideo"))


def _items(properties: Iterable[Node]) -> list[Node]:
    """The items of the container directory."""
    directories = (node for node in properties if node.name == CONTAINER + "Directory")
    nodes = (node for directory in directories for node in directory.walk())
    return [node for node in nodes if node.name == RDF + "li" and "Semantic" in _item(node)]


def _item(node: Node) -> dict[str, Node]:
    """The fields of an item, by their names without namespace."""
    return {below.name.rpartition("}")[2]: below for below in node.walk()}


def _remove_items(properties: list[Node], kept: set[str]) -> Iterator[Edit]:
    """Remove all items but those `kept`, or the entire directory if at most one item would remain."""
    items = _items(properties)
    removed = [node for node in items if _item(node)["Semantic"].text not in kept]
    if removed and len(removed) >= len(items) - 1:
        removed = [node for node in properties if node.name == CONTAINER + "Directory"]
    yield from (Edit(node.start, node.end) for node in removed)


# ---- geometry


def _update_sizes(properties: list[Node], width: int, height: int) -> Iterator[Edit]:
    for node in properties:
        for names in SIZES:
            if node.name in names and node.text.strip():
                yield Edit(*node.value, b"%d" % (width if node.name == names[0] else height))


def _update_regions(properties: list[Node], orientation: int, scale: int) -> Iterator[Edit]:
    """Transform face regions by orientation and scale, and the photo size to which they apply.

    The Metadata Working Group stores centre and size, as fractions of the photo or, if the unit is "pixel", in pixels;
    Microsoft stores the top left corner and size, as fractions."""
    for region in properties:
        sizes = [node.fields() for node in region.walk() if node.name == REGIONS + "AppliedToDimensions"]
        across, down = (_number(sizes[0].get(name)) if sizes else Decimal("NaN") for name in "wh")
        for size in sizes:
            yield from _set_values(size, {"w": across, "h": down}, "wh" if orientation < 5 else "hw", scale)
        for node in region.walk():
            area = node.fields()
            if node.name == REGIONS + "Area" and {"x", "y"} <= area.keys():
                pixels = "unit" in area and area["unit"].text.strip() == "pixel"
                x, y, w, h = (_number(area.get(name)) for name in "xywh")
                x, y, w, h = _oriented(x, y, w, h, orientation, *((across, down) if pixels else (Decimal(1),) * 2))
                yield from _set_values(area, {"x": x, "y": y, "w": w, "h": h}, "xywh", scale if pixels else 1)
            elif node.name == MICROSOFT_RECTANGLE and node.text.count(",") == 3:
                left, top, w, h = (_decimal(part) for part in node.text.split(","))
                x, y, w, h = _oriented(left + w / 2, top + h / 2, w, h, orientation, Decimal(1), Decimal(1))
                corner = (x - w / 2, y - h / 2, w, h)
                if all(value.is_finite() for value in corner):
                    yield Edit(*node.value, ", ".join(map(_plain, corner)).encode())


def _oriented(
    x: Decimal, y: Decimal, w: Decimal, h: Decimal, orientation: int, across: Decimal, down: Decimal
) -> tuple[Decimal, ...]:
    """Centre and size of a region after the orientation is applied to a picture of `across` by `down`."""
    if orientation >= 5:
        x, y, w, h, across, down = y, x, h, w, down, across
    if orientation in (2, 3, 6, 7):
        x = across - x
    if orientation in (3, 4, 7, 8):
        y = down - y
    return x, y, w, h


def _set_values(fields: dict[str, Node], values: dict[str, Decimal], order: str, scale: int) -> Iterator[Edit]:
    """Set the i-th of the fields named by `values`, if present, to `scale` times the value named by the i-th letter of
    `order`."""
    for name, value in zip(values, (values[name] for name in order), strict=True):
        if name in fields and value.is_finite() and scale * value != _number(fields[name]):
            yield Edit(*fields[name].value, _plain(scale * value).encode())


def _number(node: Node | None) -> Decimal:
    return _decimal(node.text if node else "")


def _count(node: Node | None) -> int:
    value = _number(node)
    return int(value) if value.is_finite() and value > 0 else 0


def _decimal(text: str) -> Decimal:
    """The number, or NaN if the text is not a number of moderate size."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        return Decimal("NaN")
    return value if value.is_finite() and -20 < value.adjusted() < 20 else Decimal("NaN")


def _plain(value: Decimal) -> str:
    """The number without exponent and trailing zeros."""
    return f"{value.normalize():f}"


# ---- XML


def _edited(packet: bytes, edits: Callable[[list[Node]], Iterable[Edit]]) -> bytes:
    """The packet after the edits for its properties. White space before a removed property is removed, too."""
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
    """Like `_properties`, but [] for a packet that is refused."""
    try:
        return _properties(packet)
    except Refused:
        return []


def _properties(packet: bytes) -> list[Node]:
    """The properties in the namespaces of `PARSED`; [] if the packet is not well-formed. Raises Refused for a packet
    that would exhaust memory."""
    if len(packet) > MAX_BYTES:
        raise Refused(f"expected at most {MAX_BYTES >> 20} MiB, got {len(packet)} bytes")
    if max(packet.count(b"<"), packet.count(b"=")) > MAX_NAMES:
        raise Refused(f"expected at most {MAX_NAMES} elements and attributes, got more")
    packet = _in_utf8(packet)
    return _Reader(packet).properties if packet and not WIDE.match(packet) else []


def _in_utf8(packet: bytes) -> bytes:
    """The packet, re-encoded as UTF-8 if it is in UTF-16 or UTF-32; unchanged if it cannot be decoded. The encoding
    follows from the byte order mark, or from the zero bytes of the first character."""
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
    """Parses a packet into `properties`. Raises Refused."""

    def __init__(self, packet: bytes) -> None:
        self.properties: list[Node] = []
        self._packet, self._count = packet, 0
        self._namespaces = [UNDECLARED]  # by prefix, for each open element
        self._open: list[Node] = []  # the property and the open elements inside it
        self._ignored, self._ended = 0, False  # the number of open elements that are skipped
        self._parser = parser = expat.ParserCreate("utf-8")
        parser.ordered_attributes = parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._document_type
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(packet, True)
        except expat.ExpatError:
            if not self._ended:  # anything after the outermost element is padding
                self.properties = []
        finally:
            del self._parser  # break the reference cycle

    def _document_type(self, *_: object) -> None:
        raise Refused("expected XML without a document type, got one that may define entities")

    def _start(self, tag: str, pairs: list[str]) -> None:
        if len(self._namespaces) + self._ignored > MAX_DEPTH:
            raise Refused(f"expected at most {MAX_DEPTH} nested elements, got more")
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
        inside = bool(self._open) or _is_parsed(node.name)
        full = [self._full(name) if ":" in name else name for name in names]
        if inside or any(map(_is_parsed, full)):
            self._find_attributes(node, len(tag.encode()), full, texts)
            if not inside:
                self.properties += [child for child in node.children if _is_parsed(child.name)]
        if inside:
            (self._open[-1].children if self._open else self.properties).append(node)
            self._open.append(node)
        elif node.name not in WRAPPERS:
            self._namespaces.pop()
            self._ignored = 1

    def _find_attributes(self, node: Node, tag: int, names: list[str], texts: list[str]) -> None:
        """Add the attributes to `node` and find where they and the tag end, which expat does not report."""
        place = node.start + 1 + tag
        for name, text in zip(names, texts, strict=True):
            match = ATTRIBUTE.match(self._packet, place)
            assert match  # expat has accepted the tag
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
            node, place = self._open.pop(), self._parser.CurrentByteIndex
            if self._packet[node.end - 2 : node.end] != b"/>":
                node.value, node.end = (node.end, place), self._packet.index(b">", place) + 1

    def _full(self, name: str) -> str:
        """{namespace}name; the bare name if its prefix is not bound."""
        prefix, _, local = name.rpartition(":")
        found = (declared[prefix] for declared in reversed(self._namespaces) if prefix in declared)
        return next(found, "") + local


def _is_parsed(name: str) -> bool:
    return name[: name.find("}") + 1] in PARSED
