"""XMP is parsed as XML, with any prefix and form; values are updated with the photo, all else is kept byte for byte."""

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastenh.engine import Engine
from fastenh.io import read_photo, write_photo
from fastenh.io.pixels import read_size
from fastenh.io.xmp import check_xmp, enlarged_xmp, upright_xmp, xmp_orientation
from fastenh.models.system import System
from fastenh.pipelines import photo as pipeline
from fastenh.pipelines.photo import FileOptions, enhance_file

# As RDF and the Metadata Working Group define them.
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
TIFF, EXIF = "{http://ns.adobe.com/tiff/1.0/}", "{http://ns.adobe.com/exif/1.0/}"
AREA, SIZE = "{http://ns.adobe.com/xmp/sType/Area#}", "{http://ns.adobe.com/xap/1.0/sType/Dimensions#}"
REGIONS = "{http://www.metadataworkinggroup.com/schemas/regions/}"
NAMESPACES = " ".join(
    f'xmlns:{prefix}="{uri}"'
    for prefix, uri in {
        "rdf": RDF[1:-1], "tiff": TIFF[1:-1], "exif": EXIF[1:-1], "mwg-rs": REGIONS[1:-1], "stArea": AREA[1:-1],
        "stDim": SIZE[1:-1], "xmp": "http://ns.adobe.com/xap/1.0/", "my": "urn:mine",
        "MP": "http://ns.microsoft.com/photo/1.2/", "MPRI": "http://ns.microsoft.com/photo/1.2/t/RegionInfo#",
        "MPReg": "http://ns.microsoft.com/photo/1.2/t/Region#",
    }.items()
)  # fmt: skip
HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
TAIL = "\n" + " " * 99 + '\n<?xpacket end="w"?>'


def packet(attributes: str = "", elements: str = "") -> bytes:
    body = f'<rdf:Description rdf:about="" {attributes}>{elements}</rdf:Description>'
    return (
        f"{HEAD}<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF {NAMESPACES}>{body}</rdf:RDF></x:xmpmeta>{TAIL}".encode()
    )


def values(xmp: bytes, name: str) -> list[str]:
    """All values of a property, by ElementTree, which resolves prefixes."""
    found = []
    for element in ElementTree.fromstring(xmp.decode().rstrip("\0").strip("\ufeff")).iter():
        found += [element.attrib[name]] if name in element.attrib else []
        found += [element.text or ""] if element.tag == name else []
    return found


def jpeg(xmp: bytes, orientation: int | None = None, **how) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        how["exif"] = exif
    Image.fromarray(PIXELS).save(out, "JPEG", xmp=xmp, **how)
    return out.getvalue()


