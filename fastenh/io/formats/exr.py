"""OpenEXR, through OpenImageIO."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from fastenh.io.colour import are_chromaticities
from fastenh.io.formats.base import Format, Header, take
from fastenh.io.formats.rows import KINDS, OpenImageIOReader, OpenImageIOWriter, new_spec


class OpenExr(Format):
    name = "OpenEXR"
    suffixes = (".exr",)
    start = re.compile(rb"v/1\x01")
    depths = ("float16", "float32")
    by_rows = True
    extra_channels = True
    linear = True
    holds = ()

    def open(self, path: Path) -> ExrReader:
        return ExrReader(path, self)

    def writer(self, path: Path, header: Header) -> OpenImageIOWriter:
        return OpenImageIOWriter(path, header, self, _spec(header))

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """The table of chunks, which is written last, and the last chunk. A file of several parts, or with deep pixels,
        is never written here and counts as complete."""
        file.seek(4)
        version = struct.unpack("<I", take(file, 4))[0]
        if version & 0x1800:  # several parts, or deep pixels
            return True
        while _word(file):
            _word(file)  # the attribute's type
            file.seek(struct.unpack("<I", take(file, 4))[0], 1)
        first, last = size, 0
        while file.tell() < first:  # the first chunk comes after the table
            place = struct.unpack("<Q", take(file, 8))[0]
            if not file.tell() <= place < size:
                return False
            first, last = min(first, place), max(last, place)
        file.seek(last + (16 if version & 0x200 else 4))  # after the coordinates of a tile, or of scanlines
        length = struct.unpack("<I", take(file, 4))[0]
        return last > 0 and file.tell() + length <= size


class ExrReader(OpenImageIOReader):
    def _refusal(self) -> str | None:
        return super()._refusal() or self._several_pages()

    def _header(self) -> Header:
        import OpenImageIO as oiio

        header, numbers = super()._header(), tuple(self._spec.getattribute("chromaticities") or ())
        return replace(
            header, premultiplied=header.alpha is not None, linear=True, storage={"spec": oiio.ImageSpec(self._spec)},
            chromaticities=numbers if are_chromaticities(numbers) else (),
        )  # fmt: skip


def _spec(header: Header) -> Any:
    """OpenImageIO's description of a new file: where the photo was an OpenEXR, that of its file with all attributes."""
    if "spec" not in header.storage:
        spec = new_spec(header)
        spec["DateTime"] = ""  # else OpenImageIO writes the current time
        return spec
    import OpenImageIO as oiio

    stored = header.storage["spec"]
    spec = oiio.ImageSpec(stored)
    spec["DateTime"] = spec.get_string_attribute("DateTime")
    turned = header.orientation == 1 and spec.get_int_attribute("Orientation", 1) != 1
    if turned or (header.width, header.height) != (spec.width, spec.height):
        spec["Orientation"] = header.orientation
        spec.x = spec.y = spec.full_x = spec.full_y = 0
        spec.width, spec.height = header.width, header.height
        spec.full_width, spec.full_height = header.width, header.height
    spec.tile_width = spec.tile_height = spec.tile_depth = 0
    spec.set_format(KINDS[str(header.dtype)])
    if spec.nchannels == header.channels:
        spec.channelformats = stored.channelformats  # () if all channels have the same
    else:  # gray has become RGB
        names = new_spec(header)
        spec.nchannels, spec.channelnames, spec.alpha_channel = header.channels, names.channelnames, names.alpha_channel
    return spec


def _word(file: BinaryIO) -> bytes:
    """The bytes up to the next zero."""
    word = b""
    while (byte := take(file, 1)) != b"\0" and len(word) < 256:
        word += byte
    return word
