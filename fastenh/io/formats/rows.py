"""What PNG, TIFF and OpenEXR share: files are read and written by rows through OpenImageIO, any number of rows at a
time, so that no picture is too large."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from fastenh.io.formats.base import Format, Header, WriteError, first_line
from fastenh.io.metadata import Metadata
from fastenh.memory import is_out_of_memory

DTYPES = {"uint8": "uint8", "uint16": "uint16", "half": "float16", "float": "float32"}  # by OpenImageIO's names
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


class BlockReader:
    """A file that is read by rows. Subclasses set `path` and `header`; `_decode` decodes entire strips or tiles."""

    path: Path
    header: Header
    _step = 1  # the number of rows that are decoded together

    def __init__(self) -> None:
        self._blocks: list[tuple[int, np.ndarray]] = []  # decoded rows, each block with the number of its first row

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows from `top` up to `bottom`, (rows, width, channels), as they are stored.

        Decoders are slow to go back, so decoded rows that the next call may need are kept: the overlap between calls
        and the rest of a row of tiles. Nothing else stays in memory."""
        blocks = [(first, rows) for first, rows in self._blocks if first + len(rows) > top]
        if blocks and blocks[0][0] > top:
            blocks = []
        end = blocks[-1][0] + len(blocks[-1][1]) if blocks else top // self._step * self._step
        if end < bottom:  # copy, so that the rows above `top` are freed before more are decoded
            self._blocks = blocks = [(max(first, top), rows[max(top - first, 0) :].copy()) for first, rows in blocks]
            aligned = min(-(-bottom // self._step) * self._step, self.header.height)
            blocks.append((end, self._decode(end, aligned)))
        self._blocks = blocks
        parts = [rows[max(top - first, 0) : max(bottom - first, 0)] for first, rows in self._blocks]
        if len(parts) == 1 and len(parts[0]) == len(self._blocks[0][1]):
            return parts[0]
        return np.concatenate(parts)  # a copy, so that the other rows can be freed

    def _decode(self, first: int, end: int) -> np.ndarray:
        """Rows from `first` up to `end`, which are multiples of `_step`; `end` may be the height."""
        raise NotImplementedError


class OpenImageIOReader(BlockReader):
    """A file that is read through OpenImageIO. Raises ValueError for files that are not accepted.

    Formats override what they know better than OpenImageIO.
    """

    def __init__(self, path: Path, format: Format) -> None:
        import OpenImageIO as oiio  # not on every machine that runs the ops

        super().__init__()
        self.path, self._format = path, format
        self._bare: IO[bytes] | None = None  # a copy without metadata that would exhaust OpenImageIO's memory
        for part in self._read_metadata():
            warnings.warn(f"{path}: left out {part}", stacklevel=2)
        as_stored = oiio.ImageSpec()
        as_stored["oiio:UnassociatedAlpha"] = 1  # else OpenImageIO multiplies colours by alpha
        file = oiio.ImageInput.open(self._bare.name if self._bare else str(path), as_stored)
        if file is None:
            raise self._damaged(oiio.geterror())
        self._file, self._spec = file, file.spec()
        refusal = self._refusal()
        if refusal:
            raise ValueError(f"{path}: expected {refusal}")
        self.header = self._header()
        self._step = self._spec.tile_height or 1
        if self._spec.get_string_attribute("planarconfig") == "separate" and not self._spec.tile_height:
            strip = self._spec.get_int_attribute("tiff:RowsPerStrip")
            self._step = strip if 0 < strip < self._spec.height else self._spec.height

    # ---- what formats may override

    def _read_metadata(self) -> list[str]:
        """Read the metadata that OpenImageIO changes or leaves out, before it opens the file; make a `_bare` copy where
        it must not see them. Returns what had to be left out, and why."""
        return []

    def _colours(self) -> int:
        """3, or 1 for gray; 0 for anything else."""
        names = [name.upper() for name in self._spec.channelnames]
        if names[:3] == ["R", "G", "B"]:
            return 3
        return 1 if names[:1] in (["Y"], ["I"]) and not {"RY", "BY"} & {*names} else 0

    def _refusal(self) -> str | None:
        """For a file that is not accepted, what was expected and what came instead."""
        spec = self._spec
        if spec.deep or spec.depth > 1 or not self._colours():
            names = spec.get_string_attribute("tiff:ColorSpace") or ", ".join(spec.channelnames[:6])
            return f"RGB or gray, got {'deep pixels' if spec.deep else names}"
        for kind in spec.channelformats or (spec.format,):
            if str(kind) not in DTYPES:
                return f"8 or 16 bits, or floats of 16 or 32, got {kind}"
        return None

    def _header(self) -> Header:
        """As OpenImageIO describes the file."""
        spec = self._spec
        alpha = spec.alpha_channel if spec.alpha_channel >= 0 else None
        orientation = spec.get_int_attribute("Orientation", 1)
        unit = {"in": 1.0, "inch": 1.0, "cm": 2.54, "m": 0.0254}.get(spec.get_string_attribute("ResolutionUnit"), 0)
        across, down = (spec.get_float_attribute(f"{axis}Resolution") * unit for axis in "XY")
        return Header(
            self._format.name, spec.height, spec.width, spec.nchannels, np.dtype(DTYPES[str(spec.format)]),
            self._colours(), alpha, alpha is not None and not spec.get_int_attribute("oiio:UnassociatedAlpha"),
            orientation if orientation in range(1, 9) else 1,
            metadata=Metadata(dpi=(across, down) if min(across, down) > 0 else None),
        )  # fmt: skip

    def _decode(self, first: int, end: int) -> np.ndarray:
        spec, dtype = self._spec, self.header.dtype
        kind, y = KINDS[str(dtype)], (spec.y + first, spec.y + end)
        if not spec.tile_width:
            rows = self._checked(self._file.read_scanlines(*y, spec.z, 0, spec.nchannels, kind))
            return rows.reshape(end - first, spec.width, spec.nchannels)
        rows = np.empty((end - first, spec.width, spec.nchannels), dtype)
        for left in range(0, spec.width, spec.tile_width):  # a column of tiles at a time: each call takes as much again
            x = spec.x + left, spec.x + min(left + spec.tile_width, spec.width)
            tiles = self._checked(self._file.read_tiles(*x, *y, spec.z, spec.z + 1, 0, spec.nchannels, kind))
            rows[:, left : left + spec.tile_width] = tiles.reshape(end - first, -1, spec.nchannels)
        return rows

    # ---- what they share

    def _several_pages(self) -> str | None:
        """A refusal, or None where the file has one picture."""
        several = self._file.seek_subimage(1, 0)
        self._file.seek_subimage(0, 0)
        self._file.geterror()  # clears the error about a missing page
        return "one picture, got several pages" if several else None

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
        unsupported = "not supported" in problem or "can not handle" in problem
        what = (
            (f"{self._format.name} of a kind that can be read", "another")
            if unsupported
            else (f"a whole {self._format.name}", "a damaged one")
        )
        return ValueError(f"{self.path}: expected {what[0]}, got {what[1]} ({first_line(problem)})")


def new_spec(header: Header) -> Any:
    """OpenImageIO's description of a photo that was not read from a file of the same format."""
    import OpenImageIO as oiio

    spec = oiio.ImageSpec(header.width, header.height, header.channels, KINDS[str(header.dtype)])
    spec["Orientation"] = header.orientation
    names = ["R", "G", "B"] if header.colours == 3 else ["Y"]
    names += [f"channel{number}" for number in range(header.colours, header.channels)]
    if header.alpha is not None:
        names[header.alpha] = "A"
    spec.channelnames = names
    return spec


class OpenImageIOWriter:
    """Writes a file by rows, from the first to the last."""

    def __init__(self, path: Path, header: Header, format: Format, spec: Any) -> None:
        import OpenImageIO as oiio

        spec.alpha_channel = -1 if header.alpha is None else header.alpha
        if header.alpha is not None and not header.premultiplied:
            spec["oiio:UnassociatedAlpha"] = 1
        self._path, self._format, self._next = path, format, spec.y
        file = oiio.ImageOutput.create(str(path))
        if file is None or not file.open(str(path), spec):
            raise WriteError(first_line(file.geterror() if file else oiio.geterror()))
        self._file = file

    def write(self, rows: np.ndarray) -> None:
        top, self._next = self._next, self._next + len(rows)
        if not self._file.write_scanlines(top, self._next, 0, np.ascontiguousarray(rows)):
            self._fail(self._file.geterror())

    def close(self) -> None:
        if not self._file.close():
            self._fail(self._file.geterror())
        with open(self._path, "rb") as file:  # OpenEXR does not report a disk that becomes full at the end
            complete = self._format.is_complete(file)
        if not complete:
            self._fail("the file is incomplete; is the disk full?")

    def _fail(self, problem: str) -> NoReturn:
        """Raise OSError if the disk is full, which OpenImageIO does not report; otherwise raise WriteError."""
        with open(self._path, "ab") as file:
            file.write(bytes(2**20))
        raise WriteError(first_line(problem))
