"""PNG. OpenImageIO decodes the pixels; metadata is read and files are written here. ISA-L deflates ten times as fast as
zlib; files are as small, and every program reads them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import re
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from fastenh.io.colour import PRIMARIES, WHITE, are_chromaticities
from fastenh.io.formats.base import DEFLATE_LEVEL, Format, Header, take
from fastenh.io.formats.rows import OpenImageIOReader
from fastenh.io.metadata import (
    EXIF_START,
    Metadata,
    check_exif,
    coded_profile,
    exif_orientation,
    iptc_resources,
    without_thumbnails,
)
from fastenh.io.xmp import check_xmp

Chunks = list[tuple[bytes, bytes]]  # kind and data

# Chunks that say how pixels are stored, or belong to an animation; those that are always written anew; and those that
# describe new pixels as well, although their names say, by a capital at the end, that they belong to the old ones.
PIXEL_CHUNKS = set(b"IHDR PLTE IDAT IEND tRNS bKGD hIST sBIT sPLT acTL fcTL fdAT".split())
ANEW_CHUNKS = {b"iCCP", b"eXIf", b"pHYs"}
COLOUR_CHUNKS = set(b"cHRM gAMA sRGB cICP mDCV mDCv cLLI cLLi sCAL".split())
XMP_START = b"XML:com.adobe.xmp\0"
RAW_START = b"raw profile type "  # in lower case
OLD_TEXTS = tuple(RAW_START + name for name in (b"exif\0", b"app1\0", b"xmp\0", b"icc\0", b"icm\0"))  # become chunks
MAX_CHUNKS = 4096  # that are kept
MAX_UNPACKED = 2**24  # bytes of an ICC profile or XMP packet
MAX_SEEN = 2**18  # bytes of metadata that OpenImageIO is given: it may make many times as many of them
MAX_PACKED = 2**15  # of those, bytes of compressed texts: it may make a thousand times as many of them
AT_ONCE = 2**18  # bytes of pixels that are filtered at once: they stay in the cache


class Png(Format):
    name = "PNG"
    resolution = True
    suffixes = (".png",)
    start = re.compile(rb"\x89PNG\r\n\x1a\n")
    depths = ("uint8", "uint16")
    by_rows = True

    def open(self, path: Path) -> PngReader:
        return PngReader(path, self)

    def writer(self, path: Path, header: Header) -> PngWriter:
        return PngWriter(path, header)

    def has_end(self, file: BinaryIO, size: int) -> bool:
        """Chunks up to the last one."""
        file.seek(8)
        while True:
            length, kind = struct.unpack(">I4s", take(file, 8))
            if not kind.isalpha():
                return False
            if kind == b"IEND":
                return len(take(file, length + 4)) > 0
            file.seek(length + 4, 1)


class PngReader(OpenImageIOReader):
    def __init__(self, path: Path, format: Format) -> None:
        with _silent_libpng():
            super().__init__(path, format)

    def _decode(self, first: int, end: int) -> np.ndarray:
        with _silent_libpng():
            return super()._decode(first, end)

    def _read_metadata(self) -> list[str]:
        self._chunks, left_out = _read_chunks(self.path)
        texts = (data for kind, data in self._chunks if _is_compressed_text(kind, data))
        if left_out or sum(map(len, texts)) > MAX_PACKED or sum(len(data) for _, data in self._chunks) > MAX_SEEN:
            self._bare = tempfile.NamedTemporaryFile(suffix=self.path.suffix)  # noqa: SIM115
            _copy_bare(self.path, self._bare)
            self._bare.flush()
        return left_out

    def _refusal(self) -> str | None:
        if refusal := super()._refusal():
            return refusal
        if any(kind == b"acTL" for kind, _ in self._chunks):
            return "one picture, got an animation"
        try:
            _profile(self._chunks, 3)
        except ValueError as error:
            return str(error).removeprefix("expected ")
        return self._several_pages()

    def _header(self) -> Header:
        header, chunks = super()._header(), self._chunks
        exif = next((data for kind, data in chunks if kind == b"eXIf"), b"").removeprefix(EXIF_START)
        icc = _profile(chunks, 3 if header.channels > 2 else 1)
        about = replace(
            header.metadata, icc=icc, exif=exif, xmp=_xmp(chunks), iptc=_iptc(chunks), aspect=_aspect(chunks)
        )
        gamma, chromaticities = (None, ()) if icc else _declared(chunks, header.colours)
        return replace(
            header, premultiplied=False, orientation=exif_orientation(exif, about.xmp), metadata=about,
            storage={"chunks": chunks}, gamma=gamma, chromaticities=chromaticities,
        )  # fmt: skip


class PngWriter:
    """Writes a PNG of 8 or 16 bits by rows, from the first to the last."""

    def __init__(self, path: Path, header: Header) -> None:
        from isal import isal_zlib  # not on every machine that runs the ops

        bits = 8 * header.dtype.itemsize
        kind = {(1, 1): 0, (3, 3): 2, (1, 2): 4, (3, 4): 6}[header.colours, header.channels]
        self._path, self._pixel = path, header.channels * header.dtype.itemsize
        self._above = np.zeros(header.width * self._pixel, np.uint8)
        self._stream, self._crc32 = isal_zlib.compressobj(DEFLATE_LEVEL), isal_zlib.crc32
        shape = struct.pack(">IIBBBBB", header.width, header.height, bits, kind, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
        self._append((b"IHDR", shape), *_new_chunks(header.storage.get("chunks", []), header.metadata))

    def write(self, rows: np.ndarray) -> None:
        count = max(1, AT_ONCE // len(self._above))
        for top in range(0, len(rows), count):
            self._append((b"IDAT", self._stream.compress(self._filtered(rows[top : top + count]))))

    def close(self) -> None:
        self._append((b"IDAT", self._stream.flush()), (b"IEND", b""))

    def _filtered(self, rows: np.ndarray) -> np.ndarray:
        """By PNG's filter 3, "average": each byte minus the mean, rounded down, of those to its left and above it."""
        data = rows.astype(rows.dtype.newbyteorder(">"), order="C").view(np.uint8).reshape(len(rows), -1)
        above, left = np.empty_like(data), np.zeros_like(data)
        above[0], above[1:] = self._above, data[:-1]
        left[:, self._pixel :] = data[:, : -self._pixel]
        self._above = data[-1]
        result = np.full((len(data), 1 + data.shape[1]), 3, np.uint8)
        np.subtract(data, ((above ^ left) >> 1) + (above & left), out=result[:, 1:])
        return result

    def _append(self, *chunks: tuple[bytes, bytes]) -> None:
        with open(self._path, "ab") as file:
            for kind, data in chunks:
                if data or kind != b"IDAT":
                    crc = self._crc32(data, self._crc32(kind))
                    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc))


