"""Reading and writing photos: 8-bit JPEG and PNG.

What is kept: the pixels' own colour space with its ICC profile, byte for byte; EXIF (maker notes included) and XMP;
alpha. What changes: a photo stored on its side is turned upright once, and its orientation tags then say so; the EXIF
thumbnail, a picture of the photo as it was, is let go. IPTC blocks and the gain map of an HDR JPEG are not kept yet.

To come: 16 bit, TIFF, HEIC, camera RAW, CMYK. Until then each is refused by name.
"""

import io
import os
import re
import stat
import struct
from pathlib import Path

from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

from fastenh.io.files import replacing

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}

MAX_PIXELS = 2**28  # 268 megapixels: above any single shot of a camera sold today, below what would fill the memory

# What a file starts with, for the files that people do hand to a photo tool.
_NOT_YET = [
    (re.compile(rb"II\*\0|MM\0\*|II\x2b\0|MM\0\x2b|IIRO|IIU\0|FUJIFILMCCD-RAW", re.S), "TIFF or camera RAW"),
    (re.compile(rb"....ftyp(heic|heix|hevc|mif1|msf1|avif)", re.S), "HEIC or AVIF"),
    (re.compile(rb"....ftypcrx ", re.S), "camera RAW"),
    (re.compile(rb"RIFF....WEBP", re.S), "WebP"),
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"v/1\x01"), "OpenEXR"),
    (re.compile(rb"\xff\x0a|....JXL ", re.S), "JPEG XL"),
]


def read_photo(path: str | os.PathLike[str]) -> Image.Image:
    """Read an 8-bit JPEG or PNG, upright, as a PIL image of mode "L", "LA", "RGB" or "RGBA".

    Pixels stay in the photo's own colour space. `image.info` keeps "icc_profile", "exif" and "xmp" for `write_photo`.
    A JPEG that holds several pictures (gain map, stereo) is read as its first, the one every viewer shows.

    Raises OSError where the file cannot be read, and ValueError, before any pixel is decoded, for anything that is not
    an 8-bit RGB or gray JPEG or PNG of at most 2²⁸ pixels; ValueError too where the pixels turn out damaged.
    """
    path = Path(path)
    if not stat.S_ISREG(os.stat(path).st_mode):  # before open(): a pipe would wait for a writer for ever
        raise ValueError(f"{path}: expected a file, got a folder, pipe or device")
    with open(path, "rb") as file:
        head = file.read(32)
        file.seek(0)
        # The plugins directly: Image.open would try every format, and has one limit on pixels for the whole process.
        plugin: type[JpegImagePlugin.JpegImageFile | PngImagePlugin.PngImageFile]
        if head.startswith(b"\xff\xd8\xff"):
            plugin = JpegImagePlugin.JpegImageFile
        elif head.startswith(b"\x89PNG\r\n\x1a\n"):
            plugin = PngImagePlugin.PngImageFile
        else:
            raise ValueError(f"{path}: expected a JPEG or PNG photo, got {_kind(head)}")
        try:
            image: Image.Image = plugin(file)
            refusal = _refusal(image, head)
            if refusal is None:
                image.load()
                return _plain(image)
        except MemoryError:
            raise
        except Exception as error:  # decoders meet a damaged file with a dozen kinds of exception
            raise ValueError(f"{path}: expected a whole {plugin.format}, got a damaged one ({error})") from error
    raise ValueError(f"{path}: {refusal}")


def write_photo(image: Image.Image, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a PIL image ("L", "LA", "RGB", "RGBA") as JPEG or PNG, chosen by the suffix of `path`, whole or not at all.

    JPEG has quality 95 and full colour resolution (4:4:4). ICC profile, EXIF and XMP are taken from `image.info`.

    Raises ValueError for another suffix or where the format cannot hold the image, FileExistsError where the file is
    there and `overwrite` is false, OSError where it cannot be written.
    """
    path = Path(path)
    format = SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, got {path.suffix or 'none'!r}")
    if format == "JPEG" and image.mode not in ("L", "RGB"):
        raise ValueError(f"{path}: expected a photo without transparency for JPEG, got mode {image.mode}; PNG keeps it")
    keep = {key: image.info[key] for key in ("icc_profile", "exif") if image.info.get(key)}
    xmp = image.info.get("xmp")
    encoded = io.BytesIO()  # first in memory: then only the write itself can fail for want of space, and says so
    if format == "JPEG":
        image.save(encoded, format, quality=95, subsampling=0, **keep, **({"xmp": xmp} if xmp else {}))
    else:
        text = PngImagePlugin.PngInfo()
        if xmp:
            text.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        # Level 1 is about four times as fast as the usual 6, for files about a fifth bigger.
        image.save(encoded, format, compress_level=1, pnginfo=text, **keep)
    with replacing(path, overwrite) as part:
        part.write_bytes(encoded.getbuffer())


def _kind(head: bytes) -> str:
    if not head:
        return "an empty file"
    for pattern, name in _NOT_YET:
        if pattern.match(head):
            return f"{name} (not supported yet)"
    return f"a file that starts with {head[:12]!r}"


def _refusal(image: Image.Image, head: bytes) -> str | None:
    """Why an opened, not yet decoded image is not taken, or None."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"expected at most {MAX_PIXELS / 1e6:.0f} megapixels, got {width}×{height}"
    if image.format == "PNG" and head[24] == 16:  # the bit depth in IHDR; Pillow would cut it to 8 without a word
        return "expected 8 bits per channel, got 16 (not supported yet)"
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return f"expected RGB or gray, got {image.mode} (not supported yet)"
    if getattr(image, "is_animated", False):
        return "expected one picture, got an animation (not supported yet)"
    return None


def _plain(image: Image.Image) -> Image.Image:
    """Upright, in one of the four modes, with metadata that says so."""
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp")
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF cannot say how the photo is turned, and is not worth refusing it
        exif = b""
    # From the blocks as they were read: Pillow has by now written them anew, which moves the maker notes.
    image.info["exif"] = _turned_upright(exif)
    if xmp:
        image.info["xmp"] = re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", xmp)
    if "transparency" in image.info:
        mode = "LA" if image.mode in ("1", "L") else "RGBA"
    else:
        mode = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
    return image if image.mode == mode else image.convert(mode)


def _turned_upright(exif: bytes) -> bytes:
    """The same EXIF block with orientation 1 and no thumbnail; all else stays at its place, as maker notes need it.

    EXIF is a TIFF: byte order, 42, offset of the first directory; a directory is a count, 12 bytes per entry (tag,
    type, count, value), and the offset of the next directory, which in EXIF holds the thumbnail.
    """
    data = bytearray(exif)
    start = 6 if data.startswith(b"Exif\0\0") else 0
    try:
        order = {b"II": "<", b"MM": ">"}[bytes(data[start : start + 2])]
        directory = start + struct.unpack_from(order + "I", data, start + 4)[0]
        end = directory + 2 + 12 * struct.unpack_from(order + "H", data, directory)[0]
        for entry in range(directory + 2, end, 12):
            if struct.unpack_from(order + "H", data, entry)[0] == 0x0112:
                struct.pack_into(order + "HIHH", data, entry + 2, 3, 1, 1, 0)
        struct.pack_into(order + "I", data, end, 0)
    except (KeyError, struct.error):
        return b""
    return bytes(data)