y, x = np.mgrid[:48, :64]
PIXELS = np.stack([4 * y, 3 * x, 2 * x + y], -1).astype(np.uint8)
FORMS = {
    "an attribute": packet('tiff:Orientation="6"'),
    "in other quotes": packet("tiff:Orientation = '6'"),
    "an element": packet(elements="<tiff:Orientation> 6\n</tiff:Orientation>"),
    "by another prefix": packet('xmlns:t="http://ns.adobe.com/tiff/1.0/" t:Orientation="6"'),
    "in the default namespace": packet(elements='<Orientation xmlns="http://ns.adobe.com/tiff/1.0/">6</Orientation>'),
    "by a reference": packet('tiff:Orientation="&#54;"'),
    "after a comment": packet(elements='<!-- tiff:Orientation="3" --><tiff:Orientation>6</tiff:Orientation>'),
    "in CDATA": packet(elements="<tiff:Orientation><![CDATA[6]]></tiff:Orientation>"),
    "before zeros": packet('tiff:Orientation="6"') + bytes(9),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_orientation_that_only_xmp_states(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(jpeg(FORMS[name]))
    upright = np.rot90(np.asarray(Image.open(tmp_path / "a.jpg")), -1)
    photo = read_photo(tmp_path / "a.jpg")
    assert np.array_equal(photo.pixels, upright) and read_size(tmp_path / "a.jpg") == upright.shape[:2]
    write_photo(photo, tmp_path / "b.jpg")
    written = Image.open(tmp_path / "b.jpg").info["xmp"]
    assert values(written, TIFF + "Orientation")[-1:] == ["1"]
    assert len(written) - len(FORMS[name]) in (0, -2, -4, -12)  # spaces, &#54;, CDATA
    assert np.array_equal(read_photo(tmp_path / "b.jpg").pixels.shape, upright.shape)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_an_orientation_that_only_xmp_states_in_other_formats(tmp_path, suffix):
    xmp, path = packet('tiff:Orientation="8"'), tmp_path / f"a.{suffix}"
    if suffix == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        Image.fromarray(PIXELS).save(path, pnginfo=info)
    elif suffix == "webp":
        Image.fromarray(PIXELS).save(path, xmp=xmp, lossless=True)
    else:
        Image.fromarray(PIXELS).save(path, tiffinfo={700: xmp})
    assert np.array_equal(read_photo(path).pixels, np.rot90(PIXELS, 1))
    assert read_size(path) == (64, 48)


@pytest.mark.parametrize("exif, applied", [(1, 1), (3, 3), (6, 6), (0, 8), (77, 8), (None, 8)])
def test_exif_takes_precedence(tmp_path, exif, applied):
    (tmp_path / "a.jpg").write_bytes(jpeg(packet('tiff:Orientation="8"'), exif))
    stored = np.asarray(Image.open(tmp_path / "a.jpg"))
    turned = {1: stored, 3: stored[::-1, ::-1], 6: np.rot90(stored, -1), 8: np.rot90(stored)}
    photo = read_photo(tmp_path / "a.jpg")
    assert np.array_equal(photo.pixels, turned[applied])
    write_photo(photo, tmp_path / "b.jpg")
    written = Image.open(tmp_path / "b.jpg")
    assert written.getexif().get(0x0112, 1) == 1 and values(written.info["xmp"], TIFF + "Orientation") == ["1"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_packet_of_wide_characters_becomes_utf_8(tmp_path, encoding, mark):
    text = packet('tiff:Orientation="8" my:name="Zoë"').decode()
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", tiffinfo={700: (mark + text).encode(encoding)})
    photo = read_photo(tmp_path / "a.tif")
    assert np.array_equal(photo.pixels, np.rot90(PIXELS, 1))
    assert photo.header.metadata.xmp.decode() == text.replace('"8"', '"1"')


KEPT = {
    "nothing to change": packet('tiff:Orientation="1" my:own="6"', "<my:deep><rdf:Bag/></my:deep>"),
    "of another picture": packet(elements="<my:part><rdf:Description tiff:Orientation='6'/></my:part>"),
    "not a number": packet('tiff:Orientation="top"'),
    "empty": packet(elements="<tiff:Orientation/>"),
    "not well-formed": b'<x:xmpmeta><rdf:Description tiff:Orientation="6"></x:xmpmeta>',
    "no XML": b"\x80\0\xff",
    "no packet": b"",
}


@pytest.mark.parametrize("name", KEPT)
def test_unaffected_packets_are_kept_byte_for_byte(name):
    check_xmp(KEPT[name])
    assert xmp_orientation(KEPT[name]) in (0, 1)
    assert upright_xmp(KEPT[name], 1, 48, 64) == KEPT[name]
    assert enlarged_xmp(upright_xmp(KEPT[name], 6, 48, 64), 2, 96, 128) == KEPT[name]


def test_only_the_value_is_changed():
    before = packet('my:a="&lt;" tiff:Orientation="6" my:b=\'"\'', "<!-- kept --><my:c/>\n")
    after = upright_xmp(before, 6, 48, 64)
    assert after == before.replace(b'Orientation="6"', b'Orientation="1"')


# ---- sizes and regions

# A region by centre and size, as fractions of the stored picture.
REGION = {"x": "0.25", "y": "0.2", "w": "0.1", "h": "0.3"}


def turned_region(orientation: int) -> dict[str, float]:
    """The expected region, from a mask of 20 × 40 pixels that NumPy rotates as the EXIF standard specifies."""
    mask = np.zeros((20, 40), bool)
    mask[1:7, 8:12] = True  # y 0.05 to 0.35, x 0.2 to 0.3
    turns = {
        1: mask, 2: mask[:, ::-1], 3: mask[::-1, ::-1], 4: mask[::-1], 5: mask.T, 6: np.rot90(mask, -1),
        7: mask[::-1, ::-1].T, 8: np.rot90(mask),
    }  # fmt: skip
    rows, columns = (axis.nonzero()[0] for axis in (turns[orientation].any(1), turns[orientation].any(0)))
    height, width = turns[orientation].shape
    left, right, top, bottom = columns[0] / width, (columns[-1] + 1) / width, rows[0] / height, (rows[-1] + 1) / height
    return {"x": (left + right) / 2, "y": (top + bottom) / 2, "w": right - left, "h": bottom - top}


def regions(unit: str = "normalized", elements: bool = False, **area: str) -> bytes:
    area = area or REGION
    if elements:
        body = "".join(f"<stArea:{name}>{value}</stArea:{name}>" for name, value in area.items())
        one = f"<mwg-rs:Area rdf:parseType='Resource'>{body}<stArea:unit>{unit}</stArea:unit></mwg-rs:Area>"
        size = "<rdf:Description><stDim:w>64</stDim:w><stDim:h>48</stDim:h></rdf:Description>"
        size = f"<mwg-rs:AppliedToDimensions>{size}</mwg-rs:AppliedToDimensions>"
    else:
        body = " ".join(f'stArea:{name}="{value}"' for name, value in area.items())
        one = f'<mwg-rs:Area {body} stArea:unit="{unit}"/>'
        size = '<mwg-rs:AppliedToDimensions stDim:w="64" stDim:h="48" stDim:unit="pixel"/>'
    listed = f"<rdf:Bag><rdf:li><rdf:Description mwg-rs:Name='A'>{one}</rdf:Description></rdf:li></rdf:Bag>"
    listed = f"<mwg-rs:RegionList>{listed}</mwg-rs:RegionList>"
    return packet(elements=f"<mwg-rs:Regions rdf:parseType='Resource'>{size}{listed}</mwg-rs:Regions>")


def area_of(xmp: bytes) -> dict[str, float]:
    return {name: float(values(xmp, AREA + name)[0]) for name in "xywh"}


def size_of(xmp: bytes) -> list[int]:
    return [int(values(xmp, SIZE + name)[0]) for name in "wh"]


@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_turn_with_the_photo(orientation, elements):
    size = (48, 64) if orientation >= 5 else (64, 48)
    after = upright_xmp(regions(elements=elements), orientation, *size)
    assert area_of(after) == pytest.approx(turned_region(orientation), abs=1e-12)
    assert size_of(after) == [*size] and after.endswith(TAIL.encode()) and b"normalized" in after
    in_pixels = regions("pixel", elements, x="16", y="9.6", w="6.4", h="14.4")
    fractions = area_of(upright_xmp(in_pixels, orientation, *size))
    fractions = {name: value / size[name in "yh"] for name, value in fractions.items()}
    assert fractions == pytest.approx(turned_region(orientation), abs=1e-12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_microsofts_regions_turn_with_the_photo(orientation):
    people = (
        "<MP:RegionInfo rdf:parseType='Resource'><MPRI:Regions><rdf:Bag><rdf:li "
        "MPReg:PersonDisplayName='A' MPReg:Rectangle='0.2, 0.05, 0.1, 0.3'/></rdf:Bag></MPRI:Regions></MP:RegionInfo>"
    )
    after = upright_xmp(packet(elements=people), orientation, 48, 64)
    name = "{http://ns.microsoft.com/photo/1.2/t/Region#}Rectangle"
    left, top, w, h = map(float, values(after, name)[0].split(","))
    expected = turned_region(orientation)
    assert (left + w / 2, top + h / 2, w, h) == pytest.approx([expected[one] for one in "xywh"], abs=1e-12)


def test_a_region_without_numbers_is_kept():
    for area in ({"x": "left", "y": "0.5"}, {"x": "nan", "y": "inf"}, {"x": "1e999999", "y": "sNaN"}, {"w": "1"}):
        assert upright_xmp(regions(**area), 3, 64, 48) == regions(**area)


class Enlarge(System):
    """Enlarges by a whole number, and changes nothing else."""

    reach = 0

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def render(self, image, params, local, place, out=None):
        return image.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def sizes(path: Path) -> list[tuple[int, int]]:
    """All sizes that XMP and EXIF of a JPEG or PNG state."""
    image = Image.open(path)
    exif, xmp = image.getexif(), image.info["xmp"]
    below = exif.get_ifd(0x8769)
    related = exif.get_ifd(0xA005)
    found = [(exif[256], exif[257]), (below[0xA002], below[0xA003]), (related[0x1001], related[0x1002])]
    found.append(tuple(size_of(xmp)))
    for names in (("PixelXDimension", "PixelYDimension"), ("ImageWidth", "ImageLength")):
        namespace = EXIF if names[0].startswith("Pixel") else TIFF
        found.append(tuple(int(values(xmp, namespace + name)[0]) for name in names))
    return found


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("scale", [1, 2])
def test_sizes_follow_rotation_and_enlargement(tmp_path, order, orientation, scale):
    exif = Image.Exif()
    exif.endian = "<" if order == "II" else ">"
    exif[0x0112], exif[256], exif[257] = orientation, 64, 48
    exif.get_ifd(0x8769).update({0xA002: 64, 0xA003: 48, 0xA005: {0x1001: 64, 0x1002: 48}})
    attributes = f'tiff:Orientation="{orientation}" exif:PixelXDimension="64" exif:PixelYDimension="48"'
    elements = "<tiff:ImageWidth>64</tiff:ImageWidth><tiff:ImageLength>48</tiff:ImageLength>"
    xmp = (
        regions().decode().replace('about=""', f'about="" {attributes}').replace("<mwg-rs:R", elements + "<mwg-rs:R", 1)
    )
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif, xmp=xmp.encode())
    assert sizes(tmp_path / "a.jpg") == [(64, 48)] * 6
    engine = Engine(Enlarge(scale), "cpu", "float32")
    for name in ("b.jpg", "b.png"):
        enhance_file(engine, tmp_path / "a.jpg", tmp_path / name, FileOptions())
        size = Image.open(tmp_path / name).size
        assert size == ((48 * scale, 64 * scale) if orientation == 6 else (64 * scale, 48 * scale))
        assert sizes(tmp_path / name) == [size] * 6
        written = Image.open(tmp_path / name).info["xmp"]
        assert area_of(written) == pytest.approx(turned_region(orientation), abs=1e-12)


@pytest.mark.parametrize("scale", [1, 2])
def test_strips_of_a_rotated_photo_keep_its_orientation(tmp_path, monkeypatch, scale):
    monkeypatch.setattr(pipeline, "LARGE", 1000)
    from PIL.PngImagePlugin import PngInfo

    info, thumbnail = PngInfo(), "<xmp:Thumbnails><rdf:Alt/></xmp:Thumbnails>"
    before = (
        regions()
        .decode()
        .replace('about=""', 'about="" tiff:Orientation="6"')
        .replace("<mwg-rs:R", thumbnail + "<mwg-rs:R", 1)
    )
    info.add_itxt("XML:com.adobe.xmp", before)
    Image.fromarray(PIXELS).save(tmp_path / "a.png", pnginfo=info)
    enhance_file(Engine(Enlarge(scale), "cpu", "float32"), tmp_path / "a.png", tmp_path / "b.png", FileOptions())
    written = Image.open(tmp_path / "b.png")
    assert written.size == (64 * scale, 48 * scale)
    expected = before.replace(thumbnail, "")
    if scale == 2:
        expected = expected.replace('"64"', '"128"').replace('"48"', '"96"')
    assert written.info["xmp"] == expected.encode()


def test_thumbnails_are_removed(tmp_path):
    image = "<rdf:li rdf:parseType='Resource'><xmpGImg:image xmlns:xmpGImg='urn:i'>/9j/AAAA</xmpGImg:image></rdf:li>"
    thumbnails = f"\n  <xmp:Thumbnails>\n<rdf:Alt>{image}</rdf:Alt></xmp:Thumbnails>"
    before = packet('xmp:Rating="4"', thumbnails + "<xmp:Label>a</xmp:Label>")
    assert upright_xmp(before, 1, 64, 48) == before.replace(thumbnails.encode(), b"")
    assert upright_xmp(before, 6, 48, 64) == before.replace(thumbnails.encode(), b"")


# ---- packets that would exhaust memory

LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(12)
)
BOMBS = {
    "entities": (LAUGHS + "]>").encode() + packet("my:x='&m;'").split(b"?>\n", 1)[1],
    "an external entity": b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
    "depth": b"<a>" * 100_000,
    "elements": b"<x>" + b"<a/>" * 200_000 + b"</x>",
    "names": b"<x>" + b"".join(b"<a%d/>" % n for n in range(200_000)) + b"</x>",
    "attributes": b"<x " + b" ".join(b'a%d=""' % n for n in range(200_000)) + b"/>",
    "properties": packet(elements="<tiff:x/>" * 20_000),
    "size": packet(elements=f"<my:x>{'a' * 2**24}</my:x>"),
}


@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp", "png"])
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_left_out_with_a_warning(tmp_path, name, suffix):
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(ValueError, match=r"^expected [^\n]+$"):
        check_xmp(BOMBS[name])
    if suffix == "jpg" and len(BOMBS[name]) > 65_000:
        pytest.skip("larger than a segment of JPEG")
    if suffix == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", BOMBS[name].decode(), zip=True)
        Image.fromarray(PIXELS).save(path, pnginfo=info)
    elif suffix == "tif":
        Image.fromarray(PIXELS).save(path, tiffinfo={700: BOMBS[name]})
    else:
        Image.fromarray(PIXELS).save(path, xmp=BOMBS[name])
    with pytest.warns(UserWarning, match=rf"^{path}: left out XMP: expected [^\n]+$"):
        photo = read_photo(path)
    assert photo.pixels.shape == PIXELS.shape and photo.header.metadata.xmp == b""