# ---- libpng prints errors to C's stderr; OpenImageIO reports them, too


_lock, _silenced = threading.Lock(), 0


@contextlib.contextmanager
def _silent_libpng() -> Iterator[None]:
    """Redirect C's stderr to /dev/null inside the context; Python's and C++'s are unaffected. Several threads may be
    inside at once."""
    global _silenced
    stderr, usual, null = _c_stderr()
    with _lock:
        _silenced += 1
        stderr.value = null
    try:
        yield
    finally:
        with _lock:
            _silenced -= 1
            stderr.value = null if _silenced else usual


@functools.cache
def _c_stderr() -> tuple[ctypes.c_void_p, int | None, int | None]:
    """C's variable `stderr`, and the streams to assign to it: its own and /dev/null. Without effect where `stderr` is a
    constant."""
    names = {"linux": "stderr" if platform.libc_ver()[0] == "glibc" else "", "darwin": "__stderrp"}
    if not names.get(sys.platform):
        return ctypes.c_void_p(), None, None
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    stderr = ctypes.c_void_p.in_dll(library, names[sys.platform])
    return stderr, stderr.value, library.fopen(b"/dev/null", b"w")


# ---- chunks


def _read_chunks(path: Path) -> tuple[Chunks, list[str]]:
    """The chunks of a PNG without those of its pixels, in their order; and what is left out of them, and why. The list
    ends at the first damaged chunk."""
    chunks: Chunks = []
    left_out: list[str] = []
    found, more = set[str](), 0

    def add(kind: bytes, data: bytes) -> None:
        name = {b"iCCP": "the ICC profile", b"eXIf": "EXIF"}.get(kind, "XMP" if _is_xmp(kind, data) else "")
        try:
            if name not in found:  # the first of several takes precedence
                _check(kind, data)
                chunks.append((kind, data))
        except ValueError as error:
            left_out.append(f"{name}: {error}")
        if name:
            found.add(name)

    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in (b"IDAT", b"fdAT", b"IEND") or len(chunks) == MAX_CHUNKS:
                more += kind not in (b"IDAT", b"fdAT", b"IEND")
                file.seek(size + 4, 1)
                continue
            data = file.read(min(size, 1 << 28))
            if len(data) < size or len(file.read(4)) < 4:
                break
            add(kind, data)
    for kind, data in chunks[:]:  # after all chunks, which take precedence over texts
        try:
            if raw := _raw_profile(kind, data):
                add(*raw)
        except ValueError as error:
            chunks.remove((kind, data))
            left_out.append(f"a text that holds metadata: {error}")
    return chunks, left_out + ([f"{more} chunks: expected at most {MAX_CHUNKS}"] if more else [])


