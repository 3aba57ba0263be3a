"""Companions of the photo in a JPEG: a gain map stays valid, or is left out with a note as all others are."""

import io
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastenh.engine import Engine
from fastenh.io import read_photo, write_photo
from fastenh.models.system import System
from fastenh.pipelines.photo import FileOptions, enhance_file

y, x = np.mgrid[:48, :64]
PIXELS = np.stack([4 * y, 3 * x, 2 * x + y], -1).astype(np.uint8)
GAIN = (16 * np.mgrid[:12, :16][0] + 4 * np.mgrid[:12, :16][1]).astype(np.uint8)  # a quarter of the photo's size
HDRGM, ITEM = "http://ns.adobe.com/hdr-gain-map/1.0/", "http://ns.google.com/photos/1.0/container/item/"
ISO = b"urn:iso:std:iso:ts:21496:-1\0"


class Darker(System):
    """Darkens every pixel by a quarter, and enlarges by `scale`."""

    reach = 0

    def __init__(self, scale: int = 1) -> None:
        super().__init__()
        self.scale = scale

    def render(self, image, params, local, place, out=None):
        return (0.75 * image).to(image.dtype).repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def engine(scale: int = 1) -> Engine:
    return Engine(Darker(scale), "cpu", "float32")


# ---- hand-made files


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def xmp_segment(attributes: str, body: str = "") -> bytes:
    namespaces = f'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:h="{HDRGM}" xmlns:I="{ITEM}"'
    namespaces += (
        ' xmlns:C="http://ns.google.com/photos/1.0/container/" xmlns:G="http://ns.google.com/photos/1.0/camera/"'
    )
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {namespaces}><rdf:Description rdf:about="" {attributes}>'
    text += f"{body}</rdf:Description></rdf:RDF></x:xmpmeta>"
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text.encode())


def directory(*items: tuple[str, int], padding: int = 0) -> str:
    primary = f'I:Mime="image/jpeg" I:Semantic="Primary" I:Padding="{padding}"'
    listed = [primary] + [f'I:Semantic="{meaning}" I:Length="{length}"' for meaning, length in items]
    rows = "".join(f'<rdf:li rdf:parseType="Resource"><C:Item {one}/></rdf:li>' for one in listed)
    return f"<C:Directory><rdf:Seq>{rows}</rdf:Seq></C:Directory>"


def coded(pixels: np.ndarray, *segments: bytes, **how) -> bytes:
    """A JPEG with extra segments right after its start."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **{"quality": 95, **how})
    return out.getvalue()[:2] + b"".join(segments) + out.getvalue()[2:]


GAIN_MAP = coded(
    GAIN, xmp_segment('h:Version="1.0" h:GainMapMax="2.5" h:Gamma="1"'), segment(0xE2, ISO + b"gain map's")
)
PICTURE, VIDEO = coded(PIXELS[::2, ::2]), struct.pack(">I", 24) + b"ftypmp42" + bytes(99)


def mpf_segment(order: str, first: int, entries: list[tuple[int, int, int]]) -> bytes:
    """An MPF segment by CIPA DC-007: version, number of images, and 16 bytes per image."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 3)
    head += struct.pack(order + "HHI", 0xB000, 7, 4) + b"0100" + struct.pack(order + "HHII", 0xB001, 4, 1, len(entries))
    head += struct.pack(order + "HHIII", 0xB002, 7, 16 * len(entries), 50, 0)
    return segment(0xE2, b"MPF\0" + head + b"".join(struct.pack(order + "IIIHH", *entry, 0, 0) for entry in entries))


def with_mpf(photo: bytes, *pictures: tuple[int, bytes], order: str = "<") -> bytes:
    """A photo, an MPF, and the pictures that it lists, each given as attributes and JPEG."""
    size = len(photo) + len(mpf_segment(order, 0, [(0, 0, 0)] * (1 + len(pictures))))
    entries, place = [(0x20030000, size, 0)], size
    for attributes, data in pictures:
        entries.append((attributes, len(data), place - 10))  # the directory is 10 bytes from the start of the file
        place += len(data)
    table = mpf_segment(order, size, entries)
    return photo[:2] + table + photo[2:] + b"".join(data for _, data in pictures)


