"""Cameras' RAW, which is only read, through LibRaw (rawpy)."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from fastenh.io.colour import profile_of
from fastenh.io.formats.base import Format, Header
from fastenh.io.formats.jpeg import exif_of, read_segments
from fastenh.io.metadata import Metadata


class Raw(Format):
    name = "camera RAW"
    suffixes = (
        ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf",
        ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srw", ".x3f",
    )  # fmt: skip
    start = re.compile(rb"....ftypcrx |II\*\0....CR|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb", re.S)
    start_if_named = re.compile(rb"II\*\0|MM\0\*|II\x2b\0|MM\0\x2b")  # as a TIFF
    package = "rawpy"

    def decode(self, path: Path) -> tuple[Header, np.ndarray]:
        """Developed to 16-bit sRGB, upright, with the camera's white balance and no change of brightness. EXIF is that
        of the JPEG preview that cameras store beside the sensor's values; what it says of colours is about the preview,
        so the ICC profile takes precedence."""
        import rawpy

        with rawpy.imread(str(path)) as raw:
            pixels = raw.postprocess(output_bps=16, use_camera_wb=True, no_auto_bright=True)
            try:
                thumbnail = raw.extract_thumb()
                preview = bytes(thumbnail.data) if thumbnail.format == rawpy.ThumbFormat.JPEG else b""
            except rawpy.LibRawError:
                preview = b""
        exif = exif_of(read_segments(io.BytesIO(preview)))
        return Header.of(self.name, pixels, Metadata(profile_of(), exif)), pixels
