"""PNG, TIFF and OpenEXR by rows, through OpenImageIO: any number of them at a time, so that no file is too large."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
import OpenImageIO as oiio

from fastenh.io import metadata
from fastenh.io.complete import is_complete
from fastenh.io.header import EXR, PNG, TIFF, Header
from fastenh.io.metadata import ICC, IPTC, RESOURCES, XMP, Metadata
from fastenh.memory import is_out_of_memory

DTYPES = {"uint8": "uint8", "uint16": "uint16", "half": "float16", "float": "float32"}
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}  # what OpenImageIO calls them
KEPT_COMPRESSION = ("none", "lzw", "zip", "packbits")  # of TIFF; any other becomes zip, which loses nothing
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # TIFF's photometric interpretation
COLOURS = {WHITE_IS_0: 1, BLACK_IS_0: 1, RGB: 3, PALETTE: 3, YCBCR: 3}  # as OpenImageIO gives them
SMALL = 64  # pictures beside that of a TIFF, at most: thumbnails, a pyramid
HEAVY = 2**18  # bytes of a PNG's metadata of which OpenImageIO may make many times as many
PACKED = 2**15  # those of compressed texts, of which it may make a thousand times as many


class Rows:
    """A file that is read by rows: its `header`, and `read`. Raises ValueError for what is no photo of one picture."""

    def __init__(self, path: Path, format: str) -> None:
        self.path, self._format = path, format
        self._chunks: list[tuple[bytes, bytes]] = []  # of a PNG
        self._directory = metadata.Directory()  # of a TIFF; empty where it is damaged but the pixels can be read
        left_out: list[str] = []
        if format == PNG:
            self._chunks, left_out = metadata.read_chunks(path)
        elif format == TIFF:
            try:
                with open(path, "rb") as tiff:
                    self._directory = metadata.read_directory(tiff)
            except metadata.Overlap as error:
                left_out.append(f"all metadata, any ICC profile too: {error}")
            except ValueError:
                pass
        self._bare: IO[bytes] | None = None  # a copy without metadata, where these would exhaust OpenImageIO's memory
        texts = (data for kind, data in self._chunks if metadata.is_compressed_text(kind, data))
        if left_out or sum(map(len, texts)) > PACKED or sum(len(data) for _, data in self._chunks) > HEAVY:
            self._bare = self._without_metadata()
        for part in left_out:
            warnings.warn(f"{path}: left out {part}", stacklevel=2)
        as_stored = oiio.ImageSpec()
        as_stored["oiio:UnassociatedAlpha"] = 1  # else colours are multiplied by alpha
        file = oiio.ImageInput.open(self._bare.name if self._bare else str(path), as_stored)
        if file is None:
            raise self._damaged(oiio.geterror())
        self._file, self._spec = file, file.spec()
        what = self._refusal()
        if what:
            raise ValueError(f"{path}: expected {what}")
        self.header = self._header()
        self._blocks: list[tuple[int, np.ndarray]] = []  # rows that are decoded, and the number of the first of each
        self._step = self._spec.tile_height or 1  # how many are decoded together
        if self._spec.get_string_attribute("planarconfig") == "separate" and not self._spec.tile_height:
            strip = self._spec.get_int_attribute("tiff:RowsPerStrip")
            self._step = strip if 0 < strip < self._spec.height else self._spec.height

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows from `top` up to `bottom`, (rows, width, channels), as they are stored.

        What the call before has decoded and this one wants too is kept, since decoders hardly go back: the rows above a
        strip, the rest of a row of tiles. No more than that is in memory."""
        blocks = [(first, rows) for first, rows in self._blocks if first + len(rows) > top]
        if blocks and blocks[0][0] > top:
            blocks = []
        end = blocks[-1][0] + len(blocks[-1][1]) if blocks else top // self._step * self._step
        if end < bottom:  # copies, so that the rows above are let go before more are decoded
            self._blocks = blocks = [(max(first, top), rows[max(top - first, 0) :].copy()) for first, rows in blocks]
            whole = min(-(-bottom // self._step) * self._step, self._spec.height)
            blocks.append((end, self._decoded(end, whole)))
        self._blocks = blocks
        parts = [rows[max(top - first, 0) : max(bottom - first, 0)] for first, rows in self._blocks]
        if len(parts) == 1 and len(parts[0]) == len(self._blocks[0][1]):
            return parts[0]
        return np.concatenate(parts)  # a copy, so that it does not hold rows which are let go

    def _decoded(self, first: int, end: int) -> np.ndarray:
        """Rows, from where those that are decoded together begin to where they end."""
        spec, dtype = self._spec, self.header.dtype
        kind, y = KINDS[str(dtype)], (spec.y + first, spec.y + end)
        if wide := spec.tile_width:  # a column of tiles at a time: OpenImageIO needs as much memory again for each call
            rows = np.empty((end - first, spec.width, spec.nchannels), dtype)
            for left in range(0, spec.width, wide):
                x = spec.x + left, spec.x + min(left + wide, spec.width)
                tiles = self._checked(self._file.read_tiles(*x, *y, spec.z, spec.z + 1, 0, spec.nchannels, kind))
                rows[:, left : left + wide] = tiles.reshape(end - first, -1, spec.nchannels)
        else:
            rows = self._checked(self._file.read_scanlines(*y, spec.z, 0, spec.nchannels, kind))
            rows = rows.reshape(end - first, spec.width, spec.nchannels)
        if self._photometric == WHITE_IS_0:  # OpenImageIO inverts all channels of 8 bits, alpha too, and none of 16
            wrong = rows[..., 1:] if dtype == np.uint8 else rows[..., :1]
            np.invert(wrong, out=wrong)
        return rows

    def _checked(self, rows: np.ndarray | None) -> np.ndarray:
        problem = self._file.geterror()
        if "not configured" in problem or "not implemented" in problem:
            number = self._spec.get_int_attribute("tiff:Compression")
            got = self._spec.get_string_attribute("compression") or f"number {number}"
            raise ValueError(f"{self.path}: expected a compression that can be read, got {got}")
        if rows is None or problem:
            raise self._damaged(problem)
        return rows

    def _damaged(self, problem: str) -> Exception:
        if is_out_of_memory(problem):
            return MemoryError(f"{self.path}: out of memory")
        return ValueError(f"{self.path}: expected a whole {self._format}, got a damaged one ({_first_line(problem)})")

    @property
    def _photometric(self) -> int:
        return self._spec.get_int_attribute("tiff:PhotometricInterpretation", -1)

    def _colours(self) -> int:
        """3, or 1 for gray; 0 for what is neither. Of TIFF, OpenImageIO names channels by how many there are alone."""
        names = [name.upper() for name in self._spec.channelnames]
        if self._format == TIFF:
            colours = COLOURS.get(self._photometric, 0)
            return colours if colours <= len(names) else 0
        if names[:3] == ["R", "G", "B"]:
            return 3
        return 1 if names[:1] in (["Y"], ["I"]) and not {"RY", "BY"} & {*names} else 0

    def _refusal(self) -> str | None:
        """What was expected and what came instead, or None."""
        spec, file = self._spec, self._file
        if spec.deep or spec.depth > 1 or not self._colours():
            names = spec.get_string_attribute("tiff:ColorSpace") or ", ".join(spec.channelnames[:6])
            return f"RGB or gray, got {'deep pixels' if spec.deep else names}"
        for kind in spec.channelformats or (spec.format,):
            if str(kind) not in DTYPES:
                return f"8 or 16 bits, or floats of 16 or 32, got {kind}"
        if self._photometric == WHITE_IS_0 and str(spec.format) in ("half", "float"):
            return "floats with 0 for black, got 0 for white"
        if any(kind == b"acTL" for kind, _ in self._chunks):
            return "one picture, got an animation"
        try:
            metadata.png_profile(self._chunks, 3)
        except ValueError as error:
            return str(error).removeprefix("expected ")
        if spec.get_int_attribute("tiff:subfiletype") & metadata.REDUCED:
            return "a photo at its full size first, got a small picture of it"
        if self._format == TIFF:
            return self._other_pictures()
        several = file.seek_subimage(1, 0)
        file.seek_subimage(0, 0)
        file.geterror()  # of a page that is not there
        return "one picture, got several pages" if several else None

    def _other_pictures(self) -> str | None:
        """What was expected and what came instead, where a TIFF holds more than a picture and a few small ones."""
        with open(self.path, "rb") as file, contextlib.suppress(ValueError):
            for number, small in enumerate(metadata.other_pictures(file)):
                if not small:
                    return "one picture, got several pages"
                if number == SMALL:
                    return f"one picture, got more than {SMALL} small ones beside it"
        return None

    def _without_metadata(self) -> IO[bytes]:
        """A copy of the file that is there as long as it is read."""
        bare = tempfile.NamedTemporaryFile(suffix=self.path.suffix)  # noqa: SIM115
        if self._format == PNG:
            metadata.copy_png(self.path, bare)
            bare.flush()
        else:
            shutil.copyfile(self.path, bare.name)
            try:
                metadata.remove_from_tiff(Path(bare.name))
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from None
        return bare

    def _header(self) -> Header:
        spec = self._spec
        alpha = spec.alpha_channel if spec.alpha_channel >= 0 else None
        straight = (self._format != EXR and spec.get_int_attribute("oiio:UnassociatedAlpha")) or self._format == PNG
        storage: dict[str, Any] = {}
        icc, exif, xmp, iptc, chromaticities, aspect = b"", b"", b"", b"", (), None
        orientation = spec.get_int_attribute("Orientation", 1)
        if self._format == PNG:
            storage["chunks"] = self._chunks
            icc = metadata.png_profile(self._chunks, 3 if spec.nchannels > 2 else 1)
            xmp = metadata.png_xmp(self._chunks)
            aspect = metadata.png_aspect(self._chunks)
            exif = next((data for kind, data in self._chunks if kind == b"eXIf"), b"").removeprefix(b"Exif\0\0")
            orientation = metadata.exif_orientation(exif)
        elif self._format == TIFF:
            directory = self._directory
            compression = spec.get_string_attribute("compression")
            storage["compression"] = compression if compression in KEPT_COMPRESSION else "zip"
            exif = metadata.exif_of_tiff(directory)
            xmp, icc = directory.block(XMP), directory.block(ICC)
            iptc = metadata.without_thumbnails(directory.block(RESOURCES))
            iptc = iptc or metadata.iptc_resources(directory.block(IPTC))
        else:
            storage["spec"] = oiio.ImageSpec(spec)
            chromaticities = tuple(spec.getattribute("chromaticities") or ())
            chromaticities = chromaticities if _mixes(chromaticities) else ()
        unit = {"in": 1.0, "inch": 1.0, "cm": 2.54, "m": 0.0254}.get(spec.get_string_attribute("ResolutionUnit"))
        across, down = (spec.get_float_attribute(f"{axis}Resolution") * (unit or 0) for axis in "XY")
        dpi = (across, down) if min(across, down) > 0 else None
        return Header(
            self._format, spec.height, spec.width, spec.nchannels, np.dtype(DTYPES[str(spec.format)]), self._colours(),
            alpha, alpha is not None and not straight, orientation if orientation in range(1, 9) else 1,
            self._format == EXR, chromaticities,
            Metadata(icc, exif, xmp, iptc, dpi, aspect),
            storage,
        )  # fmt: skip


class WriteError(Exception):
    """What OpenImageIO says of a file that it could not write."""


class RowWriter:
    """Writes a TIFF or OpenEXR by rows, from the first to the last; `close` adds the metadata."""

    def __init__(self, path: Path, header: Header) -> None:
        kind, storage = KINDS[str(header.dtype)], header.storage
        if "spec" in storage:
            spec = oiio.ImageSpec(storage["spec"])
            if header.orientation == 1 and spec.get_int_attribute("Orientation", 1) != 1:  # it was turned
                spec["Orientation"] = 1
                spec.x = spec.y = spec.full_x = spec.full_y = 0
                spec.width, spec.height = header.width, header.height
                spec.full_width, spec.full_height = header.width, header.height
            spec.tile_width = spec.tile_height = spec.tile_depth = 0
        else:
            spec = oiio.ImageSpec(header.width, header.height, header.channels, kind)
            spec["Orientation"] = header.orientation
            names = ["R", "G", "B"] if header.colours == 3 else ["Y"]
            names += [f"channel{number}" for number in range(header.colours, header.channels)]
            if header.alpha is not None:
                names[header.alpha] = "A"
            spec.channelnames = names
        spec.set_format(kind)
        if "spec" in storage:
            spec.channelformats = storage["spec"].channelformats  # () where all channels have one
        spec.alpha_channel = -1 if header.alpha is None else header.alpha
        if header.alpha is not None and not header.premultiplied:
            spec["oiio:UnassociatedAlpha"] = 1
        if header.format == TIFF:
            spec["compression"] = storage.get("compression", "zip")
        self._path, self._header, self._spec, self._next = path, header, spec, spec.y
        file = oiio.ImageOutput.create(str(path))
        if file is None or not file.open(str(path), spec):
            raise WriteError(_first_line(file.geterror() if file else oiio.geterror()))
        self._file = file

    def write(self, rows: np.ndarray) -> None:
        top, self._next = self._next, self._next + len(rows)
        if not self._file.write_scanlines(top, self._next, 0, np.ascontiguousarray(rows)):
            raise WriteError(_first_line(self._file.geterror()))

    def close(self) -> None:
        if not self._file.close():
            raise WriteError(_first_line(self._file.geterror()))
        if not is_complete(self._path):  # neither libtiff nor OpenEXR tells of a disk that is full at the end
            raise WriteError("there is only a part of it; is there room on the disk?")
        if self._header.format == TIFF:
            # OpenImageIO takes three channels for RGB, whatever they are.
            metadata.add_to_tiff(self._path, self._header.metadata, self._header.tiff_channels())


def _mixes(chromaticities: tuple[float, ...]) -> bool:
    """Whether these are x, y of three primaries and of a white that they mix to; some programs write zeros."""
    if len(chromaticities) != 8:
        return False
    x, y = np.reshape(chromaticities, (4, 2)).T.astype(float)
    xyz = np.stack([x, y, 1 - x - y])
    if not np.isfinite(xyz).all() or abs(np.linalg.det(xyz[:, :3])) < 1e-6:
        return False
    return bool(y[3] > 0 and (np.linalg.solve(xyz[:, :3], xyz[:, 3]) > 0).all())


def _first_line(text: str) -> str:
    return (text.splitlines() or ["unknown"])[0]