def _check(kind: bytes, data: bytes) -> None:
    """Raise ValueError for a chunk that would exhaust memory."""
    if kind == b"eXIf":
        check_exif(data.removeprefix(EXIF_START))
    elif kind == b"iCCP":
        _profile([(kind, data)], 3)
    elif _is_xmp(kind, data):
        check_xmp(_xmp([(kind, data)]))


def _raw_profile(kind: bytes, data: bytes) -> tuple[bytes, bytes] | None:
    """The chunk (eXIf, iTXt or iCCP) that is equivalent to a text "Raw profile type …", in which ImageMagick and others
    store EXIF, XMP or an ICC profile; None for other chunks. Raises ValueError for a text that is too large."""
    name, content = _raw_text(kind, data)
    if name in (b"exif", b"app1") and content.startswith((EXIF_START, b"II", b"MM")):
        return b"eXIf", content.removeprefix(EXIF_START)
    if name in (b"xmp", b"app1") and content:
        return b"iTXt", XMP_START + bytes(4) + content.removeprefix(b"http://ns.adobe.com/xap/1.0/\0")
    if name in (b"icc", b"icm") and content:
        return b"iCCP", b"ICC profile\0\0" + zlib.compress(content)
    return None


def _raw_text(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
    """The name, in lower case, and content of a text "Raw profile type NAME": a line with the name, a line with the
    length, and hexadecimal digits. (b"", b"") for other chunks; the content is b"" if it is damaged. Raises ValueError
    for a text that is too large."""
    keyword, _, rest = data.partition(b"\0")
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not keyword.lower().startswith(RAW_START):
        return b"", b""
    packed = _is_compressed_text(kind, data)
    rest = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest
    text = _unpacked(rest) if packed else rest
    if len(text) > MAX_UNPACKED:
        raise ValueError(f"expected at most {MAX_UNPACKED >> 20} MiB, got {len(text) >> 20}")
    content = b""
    if parts := re.match(rb"\s*[^\n]*\n\s*(\d{1,9})\s*\n([0-9a-fA-F\s]*)", text):
        with contextlib.suppress(ValueError):
            content = bytes.fromhex(parts[2].decode())
        content = content[: int(parts[1])] if len(content) >= int(parts[1]) else b""
    return keyword[len(RAW_START) :].lower(), content


def _iptc(chunks: Chunks) -> bytes:
    """Photoshop's image resources, which PNG stores in a text, as it has no chunk for them; b"" if there are none."""
    for kind, data in chunks:
        name, content = _raw_text(kind, data)
        if name in (b"iptc", b"8bim") and content:
            return without_thumbnails(content) if content.startswith(b"8BIM") else iptc_resources(content)
    return b""


def _copy_bare(source: Path, target: IO[bytes]) -> None:
    """Copy a PNG without its metadata."""
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


def _new_chunks(chunks: Chunks, metadata: Metadata) -> Chunks:
    """For a PNG with this metadata and the other chunks of its source; all may come right after its first."""
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
        added.append((b"iTXt", XMP_START + bytes(4) + metadata.xmp))
    return added + [
        (kind, data)
        for kind, data in chunks
        if (kind[3:].islower() and kind not in PIXEL_CHUNKS | ANEW_CHUNKS) or kind in COLOUR_CHUNKS
        if not _is_xmp(kind, data) and not data.lower().startswith(OLD_TEXTS)
    ]


def _profile(chunks: Chunks, colours: int) -> bytes:
    """The ICC profile that the chunks name by a code or, if there is no code, contain; b"" where it cannot be unpacked.
    ValueError where the code is that of other colours."""
    coded = next((data for kind, data in chunks if kind == b"cICP" and len(data) == 4), b"\2\2\0\1")
    if coded[:2] != b"\2\2":  # unspecified
        if coded[2:] != b"\0\1":
            raise ValueError("expected full-range RGB, got another coding in the cICP chunk")
        return coded_profile(coded[0], coded[1], colours)
    data = next((data for kind, data in chunks if kind == b"iCCP"), b"")
    return _unpacked(data.split(b"\0", 1)[-1][1:])


def _declared(chunks: Chunks, colours: int) -> tuple[float | None, tuple[float, ...]]:
    """Gamma (gAMA; None for sRGB's curve) and chromaticities (cHRM; () for sRGB's) of a PNG without a profile. Both are
    ignored if an sRGB or cICP chunk states the colours. A gamma within 5 % of 2.2 is sRGB's curve, as in libpng."""
    found = dict(reversed(chunks))  # the first of several takes precedence
    if b"sRGB" in found or found.get(b"cICP", b"\2")[:1] != b"\2":
        return None, ()
    gama, chrm = found.get(b"gAMA", b""), found.get(b"cHRM", b"")
    gamma = 100_000 / max(struct.unpack(">I", gama)[0], 1) if len(gama) == 4 else None
    if gamma and (not 0.1 < gamma < 10 or abs(gamma / 2.2 - 1) <= 0.05):
        gamma = None
    numbers = np.frombuffer(chrm, ">u4") / 100_000 if len(chrm) == 32 else ()
    chromaticities = tuple(float(number) for number in (*numbers[2:], *numbers[:2]))  # white comes first
    known = are_chromaticities(chromaticities) and not np.allclose(chromaticities, (*PRIMARIES, *WHITE), atol=1e-3)
    return gamma, chromaticities if known and colours == 3 else ()


def _aspect(chunks: Chunks) -> tuple[int, int] | None:
    """How many pixels across are as long as how many down, where a PNG gives no unit of length."""
    data = next((data for kind, data in chunks if kind == b"pHYs"), b"")
    across, down = struct.unpack(">II", data[:8]) if data[8:] == b"\0" else (0, 0)
    return (across, down) if across and down else None


def _xmp(chunks: Chunks) -> bytes:
    """The XMP packet, compressed or not."""
    data = next((data for kind, data in chunks if _is_xmp(kind, data)), XMP_START)
    flags, rest = data[len(XMP_START) :][:2], data[len(XMP_START) + 2 :]
    packet = rest.split(b"\0", 2)[-1]  # after the language and the keyword in that language
    return _unpacked(packet) if flags[:1] == b"\1" else packet


def _is_xmp(kind: bytes, data: bytes) -> bool:
    return kind == b"iTXt" and data.startswith(XMP_START)


def _is_compressed_text(kind: bytes, data: bytes) -> bool:
    return kind == b"zTXt" or (kind == b"iTXt" and data.split(b"\0", 1)[-1][:1] == b"\1")


def _unpacked(data: bytes) -> bytes:
    """b"" where it is damaged; ValueError where it is too large."""
    with contextlib.suppress(zlib.error):
        unpacker = zlib.decompressobj()
        result = unpacker.decompress(data, MAX_UNPACKED)
        if unpacker.unconsumed_tail:
            raise ValueError(f"expected at most {MAX_UNPACKED >> 20} MiB once unpacked, got more")
        return result
    return b""