# ---- independent readers, written from the specifications


def segments_of(data: bytes) -> list[tuple[int, int, bytes]]:
    """Offset, marker and content of each segment before the pixels."""
    found, place = [], 2
    while data[place + 1] != 0xDA:
        assert data[place] == 0xFF
        size = struct.unpack_from(">H", data, place + 2)[0]
        found.append((place, data[place + 1], data[place + 4 : place + 2 + size]))
        place += 2 + size
    return found


def end_of(data: bytes) -> int:
    """The end of the first picture: no coded pixels contain this marker, and these pictures have one scan."""
    return data.index(b"\xff\xd9", segments_of(data)[-1][0]) + 2


def mpf_of(data: bytes) -> list[tuple[int, bytes]] | None:
    """Attributes and bytes of each picture; None without a directory."""
    tables = [(place + 8, content[4:]) for place, marker, content in segments_of(data) if content[:4] == b"MPF\0"]
    if not tables:
        return None
    ((origin, table),) = tables
    order = {b"II*\0": "<", b"MM\0*": ">"}[table[:4]]
    at = struct.unpack_from(order + "I", table, 4)[0]
    tags = {}
    for n in range(struct.unpack_from(order + "H", table, at)[0]):
        tag, kind, count, value = struct.unpack_from(order + "HHI4s", table, at + 2 + 12 * n)
        tags[tag] = kind, count, value
    assert list(tags) == [0xB000, 0xB001, 0xB002] and tags[0xB000] == (7, 4, b"0100")
    kind, count, value = tags[0xB002]
    place, found = struct.unpack(order + "I", value)[0], []
    assert (kind, count) == (7, 16 * struct.unpack(order + "I", tags[0xB001][2])[0])
    for n in range(count // 16):
        attributes, size, offset, *_ = struct.unpack_from(order + "IIIHH", table, place + 16 * n)
        start = origin + offset if n else 0
        assert (offset == 0) == (n == 0) and start + size <= len(data)
        found.append((attributes, data[start : start + size]))
    return found


def xmp_of(data: bytes) -> ElementTree.Element | None:
    start = b"http://ns.adobe.com/xap/1.0/\0"
    packets = [content[len(start) :] for _, marker, content in segments_of(data) if content.startswith(start)]
    return ElementTree.fromstring(packets[0]) if packets else None


def items_of(data: bytes) -> list[tuple[str, bytes]]:
    """Semantic and bytes of each item of the directory, located from the end of the photo."""
    found, place = [], 0
    for item in xmp_of(data).iter("{http://ns.google.com/photos/1.0/container/}Item"):
        at = {name.removeprefix(f"{{{ITEM}}}"): value for name, value in item.attrib.items()}
        end = place + int(at.get("Length", 0)) if place else end_of(data)
        found.append((at["Semantic"], data[place:end]))
        place = end + int(at.get("Padding", 0))
    assert not found or place == len(data)
    return found


def has_no_companions(data: bytes) -> bool:
    """Whether the file neither contains nor announces anything besides the photo."""
    words = (b"MPF\0", ISO, HDRGM.encode() + b"Version", b"h:Version", b"C:Directory", b"MotionPhoto", b"MicroVideo")
    return not any(word in data for word in words) and end_of(data) == len(data)


def ultra_hdr(padding: int = 0, mpf: str | None = None, exif: bytes = b"", iso: bool = False) -> bytes:
    parts = [xmp_segment('h:Version="1.0"', directory(("GainMap", len(GAIN_MAP)), padding=padding))]
    parts += [segment(0xE2, ISO + b"photo's")] if iso else []
    photo = coded(PIXELS, *parts, **({"exif": exif} if exif else {}))
    return with_mpf(photo, (0, GAIN_MAP), order=mpf) if mpf else photo + bytes(padding) + GAIN_MAP


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


FILES = {
    "by the directory": ultra_hdr(),
    "after padding": ultra_hdr(padding=7),
    "by both": ultra_hdr(mpf="<"),
    "by both, big-endian": ultra_hdr(mpf=">", iso=True),
    "by MPF and ISO 21496-1": with_mpf(coded(PIXELS, segment(0xE2, ISO + b"photo's")), (0, GAIN_MAP)),
    "before a trailer": ultra_hdr() + b"SEFT",
    "with a preview before": with_mpf(
        coded(PIXELS, xmp_segment('h:Version="1.0"')), (0x010001, PICTURE), (0x050000, GAIN_MAP)
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_gain_map_stays_valid_in_a_jpeg(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(FILES[name])
    assert enhance_file(engine(), tmp_path / "a.jpg", tmp_path / "b.jpg", FileOptions()) == ()
    data = (tmp_path / "b.jpg").read_bytes()
    end = end_of(data)
    assert data[end:] == GAIN_MAP
    before, after = (np.asarray(Image.open(tmp_path / one).convert("RGB"), float) for one in ("a.jpg", "b.jpg"))
    assert np.abs(after - 0.75 * before).mean() < 2
    assert (mpf_of(FILES[name]) is None) == (mpf_of(data) is None)
    if pictures := mpf_of(data):
        gain = next(kind for kind, picture in mpf_of(FILES[name]) if picture == GAIN_MAP)
        assert pictures == [(0x20030000, data[:end]), (gain, GAIN_MAP)]
    if b"C:Directory" in FILES[name]:
        assert items_of(data) == [("Primary", data[:end]), ("GainMap", GAIN_MAP)]
    isos = [[content for *_, content in segments_of(one) if content.startswith(ISO)] for one in (FILES[name], data)]
    assert isos[0] == isos[1]
    assert enhance_file(engine(), tmp_path / "b.jpg", tmp_path / "c.jpg", FileOptions(0)) == ()
    again = (tmp_path / "c.jpg").read_bytes()
    assert again[end_of(again) :] == GAIN_MAP


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_a_gain_map_is_rotated_with_its_photo(tmp_path, orientation):
    (tmp_path / "a.jpg").write_bytes(ultra_hdr(mpf="<", exif=exif(orientation)))
    assert enhance_file(engine(), tmp_path / "a.jpg", tmp_path / "b.jpg", FileOptions()) == ()
    data = (tmp_path / "b.jpg").read_bytes()
    (_, photo), (_, gain_map) = mpf_of(data)
    assert items_of(data) == [("Primary", photo), ("GainMap", gain_map)] and data == photo + gain_map
    turn = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T}[orientation]
    turned = np.asarray(Image.open(io.BytesIO(gain_map)), float)
    assert np.abs(turned - turn(np.asarray(Image.open(io.BytesIO(GAIN_MAP)), float))).max() <= 6
    assert Image.open(io.BytesIO(photo)).size == ((64, 48) if orientation == 3 else (48, 64))
    kept = {content for _, marker, content in segments_of(GAIN_MAP) if marker in (0xE1, 0xE2)}
    assert kept == {content for _, marker, content in segments_of(gain_map) if marker in (0xE1, 0xE2)}
    assert Image.open(io.BytesIO(gain_map)).quantization == Image.open(io.BytesIO(GAIN_MAP)).quantization


NOTE = "left out the gain map; only a JPEG of the same size keeps it"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target, scale", [("b.png", 1), ("b.tif", 1), ("b.webp", 1), ("b.jpg", 2)])
def test_other_formats_and_sizes_leave_out_a_gain_map_with_a_note(tmp_path, name, target, scale):
    (tmp_path / "a.jpg").write_bytes(FILES[name])
    assert enhance_file(engine(scale), tmp_path / "a.jpg", tmp_path / target, FileOptions()) == (NOTE,)
    data = (tmp_path / target).read_bytes()
    assert b"Version=" not in data and b"Semantic" not in data and ISO not in data
    if target == "b.jpg":
        assert has_no_companions(data)


def test_writing_a_photo_in_another_format_warns(tmp_path):
    (tmp_path / "a.jpg").write_bytes(ultra_hdr())
    photo = read_photo(tmp_path / "a.jpg")
    with pytest.warns(UserWarning, match=rf"b\.png: {NOTE}$"):
        write_photo(photo, tmp_path / "b.png")
    write_photo(photo, tmp_path / "b.jpg")
    assert items_of((tmp_path / "b.jpg").read_bytes())[1] == ("GainMap", GAIN_MAP)


BARE = coded(PIXELS)
MOTION = xmp_segment('G:MotionPhoto="1" G:MotionPhotoVersion="1"', directory(("MotionPhoto", len(VIDEO))))
MICRO = xmp_segment(f'G:MicroVideo="1" G:MicroVideoOffset="{len(VIDEO)}"')
SEVERAL = (0, PICTURE), (0x020003, PICTURE), (0x020003, PICTURE + VIDEO)
GAIN_MAP_MISSING = xmp_segment('h:Version="1.0"', directory(("GainMap", 99)))
LEFT_OUT = {
    "a motion photo": (coded(PIXELS, MOTION) + VIDEO, "the video"),
    "an older one": (coded(PIXELS, MICRO) + VIDEO, "the video"),
    "a video that nothing announces": (BARE + VIDEO, "the video"),
    "stereo": (with_mpf(BARE, (0x020002, PICTURE)), "1 other picture"),
    "several": (with_mpf(BARE, *SEVERAL), "the video and 3 other pictures"),
    "another file": (BARE + PICTURE, "1 other picture"),
    "depth": (coded(PIXELS, xmp_segment("", directory(("Depth", len(PICTURE))))) + PICTURE, "1 other picture"),
    "a missing gain map": (coded(PIXELS, GAIN_MAP_MISSING), "the gain map, which is missing or damaged"),
    "one in ISO 21496-1": (coded(PIXELS, segment(0xE2, ISO + bytes(4))), "the gain map, which is missing or damaged"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_other_companions_are_left_out_with_a_note(tmp_path, name):
    data, what = LEFT_OUT[name]
    (tmp_path / "a.jpg").write_bytes(data)
    for target in ("b.jpg", "b.png"):
        notes = enhance_file(engine(), tmp_path / "a.jpg", tmp_path / target, FileOptions())
        assert notes == (f"left out {what}",)
    assert has_no_companions((tmp_path / "b.jpg").read_bytes())
    assert read_photo(tmp_path / "b.jpg").header.notes == ()


@pytest.mark.parametrize("data", [BARE, BARE + b"\0" * 9, with_mpf(BARE, (0x010002, PICTURE)), with_mpf(BARE)])
def test_previews_and_padding_need_no_note(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    assert enhance_file(engine(), tmp_path / "a.jpg", tmp_path / "b.jpg", FileOptions()) == ()
    assert has_no_companions((tmp_path / "b.jpg").read_bytes())


def test_a_motion_photo_keeps_its_gain_map(tmp_path):
    """The video, which comes last, is left out, and its item is removed from the directory."""
    items = directory(("GainMap", len(GAIN_MAP)), ("MotionPhoto", len(VIDEO)))
    data = coded(PIXELS, xmp_segment('h:Version="1.0" G:MotionPhoto="1"', items)) + GAIN_MAP + VIDEO
    (tmp_path / "a.jpg").write_bytes(data)
    notes = enhance_file(engine(), tmp_path / "a.jpg", tmp_path / "b.jpg", FileOptions())
    assert notes == ("left out the video",)
    data = (tmp_path / "b.jpg").read_bytes()
    assert [(meaning, len(part)) for meaning, part in items_of(data)][1:] == [("GainMap", len(GAIN_MAP))]
    assert b"MotionPhoto" not in data


def test_damaged_companions_do_not_prevent_reading_the_photo(tmp_path):
    whole = ultra_hdr(mpf="<", exif=exif(6))
    end = end_of(whole)
    rng = np.random.default_rng(3)
    for n in range(60):
        data = bytearray(whole)
        if n < 20:
            del data[end + int(rng.integers(len(GAIN_MAP))) :]
        else:
            for at in rng.integers(end if n < 40 else 0, len(data) if n < 40 else 400, 6):
                data[at] = rng.integers(256)
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            photo = read_photo(tmp_path / "a.jpg")
        except ValueError:
            assert n >= 40  # the photo's own segments
            continue
        write_photo(photo, tmp_path / "b.jpg", overwrite=True)


def test_a_directory_of_large_pictures_takes_no_time(tmp_path):
    entries = [(0, 2**20, 0)] + [(0, 2**20, 4000 + n) for n in range(3000)]
    data = coded(PIXELS, mpf_segment("<", 0, entries)) + bytes(2**21)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_photo(tmp_path / "a.jpg").pixels.shape == PIXELS.shape


def test_all_comments_are_kept(tmp_path):
    comments = [b"first", b"second\xff\0", b"", b"x" * 65_533]
    (tmp_path / "a.jpg").write_bytes(coded(PIXELS, *(segment(0xFE, one) for one in comments)))
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    written = (tmp_path / "b.jpg").read_bytes()
    assert [content for _, marker, content in segments_of(written) if marker == 0xFE] == comments


def test_extended_xmp_is_updated(tmp_path):
    """Part 3 of the XMP standard: the first packet names the second by its MD5."""
    import hashlib

    def parts(packet: bytes) -> tuple[str, bytes]:
        name = hashlib.md5(packet).hexdigest().upper()
        head = b"http://ns.adobe.com/xmp/extension/\0" + name.encode() + struct.pack(">II", len(packet), 0)
        return name, segment(0xE1, head + packet)

    thumbnails = '<xmp:Thumbnails xmlns:xmp="http://ns.adobe.com/xap/1.0/"><rdf:Alt/></xmp:Thumbnails>'
    start = len(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"))
    more = xmp_segment('G:HdrPlusMakernote="a"', thumbnails)[start:]
    name, extension = parts(more)
    first = xmp_segment(f'xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="{name}"')
    (tmp_path / "a.jpg").write_bytes(coded(PIXELS, first, extension))
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    name, extension = parts(more.replace(thumbnails.encode(), b""))
    written = (tmp_path / "b.jpg").read_bytes()
    assert extension in written and f'HasExtendedXMP="{name}"'.encode() in written
    write_photo(read_photo(tmp_path / "a.jpg"), tmp_path / "b.png")
    assert b"HasExtendedXMP" not in Image.open(tmp_path / "b.png").info["xmp"]


@pytest.mark.parametrize("name, notes", [("ultrahdr.jpg", ()), ("twocom.jpg", ()), ("region6.jpg", ())])
def test_files_of_other_programs(tmp_path, assets, name, notes):
    source: Path = assets / "inputs" / "photos" / name
    assert enhance_file(engine(), source, tmp_path / name, FileOptions()) == notes
    data = (tmp_path / name).read_bytes()
    if name == "ultrahdr.jpg":
        assert items_of(data)[1] == ("GainMap", source.read_bytes()[-335:])


def test_companions_of_a_heic(tmp_path):
    """libheif rotates only the pixels; sizes in EXIF must be those of the result."""
    pillow_heif = pytest.importorskip("pillow_heif")
    tags, motion = Image.Exif(), MOTION[4 + len(b"http://ns.adobe.com/xap/1.0/\0") :]
    tags.get_ifd(0x8769).update({0xA002: 48, 0xA003: 64})
    file = pillow_heif.from_bytes("RGB", (64, 48), PIXELS.tobytes())
    file.save(tmp_path / "a.heic", exif=tags.tobytes(), xmp=motion, quality=90)
    photo = read_photo(tmp_path / "a.heic")
    assert photo.header.notes == ("left out the video",)
    write_photo(photo, tmp_path / "b.jpg")
    below = Image.open(tmp_path / "b.jpg").getexif().get_ifd(0x8769)
    assert (below[0xA002], below[0xA003]) == (64, 48) and has_no_companions((tmp_path / "b.jpg").read_bytes())
